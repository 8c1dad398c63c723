"""Judges plans: lowers and simulates them, and says which constraint they break. Every plan once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coedge.lowering import lower
from coedge.memory import program_nbytes
from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Plan, Stage
from coedge.profile import Profile
from coedge.program import Program
from coedge.region import UNIT
from coedge.simulator import predict
from orchestrator.bound import bound_seconds

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """A plan and what it costs.

    Attributes:
        problems: the constraints that it breaks, in words.
        excess: how much it breaks them, relative, summed: how far it is from a plan that breaks none.
    """

    plan: Plan
    latency_seconds: float
    energy_joules: float
    throughput_fps: float
    problems: tuple[str, ...]
    excess: float

    def rank(self, objective: Objective) -> tuple[float, float]:
        """The lower the better: first without problems, then cost."""
        cost = objective.cost(self.latency_seconds, self.energy_joules, self.throughput_fps)
        return (self.excess, cost if not self.problems else self.latency_seconds)


class Evaluator:
    """Of one model on one profile, for one objective.

    Attributes:
        judged: every plan so far, by what it does.
    """

    def __init__(self, model: Model, profile: Profile, objective: Objective) -> None:
        self.model, self.profile, self.objective = model, profile, objective
        self.judged: dict[Key, Judged] = {}
        self.steps = 0

    def judge(self, stages: Sequence[Stage], scheme: str = "auto", reason: str = "") -> Judged:
        """The plan of these stages, from the source back to the source."""
        key = tuple(_key(stage) for stage in stages)
        if key not in self.judged:
            self.judged[key] = self._judge(tuple(stages), scheme, reason)
        return self.judged[key]

    def _judge(self, stages: tuple[Stage, ...], scheme: str, reason: str) -> Judged:
        model, profile = self.model, self.profile
        draft = Plan(
            scheme=scheme, model_name=model.name, model_hash=model.hash, devices=profile.names,
            source=profile.source, sink=profile.source, stages=stages,
        )  # fmt: skip
        programs = lower(draft, model)
        self.steps += sum(len(program.steps) for program in programs.values())
        prediction = predict(draft, programs, profile, model, stream=self.objective.goal == "throughput")
        problems, excess = self._problems(stages, programs, prediction.latency_seconds)
        plan = draft.model_copy(
            update={
                "predicted": prediction.model_copy(update={"bound_seconds": bound_seconds(model, profile)}),
                "feasible": not problems,
                "reason": "; ".join(problems) or reason,
            }
        )
        return Judged(
            plan, prediction.latency_seconds, prediction.energy_joules, prediction.throughput_fps,
            tuple(problems), excess,
        )  # fmt: skip

    def _problems(
        self, stages: Sequence[Stage], programs: dict[str, Program], latency_seconds: float
    ) -> tuple[list[str], float]:
        objective, problems, excess = self.objective, [], 0.0
        for device in self.profile.devices:
            if device.memory_bytes is None or not programs[device.name].steps:
                continue
            needed = program_nbytes(programs[device.name], self.model)
            if needed > device.memory_bytes:
                problems.append(
                    f"{device.name} would need {needed / 1e6:.1f} MB, its limit is {device.memory_bytes / 1e6:.1f} MB"
                )
                excess += needed / device.memory_bytes
        if not objective.meets_deadline(latency_seconds):
            assert objective.deadline_seconds is not None
            problems.append(f"predicted {latency_seconds * 1e3:.4g} ms, the deadline is {objective.deadline_ms:.6g} ms")
            excess += latency_seconds / objective.deadline_seconds
        for index, stage in enumerate(stages):
            if stage.first < objective.keep_local and stage.regions.get(self.profile.source) != UNIT:
                problems.append(
                    f"stage {index} has layer {stage.first} on other devices, layers up to "
                    f"{objective.keep_local - 1} are to stay on {self.profile.source}"
                )
                excess += 1.0
        return problems, excess


def _key(stage: Stage) -> Key:
    regions = tuple((name, rect) for name, rect in stage.regions.items() if rect.row_stop > rect.row_start)
    return (stage.first, stage.last, regions, stage.borders_first, tuple(sorted(stage.codecs.items())))
