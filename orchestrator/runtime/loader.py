"""Loading plans on the devices of a cluster: each device gets its program, and each weight that it lacks once.

    using(plan)    loaded: at once       loading: waits for that load       neither: loads it

Weights may travel for minutes. Meanwhile nothing is locked that callers of other plans need: one thread loads a plan,
later callers of the same plan wait for its future, and the others go on. A load that fails on one device is taken
back on all of them.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from coedge.core.errors import ClusterError, CoEdgeError, DeviceLost, InfeasibleError, PlanError
from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import held_nbytes, program_nbytes
from coedge.plan.plan import Plan
from orchestrator.runtime.loaded_plan import LoadedPlan
from orchestrator.runtime.quiet_time import QuietTime

KEPT_PLANS = 16
# Longer than any load takes before it fails by itself: asking, loading, taking back, each for several plans.
WAIT_SECONDS = 900.0

Key = tuple[str, str | None, str]


class Shipment(Protocol):
    """The way of programs and weights to the devices."""

    def send(self, epoch: int, model: Model, programs: Mapping[str, Program]) -> None:
        """Prepare a program on every device. Raises ClusterError; some devices may be ready all the same."""

    def withdraw(self, epoch: int, names: Iterable[str]) -> None:
        """Unload an epoch from devices that answer; wait until it is done."""


class Loader:
    """The plans that are loaded on the devices: the last used ones, up to `KEPT_PLANS`.

    Args:
        shipment: gives programs to the devices.
        memory_bytes: memory limit by device name, for all devices of the cluster; None: not limited.
        lost: reason by name of every lost device; read at every use.
        in_flight: whether frames of an epoch are under way. Such a plan is not unloaded.
        quiet: holds loads off while something is measured.
    """

    def __init__(
        self,
        shipment: Shipment,
        memory_bytes: Mapping[str, float | None],
        lost: Mapping[str, str],
        in_flight: Callable[[int], bool],
        quiet: QuietTime,
    ) -> None:
        self._shipment, self._memory_bytes, self._lost = shipment, dict(memory_bytes), lost
        self._in_flight, self._quiet = in_flight, quiet
        self._lock = threading.RLock()
        self._loading: dict[Key, Future[None]] = {}
        self._pending: dict[int, LoadedPlan] = {}  # loads under way, by epoch
        self._users: Counter[int] = Counter()  # by epoch
        # What a device has of a model must not change between asking for it and loading: by model hash.
        self._shipping: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self.loaded: OrderedDict[Key, LoadedPlan] = OrderedDict()
        self.epoch = 0

    @contextlib.contextmanager
    def using(self, model: Model, plan: Plan) -> Iterator[LoadedPlan]:
        """Yield the plan loaded on every device that takes part; it is not unloaded inside the context.

        Raises:
            PlanError: the plan does not fit the model or the cluster.
            InfeasibleError: a device's memory limit is too small.
            DeviceLost: a device of the plan is lost.
            ClusterError: a device could not load it, or did not in time.
        """
        loaded = self._obtain(model, plan)
        try:
            self._check_there(loaded)
            yield loaded
        finally:
            self._release(loaded)

    def load_together(self, model: Model, plans: Sequence[Plan]) -> None:
        """Load several plans whose frames will be under way at the same time. Raises the errors of `using`."""
        self._check_memory_of(model, plans)
        with self._lock:
            for plan in plans:  # used recently, so that loading the others does not unload them
                if _key(model, plan) in self.loaded:
                    self.loaded.move_to_end(_key(model, plan))
        held: list[LoadedPlan] = []
        try:
            for plan in plans:
                held.append(self._obtain(model, plan, at_once=len(plans) > 1, kept=max(KEPT_PLANS, len(plans))))
            for loaded in held:
                self._check_there(loaded)
        finally:
            for loaded in held:
                self._release(loaded)

    def forget(self, device: str) -> None:
        """Forget the plans of a device whose worker was started again and has nothing loaded."""
        with self._lock:
            keys = [key for key, loaded in self.loaded.items() if device in loaded.devices]
            forgotten = [self.loaded.pop(key) for key in keys]
        self._unload(forgotten)

    def tidy(self, device: str, epochs: Iterable[int]) -> None:
        """Unload the epochs of a device that was lost while they were unloaded from the others."""
        with self._lock:
            known = {loaded.epoch for loaded in (*self.loaded.values(), *self._pending.values())}
            locks = list(self._shipping.values())
        with contextlib.ExitStack() as held:
            for lock in locks:  # weights that a load counts on must stay until it has ended
                held.enter_context(lock)
            for epoch in set(epochs) - known:
                self._shipment.withdraw(epoch, [device])

    def _obtain(self, model: Model, plan: Plan, at_once: bool = False, kept: int = KEPT_PLANS) -> LoadedPlan:
        """Return the plan loaded and counted as used; load it, or wait for the thread that does."""
        key = _key(model, plan)
        while True:
            with self._lock:
                loaded = self._found(key)
                future = self._loading.get(key)
            if loaded is not None:
                return loaded
            if future is not None:
                _wait(future, model)
            elif (loaded := self._load_first(key, model, plan, at_once)) is not None:
                self._unload(self._surplus(kept))
                return loaded

    def _found(self, key: Key) -> LoadedPlan | None:
        """Return a loaded plan, counted as used. Holds the lock."""
        loaded = self.loaded.get(key)
        if loaded is not None:
            self.loaded.move_to_end(key)
            self._users[loaded.epoch] += 1
        return loaded

    def _load_first(self, key: Key, model: Model, plan: Plan, at_once: bool) -> LoadedPlan | None:
        """Load a plan; return None if another thread began to, or has loaded it."""
        # Quiet first: a thread that measures must never wait for the future of one that waits for it.
        with self._quiet.loading():
            with self._lock:
                if key in self._loading or key in self.loaded:
                    return None
                future = self._loading[key] = Future()
            try:
                loaded = self._load(key, model, plan, at_once)
            except BaseException as error:
                self._end_load(key, future, error)
                raise
            self._end_load(key, future, None)
            return loaded

    def _end_load(self, key: Key, future: Future[None], error: BaseException | None) -> None:
        """Let callers that wait look again, or fail as this load did."""
        with self._lock:
            del self._loading[key]
        if error is None:
            future.set_result(None)
        elif isinstance(error, CoEdgeError):
            future.set_exception(error)
        else:
            future.set_exception(ClusterError(f"the load of a plan that others waited for ended: {error!r}; try again"))

    def _load(self, key: Key, model: Model, plan: Plan, at_once: bool) -> LoadedPlan:
        used = {name for stage in plan.stages for name in stage.regions} | {plan.source, plan.sink}
        unknown = sorted(used - set(self._memory_bytes))
        if unknown:
            raise PlanError(
                f"the plan uses device {unknown[0]!r}, which is not in this cluster: {', '.join(self._memory_bytes)}"
            )
        programs = {name: program for name, program in lower(plan, model).items() if name in self._memory_bytes}
        self._check_memory(model, programs)
        with self._lock:
            self.epoch += 1
            loaded = LoadedPlan(self.epoch, model, plan, programs)
            self._check_there(loaded)
            in_the_way = self._in_the_way(loaded, at_once)
            self._pending[loaded.epoch] = loaded
        try:
            self._unload(in_the_way)
            self._ship(loaded)
            with self._lock:
                self.loaded[key] = loaded
                self._users[loaded.epoch] += 1
        finally:
            with self._lock:
                del self._pending[loaded.epoch]
        return loaded

    def _ship(self, loaded: LoadedPlan) -> None:
        """Send a plan; if that fails, take it back on all devices."""
        model = loaded.model
        with self._shipping_lock(model):
            try:
                self._shipment.send(loaded.epoch, model, {name: loaded.programs[name] for name in loaded.devices})
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    self._shipment.withdraw(loaded.epoch, loaded.devices)
                raise

    def _release(self, loaded: LoadedPlan) -> None:
        with self._lock:
            self._users[loaded.epoch] -= 1
            if not self._users[loaded.epoch]:
                del self._users[loaded.epoch]

    def _check_there(self, loaded: LoadedPlan) -> None:
        for name in loaded.devices:
            if name in self._lost:
                raise DeviceLost(
                    f"{name} is part of the plan, but it is lost: {self._lost[name]}. Plan without it until it is back"
                )

    def _check_memory(self, model: Model, programs: Mapping[str, Program]) -> None:
        for name, program in programs.items():
            limit, needed = self._memory_bytes[name], program_nbytes(program, model)
            if limit is not None and program.steps and needed > limit:
                raise InfeasibleError(
                    f"{name} would need {needed / 1e6:.1f} MB for its part of {model.name} (weights, input and "
                    f"activations), its limit is {limit / 1e6:.1f} MB; give it less, or raise devices.{name}.memory_mb"
                )

    def _check_memory_of(self, model: Model, plans: Sequence[Plan]) -> None:
        """Check that the plans of a mixture fit together: none can make room while frames of another one run."""
        limits = {name: limit for name, limit in self._memory_bytes.items() if limit is not None}
        lowered = [lower(plan, model) for plan in plans] if limits and len(plans) > 1 else []
        for name, limit in limits.items():
            programs = [programs[name] for programs in lowered if name in programs and programs[name].steps]
            needed = held_nbytes(((model, program) for program in programs), at_once=True)
            if programs and needed > limit:
                raise InfeasibleError(
                    f"{name} would need {needed / 1e6:.1f} MB for its parts of {len(programs)} plans of {model.name} "
                    f"at a time, its limit is {limit / 1e6:.1f} MB; make the mixture for this cluster "
                    f"(cluster.mixture), or raise devices.{name}.memory_mb"
                )

    def _in_the_way(self, new: LoadedPlan, at_once: bool) -> list[LoadedPlan]:
        """Take out of `loaded`, oldest first, plans that a memory limit does not allow beside a new one.

        Args:
            at_once: frames of more than one of them will be under way.
        """
        removed = []
        for name in new.devices:
            limit = self._memory_bytes[name]
            if limit is None:
                continue
            for key, old in list(self.loaded.items()):
                held = [p for p in (*self.loaded.values(), *self._pending.values(), new) if name in p.devices]
                if held_nbytes([(p.model, p.programs[name]) for p in held], at_once) <= limit:
                    break
                if name in old.devices and not self._in_use(old):
                    removed.append(self.loaded.pop(key))
        return removed

    def _surplus(self, kept: int) -> list[LoadedPlan]:
        """Take the oldest plans beyond `kept` out of `loaded`, unless they are in use."""
        with self._lock:
            keys = [key for key in list(self.loaded)[:-kept] if not self._in_use(self.loaded[key])]
            return [self.loaded.pop(key) for key in keys]

    def _in_use(self, loaded: LoadedPlan) -> bool:
        return self._users[loaded.epoch] > 0 or self._in_flight(loaded.epoch)

    def _unload(self, plans: Iterable[LoadedPlan]) -> None:
        for old in plans:
            with self._shipping_lock(old.model):
                self._shipment.withdraw(old.epoch, old.devices)

    def _shipping_lock(self, model: Model) -> threading.Lock:
        with self._lock:
            return self._shipping[model.hash]


def _key(model: Model, plan: Plan) -> Key:
    return model.hash, model.structure, plan.digest


def _wait(future: Future[None], model: Model) -> None:
    """Wait for the load of another thread. Raises its error."""
    try:
        future.result(WAIT_SECONDS)
    except TimeoutError:
        raise ClusterError(
            f"{model.name} was not loaded within {WAIT_SECONDS:.0f} s by the caller that asked for the plan first. "
            "Are the links to the devices very slow? Run: coedge devices"
        ) from None
