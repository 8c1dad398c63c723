"""Pareto front of energy against latency.

1  Two searches, one for least latency and one for least energy, collect evaluated plans.
2  Between neighbours on the front so far, a refinement for least energy under a deadline halfway between their
   latencies fills gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.planner.planner import SCHEMES
from orchestrator.search.auto import explored, refine
from orchestrator.search.receptive_field import ReceptiveFields

# Relative tolerance below which two plans use the same energy.
TOLERANCE = 1e-3


def pareto(
    model: Model, profile: Profile, objective: Objective, points: int = 12, done: Callable[[], None] = lambda: None
) -> list[Plan]:
    """Return Pareto-optimal plans from least latency to least energy, the fastest first.

    Args:
        objective: its constraints hold for every plan; its goal is ignored.
        points: maximum number of plans. The two ends are always included; the others are spread out between them.
        done: called after each of at most `progress_steps(points)` steps.

    Returns:
        The plans. If none meets the constraints, the nearest plan alone, with `feasible` False.

    Raises:
        PlanError: the profile is of another model.
    """
    profile.check(model)
    goals = [
        objective.model_copy(update={"goal": goal, "energy_weight": 0.0, "deadline_ms": None})
        for goal in ("latency", "energy")
    ]
    evaluator = Evaluator(model, profile, objective)
    for goal in goals:
        known = [scheme(model, profile, goal) for scheme in SCHEMES.values()]
        for key, evaluated in explored(model, profile, goal, known).evaluated.items():
            evaluator.evaluated.setdefault(key, evaluated)
        done()
    least_energy, receptive_fields = goals[1], ReceptiveFields(model)
    chosen = spread(frontier(evaluator.evaluated.values(), objective), points)
    for faster, slower in zip(chosen, chosen[1:]):
        between = (faster.latency_seconds + slower.latency_seconds) / 2
        target = evaluator.aiming_at(least_energy.model_copy(update={"deadline_ms": between * 1e3}))
        refine(target, receptive_fields, faster)
        done()
    chosen = spread(frontier(evaluator.evaluated.values(), objective), points)
    if not chosen:
        return [evaluator.plan(evaluator.best(objective.model_copy(update={"goal": "latency"})))]
    return [evaluator.plan(evaluated) for evaluated in chosen]


def progress_steps(points: int) -> int:
    """Return how often `pareto` calls `done`, at most."""
    return 2 + max(points - 1, 0)


def frontier(evaluated: Iterable[Evaluation], objective: Objective) -> list[Evaluation]:
    """Return the plans that meet the constraints and are not dominated in latency and energy, the fastest first."""
    allowed = [plan for plan in evaluated if not plan.problems and objective.meets_deadline(plan.latency_seconds)]
    front: list[Evaluation] = []
    for plan in sorted(allowed, key=lambda item: (item.latency_seconds, item.energy_joules)):
        if not front or plan.energy_joules < front[-1].energy_joules * (1 - TOLERANCE):
            front.append(plan)
    return front


def spread(ascending: list[Evaluation], points: int) -> list[Evaluation]:
    """Return at most `points` of the plans: the ends, then repeatedly the one furthest from those chosen so far."""
    if len(ascending) <= points:
        return ascending
    places = _normalised(ascending)
    chosen = [0, len(ascending) - 1][: max(points, 1)]
    while len(chosen) < points:
        rest = (i for i in range(len(ascending)) if i not in chosen)
        chosen.append(max(rest, key=lambda i: min(_distance(places[i], places[j]) for j in chosen)))
    return [ascending[i] for i in sorted(chosen)]


def _normalised(ascending: list[Evaluation]) -> list[tuple[float, float]]:
    """Scale latency and energy so that each runs from 0 to 1 between the ends."""
    first, last = ascending[0], ascending[-1]
    seconds = max(last.latency_seconds - first.latency_seconds, 1e-12)
    joules = max(first.energy_joules - last.energy_joules, 1e-12)
    return [
        ((j.latency_seconds - first.latency_seconds) / seconds, (j.energy_joules - last.energy_joules) / joules)
        for j in ascending
    ]


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return float(((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5)
