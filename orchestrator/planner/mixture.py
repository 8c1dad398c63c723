"""Mixtures of plans for streams: the shares of frames per plan with the highest frame rate.

Some frames run whole on one device, others are split over several. A linear programme over plans divides the frames
so that no device and no link is busy for more than its time:

    minimise    tau + w (joules per frame)            tau: seconds per frame
    over        x_p >= 0, sum x_p = 1                 x_p: the share of the frames that uses plan p
    subject to  sum_p x_p use[p, r] <= tau            for every device, link and medium r

The multipliers of the constraints are the shadow prices of the resources. A plan improves the mixture if it uses less
than tau at these prices. The cheapest such plan is a shortest path (column generation, Dantzig and Wolfe 1960).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import InfeasibleError, PlanError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import held_nbytes
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.simulator import credits_of, simulate_mixture
from coedge.simulation.timeline import Timeline
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.search.layout import alone, candidates
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.rounding import stages_of_path
from orchestrator.search.shortest_path import Prices, shortest_path
from orchestrator.search.stage_costs import StageCosts

# Rounds of column generation, and the smallest weight that a plan keeps.
MAX_ROUNDS = 40
MIN_WEIGHT = 1e-3
# Answers leave in order, so while a slow plan has a frame the answers of the others wait in memory. A plan whose
# latency spans more frames than this adds less than one per cent to the rate, and is not used.
MAX_WAITING_FRAMES = 100
# Factor on the frames that pass during the predicted latency of the slowest plan: in a stream frames also queue.
IN_FLIGHT_MARGIN = 1.5

Resource = tuple[str, str]  # kind ("device", "up", "down", "medium") and name


@dataclass(frozen=True)
class Mixture:
    """Plans and the share of the frames that each gets.

    Attributes:
        weights: share of the frames per plan, in the order of `plans`; the sum is one.
        rate_fps: frames per second by the linear programme.
        energy_joules: modelled joules per frame.
        shadow_prices: for every resource without spare time, its multiplier in the linear programme; the sum is one.
        rounds: number of rounds of column generation.
    """

    plans: tuple[Plan, ...]
    weights: tuple[float, ...]
    rate_fps: float
    energy_joules: float
    shadow_prices: Mapping[str, float]
    rounds: int

    @property
    def in_flight(self) -> int:
        """Number of frames in flight that keeps every resource busy although answers leave in order.

        It covers the frames that pass during the latency of the slowest plan, with a margin. It is at least the number
        of frames in flight of a cluster with a single plan.
        """
        latencies = [plan.predicted.latency_seconds for plan in self.plans if plan.predicted]
        passing = self.rate_fps * max(latencies, default=0.0)
        return max(math.ceil(IN_FLIGHT_MARGIN * passing) + 2 * len(self.plans), credits_of(len(self.plans[0].devices)))

    def simulate(self, model: Model, profile: Profile, frames: int = 200, in_flight: int | None = None) -> Timeline:
        """Simulate a stream whose frames are assigned to the plans by weight.

        Args:
            in_flight: number of frames in flight; `self.in_flight` by default.
        """
        programs = [(lower(plan, model), weight) for plan, weight in zip(self.plans, self.weights)]
        return simulate_mixture(programs, profile, model, frames, in_flight or self.in_flight)

    def __str__(self) -> str:
        lines = [f"{self.rate_fps:.2f} frames/s, {self.energy_joules:.3f} J per frame, {len(self.plans)} plans:"]
        lines += [f"{weight:6.1%} of the frames: {plan}" for plan, weight in zip(self.plans, self.weights)]
        lines += [f"  {name}: fully used" for name in self.shadow_prices]
        return "\n".join(lines)


def check_request(model: Model, profile: Profile, objective: Objective) -> None:
    """Check the types of what a plan or a mixture is made for, and that they fit each other.

    Raises:
        PlanError: the profile or the objective is something else, or the profile is of another model.
        InputError: the model is something else.
    """
    Model.check(model)
    if not isinstance(profile, Profile):
        kind = type(profile).__name__
        raise PlanError(f"a profile is what Cluster.profile returns, or profile_of; a {kind} was given")
    if not isinstance(objective, Objective):
        raise PlanError(f"an objective is a coedge.Objective; a {type(objective).__name__} was given")
    profile.check(model)


def make_mixture(model: Model, profile: Profile, objective: Objective, known: Sequence[Plan] = ()) -> Mixture:
    """Return the best mixture that column generation finds.

    Args:
        objective: deadline and constraints hold for every plan; `energy_weight` holds for the mixture.
        known: plans to start with.

    Raises:
        InfeasibleError: no plan meets the constraints.
        PlanError, InputError: an argument is something else, or the profile is of another model.
    """
    check_request(model, profile, objective)
    pool = _ColumnPool(model, profile, objective)
    pool.add_plans(known)
    pool.add_paths((Prices(), Prices(second=0.0, joule=1.0)))
    pool.check()
    rounds, improved = 0, True
    while improved and rounds < MAX_ROUNDS:
        rounds += 1
        solution = _solve(pool.columns, objective)
        improved = pool.add_paths(_prices(solution, pool.costs, objective))
    return _mixture(pool.evaluator, _within_limits(pool.columns, model, profile, objective), rounds)


def mix(model: Model, profile: Profile, objective: Objective, plans: Sequence[Plan]) -> Mixture:
    """Return the best mixture of these plans and of every device alone. No other plans are searched for.

    Raises:
        InfeasibleError: no plan meets the constraints.
    """
    pool = _ColumnPool(model, profile, objective)
    pool.add_plans(plans)
    pool.check()
    return _mixture(pool.evaluator, _within_limits(pool.columns, model, profile, objective), 0)


@dataclass(frozen=True)
class _Column:
    """A plan, and the seconds that one of its frames takes of every resource."""

    evaluated: Evaluation
    uses: dict[Resource, float]


class _ColumnPool:
    """The plans that the linear programme may use."""

    def __init__(self, model: Model, profile: Profile, objective: Objective) -> None:
        self.model, self.profile, self.objective = model, profile, objective
        self.evaluator = Evaluator(model, profile, objective)
        self._columns: dict[str, _Column] = {}

    @property
    def columns(self) -> list[_Column]:
        return list(self._columns.values())

    @cached_property
    def costs(self) -> StageCosts:
        """The costs from which paths are searched."""
        table = self.evaluator.table
        return StageCosts(table, ReceptiveFields(self.model), candidates(table), self.objective.keep_local)

    def add_plans(self, plans: Sequence[Plan]) -> None:
        """Add these plans, and every device alone."""
        for plan in plans:
            self._add(self.evaluator.evaluate(plan.stages, plan.scheme))
        for layout in alone(self.profile.names):
            self._add(self.evaluator.evaluate((layout.stage(0, len(self.model.layers) - 1),)))

    def check(self) -> None:
        """Check that there is a plan.

        Raises:
            InfeasibleError: no plan that was added meets the constraints.
        """
        if not self._columns:
            nearest = min(self.evaluator.evaluated.values(), key=lambda evaluated: evaluated.rank(self.objective))
            reason = self.evaluator.plan(nearest).reason
            raise InfeasibleError(f"no plan meets the objective; the nearest one: {reason}")

    def add_paths(self, prices: Sequence[Prices]) -> bool:
        """Add the shortest path at each price; return whether any of them is a new plan."""
        added = False
        for price in prices:
            path = shortest_path(self.costs, price)
            added |= path is not None and self._add(self.evaluator.evaluate(stages_of_path(path, self.costs)))
        return added

    def _add(self, evaluated: Evaluation) -> bool:
        """Add a plan unless it breaks a constraint or is in the pool; return whether it was added."""
        if evaluated.rank(self.objective)[0] > 0 or evaluated.plan.digest in self._columns:
            return False
        uses = usage(self.evaluator.timeline(evaluated), self.profile)
        self._columns[evaluated.plan.digest] = _Column(evaluated, uses)
        return True


@dataclass(frozen=True)
class _MixtureSolution:
    """A solution of the linear programme.

    Attributes:
        weights: share of the frames per column.
        seconds: seconds per frame of the busiest resource.
        cost: value of the linear programme, seconds.
        shadow_prices: multipliers of the resources without spare time.
    """

    columns: list[_Column]
    weights: NDArray[np.float64]
    seconds: float
    cost: float
    shadow_prices: dict[Resource, float]

    @cached_property
    def used(self) -> list[_Column]:
        """Columns with a share of the frames."""
        return [column for column, weight in zip(self.columns, self.weights) if weight > 0]


def _solve(columns: list[_Column], objective: Objective) -> _MixtureSolution:
    """Solve the linear programme over the columns."""
    import cvxpy

    uses = [column.uses for column in columns]
    resources = sorted({name for use in uses for name in use})
    matrix = np.array([[use.get(name, 0.0) for use in uses] for name in resources])
    unit = float(matrix.max(axis=0).min())  # seconds per frame of the fastest single plan
    weight, seconds = cvxpy.Variable(len(columns), nonneg=True), cvxpy.Variable()
    limits = (matrix / unit) @ weight <= seconds
    joules = np.array([column.evaluated.energy_joules for column in columns]) * (objective.energy_weight / unit)
    problem = cvxpy.Problem(cvxpy.Minimize(seconds + joules @ weight), [limits, cvxpy.sum(weight) == 1])
    problem.solve(solver=cvxpy.CLARABEL)
    weights = np.where(weight.value < MIN_WEIGHT, 0.0, weight.value)
    weights = weights / weights.sum()
    busiest = float((matrix @ weights).max())
    prices = {name: float(value) for name, value in zip(resources, limits.dual_value) if value > 1e-6}
    return _MixtureSolution(columns, weights, busiest, float(problem.value) * unit, prices)


def _within_limits(columns: list[_Column], model: Model, profile: Profile, objective: Objective) -> _MixtureSolution:
    """Solve with plans that fit into the memory of every device together and are not too slow for in-order answers.

    Plans are removed one at a time, each time the one whose removal costs least. Every plan fits by itself, so the
    loop ends with a feasible mixture.
    """
    while True:
        solution = _solve(columns, objective)
        if len(solution.used) == 1:
            return solution
        slow = [one for one in solution.used if one.evaluated.latency_seconds > MAX_WAITING_FRAMES * solution.seconds]
        removable = slow or _over_memory(solution.used, model, profile)
        if not removable:
            return solution
        without = [_solve([other for other in columns if other is not one], objective) for one in removable]
        columns = min(without, key=lambda smaller: smaller.cost).columns


def _over_memory(columns: Sequence[_Column], model: Model, profile: Profile) -> list[_Column]:
    """Return the plans with work on the first device that cannot hold them all; an empty list if all devices can."""
    limits = {d.name: d.memory_bytes for d in profile.devices if d.memory_bytes is not None}
    programs = [lower(one.evaluated.plan, model) for one in columns] if limits else []
    for name, limit in limits.items():
        working = [(one, lowered[name]) for one, lowered in zip(columns, programs) if lowered[name].steps]
        if held_nbytes([(model, program) for _, program in working], at_once=True) > limit:
            return [one for one, _ in working]
    return []


def usage(timeline: Timeline, profile: Profile) -> dict[Resource, float]:
    """Return the busy seconds per frame of every device, up-link, down-link and medium."""
    used, frames = timeline.utilisation(profile), max(len(timeline.answered), 1)
    kinds = (("device", used.devices), ("up", used.up_links), ("down", used.down_links), ("medium", used.media))
    return {
        (kind, name): share * timeline.makespan_seconds / frames
        for kind, shares in kinds
        for name, share in shares.items()
        if share > 0
    }


def _prices(solution: _MixtureSolution, costs: StageCosts, objective: Objective) -> list[Prices]:
    """Return the prices for the next shortest paths, from the shadow prices of a solution."""
    table, shadow = costs.table, solution.shadow_prices
    busy, up, down = (
        np.array([shadow.get((kind, name), 0.0) for name in table.names]) for kind in ("device", "up", "down")
    )
    link = up[:, None] + down[None, :]
    for medium in table.media:
        # Seconds of the medium per second of the link.
        share = np.divide(1 / medium.bytes_per_second, table.link_seconds, out=np.zeros_like(link), where=medium.uses)
        link = link + shadow.get(("medium", medium.name), 0.0) * share
    # A small price on latency and on every resource, so that a path does not waste what has no shadow price.
    return [
        Prices(second=second, joule=objective.energy_weight, busy=busy + extra, link=link + extra)
        for second, extra in ((1e-3, 1e-6), (0.1, 1e-3))
    ]


def _mixture(evaluator: Evaluator, solution: _MixtureSolution, rounds: int) -> Mixture:
    used = [
        (column.evaluated, float(weight)) for column, weight in zip(solution.columns, solution.weights) if weight > 0
    ]
    used.sort(key=lambda item: -item[1])
    prices = sorted(solution.shadow_prices.items(), key=lambda item: -item[1])
    return Mixture(
        plans=tuple(evaluator.plan(evaluated, "auto") for evaluated, _ in used),
        weights=tuple(weight for _, weight in used),
        rate_fps=1 / solution.seconds,
        energy_joules=sum(evaluated.energy_joules * weight for evaluated, weight in used),
        shadow_prices={f"{kind} {name}": value for (kind, name), value in prices},
        rounds=rounds,
    )
