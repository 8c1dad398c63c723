"""Small steps from a plan to better ones, each judged by simulation: what the drafts cannot see.

Rows are whole, kernels have fixed costs, messages queue: after rounding, a row more here, a stage less there
may pay. The stages that take longest are tried first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Stage
from orchestrator.evaluator import Evaluator, Judged
from orchestrator.search.layout import Layout, layout_of

# An improvement by less is none: it would be noise of floating point.
LEAST_GAIN = 1e-4


def polish(evaluator: Evaluator, start: Judged, steps: int) -> Judged:
    """The best plan found by single changes until none helps, or so many program steps have been simulated."""
    model, objective = evaluator.model, evaluator.objective
    best, limit = start, evaluator.steps + steps
    improved = True
    while improved and evaluator.steps < limit:
        improved = False
        for stages in neighbours(model, best.plan.stages, evaluator):
            if evaluator.steps >= limit:
                break
            found = evaluator.judge(stages)
            if better(found, best, objective):
                best, improved = found, True
                break
    return best


def better(found: Judged, best: Judged, objective: Objective) -> bool:
    (excess, cost), (best_excess, best_cost) = found.rank(objective), best.rank(objective)
    return excess < best_excess - 1e-9 or (excess <= best_excess and cost < best_cost * (1 - LEAST_GAIN))


def neighbours(model: Model, stages: Sequence[Stage], evaluator: Evaluator) -> Iterator[tuple[Stage, ...]]:
    """Plans that differ by one change, the most promising first."""
    layouts = [layout_of(stage) for stage in stages]
    order = sorted(range(len(stages)), key=lambda s: -_weight(evaluator, stages[s]))
    for s in order:
        layout = layouts[s]
        if layout is not None and len(layout.devices) > 1:
            for changed in _shifted(layout, model.layers[stages[s].last].rows):
                yield _replaced(stages, s, s + 1, [changed.stage(stages[s].first, stages[s].last)])
    for s in order:
        if s + 1 < len(stages):
            for layout in dict.fromkeys(x for x in (layouts[s], layouts[s + 1]) if x is not None):
                if _may(model, layout, stages[s].first, stages[s + 1].last):
                    yield _replaced(stages, s, s + 2, [layout.stage(stages[s].first, stages[s + 1].last)])
    for s in order:
        first, last, layout = stages[s].first, stages[s].last, layouts[s]
        if layout is None:
            continue
        for other in dict.fromkeys(layouts[max(s - 1, 0) : s + 2]):
            if other is not None and other != layout and _may(model, other, first, last):
                yield _replaced(stages, s, s + 1, [other.stage(first, last)])
        for gone in range(len(layout.devices) if len(layout.devices) > 1 else 0):
            yield _replaced(stages, s, s + 1, [without(layout, gone).stage(first, last)])
        for cut in range(first + 1, last + 1):
            yield _replaced(stages, s, s + 1, [layout.stage(first, cut - 1), layout.stage(cut, last)])
        if s + 1 < len(stages):
            following = layouts[s + 1]
            if following is None:
                continue
            # The cut between this stage and the next one, a layer earlier or later.
            if last > first and _may(model, following, last, stages[s + 1].last):
                yield _replaced(
                    stages, s, s + 2, [layout.stage(first, last - 1), following.stage(last, stages[s + 1].last)]
                )
            if stages[s + 1].last > last + 1 and _may(model, layout, first, last + 1):
                yield _replaced(
                    stages, s, s + 2, [layout.stage(first, last + 1), following.stage(last + 2, stages[s + 1].last)]
                )
        if len(layout.devices) == 1:
            for name in evaluator.profile.names:
                if name != layout.devices[0]:
                    yield _replaced(stages, s, s + 1, [Layout((name,), (0.0, 1.0)).stage(first, last)])


def without(layout: Layout, gone: int) -> Layout:
    """The layout without one device; its neighbours share its rows."""
    edges = list(layout.edges)
    middle = (edges[gone] + edges[gone + 1]) / 2
    if gone == 0:
        middle = edges[gone]
    elif gone == len(layout.devices) - 1:
        middle = edges[gone + 1]
    inner = [*edges[1:gone], middle, *edges[gone + 2 : -1]] if 0 < gone < len(layout.devices) - 1 else edges[1:-1]
    if gone == 0:
        inner = edges[2:-1]
    elif gone == len(layout.devices) - 1:
        inner = edges[1:-2]
    return Layout(layout.devices[:gone] + layout.devices[gone + 1 :], (0.0, *inner, 1.0))


def _shifted(layout: Layout, rows: int) -> Iterator[Layout]:
    """Every inner edge one row up and down; rows handed on from each device to each other."""
    edges = [round(edge * rows) for edge in layout.edges]
    for giver in range(len(layout.devices)):
        for taker in range(len(layout.devices)):
            if giver == taker or edges[giver + 1] - edges[giver] <= 1:
                continue
            moved = list(edges)
            # A row less for the giver and one more for the taker shifts everything between them.
            for index in range(min(giver, taker) + 1, max(giver, taker) + 1):
                moved[index] += 1 if taker < giver else -1
            yield Layout(layout.devices, tuple(edge / rows for edge in moved))


def _may(model: Model, layout: Layout, first: int, last: int) -> bool:
    """Several devices can share only layers that can be split."""
    return len(layout.devices) == 1 or all(layer.splittable for layer in model.layers[first : last + 1])


def _weight(evaluator: Evaluator, stage: Stage) -> float:
    """About how long the stage takes: what its slowest device computes of it."""
    slowest = 0.0
    for name, rect in stage.regions.items():
        device = evaluator.profile.by_name[name]
        share = (rect.row_stop - rect.row_start) * (rect.col_stop - rect.col_start)
        layers = evaluator.model.layers[stage.first : stage.last + 1]
        slowest = max(slowest, sum(device.layers[layer.index].seconds(layer.rows * share) for layer in layers))
    return slowest


def _replaced(stages: Sequence[Stage], start: int, stop: int, instead: Sequence[Stage]) -> tuple[Stage, ...]:
    return (*stages[:start], *instead, *stages[stop:])
