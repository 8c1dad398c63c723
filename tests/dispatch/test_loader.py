"""Loading plans on workers of this process: loads that fail half way, loads that others wait for, memory limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from nets import Net, difference, image, make_plan, one_stage, unsplit
from threads import FRAME_SECONDS, Threads
from waiting import MOST_SECONDS, until

from coedge.core.errors import ClusterError, DeviceLost
from coedge.core.region import UNIT, UnitRect
from coedge.execution.program import Program
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.graph.weight_slice import WeightSlice
from coedge.plan.lowering import lower
from coedge.plan.memory import program_nbytes
from coedge.plan.plan import Plan
from orchestrator.runtime.job import Job
from orchestrator.runtime.loader import KEPT_PLANS, Loader
from orchestrator.runtime.quiet_time import QuietTime

SHAPE = (1, 3, 16, 8)
UPPER, LOWER = UnitRect(row_stop=0.5), UnitRect(row_start=0.5)
X = image(SHAPE)


def net(seed: int = 0) -> Model:
    """Weights of more than 4 kB, which are shipped apart from the graph."""
    net = Net(seed=seed)
    x = net.op("Conv", net.input(SHAPE), net.weight(16, 3, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(net.op("Conv", x, net.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])), name=f"net-{seed}")


class ThreadShipment:
    """Ships to workers on threads. A test may hold a model's load back, or let it fail on a device.

    Attributes:
        held: model hashes whose loads wait for `go_on`.
        failing: devices on which loads fail.
        sent, withdrawn: epochs.
    """

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.held: set[str] = set()
        self.failing: set[str] = set()
        self.go_on = threading.Event()
        self.begun: list[int] = []
        self.sent: list[int] = []
        self.withdrawn: list[int] = []

    def send(self, epoch: int, model: Model, programs: Mapping[str, Program]) -> None:
        self.begun.append(epoch)
        if model.hash in self.held:
            assert self.go_on.wait(MOST_SECONDS)
        problems = []
        for name, program in programs.items():
            worker = self.threads.workers[name]
            parts = [part for part in model.weight_slices(program.tiles()).values() if part.name in model.weights]
            _, lacking = worker.missing_weights(model.hash, parts)
            weights = {part.key: np.ascontiguousarray(part.of(model.weights[part.name])) for part in lacking}
            if name in self.failing:
                problems.append(name)
            else:
                worker.load(epoch, program, model.skeleton, weights)
        if problems:
            raise ClusterError(f"{', '.join(problems)}: out of memory")
        self.sent.append(epoch)

    def withdraw(self, epoch: int, names: Iterable[str]) -> None:
        self.withdrawn.append(epoch)
        for name in names:
            self.threads.workers[name].unload(epoch)


class Devices:
    """Workers on threads, a loader for them, and frames."""

    def __init__(self, memory_bytes: Mapping[str, float | None] | None = None) -> None:
        self.threads = Threads(["a", "b", "c"])
        self.shipment, self.lost, self.quiet = ThreadShipment(self.threads), dict[str, str](), QuietTime()
        limits = {"a": None, "b": None, "c": None, **(memory_bytes or {})}
        self.loader = Loader(self.shipment, limits, self.lost, self.threads.dispatcher.in_flight, self.quiet)

    def submit(self, model: Model, plan: Plan) -> Job:
        with self.loader.using(model, plan) as loaded:
            return self.threads.dispatcher.submit(loaded, (X,), False, FRAME_SECONDS)

    def weights(self, name: str, model: Model) -> int:
        """Count the large weights of a model that a device has."""
        lacking = self.threads.workers[name].missing_weights(model.hash, [WeightSlice(w) for w in model.weights])[1]
        return len(model.weights) - len(lacking)

    def programs(self) -> set[int]:
        """The epochs that some device has a program of."""
        return {epoch for worker in self.threads.workers.values() for epoch in worker.status().epochs}


@pytest.fixture
def devices() -> Iterator[Devices]:
    made = Devices()
    yield made
    made.shipment.go_on.set()
    made.threads.close()


def halves(model: Model, upper: str = "a", lower: str = "b") -> Plan:
    return make_plan(model, [(1, {upper: UPPER, lower: LOWER}) for _ in model.layers], "a")


def alone(model: Model, name: str) -> Plan:
    return one_stage(model, {name: UNIT}, "a")


def assert_exact(model: Model, job: Job) -> None:
    assert difference(job.result(MOST_SECONDS), unsplit(model, [X])[0]) <= 1e-5


def error_of(future: Future[Job]) -> BaseException | None:
    return future.exception(MOST_SECONDS)


def test_a_load_that_fails_on_one_device_leaves_nothing_on_the_others(devices: Devices) -> None:
    model = net()
    devices.shipment.failing = {"b"}
    with pytest.raises(ClusterError, match="b: out of memory"):
        devices.submit(model, halves(model))
    assert [devices.weights(name, model) for name in "abc"] == [0, 0, 0]
    assert devices.programs() == set() and not devices.loader.loaded
    # What another plan needs stays where it is.
    assert_exact(model, devices.submit(model, alone(model, "a")))
    with pytest.raises(ClusterError):
        devices.submit(model, halves(model))
    assert devices.weights("a", model) == len(model.weights) and devices.weights("b", model) == 0
    assert_exact(model, devices.submit(model, alone(model, "a")))
    # The plan can be loaded later.
    devices.shipment.failing.clear()
    assert_exact(model, devices.submit(model, halves(model)))
    assert devices.programs() == {loaded.epoch for loaded in devices.loader.loaded.values()}


def test_frames_of_loaded_plans_are_answered_while_weights_of_other_plans_travel(devices: Devices) -> None:
    ready, slow, other = net(0), net(1), net(2)
    assert_exact(ready, devices.submit(ready, halves(ready)))
    devices.shipment.held = {slow.hash}
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(devices.submit, slow, halves(slow))
        until(lambda: len(devices.shipment.begun) == 2, "weights travel")
        for _ in range(3):
            assert_exact(ready, devices.submit(ready, halves(ready)))
        assert_exact(other, devices.submit(other, halves(other, "b", "c")))  # another model is loaded meanwhile
        assert not loading.done()
        devices.shipment.go_on.set()
        assert_exact(slow, loading.result(MOST_SECONDS))


@pytest.mark.parametrize("fails", [False, True])
def test_callers_of_one_plan_wait_for_one_load(devices: Devices, fails: bool) -> None:
    model = net()
    plan = halves(model)
    devices.shipment.held, devices.shipment.failing = {model.hash}, {"b"} if fails else set()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(devices.submit, model, plan) for _ in range(4)]
        until(lambda: devices.shipment.begun, "weights travel")
        until(lambda: len(devices.loader._loading) == 1, "they wait")
        begun = [pool.submit(devices.submit, model, Plan.model_validate_json(plan.model_dump_json()))]
        devices.shipment.go_on.set()
        if not fails:
            for future in [*futures, *begun]:
                assert_exact(model, future.result(MOST_SECONDS))
            assert len(devices.shipment.sent) == 1
        else:  # each fails with the reason of the load that it waited for, or of its own
            assert all("b: out of memory" in str(error_of(future)) for future in [*futures, *begun])
            assert devices.programs() == set()
    assert not devices.loader._loading and not devices.loader._pending and not devices.loader._users


def test_an_interrupted_load_tells_those_who_wait(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan, begun, go_on = net(), halves(net()), threading.Event(), threading.Event()

    def interrupted(*_: object) -> None:
        begun.set()
        assert go_on.wait(MOST_SECONDS)
        raise KeyboardInterrupt

    monkeypatch.setattr(devices.shipment, "send", interrupted)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(devices.submit, model, plan)
        assert begun.wait(MOST_SECONDS)
        waits = threading.Event()
        inner = devices.loader._loading[next(iter(devices.loader._loading))]
        result = inner.result
        monkeypatch.setattr(inner, "result", lambda *args: (waits.set(), result(*args))[1])
        second = pool.submit(devices.submit, model, plan)
        assert waits.wait(MOST_SECONDS)
        go_on.set()
        assert isinstance(error_of(first), KeyboardInterrupt)
        error = error_of(second)
        assert isinstance(error, ClusterError) and "try again" in str(error)
    monkeypatch.undo()
    assert_exact(model, devices.submit(model, plan))


def test_no_plan_is_unloaded_between_being_found_and_its_frame(devices: Devices) -> None:
    model = net()
    plan = halves(model)
    with devices.loader.using(model, plan) as loaded:
        for step in range(KEPT_PLANS + 3):
            edge = (step + 1) / 64
            other = one_stage(model, {"b": UnitRect(row_stop=edge), "c": UnitRect(row_start=edge)}, "a")
            devices.submit(model, other).result(MOST_SECONDS)
        assert loaded.epoch in devices.programs()
        job = devices.threads.dispatcher.submit(loaded, (X,), False, FRAME_SECONDS)
    assert_exact(model, job)
    devices.submit(model, alone(model, "c")).result(MOST_SECONDS)
    assert len(devices.loader.loaded) == KEPT_PLANS


def test_plans_that_a_memory_limit_does_not_allow_together_make_room() -> None:
    first, second = net(0), net(1)
    needed = program_nbytes(lower(alone(first, "b"), first)["b"], first)
    devices = Devices({"b": 1.2 * needed})
    try:
        assert_exact(first, devices.submit(first, alone(first, "b")))
        assert_exact(second, devices.submit(second, alone(second, "b")))
        assert devices.weights("b", first) == 0 and devices.weights("b", second) > 0
        assert len(devices.loader.loaded) == 1
    finally:
        devices.threads.close()


def test_a_device_that_is_back_loses_no_weights_that_a_load_counts_on(devices: Devices) -> None:
    """An old program was unloaded from the others while the device was away. Its weights are those of the new plan."""
    model = net()
    assert_exact(model, devices.submit(model, halves(model)))
    (old,) = devices.loader.loaded.values()
    devices.loader.loaded.clear()
    devices.shipment.held.add(model.hash)
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(devices.submit, model, halves(model, "b", "a"))
        until(lambda: devices.loader._pending, "the load has begun")
        tidying = pool.submit(devices.loader.tidy, "b", [old.epoch])
        time.sleep(0.05)  # it would unload at once
        assert devices.shipment.withdrawn == []
        devices.shipment.held.clear()
        devices.shipment.go_on.set()
        assert_exact(model, loading.result(MOST_SECONDS))
        tidying.result(MOST_SECONDS)
    assert devices.shipment.withdrawn == [old.epoch]
    assert_exact(model, devices.submit(model, halves(model, "b", "a")))


def test_a_lost_device_is_named_before_anything_is_sent(devices: Devices) -> None:
    model = net()
    devices.lost["b"] = "its worker process died"
    with pytest.raises(DeviceLost, match="b is part of the plan, but it is lost: its worker process died"):
        devices.submit(model, halves(model))
    assert devices.shipment.begun == []
    assert_exact(model, devices.submit(model, alone(model, "a")))
