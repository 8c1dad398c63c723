"""Which constraints of an objective bind, and what loosening one of them would be worth: planned again without it."""

from __future__ import annotations

from collections.abc import Iterator

from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import program_nbytes
from coedge.plan.plan import Plan, Stage
from coedge.profile.profile import Profile
from orchestrator.planner.explain import sensitivity
from orchestrator.planner.explain.explanation import (
    Constraint,
    Figures,
    Sensitivity,
    figures_of_plan,
    goal_words,
    joules,
    milliseconds,
)
from orchestrator.planner.planner import AUTO, SCHEMES, make_plan
from orchestrator.search.auto import explored
from orchestrator.search.draft import as_draft
from orchestrator.search.linear_programme import BoundaryProblem
from orchestrator.search.local_search import LEAST_GAIN
from orchestrator.search.receptive_field import ReceptiveFields

# What memory is loosened by, where it binds.
MORE_MEMORY = 1.1


def check_constraints(
    plan: Plan, model: Model, profile: Profile, objective: Objective, figures: Figures, everybody: Profile | None = None
) -> tuple[Constraint, ...]:
    """Every constraint that there is.

    Args:
        figures: of the plan.
        everybody: the profile with the devices that the user excluded.
    """
    checker = _Checker(plan, model, profile, objective, figures)
    found = [*checker.deadline(), *checker.memory(), *checker.keep_local()]
    if everybody is not None:
        found += checker.excluded(everybody)
    return tuple(found)


class _Checker:
    def __init__(self, plan: Plan, model: Model, profile: Profile, objective: Objective, figures: Figures) -> None:
        self.plan, self.model, self.profile = plan, model, profile
        self.objective, self.figures = objective, figures
        self.scheme = plan.scheme if plan.scheme in SCHEMES else AUTO

    def deadline(self) -> Iterator[Constraint]:
        limit = self.objective.deadline_seconds
        if limit is None:
            return
        name, spare = f"deadline {milliseconds(limit)}", limit - self.figures.latency_seconds
        if spare < 0:
            least = f"{milliseconds(-spare)} too late; no plan found takes less than"
            if self.scheme != AUTO:
                least = f"{milliseconds(-spare)} too late; by {self.scheme} it takes"
            text = f"{least} {milliseconds(self.figures.latency_seconds)}"
            yield Constraint(name=name, state="broken", text=text)
            return
        text = f"met, {milliseconds(spare)} to spare"
        later = self._later(limit)
        if later is None:
            yield Constraint(name=name, state="met", text=f"{text}; a later one would not help")
            return
        saves, delay = self.figures.saved(later), later.latency_seconds - limit
        text += f"; {milliseconds(delay)} later ({milliseconds(later.latency_seconds)}) it would be {self._goal(later)}"
        if self.objective.goal == "energy":
            average, price = saves.energy_joules / delay, self._price()
            text += f", {joules(average * 1e-3)} for every ms"
            if price > 0.01 * average:
                text += f"; at these cuts the first ms is worth {joules(price * 1e-3)}, by its multiplier"
        worth = Sensitivity(change=f"a deadline of {milliseconds(later.latency_seconds)}", saves=saves)
        yield Constraint(name=name, state="binds", text=text, worth=worth)

    def _later(self, limit: float) -> Figures | None:
        """The next better plan that is too late; None: there is none."""
        if self.objective.goal == "latency" and not self.objective.energy_weight:
            return None
        free = self.objective.model_copy(update={"deadline_ms": None})
        if self.scheme != AUTO:
            return self._better(self._planned(self.profile, free))
        looked_at = explored(self.model, self.profile, self.objective).evaluated.values()
        late = [figures_of_plan(j) for j in looked_at if not j.problems and j.latency_seconds > limit]
        better = [figures for figures in late if self._better(figures)]
        return min(better, key=lambda figures: figures.latency_seconds, default=None)

    def _price(self) -> float:
        """Watts: joules that a second of a later deadline saves, by the multiplier of the convex core."""
        draft = as_draft(self.plan.stages)
        if draft is None:
            return 0.0
        solved = BoundaryProblem(self.model, self.profile, ReceptiveFields(self.model), draft).solve(
            self.profile, self.objective
        )
        return 0.0 if solved is None else solved.deadline_price

    def memory(self) -> Iterator[Constraint]:
        """Whether any limit binds; then, device by device, what a tenth more is worth."""
        limits = {d.name: d.memory_bytes for d in self.profile.devices if d.memory_bytes is not None}
        if not limits:
            return
        programs = lower(self.plan, self.model)
        needed = {name: float(program_nbytes(programs[name], self.model)) for name in self.plan.used_devices}
        for name, limit in limits.items():
            if needed.get(name, 0.0) > limit:
                text = f"{needed[name] / 1e6:.1f} MB are needed"
                yield Constraint(name=_memory_name(name, limit), state="broken", text=text)
        tightest = max((needed.get(name, 0.0) / limit, name) for name, limit in limits.items())[1]
        name, used = _memory_name(tightest, limits[tightest]), needed.get(tightest, 0.0)
        free = self.profile
        for device in limits:
            free = sensitivity.more_memory(free, device, None)
        if used > limits[tightest]:
            return
        if self._fits_anywhere(min(limits.values())) or self._better(self._planned(free, self.objective)) is None:
            text = f"met, {used / 1e6:.1f} MB are needed; no device's memory is what binds"
            yield Constraint(name=name, state="met", text=text)
            return
        for device, limit in limits.items():
            more = self._better(
                self._planned(sensitivity.more_memory(self.profile, device, MORE_MEMORY), self.objective)
            )
            if more is not None:
                change = f"{limit * MORE_MEMORY / 1e6:.1f} MB on {device}"
                text = f"{change} would give {self._goal(more)} instead of {self._goal(self.figures)}"
                worth = Sensitivity(change=change, saves=self.figures.saved(more))
                yield Constraint(name=_memory_name(device, limit), state="binds", text=text, worth=worth)

    def _fits_anywhere(self, limit: float) -> bool:
        """Whether the whole network would fit where there is least memory, with as much again for overlap."""
        whole = Stage(first=0, last=len(self.model.layers) - 1, regions={self.plan.source: UNIT})
        program = lower(self.plan.model_copy(update={"stages": (whole,)}), self.model)[self.plan.source]
        return 2 * program_nbytes(program, self.model) <= limit

    def keep_local(self) -> Iterator[Constraint]:
        count = self.objective.keep_local
        if not count:
            return
        name = f"keep_local {count}"
        given_away = [
            stage
            for stage in self.plan.stages
            if stage.first < count and stage.regions.get(self.profile.source) != UNIT
        ]
        if given_away:
            yield Constraint(name=name, state="broken", text=f"layer {given_away[0].first} is on other devices, too")
            return
        free = self._better(self._planned(self.profile, self.objective.model_copy(update={"keep_local": 0})))
        if free is None:
            yield Constraint(name=name, state="met", text="met, and costs nothing")
            return
        text = f"without it {self._goal(free)} instead of {self._goal(self.figures)}"
        worth = Sensitivity(change="keep_local 0", saves=self.figures.saved(free))
        fewer = self._planned(self.profile, self.objective.model_copy(update={"keep_local": count - 1}))
        if count > 1 and fewer is not None:
            text += f"; with one layer less, {self._goal(fewer)}"
            worth = Sensitivity(change=f"keep_local {count - 1}", saves=self.figures.saved(fewer))
        yield Constraint(name=name, state="binds", text=text, worth=worth)

    def excluded(self, everybody: Profile) -> Iterator[Constraint]:
        gone = [name for name in everybody.names if name not in self.profile.names]
        for name in gone:
            with_it = everybody.without(other for other in gone if other != name)
            again = self._better(self._planned(with_it, self.objective, using=name))
            if again is None:
                yield Constraint(name=f"without {name}", state="met", text="costs nothing: it would not be of use")
                continue
            text = f"with it {self._goal(again)} instead of {self._goal(self.figures)}"
            worth = Sensitivity(change=f"with {name}", saves=self.figures.saved(again))
            yield Constraint(name=f"without {name}", state="binds", text=text, worth=worth)

    def _planned(self, profile: Profile, objective: Objective, using: str | None = None) -> Figures | None:
        """Of a new plan by the same scheme; None: it breaks a constraint, or does without the device."""
        plan = make_plan(self.model, profile, objective, self.scheme)
        if not plan.feasible or (using is not None and using not in plan.used_devices):
            return None
        assert plan.predicted is not None
        return Figures(
            latency_seconds=plan.predicted.latency_seconds, energy_joules=plan.predicted.energy_joules,
            throughput_fps=plan.predicted.throughput_fps,
        )  # fmt: skip

    def _better(self, found: Figures | None) -> Figures | None:
        """None where it is not better than the plan: an infeasible one is worse than any."""
        if found is None:
            return None
        if not self.plan.feasible:
            return found
        return found if found.cost(self.objective) < self.figures.cost(self.objective) * (1 - LEAST_GAIN) else None

    def _goal(self, figures: Figures) -> str:
        return goal_words(figures, self.objective)


def _memory_name(device: str, limit: float) -> str:
    return f"memory of {device} {limit / 1e6:.0f} MB"
