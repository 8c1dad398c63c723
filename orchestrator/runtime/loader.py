"""Makes plans ready on the devices of a cluster: programs, and each weight, or a device's part of it, once."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from coedge.core.errors import ClusterError, DeviceLost, InfeasibleError, PlanError
from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import held_nbytes, program_nbytes
from coedge.plan.plan import Plan
from orchestrator.control import ray_control
from orchestrator.control.worker_group import WorkerGroup
from orchestrator.runtime.loaded_plan import LoadedPlan

KEPT_PLANS = 16
ASK_SECONDS = 60.0
LOAD_SECONDS = 300.0

Key = tuple[str, str | None, str]


class Loader:
    """Keeps the plans that were used last ready; going back to one of them costs nothing.

    Args:
        in_flight: whether frames of an epoch are under way: its plan is not unloaded.
    """

    def __init__(self, group: WorkerGroup, in_flight: Callable[[int], bool]) -> None:
        self._group, self._in_flight = group, in_flight
        self.loaded: OrderedDict[Key, LoadedPlan] = OrderedDict()
        self.epoch = 0

    def ready(self, model: Model, plan: Plan) -> LoadedPlan:
        """The plan, ready on every device that takes part.

        Raises:
            PlanError: the plan does not fit the model or the cluster.
            InfeasibleError: a device's memory limit is too small.
            DeviceLost: a device of the plan is not there any more.
        """
        key = _key(model, plan)
        loaded = self.loaded.get(key)
        if loaded is None:
            loaded = self.loaded[key] = self._load(model, plan)
            self._unload_old(KEPT_PLANS)
        self.loaded.move_to_end(key)
        self._check_there(loaded)
        return loaded

    def ready_together(self, model: Model, plans: Sequence[Plan]) -> None:
        """The same of several plans, all of them ready at the same time."""
        self._check_memory_of(model, plans)
        for plan in plans:
            if _key(model, plan) in self.loaded:  # before the others take its place
                self.loaded.move_to_end(_key(model, plan))
        for plan in plans:
            key = _key(model, plan)
            if key not in self.loaded:
                self.loaded[key] = self._load(model, plan, at_once=len(plans) > 1)
        self._unload_old(max(KEPT_PLANS, len(plans)))
        for plan in plans:
            self._check_there(self.loaded[_key(model, plan)])

    def _check_there(self, loaded: LoadedPlan) -> None:
        for name in loaded.devices:
            if name in self._group.lost:
                raise DeviceLost(
                    f"{name} is part of the plan, but it is lost: {self._group.lost[name]}. "
                    "Connect again, or plan without it"
                )

    def _load(self, model: Model, plan: Plan, at_once: bool = False) -> LoadedPlan:
        workers = self._group.by_name
        used = {name for stage in plan.stages for name in stage.regions} | {plan.source, plan.sink}
        unknown = sorted(used - set(workers))
        if unknown:
            raise PlanError(f"the plan uses device {unknown[0]!r}, which is not in this cluster: {', '.join(workers)}")
        programs = {name: program for name, program in lower(plan, model).items() if name in workers}
        self._check_memory(model, programs)
        self._make_room(model, programs, at_once)
        self.epoch += 1
        loaded = LoadedPlan(self.epoch, model, plan, programs)
        self._check_there(loaded)
        self._ship(loaded)
        return loaded

    def _check_memory(self, model: Model, programs: Mapping[str, Program]) -> None:
        workers = self._group.by_name
        for name, program in programs.items():
            limit, needed = workers[name].config.memory_mb, program_nbytes(program, model) / 1e6
            if limit is not None and program.steps and needed > limit:
                raise InfeasibleError(
                    f"{name} would need {needed:.1f} MB for its part of {model.name} (weights, input and "
                    f"activations), its limit is {limit:.1f} MB; give it less, or raise devices.{name}.memory_mb"
                )

    def _check_memory_of(self, model: Model, plans: Sequence[Plan]) -> None:
        """The plans of a mixture must fit together: while frames of one run, none can make room for another."""
        limits = {n: m.memory_bytes for n, m in self._group.by_name.items() if m.memory_bytes is not None}
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

    def _ship(self, loaded: LoadedPlan) -> None:
        import ray

        model, actors = loaded.model, self._group.actors
        asked = {}
        for name in loaded.devices:
            parts = model.weight_slices(loaded.programs[name].tiles())
            large = [part for _, part in sorted(parts.items()) if part.name in model.weights]
            asked[name] = actors[name].missing_weights.remote(model.hash, large)
        missing = ray_control.gather(asked, ASK_SECONDS, "say what they have")
        # Each weight lies once in Ray's object store; devices of one host share it there.
        stored: dict[str, Any] = {}
        calls = {}
        for name, (graph_missing, lacking) in missing.items():
            for part in lacking:
                if part.key not in stored:
                    stored[part.key] = ray.put(np.ascontiguousarray(part.of(model.weights[part.name])))
            skeleton = model.skeleton if graph_missing else None
            keys = [part.key for part in lacking]
            references = [stored[key] for key in keys]
            calls[name] = actors[name].load.remote(loaded.epoch, loaded.programs[name], skeleton, keys, references)
        ray_control.gather(calls, LOAD_SECONDS, f"prepare {model.name}")

    def _make_room(self, model: Model, programs: Mapping[str, Program], at_once: bool) -> None:
        """Unloads plans, oldest first, that a device's memory limit does not allow it to keep beside a new one.

        Args:
            at_once: frames of more than one of them will be under way.
        """
        for name, program in programs.items():
            limit = self._group.by_name[name].memory_bytes
            if limit is None or not program.steps:
                continue
            for key, old in list(self.loaded.items()):
                kept = [(p.model, p.programs[name]) for p in self.loaded.values() if name in p.devices]
                if held_nbytes([*kept, (model, program)], at_once) <= limit:
                    break
                if name in old.devices:
                    self._unload(key)

    def _unload_old(self, kept: int) -> None:
        for key in list(self.loaded)[:-kept]:
            self._unload(key)

    def _unload(self, key: Key) -> None:
        """Waits until it is done: a device must not be asked what it has while it is letting go of it."""
        old = self.loaded[key]
        if not self._in_flight(old.epoch):
            del self.loaded[key]
            there = [name for name in old.devices if name not in self._group.lost]
            with contextlib.suppress(ClusterError):  # who does not answer is about to be noticed as lost
                calls = {name: self._group.by_name[name].actor.unload.remote(old.epoch) for name in there}
                ray_control.gather(calls, ASK_SECONDS, "let go of a plan")


def _key(model: Model, plan: Plan) -> Key:
    return model.hash, model.structure, plan.digest
