"""Evaluate plans: lower and simulate each plan once, and check it against the constraints."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from coedge.core.objective import Objective
from coedge.core.region import UNIT, Region, UnitRect
from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.plan.lowering import Memo, lower
from coedge.plan.memory import program_nbytes, surely_within
from coedge.plan.plan import Plan, Prediction, Stage
from coedge.profile.profile import Profile
from coedge.simulation.simulator import simulate
from coedge.simulation.timeline import Timeline
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.divisible_load import bound_seconds

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A plan and its predicted cost, without regard to the deadline.

    Attributes:
        problems: the violated constraints other than the deadline, in words.
        excess: relative violation of these constraints, summed; 0 if the plan meets all of them.
    """

    plan: Plan
    latency_seconds: float
    energy_joules: float
    throughput_fps: float
    problems: tuple[str, ...]
    excess: float

    def rank(self, objective: Objective) -> tuple[float, float]:
        """Return a sort key, lower is better: the violation of all constraints, then the cost."""
        excess, cost = self.excess, objective.cost(self.latency_seconds, self.energy_joules, self.throughput_fps)
        if objective.deadline_seconds is not None and self.latency_seconds > objective.deadline_seconds:
            excess += self.latency_seconds / objective.deadline_seconds
        return (excess, cost if not excess else self.latency_seconds)


def distinct(evaluations: Sequence[Evaluation], objective: Objective) -> list[Evaluation]:
    """Sort evaluations, best first, and keep the best of those that differ in transfer options only."""
    unique: dict[Key, Evaluation] = {}
    for evaluated in sorted(evaluations, key=lambda evaluated: evaluated.rank(objective)):
        unique.setdefault(tuple((s.first, s.last, tuple(s.regions.items())) for s in evaluated.plan.stages), evaluated)
    return list(unique.values())


_memos = weakref.WeakValueDictionary[str, Memo]()


def shared_memo(model: Model) -> Memo:
    """Return the lowering memo that all current evaluators of a model share; it is freed with the last of them."""
    memo = _memos.get(model.hash)
    if memo is None:
        memo = _memos[model.hash] = Memo(model)
    return memo


class Evaluator:
    """Predicted costs of plans of one model, on one profile, for one objective.

    Attributes:
        table: the cost table of the model and the profile.
        evaluated: every evaluation so far, by what its plan does.
        steps: number of program steps simulated so far.
    """

    def __init__(self, model: Model, profile: Profile, objective: Objective) -> None:
        self.model, self.profile, self.objective = model, profile, objective
        self.table = CostTable.of(model, profile)
        self.evaluated: dict[Key, Evaluation] = {}
        self.steps = 0
        self._memo = shared_memo(model)
        self._owned: dict[tuple[int, UnitRect], tuple[Region, ...] | None] = {}

    def aiming_at(self, objective: Objective) -> Evaluator:
        """Return an evaluator for another goal that shares the evaluations so far.

        Args:
            objective: its constraints other than the deadline must be the same.
        """
        other = Evaluator(self.model, self.profile, objective)
        other.evaluated = self.evaluated
        return other

    def evaluate(self, stages: Sequence[Stage], scheme: str = "auto", reason: str = "") -> Evaluation:
        """Evaluate the plan of these stages, from the source back to the source."""
        key = tuple(self._key(stage) for stage in stages)
        if key not in self.evaluated:
            self.evaluated[key] = self._evaluate(tuple(stages), scheme, reason)
        return self.evaluated[key]

    def timeline(self, evaluated: Evaluation) -> Timeline:
        """Simulate one frame of a plan. Timelines are not kept: those of all evaluations would fill the memory."""
        return simulate(lower(evaluated.plan, self.model, self._memo), self.profile, self.model)

    def best(self, objective: Objective | None = None) -> Evaluation:
        """Return the best evaluation so far; for the evaluator's objective by default."""
        wanted = objective or self.objective
        return min(self.evaluated.values(), key=lambda evaluated: evaluated.rank(wanted))

    def plan(self, evaluated: Evaluation, scheme: str | None = None) -> Plan:
        """Return the plan with its prediction, its bound, and the constraints that it violates."""
        prediction = Prediction(
            latency_seconds=evaluated.latency_seconds, energy_joules=evaluated.energy_joules,
            throughput_fps=evaluated.throughput_fps, bound_seconds=bound_seconds(self.model, self.profile),
        )  # fmt: skip
        problems = list(evaluated.problems)
        if not self.objective.meets_deadline(evaluated.latency_seconds):
            predicted_ms = evaluated.latency_seconds * 1e3
            problems.append(f"predicted {predicted_ms:.4g} ms, the deadline is {self.objective.deadline_ms:.6g} ms")
        return evaluated.plan.model_copy(
            update={
                "scheme": scheme or evaluated.plan.scheme,
                "predicted": prediction,
                "feasible": not problems,
                "reason": "; ".join(problems) or evaluated.plan.reason,
            }
        )

    def _evaluate(self, stages: tuple[Stage, ...], scheme: str, reason: str) -> Evaluation:
        model, profile = self.model, self.profile
        plan = Plan(
            scheme=scheme, model_name=model.name, model_hash=model.hash, devices=profile.names,
            source=profile.source, sink=profile.source, stages=stages, reason=reason,
        )  # fmt: skip
        programs = lower(plan, model, self._memo)
        self.steps += sum(len(program.steps) for program in programs.values())
        timeline = simulate(programs, profile, model)
        problems, excess = self._problems(stages, programs)
        return Evaluation(
            plan, timeline.latency_seconds, timeline.energy_joules(profile),
            timeline.saturated_fps(profile), tuple(problems), excess,
        )  # fmt: skip

    def _problems(self, stages: Sequence[Stage], programs: dict[str, Program]) -> tuple[list[str], float]:
        """Return the violated constraints in words, and the sum of their relative violations."""
        objective, problems, excess = self.objective, [], 0.0
        for device in self.profile.devices:
            if device.memory_bytes is None or not programs[device.name].steps:
                continue
            if surely_within(programs[device.name], self.model, device.memory_bytes):
                continue
            needed = program_nbytes(programs[device.name], self.model)
            if needed > device.memory_bytes:
                problems.append(
                    f"{device.name} would need {needed / 1e6:.1f} MB, its limit is {device.memory_bytes / 1e6:.1f} MB"
                )
                excess += needed / device.memory_bytes
        for index, stage in enumerate(stages):
            if stage.first < objective.keep_local and stage.regions.get(self.profile.source) != UNIT:
                problems.append(
                    f"stage {index} has layer {stage.first} on other devices, layers up to "
                    f"{objective.keep_local - 1} are to stay on {self.profile.source}"
                )
                excess += 1.0
        return problems, excess

    def _key(self, stage: Stage) -> Key:
        """Return what a stage does. Edges that round to the same pixels of every live tensor give the same key."""
        regions = []
        for name, rect in stage.regions.items():
            owned = self._pixels(stage.last, rect)
            if owned is not None:
                regions.append((name, rect if stage.halo_first else owned))
        return (stage.first, stage.last, tuple(regions), stage.halo_first, tuple(sorted(stage.codecs.items())))

    def _pixels(self, layer: int, rect: UnitRect) -> tuple[Region, ...] | None:
        """Return the pixels of a share, for each extent of the tensors alive after a layer; None if all are empty."""
        if (layer, rect) not in self._owned:
            tensors = [self.model.graph.tensors[name] for name in self._alive(layer + 1)]
            extents = dict.fromkeys((tensor.rows, tensor.cols) for tensor in tensors)
            owned = tuple(rect.of_extent(rows, cols) for rows, cols in extents)
            self._owned[layer, rect] = owned if any(not region.empty for region in owned) else None
        return self._owned[layer, rect]

    def _alive(self, layer: int) -> tuple[str, ...]:
        """Return the tensors that are made before a layer and needed from there on."""
        cuts = self.model.cuts
        return cuts[layer].tensors if layer < len(cuts) else tuple(self.model.graph.outputs)
