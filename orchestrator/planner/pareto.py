"""Energy against latency: the plans of which none is both slower and hungrier than another.

1  two searches, for least latency and for least joules (the second one also for what a joule may be worth in
   between): everything that they look at
2  between neighbours of what is then best: the convex core for least joules, with a deadline between theirs
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

# Of a latency or of joules that differ by less, one is as good as the other.
SAME = 1e-3


def pareto(
    model: Model, profile: Profile, objective: Objective, points: int = 12, done: Callable[[], None] = lambda: None
) -> list[Plan]:
    """The best plans from least latency to least joules, the fastest first.

    Args:
        objective: its constraints hold for every plan; its goal does not count.
        points: most plans to return: the ends, and those between that lie furthest from one another.
        done: called after each of `parts_of(points)` parts.

    Returns:
        The plans. Where none meets the constraints, the nearest one alone, with `feasible` False.

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
    least, receptive_fields = goals[1], ReceptiveFields(model)
    chosen = spread(frontier(evaluator.evaluated.values(), objective), points)
    for faster, slower in zip(chosen, chosen[1:]):
        between = (faster.latency_seconds + slower.latency_seconds) / 2
        aim = evaluator.aiming_at(least.model_copy(update={"deadline_ms": between * 1e3}))
        refine(aim, receptive_fields, faster)
        done()
    chosen = spread(frontier(evaluator.evaluated.values(), objective), points)
    if not chosen:
        return [evaluator.plan(evaluator.best(objective.model_copy(update={"goal": "latency"})))]
    return [evaluator.plan(evaluated) for evaluated in chosen]


def parts_of(points: int) -> int:
    """How often `pareto` says that it has done a part, at most."""
    return 2 + max(points - 1, 0)


def frontier(evaluated: Iterable[Evaluation], objective: Objective) -> list[Evaluation]:
    """Those that meet the constraints and that no other one beats in both, the fastest first."""
    allowed = [found for found in evaluated if not found.problems and objective.meets_deadline(found.latency_seconds)]
    best: list[Evaluation] = []
    for found in sorted(allowed, key=lambda item: (item.latency_seconds, item.energy_joules)):
        if not best or found.energy_joules < best[-1].energy_joules * (1 - SAME):
            best.append(found)
    return best


def spread(ascending: list[Evaluation], points: int) -> list[Evaluation]:
    """So many of them at most: the ends, then again and again the one furthest from those that are taken."""
    if len(ascending) <= points:
        return ascending
    places = _places(ascending)
    taken = [0, len(ascending) - 1][: max(points, 1)]
    while len(taken) < points:
        rest = (i for i in range(len(ascending)) if i not in taken)
        taken.append(max(rest, key=lambda i: min(_apart(places[i], places[j]) for j in taken)))
    return [ascending[i] for i in sorted(taken)]


def _places(ascending: list[Evaluation]) -> list[tuple[float, float]]:
    """Latency and joules, each from 0 to 1 between the ends."""
    first, last = ascending[0], ascending[-1]
    seconds = max(last.latency_seconds - first.latency_seconds, 1e-12)
    joules = max(first.energy_joules - last.energy_joules, 1e-12)
    return [
        ((j.latency_seconds - first.latency_seconds) / seconds, (j.energy_joules - last.energy_joules) / joules)
        for j in ascending
    ]


def _apart(a: tuple[float, float], b: tuple[float, float]) -> float:
    return float(((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5)
