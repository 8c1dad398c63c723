"""Constraints of an objective: whether each binds, and the savings if it is loosened, by planning again."""

from __future__ import annotations

from collections.abc import Iterator

from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import program_nbytes
from coedge.plan.plan import Plan, Stage
from coedge.profile.profile import Profile
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.planner.explain import sensitivity
from orchestrator.planner.explain.explanation import Constraint, Sensitivity
from orchestrator.planner.explain.figures import Figures, figures_of_plan
from orchestrator.planner.explain.wording import goal_words, joules, milliseconds
from orchestrator.planner.planner import AUTO, SCHEMES, make_plan
from orchestrator.search.auto import explored
from orchestrator.search.draft import as_draft
from orchestrator.search.linear_programme import BoundaryProblem
from orchestrator.search.local_search import LEAST_GAIN
from orchestrator.search.receptive_field import ReceptiveFields

# Factor by which a memory limit that binds is raised.
MEMORY_FACTOR = 1.1


def check_constraints(
    plan: Plan,
    model: Model,
    profile: Profile,
    objective: Objective,
    figures: Figures,
    full_profile: Profile | None = None,
) -> tuple[Constraint, ...]:
    """Return every constraint of the objective with its state.

    Args:
        figures: figures of the plan.
        full_profile: the profile including the devices that the user excluded. Each exclusion is a constraint.
    """
    checker = _Checker(plan, model, profile, objective, figures)
    constraints = [*checker.deadline(), *checker.memory(), *checker.keep_local()]
    if full_profile is not None:
        constraints += checker.excluded(full_profile)
    return tuple(constraints)


class _Checker:
    """The constraints of one plan."""

    def __init__(self, plan: Plan, model: Model, profile: Profile, objective: Objective, figures: Figures) -> None:
        self.plan, self.model, self.profile = plan, model, profile
        self.objective, self.figures = objective, figures
        self.scheme = plan.scheme if plan.scheme in SCHEMES else AUTO

    def deadline(self) -> Iterator[Constraint]:
        """Yield the deadline, if there is one."""
        limit = self.objective.deadline_seconds
        if limit is None:
            return
        name, slack = f"deadline {milliseconds(limit)}", limit - self.figures.latency_seconds
        if slack < 0:
            yield Constraint(name=name, state="broken", text=self._missed(-slack))
            return
        later = self._later(limit)
        if later is None:
            text = f"met with {milliseconds(slack)} to spare; a later deadline would not help"
            yield Constraint(name=name, state="met", text=text)
            return
        text = f"met with {milliseconds(slack)} to spare; {self._with_more_time(later, limit)}"
        change = f"a deadline of {milliseconds(later.latency_seconds)}"
        saves = Sensitivity(change=change, saves=self.figures.saved(later))
        yield Constraint(name=name, state="binds", text=text, sensitivity=saves)

    def _missed(self, late_seconds: float) -> str:
        latency = milliseconds(self.figures.latency_seconds)
        if self.scheme != AUTO:
            return f"missed by {milliseconds(late_seconds)}; the plan of {self.scheme} takes {latency}"
        return f"missed by {milliseconds(late_seconds)}; no plan found takes less than {latency}"

    def _with_more_time(self, later: Figures, limit: float) -> str:
        """Describe the next better plan beyond the deadline, and the joules per millisecond of delay."""
        delay = later.latency_seconds - limit
        text = f"{milliseconds(delay)} more ({milliseconds(later.latency_seconds)}) would give {self._goal(later)}"
        if self.objective.goal == "energy":
            average, multiplier = self.figures.saved(later).energy_joules / delay, self._deadline_multiplier()
            text += f", {joules(average * 1e-3)} less for every ms"
            if multiplier > 0.01 * average:
                text += f"; with the same cuts the first ms would save {joules(multiplier * 1e-3)} (its multiplier)"
        return text

    def _later(self, limit: float) -> Figures | None:
        """Return the figures of the next better plan that misses the deadline; None if there is none."""
        if self.objective.goal == "latency" and not self.objective.energy_weight:
            return None
        free = self.objective.model_copy(update={"deadline_ms": None})
        if self.scheme != AUTO:
            return self._if_better(self._planned(self.profile, free))
        evaluated = explored(self.model, self.profile, self.objective).evaluated.values()
        late = [figures_of_plan(j) for j in evaluated if not j.problems and j.latency_seconds > limit]
        better = [figures for figures in late if self._if_better(figures)]
        return min(better, key=lambda figures: figures.latency_seconds, default=None)

    def _deadline_multiplier(self) -> float:
        """Return the deadline's multiplier in the boundary programme: joules saved per second of delay, in watts."""
        draft = as_draft(self.plan.stages)
        if draft is None:
            return 0.0
        table = CostTable.of(self.model, self.profile)
        solved = BoundaryProblem(table, ReceptiveFields(self.model), draft).solve(table, self.objective)
        return 0.0 if solved is None else solved.deadline_price

    def memory(self) -> Iterator[Constraint]:
        """Yield the memory limits that are broken or bind, or the tightest one if none does."""
        limits = {d.name: d.memory_bytes for d in self.profile.devices if d.memory_bytes is not None}
        if not limits:
            return
        programs = lower(self.plan, self.model)
        needed = {name: float(program_nbytes(programs[name], self.model)) for name in self.plan.used_devices}
        for name, limit in limits.items():
            if needed.get(name, 0.0) > limit:
                text = f"the plan needs {needed[name] / 1e6:.1f} MB"
                yield Constraint(name=_memory_name(name, limit), state="broken", text=text)
        tightest = max((needed.get(name, 0.0) / limit, name) for name, limit in limits.items())[1]
        used = needed.get(tightest, 0.0)
        if used > limits[tightest]:
            return
        if self._no_limit_binds(limits):
            text = f"met; the plan needs {used / 1e6:.1f} MB, and no memory limit binds"
            yield Constraint(name=_memory_name(tightest, limits[tightest]), state="met", text=text)
            return
        yield from self._with_more_memory(limits)

    def _no_limit_binds(self, limits: dict[str, float]) -> bool:
        """Return whether the whole network fits anywhere, or a plan without memory limits is no better."""
        if self._fits_anywhere(min(limits.values())):
            return True
        free = self.profile
        for device in limits:
            free = sensitivity.more_memory(free, device, None)
        return self._if_better(self._planned(free, self.objective)) is None

    def _with_more_memory(self, limits: dict[str, float]) -> Iterator[Constraint]:
        """Yield every limit that would give a better plan if it were raised."""
        for device, limit in limits.items():
            raised = sensitivity.more_memory(self.profile, device, MEMORY_FACTOR)
            more = self._if_better(self._planned(raised, self.objective))
            if more is not None:
                change = f"{limit * MEMORY_FACTOR / 1e6:.1f} MB on {device}"
                text = f"{change} would give {self._goal(more)} instead of {self._goal(self.figures)}"
                saves = Sensitivity(change=change, saves=self.figures.saved(more))
                yield Constraint(name=_memory_name(device, limit), state="binds", text=text, sensitivity=saves)

    def _fits_anywhere(self, limit: float) -> bool:
        """Return whether the least memory holds the whole network twice, which leaves room for any overlap."""
        whole = Stage(first=0, last=len(self.model.layers) - 1, regions={self.plan.source: UNIT})
        program = lower(self.plan.model_copy(update={"stages": (whole,)}), self.model)[self.plan.source]
        return 2 * program_nbytes(program, self.model) <= limit

    def keep_local(self) -> Iterator[Constraint]:
        """Yield the number of layers that stay on the source, if there is one."""
        count = self.objective.keep_local
        if not count:
            return
        name = f"keep_local {count}"
        shared = [
            stage
            for stage in self.plan.stages
            if stage.first < count and stage.regions.get(self.profile.source) != UNIT
        ]
        if shared:
            yield Constraint(name=name, state="broken", text=f"layer {shared[0].first} runs on other devices too")
            return
        free = self._if_better(self._planned(self.profile, self.objective.model_copy(update={"keep_local": 0})))
        if free is None:
            yield Constraint(name=name, state="met", text="met at no cost")
            return
        text = f"{self._goal(free)} without it instead of {self._goal(self.figures)}"
        saves = Sensitivity(change="keep_local 0", saves=self.figures.saved(free))
        fewer = self._planned(self.profile, self.objective.model_copy(update={"keep_local": count - 1}))
        if count > 1 and fewer is not None:
            text += f"; {self._goal(fewer)} with one layer less"
            saves = Sensitivity(change=f"keep_local {count - 1}", saves=self.figures.saved(fewer))
        yield Constraint(name=name, state="binds", text=text, sensitivity=saves)

    def excluded(self, full_profile: Profile) -> Iterator[Constraint]:
        """Yield a constraint for every device that the user excluded."""
        excluded = [name for name in full_profile.names if name not in self.profile.names]
        for name in excluded:
            profile = full_profile.without(other for other in excluded if other != name)
            figures = self._if_better(self._planned(profile, self.objective, using=name))
            if figures is None:
                text = "met at no cost: the device would not improve the plan"
                yield Constraint(name=f"without {name}", state="met", text=text)
                continue
            text = f"{self._goal(figures)} with it instead of {self._goal(self.figures)}"
            saves = Sensitivity(change=f"with {name}", saves=self.figures.saved(figures))
            yield Constraint(name=f"without {name}", state="binds", text=text, sensitivity=saves)

    def _planned(self, profile: Profile, objective: Objective, using: str | None = None) -> Figures | None:
        """Plan again by the same scheme; None if the plan is infeasible or does not use the device `using`."""
        plan = make_plan(self.model, profile, objective, self.scheme)
        if not plan.feasible or (using is not None and using not in plan.used_devices):
            return None
        assert plan.predicted is not None
        return Figures(
            latency_seconds=plan.predicted.latency_seconds, energy_joules=plan.predicted.energy_joules,
            throughput_fps=plan.predicted.throughput_fps,
        )  # fmt: skip

    def _if_better(self, figures: Figures | None) -> Figures | None:
        """Return the figures if they are better than the plan's, else None.

        If the plan is infeasible, any other one is better.
        """
        if figures is None:
            return None
        if not self.plan.feasible:
            return figures
        better = figures.cost(self.objective) < self.figures.cost(self.objective) * (1 - LEAST_GAIN)
        return figures if better else None

    def _goal(self, figures: Figures) -> str:
        return goal_words(figures, self.objective)


def _memory_name(device: str, limit: float) -> str:
    return f"memory of {device} {limit / 1e6:.0f} MB"
