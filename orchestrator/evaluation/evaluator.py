"""Judges plans: lowers and simulates them, and says which constraint they break. Every plan once."""

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
from orchestrator.evaluation.divisible_load import bound_seconds

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A plan and what it costs, whatever the deadline.

    Attributes:
        problems: the constraints beside the deadline that it breaks, in words.
        excess: how much it breaks them, relative, summed: how far it is from a plan that breaks none.
    """

    plan: Plan
    latency_seconds: float
    energy_joules: float
    throughput_fps: float
    problems: tuple[str, ...]
    excess: float

    def rank(self, objective: Objective) -> tuple[float, float]:
        """The lower the better: first how far it is from meeting all constraints, then cost."""
        excess, cost = self.excess, objective.cost(self.latency_seconds, self.energy_joules, self.throughput_fps)
        if objective.deadline_seconds is not None and self.latency_seconds > objective.deadline_seconds:
            excess += self.latency_seconds / objective.deadline_seconds
        return (excess, cost if not excess else self.latency_seconds)


def distinct(found: Sequence[Evaluation], objective: Objective) -> list[Evaluation]:
    """Best first; of those that differ in their dress alone, the best."""
    unique: dict[Key, Evaluation] = {}
    for evaluated in sorted(found, key=lambda evaluated: evaluated.rank(objective)):
        unique.setdefault(tuple((s.first, s.last, tuple(s.regions.items())) for s in evaluated.plan.stages), evaluated)
    return list(unique.values())


_memos = weakref.WeakValueDictionary[str, Memo]()


def shared_memo(model: Model) -> Memo:
    """What is known of the model's lowered plans by all who judge some of them now; it goes with the last of them."""
    memo = _memos.get(model.hash)
    if memo is None:
        memo = _memos[model.hash] = Memo(model)
    return memo


class Evaluator:
    """Of one model on one profile, for one objective.

    Attributes:
        judged: every plan so far, by what it does.
    """

    def __init__(self, model: Model, profile: Profile, objective: Objective) -> None:
        self.model, self.profile, self.objective = model, profile, objective
        self.evaluated: dict[Key, Evaluation] = {}
        self.steps = 0
        self._memo = shared_memo(model)
        self._owned: dict[tuple[int, UnitRect], tuple[Region, ...] | None] = {}

    def aiming_at(self, objective: Objective) -> Evaluator:
        """The same, and what was judged so far, for another goal: constraints beside the deadline must be the same."""
        other = Evaluator(self.model, self.profile, objective)
        other.evaluated = self.evaluated
        return other

    def evaluate(self, stages: Sequence[Stage], scheme: str = "auto", reason: str = "") -> Evaluation:
        """The plan of these stages, from the source back to the source."""
        key = tuple(self._key(stage) for stage in stages)
        if key not in self.evaluated:
            self.evaluated[key] = self._evaluate(tuple(stages), scheme, reason)
        return self.evaluated[key]

    def timeline(self, evaluated: Evaluation) -> Timeline:
        """Of one frame, simulated. (Those of all that was judged would fill the memory.)"""
        return simulate(lower(evaluated.plan, self.model, self._memo), self.profile, self.model)

    def best(self, objective: Objective | None = None) -> Evaluation:
        """Of everything that was judged."""
        wanted = objective or self.objective
        return min(self.evaluated.values(), key=lambda evaluated: evaluated.rank(wanted))

    def plan(self, evaluated: Evaluation, scheme: str | None = None) -> Plan:
        """The plan with all that is known of it: prediction, bound, and the constraints that it breaks."""
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
        draft = Plan(
            scheme=scheme, model_name=model.name, model_hash=model.hash, devices=profile.names,
            source=profile.source, sink=profile.source, stages=stages, reason=reason,
        )  # fmt: skip
        programs = lower(draft, model, self._memo)
        self.steps += sum(len(program.steps) for program in programs.values())
        timeline = simulate(programs, profile, model)
        problems, excess = self._problems(stages, programs)
        return Evaluation(
            draft, timeline.latency_seconds, timeline.energy_joules(profile),
            timeline.saturated_fps(profile), tuple(problems), excess,
        )  # fmt: skip

    def _problems(self, stages: Sequence[Stage], programs: dict[str, Program]) -> tuple[list[str], float]:
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
        """What the stage does: the pixels of every tensor that outlives it, for edges that round alike are one."""
        regions = []
        for name, rect in stage.regions.items():
            owned = self._pixels(stage.last, rect)
            if owned is not None:
                regions.append((name, rect if stage.halo_first else owned))
        return (stage.first, stage.last, tuple(regions), stage.halo_first, tuple(sorted(stage.codecs.items())))

    def _pixels(self, layer: int, rect: UnitRect) -> tuple[Region, ...] | None:
        """What a share has of the tensors that outlive a layer, by extent; None: nothing."""
        if (layer, rect) not in self._owned:
            tensors = [self.model.graph.tensors[name] for name in self._alive(layer + 1)]
            extents = dict.fromkeys((tensor.rows, tensor.cols) for tensor in tensors)
            owned = tuple(rect.of_extent(rows, cols) for rows, cols in extents)
            self._owned[layer, rect] = owned if any(not region.empty for region in owned) else None
        return self._owned[layer, rect]

    def _alive(self, layer: int) -> tuple[str, ...]:
        """The tensors that are made before a layer and needed from there on."""
        cuts = self.model.cuts
        return cuts[layer].tensors if layer < len(cuts) else tuple(self.model.graph.outputs)
