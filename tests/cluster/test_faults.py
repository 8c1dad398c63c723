"""Failures on real workers: bad input, steps that raise, devices that die, stop or send wrong data.

    a, b      fast, never harmed
    snail-N   slow enough to be caught in the middle of a frame; each is killed or stopped by one test
    tiny      has almost no memory

Upper bounds on time test liveness only: that something ends at all.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import zmq
from nets import Array, Net, difference, image, make_plan, one_stage, unsplit
from waiting import children, ended, until

import coedge
from coedge import (
    ClusterError,
    CoEdgeError,
    ConfigError,
    DeviceLost,
    FrameTimeout,
    InfeasibleError,
    InputError,
    Objective,
    PlanError,
    StepFailed,
)
from coedge.core.region import UNIT, UnitRect
from coedge.execution.program import CLIENT, Receive
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from orchestrator.cluster.cluster import Cluster
from workers.transport.message import Message, MessageKind
from workers.transport.transport import Endpoint
from workers.transport.zmq_transport import ZmqTransport

pytestmark = pytest.mark.ray

SHAPE = (1, 3, 32, 24)
UPPER, LOWER = UnitRect(row_stop=0.5), UnitRect(row_start=0.5)
# For detection, notification, and a busy machine.
GRACE_SECONDS = 10.0
STRANGER = 77


def config(cache_dir: str) -> dict[str, Any]:
    snails = [{"name": f"snail-{i}", "speed": 0.01} for i in (1, 2, 3, 4)]
    return {
        "devices": [
            {"name": "a", "speed": 0.9, "link": {"latency_ms": 0.1}},
            {"name": "b", "speed": 0.5},
            *snails,
            {"name": "tiny", "speed": 0.5, "memory_mb": 0.001},
        ],
        "source": "a",
        "encryption": False,
        "cache_dir": cache_dir,
        "profile_budget_seconds": 1.0,
        "trial_frames": 0,
        "recover": False,
        "adapt": False,
        "detect_seconds": 60.0,  # what is not answered in time is diagnosed without heartbeats
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with coedge.connect(config(str(tmp_path_factory.mktemp("cache")))) as joined:
        yield joined


@functools.cache
def small() -> Model:
    net = Net()
    x = net.op("Relu", net.op("Conv", net.input(SHAPE), net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1]))
    return capture(net.proto(net.op("Conv", x, net.weight(4, 8, 3, 3), pads=[1, 1, 1, 1])), name="small")


@functools.cache
def heavy() -> Model:
    """A model with some milliseconds of work per layer: about a second on a snail."""
    net = Net()
    x = net.op("Conv", net.input([1, 3, 64, 64]), net.weight(64, 3, 3, 3), pads=[1, 1, 1, 1])
    for _ in range(12):
        x = net.op("Conv", x, net.weight(64, 64, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(x), name="heavy")


HEAVY_SHAPE = (1, 3, 64, 64)


@functools.cache
def table() -> Model:
    """A model that looks pixels up in a table of 200 entries: a pixel of 200 or more is an error at run time."""
    net = Net()
    index = net.op("Cast", net.input(SHAPE, "uint8"), to=7)
    x = net.op("Gather", net.vector(200), index, axis=0)
    proto = net.proto(net.op("Conv", x, net.weight(4, 3, 3, 3), pads=[1, 1, 1, 1]))
    return capture(proto, np.zeros(SHAPE, np.uint8), name="table")


def halves(model: Model, upper: str, lower: str, source: str = "a") -> Plan:
    """A plan with a stage per layer, the upper half of the rows on one device and the lower half on the other."""
    stages = [(1, {upper: UPPER, lower: LOWER}) for _ in model.layers]
    return make_plan(model, stages, source)


def alone(model: Model, device: str) -> Plan:
    return one_stage(model, {device: UNIT}, "a")


def through(model: Model, device: str) -> Plan:
    """A layer split: all but the last layer on a device, the last one on the source."""
    return make_plan(model, [(1, {device: UNIT})] * (len(model.layers) - 1) + [(1, {"a": UNIT})], "a")


def assert_exact(model: Model, x: Array, got: Array) -> None:
    assert difference(got, unsplit(model, [x])[0]) <= 1e-5


def check_works(cluster: Cluster, *devices: str) -> None:
    """Check that the cluster still answers, on a plan of these devices."""
    x = image(SHAPE, seed=5)
    plan = halves(small(), *devices)
    assert_exact(small(), x, cluster.submit(small(), x, plan=plan).result())


def pid_of(cluster: Cluster, name: str) -> int:
    return next(d.pid for d in cluster.devices() if d.name == name)


def states(cluster: Cluster) -> dict[str, str]:
    return {d.name: d.state for d in cluster.devices()}


def wait_until_running(cluster: Cluster, job: Any, name: str) -> None:
    """Wait until a device is in the middle of a step of the frame."""
    import ray

    def running() -> bool:
        now = ray.get(cluster._group.actors[name].status.remote(), timeout=GRACE_SECONDS).running
        return now is not None and now[1] == job.frame

    until(running, f"{name} runs frame {job.frame}", GRACE_SECONDS)


# ---------------------------------------------------------------- bad input, refused before anything runs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (image((1, 3, 32, 25)), r"has shape \[1, 3, 32, 24\], \[1, 3, 32, 25\] was given"),
        (image(SHAPE).astype(np.float64), "float64"),
        (image(SHAPE, "uint8"), "uint8"),
        ((image(SHAPE), image(SHAPE)), "takes 1 inputs, 2 were given"),
        ((), "takes 1 inputs, 0 were given"),
        (torch.zeros(SHAPE, dtype=torch.int64), "int64"),
    ],
    ids=["shape", "float64", "uint8", "two", "none", "tensor"],
)
def test_an_input_that_does_not_fit_is_refused(cluster: Cluster, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cluster.submit(small(), given, plan=alone(small(), "a"))


def test_an_input_that_does_not_fit_ends_a_stream(cluster: Cluster) -> None:
    frames = [image(SHAPE), image((1, 3, 8, 8))]
    with pytest.raises(InputError):
        list(cluster.stream(small(), frames, plan=alone(small(), "a")))
    check_works(cluster, "a", "b")


def test_a_device_that_is_not_in_the_cluster_is_named(cluster: Cluster) -> None:
    plan = one_stage(small(), {"a": UPPER, "elsewhere": LOWER}, "a")
    with pytest.raises(PlanError, match="'elsewhere', which is not in this cluster: a, b, snail-1"):
        cluster.submit(small(), image(SHAPE), plan=plan)


def test_a_plan_for_another_model_is_refused(cluster: Cluster) -> None:
    with pytest.raises(PlanError, match="the plan is for model 'heavy'"):
        cluster.submit(small(), image(SHAPE), plan=alone(heavy(), "a"))


def test_an_unknown_scheme_is_refused_with_the_nearest_one(cluster: Cluster) -> None:
    with pytest.raises(PlanError, match=r"no scheme 'coegde'.*Did you mean 'coedge'"):
        cluster.submit(small(), image(SHAPE), scheme="coegde")


def test_a_deadline_that_nothing_meets_is_refused_but_the_nearest_plan_runs(cluster: Cluster) -> None:
    x, objective = image(SHAPE), Objective(deadline_ms=1e-6)
    with pytest.raises(InfeasibleError, match="deadline is 1e-06 ms"):
        cluster.submit(small(), x, objective=objective)
    nearest = cluster.plan(small(), objective)
    assert not nearest.feasible and nearest.reason
    assert_exact(small(), x, cluster.submit(small(), x, plan=nearest).result())


def test_a_memory_limit_below_the_need_is_refused_with_both_numbers(cluster: Cluster) -> None:
    with pytest.raises(InfeasibleError, match=r"tiny would need [0-9.]+ MB .* its limit is 0\.0 MB"):
        cluster.submit(small(), image(SHAPE), plan=alone(small(), "tiny"))
    # Schemes that share by speed alone are infeasible; the best plan leaves the device out.
    equal = cluster.plan(small(), scheme="equal")
    assert not equal.feasible and "tiny" in equal.reason
    assert cluster.plan(small()).feasible


def test_plans_of_a_mixture_that_do_not_fit_together_are_refused(cluster: Cluster) -> None:
    plans = (halves(small(), "a", "tiny"), alone(small(), "tiny"))
    mixture = coedge.Mixture(plans, (0.5, 0.5), rate_fps=1.0, energy_joules=0.0, shadow_prices={}, rounds=0)
    with pytest.raises(InfeasibleError, match=r"tiny would need .* MB for its parts of 2 plans .* limit is 0\.0 MB"):
        next(iter(cluster.stream(small(), [image(SHAPE)], plan=mixture)))


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_that_leaves_no_time_is_refused(cluster: Cluster, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        cluster.submit(small(), image(SHAPE), plan=alone(small(), "a"), timeout=timeout)


def test_a_refused_frame_takes_no_number(cluster: Cluster) -> None:
    x = image(SHAPE)
    before = cluster.submit(small(), x, plan=alone(small(), "a"))
    with pytest.raises(InputError):
        cluster.submit(small(), image((1, 3, 8, 8)), plan=alone(small(), "a"))
    after = cluster.submit(small(), x, plan=alone(small(), "a"))
    assert after.frame == before.frame + 1
    before.result(), after.result()


# ---------------------------------------------------------------- steps that raise


def pixels(high_row: int | None = None) -> Array:
    x = image(SHAPE, "uint8") % 200
    if high_row is not None:
        x[0, 0, high_row, 0] = 250
    return x


def test_a_step_that_raises_fails_its_frame_and_no_other(cluster: Cluster) -> None:
    model = table()
    plan = halves(model, "a", "b")
    frames = [pixels(), pixels(30), pixels(), pixels(2), pixels()]
    jobs = [cluster.submit(model, x, plan=plan) for x in frames]
    for index, (x, job) in enumerate(zip(frames, jobs)):
        if index in (1, 3):
            with pytest.raises(StepFailed) as caught:
                job.result(GRACE_SECONDS)
            text = str(caught.value)
            # A layer that cannot be split runs on both devices, and either may be the first to report the step.
            assert re.match(rf"[ab] failed in stage .*, frame {job.frame}: \S+", text)
        else:
            assert_exact(model, x, job.result(GRACE_SECONDS))
    assert states(cluster)["a"] == states(cluster)["b"] == "ready"


def test_a_stream_ends_at_the_frame_that_fails(cluster: Cluster) -> None:
    frames = [pixels(), pixels(), pixels(30), *[pixels()] * 20]
    answers = []
    with pytest.raises(StepFailed):
        for y in cluster.stream(table(), frames, plan=halves(table(), "a", "b")):
            answers.append(y)
    assert len(answers) == 2
    check_works(cluster, "a", "b")


# ---------------------------------------------------------------- too late


def test_a_frame_that_takes_too_long_names_the_device_and_its_step(cluster: Cluster) -> None:
    start = time.monotonic()
    job = cluster.submit(heavy(), image(HEAVY_SHAPE), plan=alone(heavy(), "snail-1"), timeout=1.0)
    with pytest.raises(FrameTimeout, match="snail-1 has been in stage 0") as caught:
        job.result()
    assert time.monotonic() - start < 1.0 + GRACE_SECONDS
    assert f"frame {job.frame}" in str(caught.value)
    assert "now 1 " in str(caught.value) or "now 1)" in str(caught.value), "the timeout that was given"
    assert states(cluster)["snail-1"] == "ready"


def test_a_timeout_of_result_does_not_end_the_frame(cluster: Cluster) -> None:
    x = image(HEAVY_SHAPE)
    plan = make_plan(heavy(), [(1, {"snail-1": UNIT}), (len(heavy().layers) - 1, {"a": UNIT})], "a")
    job = cluster.submit(heavy(), x, plan=plan)
    with pytest.raises(FrameTimeout, match="it goes on"):
        job.result(timeout=0.0)
    assert_exact(heavy(), x, job.result())


# ---------------------------------------------------------------- strangers and stale messages


def stranger_to(cluster: Cluster, name: str) -> ZmqTransport:
    """Return a transport of a process outside the cluster, to a device or to the client (without encryption)."""
    transport = ZmqTransport(STRANGER, "stranger", encrypted=False)
    if name == CLIENT:
        address = cluster._dispatcher._transport.endpoint.address
    else:
        address = next(d.address for d in cluster.devices() if d.name == name)
    transport.connect([Endpoint(0, name, address)])
    return transport


def test_garbage_on_every_port_changes_nothing(cluster: Cluster) -> None:
    client = cluster._dispatcher._transport.endpoint.address
    context = zmq.Context()
    try:
        for address in [client, *(d.address for d in cluster.devices())]:
            with context.socket(zmq.PUSH) as socket:
                socket.linger = 1000
                socket.connect(address)
                for parts in ([b""], [b"GET / HTTP/1.1"], [b"CoEd"], [b"CoEd" + bytes(24), b"x"], [b"", b""]):
                    socket.send_multipart(parts)
    finally:
        context.term()
    check_works(cluster, "a", "b")
    check_works(cluster, "b", "snail-1")


def test_messages_of_a_stranger_do_not_end_a_worker(cluster: Cluster) -> None:
    row = np.zeros(4, np.float32)
    for name in ("a", "b"):
        transport = stranger_to(cluster, name)
        try:
            for kind in MessageKind:
                for epoch in (0, cluster._loader.epoch, 2**32 - 1):
                    frame = 2**63 + STRANGER
                    transport.send(0, Message(kind, STRANGER, epoch, frame, 2**32 - 1, (row,)))
                    transport.send(0, Message(kind, -1, epoch, frame))
        finally:
            transport.close()
    check_works(cluster, "a", "b")
    assert states(cluster)["a"] == states(cluster)["b"] == "ready"


def test_messages_of_a_stranger_do_not_end_the_client(cluster: Cluster) -> None:
    model = heavy()
    x = image(HEAVY_SHAPE)
    plan = make_plan(model, [(1, {"snail-1": UNIT}), (len(model.layers) - 1, {"a": UNIT})], "a")
    job = cluster.submit(model, x, plan=plan)
    epoch = cluster._loader.epoch
    transport = stranger_to(cluster, CLIENT)
    steps, times, nbytes = np.array([10_000], np.int32), np.zeros((1, 2)), np.zeros(1, np.int64)
    try:
        for sender in (STRANGER, -1, 0):
            transport.send(0, Message(MessageKind.TRACE, sender, epoch, job.frame, 0, (steps, times, nbytes)))
            transport.send(0, Message(MessageKind.TRACE, sender, epoch, job.frame, 0, (times, steps, nbytes)))
            transport.send(0, Message(MessageKind.TRACE, sender, epoch, job.frame, 0, (steps, times)))
        for kind in MessageKind:
            transport.send(0, Message(kind, STRANGER, epoch, job.frame, 3, (times,)))
    finally:
        transport.close()
    assert_exact(model, x, job.result())
    check_works(cluster, "a", "b")


def test_stale_and_doubled_rows_change_nothing(cluster: Cluster) -> None:
    model, x = small(), image(SHAPE, seed=3)
    plan = halves(model, "a", "b")
    old = cluster.submit(model, x, plan=plan)
    old.result()
    epoch = next(loaded.epoch for loaded in cluster._loader.loaded.values() if loaded.plan == plan)
    programs = coedge.lower(plan, model)
    transport = stranger_to(cluster, "b")
    try:
        for step in programs["b"].steps:
            if isinstance(step, Receive):
                patches = [programs["b"].patches[i] for i in step.writes]
                rows = tuple(
                    np.full(model.graph.tensors[p.tensor].region_shape(p.region), 9.0, np.float32) for p in patches
                )
                for frame in (old.frame, old.frame, 0):  # ended, doubled, never asked for
                    transport.send(0, Message(MessageKind.DATA, 0, epoch, frame, step.channel, rows))
                transport.send(0, Message(MessageKind.DATA, 0, epoch + 1000, old.frame + 1, step.channel, rows))
    finally:
        transport.close()
    assert_exact(model, x, cluster.submit(model, x, plan=plan).result())


def test_rows_of_the_wrong_shape_fail_the_frame_and_not_the_worker(cluster: Cluster) -> None:
    model = heavy()
    plan = through(model, "snail-1")
    job = cluster.submit(model, image(HEAVY_SHAPE), plan=plan)
    wait_until_running(cluster, job, "snail-1")
    programs = coedge.lower(plan, model)
    channel = next(s.channel for s in programs["a"].steps if isinstance(s, Receive) and s.peer == "snail-1")
    transport = stranger_to(cluster, "a")
    snail = [d.name for d in cluster.devices()].index("snail-1")
    try:
        wrong = (np.zeros((1, 2), np.float32),)
        transport.send(0, Message(MessageKind.DATA, snail, cluster._loader.epoch, job.frame, channel, wrong))
        with pytest.raises(StepFailed, match=r"snail-1 sent float32 \[1, 2\] for .* is expected") as caught:
            job.result(GRACE_SECONDS)
    finally:
        transport.close()
    assert str(caught.value).startswith("a failed in receiving from snail-1")
    check_works(cluster, "a", "b")


# ---------------------------------------------------------------- devices that die or stop


def test_a_device_that_stops_is_named_and_serves_again_when_it_goes_on(cluster: Cluster) -> None:
    model, x = small(), image(SHAPE)
    plan = halves(model, "a", "snail-2")
    cluster.submit(model, x, plan=plan).result()
    pid = pid_of(cluster, "snail-2")
    os.kill(pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        job = cluster.submit(model, x, plan=plan, timeout=2.0)
        with pytest.raises(DeviceLost, match=r"snail-2 \(pid .*\) stopped answering .* stage ") as caught:
            job.result()
        assert time.monotonic() - start < 2.0 + GRACE_SECONDS
        assert f"frame {job.frame}" in str(caught.value)
        check_works(cluster, "a", "b")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert_exact(model, x, cluster.submit(model, x, plan=plan).result())


def test_a_device_killed_in_the_middle_of_a_frame(cluster: Cluster) -> None:
    model = heavy()
    job = cluster.submit(model, image(HEAVY_SHAPE), plan=through(model, "snail-2"))
    wait_until_running(cluster, job, "snail-2")
    pid = pid_of(cluster, "snail-2")
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(DeviceLost, match=rf"snail-2 \(pid {pid}\) was lost .* stage ") as caught:
        job.result()
    assert time.monotonic() - start < GRACE_SECONDS  # at once, not at the deadline of 30 s
    assert f"frame {job.frame}" in str(caught.value)
    assert states(cluster)["snail-2"] == "lost"

    # Plans without the device go on; plans with it, loaded before or new, fail at once.
    check_works(cluster, "a", "b")
    for plan in (through(model, "snail-2"), alone(model, "snail-2"), halves(model, "b", "snail-2")):
        start = time.monotonic()
        with pytest.raises(DeviceLost, match="snail-2 is part of the plan, but it is lost"):
            cluster.submit(model, image(HEAVY_SHAPE), plan=plan)
        assert time.monotonic() - start < GRACE_SECONDS


def test_a_device_killed_between_frames(cluster: Cluster) -> None:
    model, x = small(), image(SHAPE)
    plan = halves(model, "a", "snail-3")
    assert_exact(model, x, cluster.submit(model, x, plan=plan).result())
    os.kill(pid_of(cluster, "snail-3"), signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(DeviceLost, match="snail-3"):  # noticed by now or not
        cluster.submit(model, x, plan=plan).result()
    assert time.monotonic() - start < GRACE_SECONDS
    until(lambda: states(cluster)["snail-3"] == "lost", "snail-3 is lost", GRACE_SECONDS)
    check_works(cluster, "a", "b")


def test_every_frame_of_a_stream_is_answered_once_or_fails_when_a_device_dies(cluster: Cluster) -> None:
    model = small()
    with_it, without_it = halves(model, "b", "snail-4"), halves(model, "a", "b")
    outcomes: Counter[str] = Counter()
    frames = [image(SHAPE, seed=i) for i in range(60)]
    jobs = []
    for index, x in enumerate(frames):
        if index == 40:
            jobs[4].result()
            os.kill(pid_of(cluster, "snail-4"), signal.SIGKILL)
        try:
            jobs.append(cluster.submit(model, x, plan=with_it if index % 2 == 0 else without_it))
        except DeviceLost:
            assert index >= 40 and index % 2 == 0
            outcomes["refused"] += 1
            jobs.append(None)
    start = time.monotonic()
    for index, (x, job) in enumerate(zip(frames, jobs)):
        if job is None:
            continue
        try:
            assert_exact(model, x, job.result())
            outcomes["answered"] += 1
        except DeviceLost as error:
            assert index % 2 == 0 and "snail-4" in str(error)
            outcomes["failed"] += 1
        assert job.done() and not job.cancel()
    assert time.monotonic() - start < 30 + GRACE_SECONDS
    assert outcomes.total() == len(frames)
    assert outcomes["answered"] >= 30  # all frames of plans without the device
    assert outcomes["failed"] + outcomes["refused"] >= 1
    assert states(cluster)["snail-4"] == "lost"
    check_works(cluster, "a", "b")


def test_a_plan_for_the_cluster_still_runs_on_the_devices_that_are_left(cluster: Cluster) -> None:
    left = [name for name, state in states(cluster).items() if state == "ready" and name != "tiny"]
    plan = coedge.even_plan(small(), devices=left)
    x = image(SHAPE, seed=9)
    assert_exact(small(), x, cluster.submit(small(), x, plan=plan).result())


# ---------------------------------------------------------------- the end: the last test of this cluster


def test_closing_ends_frames_under_way_and_leaves_no_process_not_even_a_stopped_one(cluster: Cluster) -> None:
    pids = [d.pid for d in cluster.devices()]
    stopped = pid_of(cluster, "snail-1")
    model, x = small(), image(SHAPE)
    jobs: list[Any] = []
    refused = threading.Event()

    def hammer() -> None:
        try:
            while True:
                jobs.append(cluster.submit(model, x, plan=halves(model, "a", "b")))
        except ClusterError:
            refused.set()

    slow = cluster.submit(heavy(), image(HEAVY_SHAPE), plan=alone(heavy(), "snail-1"))
    wait_until_running(cluster, slow, "snail-1")
    os.kill(stopped, signal.SIGSTOP)
    thread = threading.Thread(target=hammer, daemon=True)
    thread.start()
    try:
        until(lambda: len(jobs) > 20, "frames are under way", GRACE_SECONDS)
        start = time.monotonic()
        cluster.close()
        assert time.monotonic() - start < 3 * GRACE_SECONDS
        thread.join(GRACE_SECONDS)
        assert refused.is_set() and not thread.is_alive()
        with pytest.raises(ClusterError, match="closed"):
            slow.result()
        for job in jobs:
            until(job.done, f"frame {job.frame} ends", GRACE_SECONDS)
            try:
                assert_exact(model, x, job.result())
            except CoEdgeError as error:
                assert "closed" in str(error)
        until(lambda: all(ended(pid) for pid in pids), "the workers end")
    finally:
        if not ended(stopped):
            os.kill(stopped, signal.SIGKILL)
    with pytest.raises(ClusterError, match="connect again"):
        cluster.submit(model, x, plan=alone(model, "a"))
    cluster.close()  # twice is fine


# ---------------------------------------------------------------- clusters that cannot be formed


def test_an_address_without_an_answer_is_refused_soon() -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        coedge.connect({"devices": [{"name": "a"}], "ray": {"address": "127.0.0.1:1"}})
    assert time.monotonic() - start < GRACE_SECONDS


def test_a_wrong_configuration_starts_nothing() -> None:
    before = children()
    with pytest.raises(ConfigError, match="source"):
        coedge.connect({"devices": [{"name": "a"}], "source": "b"})
    with pytest.raises(PlanError, match="no scheme"):
        coedge.connect({"devices": [{"name": "a"}], "scheme": "magic"})
    assert children() <= before


def test_a_node_that_is_not_there_is_named_and_what_was_started_ends() -> None:
    before = children()
    with pytest.raises(ClusterError, match=r"device a: there is no Ray node '192\.0\.2\.7'; alive nodes are"):
        coedge.connect({"devices": [{"name": "a", "node": "192.0.2.7", "speed": 0.5}]})
    started = children() - before
    until(lambda: all(ended(pid) for pid in started), "Ray ends")
