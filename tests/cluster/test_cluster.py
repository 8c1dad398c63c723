"""Real Ray workers on this machine: joining, exactness, streams, timelines, and leaving nothing behind.

    home      the source
    mid, low  slower, behind emulated links
    snail     slow enough to be caught in the middle of a frame

The tests that open clusters of their own come first: a process has one connection to Ray, and the cluster that
the later ones share keeps it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from nets import Array, Net, deep_after, difference, image, kept, make_plan, mosaic, one_stage, unsplit
from waiting import MOST_SECONDS, children, ended, listening, until

import coedge
import orchestrator.cluster.plan_cache
from coedge import Cancelled, ClusterError, FrameTimeout, zoo
from coedge.core.objective import Objective
from coedge.core.region import UNIT, UnitRect
from coedge.core.values import as_arrays
from coedge.execution.program import Compute, Send
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.graph.weight_slice import WeightSlice
from coedge.plan.frame_assignment import assign_frames
from coedge.plan.plan import Plan
from coedge.simulation.step_costs import message_nbytes
from orchestrator.cluster.cluster import Cluster
from orchestrator.runtime.loader import KEPT_PLANS

pytestmark = pytest.mark.ray

SHAPE = (1, 3, 32, 24)
UPPER, LOWER = UnitRect(row_stop=0.5), UnitRect(row_start=0.5)
NAMES = ("home", "mid", "low", "snail")
BUDGET = {"profile_budget_seconds": 1.0, "trial_frames": 0, "adapt": False}
SPEEDS = {"home": 1.0, "mid": 0.6, "low": 0.3, "snail": 0.02}


def config(cache_dir: Path, names: Sequence[str] = NAMES, **more: Any) -> dict[str, Any]:
    links = {
        "mid": {"mbps": 400, "latency_ms": 0.2},
        "low": {"mbps": 200, "latency_ms": 0.5},
    }
    devices = [{"name": n, "speed": SPEEDS[n], "link": links.get(n, {})} for n in names]
    return {"devices": devices, "source": names[0], "cache_dir": str(cache_dir), **BUDGET, **more}


# ---------------------------------------------------------------- models


def small_net(seed: int = 0, channels: int = 8) -> Net:
    net = Net(seed=seed)
    x = net.op("Relu", net.op("Conv", net.input(SHAPE), net.weight(channels, 3, 3, 3), pads=[1, 1, 1, 1]))
    x = net.op("Conv", x, net.weight(channels, channels, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    net.op("Conv", x, net.weight(4, channels, 3, 3), pads=[1, 1, 1, 1])
    return net


@functools.cache
def small(seed: int = 0) -> Model:
    net = small_net(seed)
    return capture(net.proto(net.nodes[-1].output[0]), name=f"small-{seed}")


@functools.cache
def heavy() -> Model:
    """A model with some milliseconds of work per layer: most of a second on the snail."""
    net = Net()
    x = net.op("Conv", net.input([1, 3, 64, 64]), net.weight(64, 3, 3, 3), pads=[1, 1, 1, 1])
    for _ in range(4):
        x = net.op("Conv", x, net.weight(64, 64, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(x), name="heavy")


HEAVY_SHAPE = (1, 3, 64, 64)


def _zoo(name: str, normalised: bool = False) -> tuple[torch.nn.Module, torch.Tensor]:
    module, x = zoo.build(name, width=0.25, num_classes=7), zoo.example(name, image_size=64)
    if normalised:
        module = coedge.with_normalisation(module, [0.5, 0.4, 0.3], [0.2, 0.2, 0.3])
        x = torch.from_numpy(image(tuple(x.shape), "uint8"))
    return module, x


MODULES: dict[str, Callable[[], tuple[torch.nn.Module, torch.Tensor]]] = {
    "residual": lambda: _zoo("resnet18"),
    "squeeze-excite": lambda: _zoo("mobilenet_v3"),
    "dict": lambda: _zoo("ssd"),
    "uint8": lambda: _zoo("squeezenet", normalised=True),
}


@functools.cache
def captured(kind: str) -> tuple[torch.nn.Module, torch.Tensor, Model]:
    module, x = MODULES[kind]()
    return module, x, kept(f"cluster-{kind}", lambda: coedge.capture(module, x, name=kind))


def assert_exact(model: Model, x: Any, got: Any) -> None:
    """Compare with ONNX Runtime on the unsplit network."""
    values = list(got.values()) if isinstance(got, dict) else [got]
    expected = unsplit(model, as_arrays(x))
    assert len(values) == len(expected)
    for value, wanted in zip(values, expected):
        assert difference(np.asarray(value), wanted) <= 1e-5


def halves(model: Model, upper: str, lower: str, source: str = "home", sink: str | None = None) -> Plan:
    return make_plan(model, [(1, {upper: UPPER, lower: LOWER}) for _ in model.layers], source, sink)


def alone(model: Model, device: str, source: str = "home") -> Plan:
    return one_stage(model, {device: UNIT}, source)


# ---------------------------------------------------------------- processes and ports


def accepts(address: str) -> bool:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- joining and leaving


def test_a_cluster_leaves_nothing_behind_also_after_an_error_and_can_be_joined_again(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path / "cache", ["home", "mid"])), encoding="utf-8")
    processes, ports, threads = children(), listening(), {t.name for t in threading.enumerate()}

    x = image(SHAPE)
    with (
        pytest.raises(ZeroDivisionError),
        coedge.connect(path, overrides=["devices.mid.speed=0.25", "source=mid"]) as first,
    ):
        described = {d.name: d for d in first.devices()}
        assert (described["mid"].speed, described["mid"].source) == (0.25, True)
        plan = halves(small(), "home", "mid", source="mid")
        assert_exact(small(), x, first.submit(small(), x, plan=plan).result())
        started = children() - processes
        assert started >= {d.pid for d in described.values()}
        raise ZeroDivisionError
    assert not ray.is_initialized()
    until(lambda: all(ended(pid) for pid in started), "all processes end")
    assert not any(accepts(d.address) for d in described.values())
    assert listening() <= ports
    until(lambda: not any(t.name.startswith("coedge") for t in threading.enumerate()), "threads end")
    assert not {t.name for t in threading.enumerate() if t.name.startswith("coedge")} - threads
    with pytest.raises(ClusterError, match="closed"):
        first.submit(small(), x)

    # Again in the same process; and a third beside it, which outlives it.
    second = coedge.connect(config(tmp_path / "cache", ["home"]))
    third = coedge.connect(config(tmp_path / "cache", ["low"], encryption=False))
    try:
        for joined in (second, third):
            name = joined.devices()[0].name
            y = joined.submit(small(), x, plan=alone(small(), name, source=name)).result()
            assert_exact(small(), x, y)
        second.close()
        second.close()
        assert ray.is_initialized()
        assert_exact(small(), x, third.submit(small(), x, plan=alone(small(), "low", source="low")).result())
        assert third.devices()[0].state == "ready"
    finally:
        second.close()
        third.close()
    assert not ray.is_initialized()
    until(lambda: children() <= processes, "all processes end")


def test_joining_the_nodes_of_a_running_ray(tmp_path: Path) -> None:
    """Every node of a Ray cluster that was started elsewhere is a device; the nodes stay when the cluster closes."""
    from ray.cluster_utils import Cluster as RayCluster

    quiet = {"num_cpus": 1, "include_dashboard": False}
    head = RayCluster(initialize_head=True, head_node_args=quiet)
    try:
        head.add_node(num_cpus=1)
        head.wait_for_nodes()
        their_processes = children()
        x = image(SHAPE)
        with coedge.connect({"ray": {"address": head.address}, "cache_dir": str(tmp_path)}) as joined:
            devices = joined.devices()
            assert len(devices) == 2 and all(d.state == "ready" for d in devices)
            assert len({d.pid for d in devices}) == 2 and all(d.speed is None for d in devices)
            names = [d.name for d in devices]
            assert names[1] == f"{names[0]}-2"
            assert joined.source in names
            plan = halves(small(), *names, source=joined.source)
            assert_exact(small(), x, joined.submit(small(), x, plan=plan).result())
            assert_exact(small(), x, joined.submit(small(), x, scheme="equal").result())
            nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"]]
            with pytest.raises(ClusterError, match="connected to Ray at"):
                coedge.connect({"ray": {"address": "127.0.0.1:1"}})
        assert not ray.is_initialized()
        until(lambda: all(ended(d.pid) for d in devices), "the workers end")
        assert not any(ended(pid) for pid in their_processes if pid not in {d.pid for d in devices})

        # By node, and two devices on one of them.
        placed = [
            {"name": "one", "node": nodes[0], "speed": 0.5},
            {"name": "two", "node": nodes[1], "speed": 0.5},
            {"name": "three", "node": nodes[1], "speed": 0.3},
        ]
        settings = {"devices": placed, "ray": {"address": head.address}, "cache_dir": str(tmp_path)}
        with coedge.connect(settings) as joined:
            plan = coedge.even_plan(small(), devices=["one", "two", "three"])
            assert_exact(small(), x, joined.submit(small(), x, plan=plan).result())
    finally:
        if ray.is_initialized():
            ray.shutdown()
        head.shutdown()


DRIVER = """
    import faulthandler, json, signal, sys
    import numpy as np
    import psutil
    import coedge

    def main():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal: a shell's `&` has it ignored
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        folder, config = sys.argv[1], json.loads(sys.argv[2])
        model = coedge.capture(folder + "/heavy.onnx")
        with coedge.connect(config) as cluster:
            plan = coedge.even_plan(model, devices=["snail"], stage_layers=100)
            cluster.submit(model, np.zeros((1, 3, 64, 64), np.float32), plan=plan).result()
            job = cluster.submit(model, np.zeros((1, 3, 64, 64), np.float32), plan=plan, timeout=600.0)
            pids = [p.pid for p in psutil.Process().children(recursive=True)]
            print(json.dumps({"pids": pids, "workers": [d.pid for d in cluster.devices()]}), flush=True)
            while True:
                job.result()
                job = cluster.submit(model, np.zeros((1, 3, 64, 64), np.float32), plan=plan, timeout=600.0)

    if __name__ == "__main__":
        main()
"""


def ray_agents(pids: set[int]) -> set[int]:
    """Return Ray's two helper processes of a node. After SIGKILL, Ray takes a fixed minute to end them."""
    return {p for p in pids if psutil.Process(p).cmdline()[0] in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")}


@pytest.mark.parametrize(
    "end", deep_after([signal.SIGINT, signal.SIGTERM, signal.SIGKILL], [signal.SIGINT, signal.SIGKILL])
)
def test_when_the_client_process_ends_all_of_its_processes_end(tmp_path: Path, end: signal.Signals) -> None:
    heavy().save(tmp_path / "heavy.onnx")
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER), encoding="utf-8")
    settings = json.dumps(config(tmp_path / "cache", ["snail"]))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    pids: set[int] = set()
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        told = json.loads(line)
        pids = {*told["pids"], *(p.pid for p in psutil.Process(process.pid).children(recursive=True))}
        assert set(told["workers"]) <= pids and not any(ended(pid) for pid in told["workers"])
        slow = ray_agents(pids) if end == signal.SIGKILL else set()
        if end == signal.SIGINT:  # Ctrl-C goes to all processes of the terminal
            os.killpg(process.pid, end)
        else:
            os.kill(process.pid, end)
        try:
            _, errors = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR1)  # it prints its stacks
            time.sleep(1.0)
            process.kill()
            pytest.fail(f"it does not end: {process.communicate()[1]}")
        assert process.returncode != 0
        assert end != signal.SIGINT or "KeyboardInterrupt" in errors
        until(lambda: all(ended(pid) for pid in pids - slow), "its processes end")
    finally:
        for pid in {process.pid, *pids}:
            if not ended(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()


# ---------------------------------------------------------------- the cluster that the rest share


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cluster(cache: Path) -> Iterator[Cluster]:
    with coedge.connect(config(cache)) as joined:
        yield joined


def test_devices_describe_themselves(cluster: Cluster) -> None:
    devices = {d.name: d for d in cluster.devices()}
    assert tuple(devices) == NAMES
    assert len({d.pid for d in devices.values()}) == len({d.address for d in devices.values()}) == len(NAMES)
    for name, device in devices.items():
        assert (device.state, device.speed, device.threads) == ("ready", SPEEDS[name], 1)
        assert device.source == (name == "home")
        assert device.host == socket.gethostname()
        assert psutil.Process(device.pid).is_running() and device.pid != os.getpid()
        assert accepts(device.address)
        assert device.gflops > 0
        assert set(device.links) == set(NAMES) - {name}
        for other, link in device.links.items():
            assert (link.sender, link.receiver) == (name, other)
            assert link.bytes_per_second > 0 and link.latency_seconds >= 0  # emulated: zero is zero
    assert devices["home"].gflops > devices["low"].gflops > devices["snail"].gflops
    # 0.7 ms are emulated one way. Half of the round trip is measured, less the time for sending the echo, which is
    # timed separately: on a busy machine the difference of the two is off by some tenths.
    assert devices["mid"].links["low"].latency_seconds > 0.0002


def test_frames_go_on_while_another_thread_plans(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    x, known, begun, go_on = image(SHAPE), cluster.plan(small()), threading.Event(), threading.Event()

    def slow(*args: Any) -> Plan:
        begun.set()
        assert go_on.wait(60)
        return known

    monkeypatch.setattr(orchestrator.cluster.plan_cache, "make_plan", slow)
    with ThreadPoolExecutor(1) as pool:
        planned = pool.submit(cluster.plan, small(), Objective(deadline_ms=1e6))
        try:
            assert begun.wait(60)
            for plan in (None, alone(small(), "mid")):
                assert_exact(small(), x, cluster.submit(small(), x, plan=plan).result())
            assert not planned.done()
        finally:
            go_on.set()
        assert planned.result(60).digest == known.digest


@pytest.mark.parametrize("kind", deep_after(MODULES, ["residual", "dict"]))
def test_every_scheme_gives_the_output_of_the_unsplit_network(cluster: Cluster, kind: str) -> None:
    module, x, model = captured(kind)
    with torch.inference_mode():
        expected = module(x)
    for scheme in ("local", "equal", "modnn", "coedge", "auto"):
        plan = cluster.plan(model, scheme=scheme)
        assert plan.feasible and plan.predicted is not None and plan.predicted.latency_seconds > 0
        got = cluster.submit(model, x, scheme=scheme).result()
        assert_exact(model, x, got)
        assert type(got) is type(expected)
        if isinstance(expected, dict):
            assert list(got) == list(expected)
        pairs = [(got[k], expected[k]) for k in expected] if isinstance(expected, dict) else [(got, expected)]
        for mine, torchs in pairs:
            assert isinstance(mine, torch.Tensor) and mine.dtype == torchs.dtype
            torch.testing.assert_close(mine, torchs, rtol=1e-3, atol=1e-3 * float(torchs.abs().max()))


def plans(model: Model) -> dict[str, Plan]:
    return {
        "uneven": coedge.even_plan(model, NAMES, boundaries=[0.45, 0.8, 0.97]),
        "no rows for one": coedge.even_plan(model, NAMES, boundaries=[0.5, 0.5, 0.9]),
        "grid": coedge.even_plan(model, NAMES, grid=(2, 2)),
        "columns": coedge.even_plan(model, NAMES[:3], grid=(1, 3)),
        "fused": coedge.even_plan(model, NAMES[:3], stage_layers=1000),
        "blocks": coedge.even_plan(model, ["low", "home"], stage_layers=4, source="home"),
        "elsewhere": halves(model, "mid", "low", source="home", sink="mid")
        if all(layer.splittable for layer in model.layers)
        else make_plan(
            model,
            [(1, {"mid": UPPER, "low": LOWER} if layer.splittable else {"low": UNIT}) for layer in model.layers],
            "home",
            "mid",
        ),
        "mosaic": make_plan(
            model,
            [
                (1, mosaic(NAMES[:3], lambda n, i=i: i % n) if layer.splittable else {"home": UNIT})
                for i, layer in enumerate(model.layers)
            ],
            "low",
        ),
    }


@pytest.mark.parametrize(
    "name", ["uneven", "no rows for one", "grid", "columns", "fused", "blocks", "elsewhere", "mosaic"]
)
@pytest.mark.parametrize("kind", ["residual", "squeeze-excite", "dict"])
def test_plans_of_every_shape_are_exact(cluster: Cluster, kind: str, name: str) -> None:
    _, x, model = captured(kind)
    plan = plans(model)[name]
    assert_exact(model, x, cluster.submit(model, x, plan=plan).result())


def test_an_array_gives_an_array_and_later_changes_of_the_input_do_no_harm(cluster: Cluster) -> None:
    model = small()
    x = image(SHAPE)
    before = x.copy()
    job = cluster.submit(model, x, plan=halves(model, "home", "low"))
    x[:] = 0
    y = job.result()
    assert isinstance(y, np.ndarray)
    assert_exact(model, before, y)
    y[:] = 0  # the output belongs to the caller
    assert_exact(model, before, job.result())
    turned = np.asfortranarray(before)
    assert_exact(model, before, cluster.submit(model, turned, plan=halves(model, "home", "low")).result())


# ---------------------------------------------------------------- streams and jobs


def test_a_stream_answers_in_order_and_takes_only_as_many_frames_as_are_under_way(cluster: Cluster) -> None:
    model = small()
    frames = [image(SHAPE, seed=i) for i in range(60)]
    expected = [unsplit(model, [x])[0] for x in frames]
    taken = answered = 0

    def source() -> Iterator[Array]:
        nonlocal taken
        for x in frames:
            taken += 1
            yield x

    stream = cluster.stream(model, source(), plan=halves(model, "mid", "low"))
    assert taken == 0
    for y in stream:
        assert difference(y, expected[answered]) <= 1e-5
        answered += 1
        assert taken - answered < 2 * len(NAMES) + 2
    assert taken == answered == len(frames)


def test_an_endless_stream_can_be_closed(cluster: Cluster) -> None:
    model = small()
    stream = cluster.stream(model, (image(SHAPE, seed=i) for i in itertools.count()), plan=alone(model, "low"))
    for index, y in enumerate(itertools.islice(stream, 12)):
        assert_exact(model, image(SHAPE, seed=index), y)
    stream.close()  # type: ignore[attr-defined]
    until(lambda: not cluster._dispatcher._active, "the frames under way are given up")
    assert_exact(model, image(SHAPE), cluster.submit(model, image(SHAPE), plan=alone(model, "low")).result())


def test_a_stream_for_throughput_runs_a_mixture_of_plans(cluster: Cluster) -> None:
    model = small(seed=3)
    frames = [image(SHAPE, seed=i) for i in range(40)]
    stream = coedge.Objective(goal="throughput")
    mixture = cluster.mixture(model)
    assert mixture is cluster.mixture(model, stream) and sum(mixture.weights) == pytest.approx(1.0)
    # A mixture of several plans, whatever was measured.
    plans = (alone(model, "home"), halves(model, "mid", "low"), alone(model, "low"))
    mixed = dataclasses.replace(mixture, plans=plans, weights=(0.5, 0.3, 0.2))
    for plan, objective in ((mixed, None), (None, stream)):
        count = 0
        for y in cluster.stream(model, frames, plan=plan, objective=objective):
            assert_exact(model, frames[count], y)
            count += 1
        assert count == len(frames)
    epochs = cluster._loader.epoch
    jobs = list(cluster.stream_jobs(model, frames, plan=mixed))
    assert [job.plan for job in jobs] == [plans[part] for part in assign_frames(mixed.weights, len(frames))]
    assert jobs[-1].timeline.devices and jobs[-1].latency_seconds > 0
    assert cluster._loader.epoch == epochs, "loaded plans stay loaded"


def test_a_job_can_be_waited_for_repeatedly(cluster: Cluster) -> None:
    x = image(HEAVY_SHAPE)
    job = cluster.submit(heavy(), x, plan=alone(heavy(), "snail"))
    with pytest.raises(FrameTimeout, match=f"frame {job.frame} .* it goes on"):
        job.result(timeout=0.001)
    assert not job.done()
    assert_exact(heavy(), x, job.result())
    assert job.done() and job.latency_seconds > 0


def test_a_cancelled_job_raises_and_frees_the_devices(cluster: Cluster) -> None:
    plan = alone(heavy(), "snail")
    # More than are under way at a time, so that some are cancelled before they are sent.
    jobs = [cluster.submit(heavy(), image(HEAVY_SHAPE), plan=plan) for _ in range(2 * len(NAMES) + 6)]
    for job in jobs:
        assert job.cancel() and job.done() and not job.cancel()
        with pytest.raises(Cancelled, match=f"frame {job.frame} was cancelled"):
            job.result()
        with pytest.raises(Cancelled):
            _ = job.timeline
    x = image(SHAPE, seed=1)
    last = cluster.submit(small(), x, plan=alone(small(), "snail"))
    assert_exact(small(), x, last.result())
    assert not last.cancel()
    assert_exact(small(), x, last.result())

    status = ray.get(cluster._group.actors["snail"].status.remote())
    assert not status.waiting, "cancelled frames are still there"


def test_several_models_plans_and_threads_at_once(cluster: Cluster) -> None:
    models = [small(seed) for seed in range(3)]
    choices = [
        (model, plan)
        for model in models
        for plan in (alone(model, "mid"), halves(model, "home", "low"), halves(model, "low", "mid", sink="low"))
    ]

    def ask(worker: int) -> int:
        exact = 0
        jobs = []
        for i in range(30):
            model, plan = choices[(worker * 7 + i) % len(choices)]
            x = image(SHAPE, seed=1000 * worker + i)
            jobs.append((model, x, cluster.submit(model, x, plan=plan)))
        for model, x, job in jobs:
            assert_exact(model, x, job.result())
            exact += 1
        return exact

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [30] * 4


def test_the_oldest_frame_goes_first_whatever_its_plan(cluster: Cluster) -> None:
    """A device that serves two plans does not starve the one that was loaded later."""
    # On the snail alone from start to end, so the answers leave in the order of the work.
    x, order = image(HEAVY_SHAPE), []
    first, second = alone(heavy(), "snail", "snail"), alone(small(), "snail", "snail")
    cluster.submit(heavy(), x, plan=first).result()
    cluster.submit(small(), image(SHAPE), plan=second).result()
    jobs = [
        cluster.submit(heavy(), x, plan=first),
        cluster.submit(heavy(), x, plan=first),
        cluster.submit(small(), image(SHAPE), plan=second),
        cluster.submit(heavy(), x, plan=first),
    ]
    for job in jobs:
        job._future.add_done_callback(lambda _, frame=job.frame: order.append(frame))
    for job in jobs:
        job.result()
    assert order == [job.frame for job in jobs]


# ---------------------------------------------------------------- what was measured


def planned_transfers(model: Model, plan: Plan) -> dict[tuple[str, str], int]:
    total: dict[tuple[str, str], int] = defaultdict(int)
    for name, program in coedge.lower(plan, model).items():
        for step in program.steps:
            if isinstance(step, Send):
                total[name, step.peer] += message_nbytes(program, step, model)
    return dict(total)


@pytest.mark.parametrize("name", ["uneven", "fused", "mosaic"])
def test_the_timeline_has_the_steps_of_every_device(cluster: Cluster, tmp_path: Path, name: str) -> None:
    _, x, model = captured("residual")
    plan = plans(model)[name]
    cluster.submit(model, x, plan=plan).result()
    job = cluster.submit(model, x, plan=plan)
    timeline = job.timeline
    programs = coedge.lower(plan, model)
    assert timeline.measured and timeline.clock_uncertainty_seconds == 0.0
    assert timeline.answered == {job.frame: (0.0, job.latency_seconds)}
    assert timeline.sent_nbytes() == planned_transfers(model, plan)
    for device, program in programs.items():
        stages = [s.stage for s in program.steps if isinstance(s, Compute)]
        spans = [s for s in timeline.spans if s.device == device]
        assert sorted(s.stage for s in spans if s.kind == "compute") == sorted(stages)
        assert {s.frame for s in spans} <= {job.frame}
        computing = sorted((s.start_seconds, s.stop_seconds) for s in spans if s.kind == "compute")
        assert all(0 <= start <= stop for start, stop in computing)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(computing))
    assert set(timeline.compute_seconds()) == {
        n for n, p in programs.items() if any(isinstance(s, Compute) for s in p.steps)
    }
    assert max(timeline.compute_seconds().values()) < job.latency_seconds
    assert [s.device for s in timeline.spans if s.kind == "answer"] == [plan.sink]
    assert timeline.energy_joules(cluster.profile(model)) > 0

    timeline.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]
    assert sum(e["ph"] == "X" for e in events) == len(timeline.spans)


def forget(cluster: Cluster, model: Model) -> None:
    """Let the cluster read or measure the profile again."""
    cluster._plan_cache._profiles.pop(model.hash, None)
    cluster._plan_cache._corrected.pop(model.hash, None)


def test_the_cache_of_measurements_is_keyed_and_survives_damage(cluster: Cluster, cache: Path) -> None:
    model = small(seed=10)
    first = cluster.profile(model)
    assert cluster.profile(model) is first
    files = sorted(cache.glob(f"layers-{model.hash}-*.json"))
    assert len(files) == 1  # four devices of one kind: measured once, scaled by their speeds
    times = {d.name: d.layers[1].seconds(32) for d in first.devices}
    assert times["low"] == pytest.approx(times["home"] / SPEEDS["low"])
    cluster.profile(small(seed=11))
    assert len(sorted(cache.glob("layers-*.json"))) > len(files)
    assert sorted(cache.glob(f"layers-{model.hash}-*.json")) == files

    # Read again, as by a later run: valid files are used; damaged ones and those of other machines are replaced.
    kept = files[0].read_bytes()
    forget(cluster, model)
    assert cluster.profile(model) == first
    short = json.loads(kept)
    short["layers"] = short["layers"][:-1]
    other = {**json.loads(kept), "fingerprint": "another machine"}
    for damage in (
        b"",
        kept[: len(kept) // 2],
        b"\xff\x00\xfe",
        json.dumps(short).encode(),
        json.dumps(other).encode(),
    ):
        files[0].write_bytes(damage)
        forget(cluster, model)
        again = cluster.profile(model)
        again.check(model)
        assert json.loads(files[0].read_text("utf-8"))["model_hash"] == model.hash
        assert files[0].read_bytes() != damage, "the damaged file was not replaced"


# ---------------------------------------------------------------- plans that are kept, and weights


def missing_weights(cluster: Cluster, device: str, model: Model) -> tuple[bool, list[str]]:
    parts = [WeightSlice(name) for name in sorted(model.weights)]
    graph, lacking = ray.get(cluster._group.actors[device].missing_weights.remote(model.hash, parts))
    return graph, [part.key for part in lacking]


def test_weights_are_shipped_once_and_only_to_devices_that_need_them(cluster: Cluster) -> None:
    net = small_net(seed=20, channels=16)  # weights of more than 4 kB are shipped apart from the graph
    model = capture(net.proto(net.nodes[-1].output[0]), name="shipped")
    names = sorted(model.weights)
    assert names
    x = image(SHAPE)
    assert all(missing_weights(cluster, device, model) == (True, names) for device in NAMES)
    cluster.submit(model, x, plan=halves(model, "home", "mid")).result()
    assert missing_weights(cluster, "home", model) == missing_weights(cluster, "mid", model) == (False, [])
    assert missing_weights(cluster, "low", model) == (True, names)

    # A device gets the weights that its own layers read.
    first, second = [(1, {"low": UNIT}), (len(model.layers) - 1, {"home": UNIT})], "home"
    cluster.submit(model, x, plan=make_plan(model, first, second)).result()
    graph_missing, left = missing_weights(cluster, "low", model)
    layer = model.layers[0]
    assert not graph_missing and left == [n for n in names if n not in model.weight_names(layer.first, layer.stop)]
    y = cluster.submit(model, x, plan=halves(model, "low", "mid")).result()
    assert_exact(model, x, y)


def test_a_plan_is_prepared_once_and_old_ones_make_room(cluster: Cluster) -> None:
    model = small()
    x = image(SHAPE)
    cuts = [i / 40 for i in range(1, 2 * KEPT_PLANS)]
    made = [coedge.even_plan(model, ["home", "low"], boundaries=[cut]) for cut in cuts]
    for plan in made:
        assert_exact(model, x, cluster.submit(model, x, plan=plan).result())
    assert len(cluster._loader.loaded) == KEPT_PLANS
    epochs = cluster._loader.epoch
    for plan in (made[-1], Plan.model_validate_json(made[-1].model_dump_json())):
        assert_exact(model, x, cluster.submit(model, x, plan=plan).result())
    assert cluster._loader.epoch == epochs, "an equal plan was loaded again"
    assert_exact(model, x, cluster.submit(model, x, plan=made[0]).result())
    assert cluster._loader.epoch == epochs + 1
    for plan in (made[-1], made[-2], made[-1], made[0], made[-2]):
        assert_exact(model, x, cluster.submit(model, x, plan=plan).result())
    assert cluster._loader.epoch == epochs + 1, "going back and forth loads nothing"
    # The same objective and model give the same plan, not a new one.
    assert cluster.plan(model) is cluster.plan(model)


def test_a_plan_in_use_is_not_unloaded(cluster: Cluster) -> None:
    x = image(HEAVY_SHAPE)
    slow = cluster.submit(heavy(), x, plan=alone(heavy(), "snail"))
    model = small()
    for i in range(KEPT_PLANS + 2):
        plan = coedge.even_plan(model, ["mid", "low"], boundaries=[(i + 1) / 50])
        assert_exact(model, image(SHAPE), cluster.submit(model, image(SHAPE), plan=plan).result())
    assert_exact(heavy(), x, slow.result())


def test_equal_networks_of_different_structure_keep_their_own(cluster: Cluster) -> None:
    """The hash covers the computation only; the structure of the outputs belongs to each model."""

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.conv(x)}

    x = torch.from_numpy(image(SHAPE))
    named = coedge.capture(Named().eval(), x, name="same")
    proto_path = cluster.config.cache_path / "same.onnx"
    named.save(proto_path)
    plain = coedge.capture(proto_path, name="same")
    assert named.hash == plain.hash and named.structure != plain.structure
    assert set(cluster.submit(named, x, plan=alone(named, "home")).result()) == {"y"}
    assert isinstance(cluster.submit(plain, x, plan=alone(plain, "home")).result(), torch.Tensor)
