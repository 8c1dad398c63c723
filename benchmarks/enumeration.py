"""Enumeration of all plans of strips on whole rows, with the devices in the order of their names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from coedge.core.region import UnitRect
from coedge.graph.model import Model
from coedge.plan.plan import Stage
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluation, Evaluator

# First row of each device's strip, followed by the number of rows.
Edges = tuple[int, ...]


def every_layout(devices: int, rows: int) -> list[Edges]:
    """Yield all strips on whole rows. A strip with equal edges has no rows."""
    inner = itertools.combinations_with_replacement(range(rows + 1), devices - 1)
    return [(0, *cut, rows) for cut in inner]


def stage_of(names: tuple[str, ...], edges: Edges, first: int, stop: int) -> Stage:
    """Return the stage of layers [first, stop) on strips."""
    strips, rows = zip(names, edges, edges[1:]), edges[-1]
    return Stage(first=first, last=stop - 1, regions={n: UnitRect(a / rows, b / rows) for n, a, b in strips if b > a})


def every_plan(model: Model, profile: Profile, rows: int) -> Iterator[tuple[Stage, ...]]:
    """Yield all plans of a chain whose layers have the same number of rows."""
    layouts, count = every_layout(len(profile.names), rows), len(model.layers)
    for number in range(count):
        for inner in itertools.combinations(range(1, count), number):
            pairs = list(itertools.pairwise((0, *inner, count)))
            for chosen in itertools.product(layouts, repeat=len(pairs)):
                yield tuple(stage_of(profile.names, edges, a, b) for (a, b), edges in zip(pairs, chosen))


def plan_count(devices: int, layers: int, rows: int) -> int:
    """Return the number of plans: each cut between two layers may be absent, or start a stage on any layout."""
    layouts = len(every_layout(devices, rows))
    return layouts * (1 + layouts) ** (layers - 1)


def best_of_all(evaluator: Evaluator, rows: int) -> Evaluation:
    for stages in every_plan(evaluator.model, evaluator.profile, rows):
        evaluator.evaluate(stages)
    return evaluator.best()
