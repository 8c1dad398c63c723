"""Recovery on real workers: frames of lost devices are answered, and devices that are back are used again.

One cluster; each test leaves all devices ready. Upper bounds on time test liveness only.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from nets import Array, Net, difference, image, make_plan, one_stage, unsplit
from waiting import until

import coedge
from coedge import DeviceLost, Objective
from coedge.core.region import UNIT, UnitRect
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from orchestrator.cluster.cluster import Cluster

pytestmark = pytest.mark.ray

SHAPE = (1, 3, 32, 24)
NAMES = ("a", "b", "c")
# A worker is started, measured and taken in within this time on a busy machine.
BACK_SECONDS = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = {
        "devices": [{"name": name, "speed": 0.5, "link": {"latency_ms": 0.1}} for name in NAMES],
        "source": "a",
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "profile_budget_seconds": 0.5,
        "trial_frames": 0,
        "detect_seconds": 1.0,
    }
    with coedge.connect(config) as joined:
        yield joined


@functools.cache
def network() -> Model:
    net = Net()
    x = net.input(SHAPE)
    for i in range(4):
        x = net.op("Relu", net.op("Conv", x, net.weight(8, 8 if i else 3, 3, 3), pads=[1, 1, 1, 1]))
    return capture(net.proto(x), name="four")


def thirds(model: Model, names: tuple[str, str, str] = NAMES) -> Plan:
    edges = (0.0, 0.3, 0.7, 1.0)
    shares = {name: UnitRect(row_start=edges[i], row_stop=edges[i + 1]) for i, name in enumerate(names)}
    return make_plan(model, [(1, shares) for _ in model.layers], "a")


def pid_of(cluster: Cluster, name: str) -> int:
    return next(device.pid for device in cluster.devices() if device.name == name)


def ready(cluster: Cluster) -> set[str]:
    return {device.name for device in cluster.devices() if device.state == "ready"}


def all_back(cluster: Cluster) -> None:
    until(lambda: ready(cluster) == set(NAMES), "all devices are back", BACK_SECONDS)


def answers(model: Model, frames: list[Array], got: list[Array]) -> None:
    assert len(got) == len(frames)
    for x, y in zip(frames, got, strict=True):
        assert difference(y, unsplit(model, [x])[0]) <= 1e-5


def harmed_stream(cluster: Cluster, name: str, number: int, plan: Plan | None = None) -> list[Array]:
    """Run a stream of different frames, and send a signal to a device in the middle of it. Return the answers."""
    model, frames = network(), [image(SHAPE, seed=i) for i in range(40)]

    def source() -> Iterator[Array]:
        for i, x in enumerate(frames):
            if i == 15:
                os.kill(pid_of(cluster, name), number)
            yield x

    got = list(cluster.stream(model, source(), plan=plan))
    answers(model, frames, got)
    return got


@pytest.mark.parametrize("name", ["b", "a"], ids=["a device", "the source"])
def test_a_stream_goes_on_when_a_device_is_killed_and_the_device_comes_back(cluster: Cluster, name: str) -> None:
    old = pid_of(cluster, name)
    harmed_stream(cluster, name, signal.SIGKILL, thirds(network()))
    all_back(cluster)
    assert pid_of(cluster, name) != old and cluster.source == "a"
    told = [(event["event"], event.get("device")) for event in cluster.events]
    assert told.index(("lost", name)) < told.index(("back", name))
    x = image(SHAPE, seed=50)
    job = cluster.submit(network(), x, plan=thirds(network()))
    answers(network(), [x], [job.result()])
    assert name in job.plan.used_devices


def test_a_stopped_device_is_left_out_and_used_again_when_it_goes_on(cluster: Cluster) -> None:
    pid = pid_of(cluster, "c")
    try:
        harmed_stream(cluster, "c", signal.SIGSTOP, thirds(network()))
        assert ready(cluster) == {"a", "b"}
    finally:
        os.kill(pid, signal.SIGCONT)
    all_back(cluster)
    assert pid_of(cluster, "c") == pid
    harmed_stream(cluster, "c", signal.SIGCONT, thirds(network()))


def test_a_frame_of_an_automatic_plan_is_answered(cluster: Cluster) -> None:
    model, x = network(), image(SHAPE, seed=60)
    first = cluster.submit(model, x)
    answers(model, [x], [first.result()])
    for name in first.plan.used_devices:
        os.kill(pid_of(cluster, name), signal.SIGKILL)
        job = cluster.submit(model, x)
        answers(model, [x], [job.result()])
        all_back(cluster)
    until(lambda: cluster.submit(model, x).plan.digest == first.plan.digest, "the first plan runs again", BACK_SECONDS)


def test_a_mixture_goes_on(cluster: Cluster) -> None:
    model, frames = network(), [image(SHAPE, seed=i) for i in range(30)]

    def source() -> Iterator[Array]:
        for i, x in enumerate(frames):
            if i == 10:
                os.kill(pid_of(cluster, "b"), signal.SIGKILL)
            yield x

    answers(model, frames, list(cluster.stream(model, source(), objective=Objective(goal="throughput"))))
    all_back(cluster)


def test_frames_of_several_threads_are_answered_once(cluster: Cluster) -> None:
    model, plan = network(), thirds(network())
    wrong: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            for i in range(10):
                x = image(SHAPE, seed=100 * seed + i)
                answers(model, [x], [next(iter(cluster.stream(model, [x], plan=plan)))])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    os.kill(pid_of(cluster, "c"), signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert not wrong
    all_back(cluster)


def test_with_every_device_lost_the_reason_is_told(cluster: Cluster) -> None:
    for name in NAMES:
        os.kill(pid_of(cluster, name), signal.SIGKILL)
    until(lambda: ready(cluster) == set(), "all devices are lost")
    start = time.monotonic()
    with pytest.raises(DeviceLost, match="lost"):
        cluster.submit(network(), image(SHAPE)).result()
    assert time.monotonic() - start < BACK_SECONDS
    all_back(cluster)
    x = image(SHAPE, seed=3)
    answers(network(), [x], [cluster.submit(network(), x).result()])


def test_a_plan_that_names_a_lost_device_is_refused_before_it_starts(cluster: Cluster) -> None:
    os.kill(pid_of(cluster, "b"), signal.SIGKILL)
    until(lambda: "b" not in ready(cluster), "b is lost")
    with pytest.raises(DeviceLost, match="b is part of the plan, but it is lost"):
        cluster.submit(network(), image(SHAPE), plan=one_stage(network(), {"b": UNIT}, "a"))
    all_back(cluster)
    assert np.isfinite(cluster.submit(network(), image(SHAPE)).result()).all()
