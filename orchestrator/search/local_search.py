"""Small steps from a plan to better ones, each judged by simulation: what the drafts cannot see.

Rows are whole, kernels have fixed costs, messages queue: after rounding, a row more here, a device or a stage
less there may pay. Changes are made to a stage, or to a run of stages on the same layout at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from coedge.core.objective import Objective
from coedge.core.region import UnitRect
from coedge.graph.model import Model
from coedge.plan.plan import Stage
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.search.layout import Layout, in_proportion, layout_of
from orchestrator.search.transfer_options import TransferOptions

# An improvement by less is none: it would be noise of floating point.
LEAST_GAIN = 1e-4
# Grids are tried where there are fewer rows for each device.
FEW_ROWS = 8
# Parts of stages of so many layers are given other layouts: of longer ones there are too many.
SHORT = 12


MessageKind = Callable[[Evaluator, Sequence[Stage], int, int], Iterator[tuple[Stage, ...]]]


def local_search(
    evaluator: Evaluator, start: Evaluation, layouts: Sequence[Layout], steps: int, kinds: Sequence[MessageKind] = ()
) -> Evaluation:
    """The best plan found by single changes until none helps, or so many program steps have been simulated.

    Args:
        layouts: to try on stages in place of theirs.
        kinds: of change, besides; all by default.
    """
    best, limit = start, evaluator.steps + steps
    improved = True
    while improved and evaluator.steps < limit:
        improved = False
        for stages in neighbours(evaluator, best.plan.stages, layouts, kinds or KINDS):
            if evaluator.steps >= limit:
                break
            found = evaluator.evaluate(stages)
            if better(found, best, evaluator.objective):
                best, improved = found, True
                break
    return best


def improve_transfer_options(
    evaluator: Evaluator, start: Evaluation, option_sets: Sequence[TransferOptions], steps: int
) -> Evaluation:
    """The dress that is best for all stages, and then for each stage by itself."""
    best, limit = start, evaluator.steps + steps
    for options in option_sets:
        found = evaluator.evaluate(options(start.plan.stages))
        best = found if better(found, best, evaluator.objective) else best
    for at in range(len(start.plan.stages)):
        for options in option_sets:
            if evaluator.steps >= limit:
                return best
            stages = list(best.plan.stages)
            stages[at] = options(stages)[at]
            found = evaluator.evaluate(stages)
            best = found if better(found, best, evaluator.objective) else best
    return best


def better(found: Evaluation, best: Evaluation, objective: Objective) -> bool:
    (excess, cost), (best_excess, best_cost) = found.rank(objective), best.rank(objective)
    return excess < best_excess - 1e-9 or (excess <= best_excess and cost < best_cost * (1 - LEAST_GAIN))


def neighbours(
    evaluator: Evaluator, stages: Sequence[Stage], candidates: Sequence[Layout], kinds: Sequence[MessageKind]
) -> Iterator[tuple[Stage, ...]]:
    """Plans that differ by one change: rows, cuts, devices, then other layouts; where most time goes first."""
    model, runs = evaluator.model, _runs(stages)
    order = sorted(runs, key=lambda run: -sum(_weight(evaluator, stage) for stage in stages[run[0] : run[1]]))
    for kind in kinds:
        for start, stop in order:
            yield from kind(evaluator, stages, start, stop)
    for start, stop in order:
        for layout in candidates:
            if layout != layout_of(stages[start]) and _may(model, layout, stages[start:stop]):
                yield _on(stages, start, stop, layout)
    for start, stop in order if candidates else ():
        for at in range(start, stop):
            yield from _windows(model, stages, at, candidates)


def _windows(
    model: Model, stages: Sequence[Stage], at: int, candidates: Sequence[Layout]
) -> Iterator[tuple[Stage, ...]]:
    """Some layers of a stage on a layout of their own, as one stage or one by one: of these changes none may pay
    alone. Beginnings and ends of the stage before its middle."""
    first, last, own = stages[at].first, stages[at].last, layout_of(stages[at])
    if own is None or last - first >= SHORT:
        return
    windows = [(a, b) for a in range(first, last + 1) for b in range(a, last + 1)]
    for a, b in sorted(windows, key=lambda window: first < window[0] and window[1] < last):
        before = [own.stage(first, a - 1)] if first < a else []
        behind = [own.stage(b + 1, last)] if b < last else []
        for layout in (own, *candidates):
            if not _may(model, layout, [own.stage(a, b)]):
                continue
            if layout != own or (before and behind):
                yield _replaced(stages, at, at + 1, [*before, layout.stage(a, b), *behind])
            if a < b:
                singly = [layout.stage(layer, layer) for layer in range(a, b + 1)]
                yield _replaced(stages, at, at + 1, [*before, *singly, *behind])


def _rows(evaluator: Evaluator, stages: Sequence[Stage], start: int, stop: int) -> Iterator[tuple[Stage, ...]]:
    """A row from each device to each other."""
    layout = layout_of(stages[start])
    if layout is None or len(layout.devices) < 2:
        return
    rows = [evaluator.model.layers[stage.last].rows for stage in stages[start:stop]]
    for moved in layout.shifted(min(rows)):
        yield _on(stages, start, stop, moved)
    if stop - start > 1:
        for at in range(start, stop):
            for moved in layout.shifted(rows[at - start]):
                yield _on(stages, at, at + 1, moved)


def _bands(evaluator: Evaluator, stages: Sequence[Stage], start: int, stop: int) -> Iterator[tuple[Stage, ...]]:
    """A row from each device to each other, in a stage and those behind it on the same devices whatever their
    shares: in one of them alone it may cost transfers on both sides."""
    layers = evaluator.model.layers
    for at in range(start, stop):
        together: list[list[Layout | None]] = []
        for stage in stages[at : at + SHORT]:
            own, first = layout_of(stage), layout_of(stages[at])
            if own is None or first is None or own.devices != first.devices or len(own.devices) < 2:
                break
            rows = layers[stage.last].rows
            pairs = itertools.permutations(range(len(own.devices)), 2)
            together.append([own.handed(giver, taker, rows) for giver, taker in pairs])
            for moved in zip(*together) if len(together) > 1 else ():
                changed = list(stages)
                for index, layout in enumerate(moved, start=at):
                    if layout is not None:
                        changed[index] = stages[index].model_copy(update={"regions": layout.regions})
                yield tuple(changed)


def _cuts(evaluator: Evaluator, stages: Sequence[Stage], start: int, stop: int) -> Iterator[tuple[Stage, ...]]:
    """Stages joined, split, and a layer handed from one to the next."""
    model = evaluator.model
    for at in range(start, stop):
        first, last, layout = stages[at].first, stages[at].last, layout_of(stages[at])
        if layout is None:
            continue
        for cut in range(first + 1, last + 1):
            yield _replaced(stages, at, at + 1, [layout.stage(first, cut - 1), layout.stage(cut, last)])
        if at + 1 == len(stages) or (following := layout_of(stages[at + 1])) is None:
            continue
        end = stages[at + 1].last
        for joint in dict.fromkeys((layout, following)):
            if _may(model, joint, stages[at : at + 2]):
                yield _replaced(stages, at, at + 2, [joint.stage(first, end)])
        for cut in (last, last + 2):
            if first < cut <= end:
                pair = [layout.stage(first, cut - 1), following.stage(cut, end)]
                if _may(model, layout, pair[:1]) and _may(model, following, pair[1:]):
                    yield _replaced(stages, at, at + 2, pair)


def _devices(evaluator: Evaluator, stages: Sequence[Stage], start: int, stop: int) -> Iterator[tuple[Stage, ...]]:
    """A device less, a device more, one in place of another; the layout of the stages before or behind."""
    model, profile = evaluator.model, evaluator.profile
    layout = layout_of(stages[start])
    if layout is None:
        return
    changed: list[Layout] = []
    if len(layout.devices) > 1:
        changed += [without(layout, gone) for gone in range(len(layout.devices))]
    speed = {
        device.name: 1 / max(_seconds(evaluator, device.name, stages[start:stop]), 1e-12) for device in profile.devices
    }
    shares = dict(zip(layout.devices, layout.shares))
    for name in profile.names:
        if name in layout.devices:
            continue
        fair = speed[name] / sum(speed[other] for other in (*layout.devices, name))
        row = 1 / (model.layers[stages[start].last].rows + 1)
        for position in sorted({0, len(shares), sum(n in shares for n in profile.names[: profile.names.index(name)])}):
            for share in (fair, row):
                grown = [*shares.items()]
                grown.insert(position, (name, share / max(1 - share, 1e-9)))
                changed.append(in_proportion(dict(grown)))
        swapped = [(name, value) if len(shares) == 1 else (other, value) for other, value in shares.items()]
        changed.append(in_proportion(dict(swapped)))
    for beside in (start - 1, stop):
        if 0 <= beside < len(stages) and (other := layout_of(stages[beside])) is not None:
            changed.append(other)
    for moved in dict.fromkeys(changed):
        if moved != layout and _may(model, moved, stages[start:stop]):
            yield _on(stages, start, stop, moved)
    if stop - start > 1:
        for at in range(start, stop):
            for moved in dict.fromkeys(changed):
                if moved != layout and _may(model, moved, stages[at : at + 1]):
                    yield _on(stages, at, at + 1, moved)


def _grids(evaluator: Evaluator, stages: Sequence[Stage], start: int, stop: int) -> Iterator[tuple[Stage, ...]]:
    """Rectangles for strips, where the devices are many for the rows; and the strips in another order."""
    layout, layers = layout_of(stages[start]), evaluator.model.layers
    if layout is None or len(layout.devices) < 2:
        return
    shares = dict(zip(layout.devices, layout.shares))
    for at in range(len(layout.devices) - 1):
        names = list(layout.devices)
        names[at : at + 2] = reversed(names[at : at + 2])
        yield _on(stages, start, stop, in_proportion({name: shares[name] for name in names}))
    few = min(layers[stage.last].rows for stage in stages[start:stop]) < FEW_ROWS * len(layout.devices)
    images = all(
        layer.splittable and layer.cols > 1 for layer in layers[stages[start].first : stages[stop - 1].last + 1]
    )
    if len(layout.devices) >= 4 and few and images:
        for bands in range(1, len(layout.devices) // 2 + 1):
            regions = grid(shares, bands)
            changed = [Stage(first=s.first, last=s.last, regions=regions) for s in stages[start:stop]]
            yield _replaced(stages, start, stop, changed)


def grid(shares: Mapping[str, float], bands: int) -> dict[str, UnitRect]:
    """Rectangles of these shares, in so many bands from the top down: in order, with as many devices in each."""
    names, regions, top = list(shares), dict[str, UnitRect](), 0.0
    total = sum(shares.values())
    for band in range(bands):
        members = names[band * len(names) // bands : (band + 1) * len(names) // bands]
        height = sum(shares[name] for name in members)
        bottom = 1.0 if band == bands - 1 else top + height / total
        left = 0.0
        for name in members:
            right = 1.0 if name == members[-1] else left + shares[name] / height
            regions[name] = UnitRect(top, bottom, left, right)
            left = right
        top = bottom
    return regions


def without(layout: Layout, gone: int) -> Layout:
    """The layout without one device; its neighbours share its rows."""
    edges = layout.edges
    if gone == 0:
        inner = edges[2:-1]
    elif gone == len(layout.devices) - 1:
        inner = edges[1:-2]
    else:
        inner = (*edges[1:gone], (edges[gone] + edges[gone + 1]) / 2, *edges[gone + 2 : -1])
    return Layout(layout.devices[:gone] + layout.devices[gone + 1 :], (0.0, *inner, 1.0))


def _may(model: Model, layout: Layout, stages: Sequence[Stage]) -> bool:
    """Several devices can share only layers that can be split."""
    layers = model.layers[stages[0].first : stages[-1].last + 1]
    return len(layout.devices) == 1 or all(layer.splittable or layer.by_features for layer in layers)


def _weight(evaluator: Evaluator, stage: Stage) -> float:
    """About how long the stage takes: what its slowest device computes of it."""
    slowest = 0.0
    for name, rect in stage.regions.items():
        share = (rect.row_stop - rect.row_start) * (rect.col_stop - rect.col_start)
        slowest = max(slowest, share * _seconds(evaluator, name, [stage]))
    return slowest


def _seconds(evaluator: Evaluator, name: str, stages: Sequence[Stage]) -> float:
    """Of all rows of these stages on one device."""
    device, layers = evaluator.profile.by_name[name], evaluator.model.layers[stages[0].first : stages[-1].last + 1]
    return sum(device.layer_time(layer.index, False).seconds(layer.rows) for layer in layers)


def _runs(stages: Sequence[Stage]) -> list[tuple[int, int]]:
    """[start, stop) of consecutive stages on the same layout."""
    runs: list[tuple[int, int]] = []
    for index, stage in enumerate(stages):
        if runs and stages[runs[-1][0]].regions == stage.regions:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def _on(stages: Sequence[Stage], start: int, stop: int, layout: Layout) -> tuple[Stage, ...]:
    return _replaced(stages, start, stop, [layout.stage(stage.first, stage.last) for stage in stages[start:stop]])


def _replaced(stages: Sequence[Stage], start: int, stop: int, instead: Sequence[Stage]) -> tuple[Stage, ...]:
    """New stages in place of old ones, dressed like the first of them."""
    old = stages[start]
    with_options = (s.model_copy(update={"codecs": old.codecs, "halo_first": old.halo_first}) for s in instead)
    return (*stages[:start], *with_options, *stages[stop:])


KINDS: tuple[MessageKind, ...] = (_rows, _cuts, _devices, _grids)
# What leads soon to the nearest plan that no small change betters.
NEAR: tuple[MessageKind, ...] = (_rows, _bands, _cuts)
