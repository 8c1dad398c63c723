"""Streams: the mixture of plans that answers most frames per second.

Whole frames on one device, others split over several: each device and each link has a second per second, and a
linear programme over plans deals it out.

    minimise    tau + w (joules per frame)            tau: seconds per frame
    over        x_p >= 0, sum x_p = 1                 x_p: the part of the frames that goes by plan p
    subject to  sum_p x_p use[p, r] <= tau            for every device, link and medium r

Its multipliers say what a second of each resource is worth. A plan that uses less than tau at these prices would
improve the mixture, and the cheapest such plan is a shortest path (column generation, Dantzig and Wolfe 1960).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import InfeasibleError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import held_nbytes
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.simulator import credits_of, simulate_mixture
from coedge.simulation.timeline import Timeline
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.search.layout import candidates
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.rounding import stages_of_path
from orchestrator.search.shortest_path import Prices, shortest_path
from orchestrator.search.stage_costs import StageCosts

ROUNDS = 40
LEAST_GAIN = 1e-4
LEAST_PART = 1e-3
# Answers leave in order, so while a slow plan has a frame the answers of the others wait. What it adds to the rate
# is about one over the frames that pass meanwhile: beyond so many it is not worth their memory.
MOST_PASSING = 100
# Frames under way, over those that pass during the slowest plan's latency, as it is predicted for one alone.
SLACK = 1.5


@dataclass(frozen=True)
class Mixture:
    """Plans and the part of the frames that each gets.

    Attributes:
        parts: in the order of `plans`; they sum to one.
        rate_fps: frames per second that the programme counts on.
        energy_joules: per frame.
        worth: per resource that has no time left, what a second more of it per second would bring, relative.
        rounds: of column generation.
    """

    plans: tuple[Plan, ...]
    parts: tuple[float, ...]
    rate_fps: float
    energy_joules: float
    worth: Mapping[str, float]
    rounds: int

    @property
    def in_flight(self) -> int:
        """Frames to be kept under way, so that nothing runs dry although answers leave in order: what passes while
        the slowest plan has one, and some more; at least what a cluster has under way of one plan."""
        latencies = [plan.predicted.latency_seconds for plan in self.plans if plan.predicted]
        passing = self.rate_fps * max(latencies, default=0.0)
        return max(math.ceil(SLACK * passing) + 2 * len(self.plans), credits_of(len(self.plans[0].devices)))

    def simulate(self, model: Model, profile: Profile, frames: int = 200, in_flight: int | None = None) -> Timeline:
        """The stream in virtual time, its frames dealt to the plans.

        Args:
            in_flight: frames under way; enough of them by default.
        """
        programs = [(lower(plan, model), part) for plan, part in zip(self.plans, self.parts)]
        return simulate_mixture(programs, profile, model, frames, in_flight or self.in_flight)

    def __str__(self) -> str:
        lines = [f"{self.rate_fps:.2f} frames/s, {self.energy_joules:.3f} J a frame, in {len(self.plans)} plans:"]
        lines += [f"{part:6.1%} of the frames by {plan}" for plan, part in zip(self.plans, self.parts)]
        lines += [f"  {name}: no time left" for name in self.worth]
        return "\n".join(lines)


def make_mixture(model: Model, profile: Profile, objective: Objective, known: Sequence[Plan] = ()) -> Mixture:
    """The best mixture that is found.

    Args:
        objective: its deadline and constraints hold for every plan; `energy_weight` for the mixture.
        known: plans to begin with.

    Raises:
        InfeasibleError: no plan meets the constraints.
    """
    evaluator = Evaluator(model, profile, objective)
    costs = StageCosts(model, profile, ReceptiveFields(model), candidates(model, profile), objective.keep_local)
    columns: dict[str, _Column] = {}

    def add(evaluated: Evaluation) -> bool:
        if evaluated.rank(objective)[0] > 0 or evaluated.plan.digest in columns:
            return False
        columns[evaluated.plan.digest] = _Column(evaluated, usage(evaluator.timeline(evaluated), profile))
        return True

    for plan in known:
        add(evaluator.evaluate(plan.stages, plan.scheme))
    for layout in costs.layouts:
        if len(layout.devices) == 1:
            add(evaluator.evaluate((layout.stage(0, len(model.layers) - 1),)))
    for price in (Prices(), Prices(second=0.0, joule=1.0)):
        path = shortest_path(costs, price)
        if path is not None:
            add(evaluator.evaluate(stages_of_path(path, costs)))
    if not columns:
        nearest = min(evaluator.evaluated.values(), key=lambda evaluated: evaluated.rank(objective))
        raise InfeasibleError(f"no plan meets the objective; the nearest one: {evaluator.plan(nearest).reason}")
    rounds, better = 0, True
    while better and rounds < ROUNDS:
        rounds += 1
        solved = _solve(list(columns.values()), objective)
        better = False
        for price in _prices(solved, costs, objective):
            path = shortest_path(costs, price)
            better |= path is not None and add(evaluator.evaluate(stages_of_path(path, costs)))
    return _mixture(evaluator, _within_limits(list(columns.values()), model, profile, objective), rounds)


@dataclass(frozen=True)
class _Column:
    """A plan, and the seconds of everything that a frame by it takes."""

    evaluated: Evaluation
    uses: dict[tuple[str, str], float]


@dataclass(frozen=True)
class _Solved:
    columns: list[_Column]
    parts: NDArray[np.float64]
    seconds: float
    cost: float
    worth: dict[tuple[str, str], float]

    @cached_property
    def used(self) -> list[_Column]:
        """The plans that get frames."""
        return [column for column, part in zip(self.columns, self.parts) if part > 0]


def _solve(columns: list[_Column], objective: Objective) -> _Solved:
    """The linear programme over these plans."""
    import cvxpy

    uses = [column.uses for column in columns]
    resources = sorted({name for use in uses for name in use})
    matrix = np.array([[use.get(name, 0.0) for use in uses] for name in resources])
    unit = float(matrix.max(axis=0).min())
    part, seconds = cvxpy.Variable(len(columns), nonneg=True), cvxpy.Variable()
    limits = (matrix / unit) @ part <= seconds
    joules = np.array([column.evaluated.energy_joules for column in columns]) * (objective.energy_weight / unit)
    problem = cvxpy.Problem(cvxpy.Minimize(seconds + joules @ part), [limits, cvxpy.sum(part) == 1])
    problem.solve(solver=cvxpy.CLARABEL)
    values = np.where(part.value < LEAST_PART, 0.0, part.value)
    values = values / values.sum()
    busiest = float((matrix @ values).max())
    worth = {name: float(value) for name, value in zip(resources, limits.dual_value) if value > 1e-6}
    return _Solved(columns, values, busiest, float(problem.value) * unit, worth)


def _within_limits(columns: list[_Column], model: Model, profile: Profile, objective: Objective) -> _Solved:
    """The best mixture whose plans fit into the memory of every device together, and of which none is too slow.

    A plan at a time is left out, the one that is missed least; every plan fits by itself.
    """
    while True:
        solved = _solve(columns, objective)
        if len(solved.used) == 1:
            return solved
        slow = [one for one in solved.used if one.evaluated.latency_seconds > MOST_PASSING * solved.seconds]
        worst = slow or _crowded(solved.used, model, profile)
        if not worst:
            return solved
        without = [_solve([other for other in columns if other is not one], objective) for one in worst]
        columns = min(without, key=lambda solved: solved.cost).columns


def _crowded(columns: Sequence[_Column], model: Model, profile: Profile) -> list[_Column]:
    """The plans with a part on the first device that has not the memory for all of them."""
    limits = {d.name: d.memory_bytes for d in profile.devices if d.memory_bytes is not None}
    programs = [lower(one.evaluated.plan, model) for one in columns] if limits else []
    for name, limit in limits.items():
        parts = [(one, lowered[name]) for one, lowered in zip(columns, programs) if lowered[name].steps]
        if held_nbytes([(model, program) for _, program in parts], at_once=True) > limit:
            return [one for one, _ in parts]
    return []


def usage(timeline: Timeline, profile: Profile) -> dict[tuple[str, str], float]:
    """Seconds of every device, up-link, down-link and medium per frame."""
    used, frames = timeline.utilisation(profile), max(len(timeline.answered), 1)
    kinds = (("device", used.devices), ("up", used.up_links), ("down", used.down_links), ("medium", used.media))
    return {
        (kind, name): share * timeline.makespan_seconds / frames
        for kind, shares in kinds
        for name, share in shares.items()
        if share > 0
    }


def _prices(solved: _Solved, costs: StageCosts, objective: Objective) -> list[Prices]:
    """What a plan would be judged by: the worth of what it uses."""
    profile, names = costs.profile, costs.names
    busy = np.array([solved.worth.get(("device", name), 0.0) for name in names])
    up = np.array([solved.worth.get(("up", name), 0.0) for name in names])
    down = np.array([solved.worth.get(("down", name), 0.0) for name in names])
    link = up[:, None] + down[None, :]
    for a, sender in enumerate(names):
        for b, receiver in enumerate(names):
            if a != b:
                seconds = 1 / profile.link(sender, receiver).bytes_per_second
                for medium in profile.media_between(sender, receiver):
                    share = 1 / medium.bytes_per_second / seconds
                    link[a, b] += solved.worth.get(("medium", medium.name), 0.0) * share
    # A little latency, and a little of every device, so that what is free is not wasted.
    return [
        Prices(second=second, joule=objective.energy_weight, busy=busy + extra, link=link + extra)
        for second, extra in ((1e-3, 1e-6), (0.1, 1e-3))
    ]


def _mixture(evaluator: Evaluator, solved: _Solved, rounds: int) -> Mixture:
    used = [(column.evaluated, float(part)) for column, part in zip(solved.columns, solved.parts) if part > 0]
    used.sort(key=lambda item: -item[1])
    return Mixture(
        plans=tuple(evaluator.plan(evaluated, "auto") for evaluated, _ in used),
        parts=tuple(part for _, part in used),
        rate_fps=1 / solved.seconds,
        energy_joules=sum(evaluated.energy_joules * part for evaluated, part in used),
        worth={f"{kind} {name}": value for (kind, name), value in sorted(solved.worth.items(), key=lambda i: -i[1])},
        rounds=rounds,
    )
