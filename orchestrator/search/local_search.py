"""Local search: small changes to a plan, each evaluated by simulation.

Drafts do not know that rows are whole, that kernels have fixed costs and that messages queue. After rounding, one
row more or one stage less may pay. A change applies to one stage, or to a run of consecutive stages on the
same layout.
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

# Least relative improvement that counts; smaller ones are rounding errors.
LEAST_GAIN = 1e-4
# Grids are tried if there are fewer rows than this per device.
FEW_ROWS = 8
# Stages of fewer layers than this are divided in every way; longer ones have too many parts.
SHORT = 12

# Yields plans that differ from the given one by one change to stages [start, stop), which share a layout.
Neighbourhood = Callable[[Evaluator, Sequence[Stage], int, int], Iterator[tuple[Stage, ...]]]


def local_search(
    evaluator: Evaluator,
    start: Evaluation,
    layouts: Sequence[Layout],
    steps: int,
    kinds: Sequence[Neighbourhood] | None = None,
) -> Evaluation:
    """Take the first change that improves the plan, again and again until none does.

    Args:
        layouts: further layouts to try on stages.
        steps: number of program steps that may be simulated.
        kinds: of change; all by default.
    """
    best, limit = start, evaluator.steps + steps
    improved = True
    while improved and evaluator.steps < limit:
        improved = False
        for stages in neighbours(evaluator, best.plan.stages, layouts, KINDS if kinds is None else kinds):
            if evaluator.steps >= limit:
                break
            candidate = evaluator.evaluate(stages)
            if better(candidate, best, evaluator.objective):
                best, improved = candidate, True
                break
    return best


def improve_transfer_options(
    evaluator: Evaluator, start: Evaluation, option_sets: Sequence[TransferOptions], steps: int
) -> Evaluation:
    """Choose the best transfer options for all stages, and then for each stage by itself."""
    best, limit = start, evaluator.steps + steps
    for options in option_sets:
        best = better_of(evaluator.evaluate(options(start.plan.stages)), best, evaluator.objective)
    for at in range(len(start.plan.stages)):
        for options in option_sets:
            if evaluator.steps >= limit:
                return best
            stages = list(best.plan.stages)
            stages[at] = options(stages)[at]
            best = better_of(evaluator.evaluate(stages), best, evaluator.objective)
    return best


def better(candidate: Evaluation, best: Evaluation, objective: Objective) -> bool:
    """Return whether a candidate violates the constraints less, or costs less by more than rounding errors."""
    (excess, cost), (best_excess, best_cost) = candidate.rank(objective), best.rank(objective)
    return excess < best_excess - 1e-9 or (excess <= best_excess and cost < best_cost * (1 - LEAST_GAIN))


def better_of(candidate: Evaluation, best: Evaluation, objective: Objective) -> Evaluation:
    return candidate if better(candidate, best, objective) else best


def neighbours(
    evaluator: Evaluator, stages: Sequence[Stage], candidates: Sequence[Layout], kinds: Sequence[Neighbourhood]
) -> Iterator[tuple[Stage, ...]]:
    """Yield plans that differ by one change: of the given kinds, then by other layouts; the slowest stages first."""
    model, runs = evaluator.model, _runs(stages)
    order = sorted(runs, key=lambda run: -sum(_slowest(evaluator, stage) for stage in stages[run[0] : run[1]]))
    for kind in kinds:
        for start, stop in order:
            yield from kind(evaluator, stages, start, stop)
    for start, stop in order:
        for layout in candidates:
            if layout != layout_of(stages[start]) and _allowed(model, layout, stages[start:stop]):
                yield _on(stages, start, stop, layout)
    for start, stop in order if candidates else ():
        for at in range(start, stop):
            yield from _windows(model, stages, at, candidates)


def _windows(
    model: Model, stages: Sequence[Stage], at: int, candidates: Sequence[Layout]
) -> Iterator[tuple[Stage, ...]]:
    """Put some layers of a stage on a layout of their own, as one stage or as a stage per layer.

    The cuts and the layout change together, because neither change may pay alone. Layers at the beginning and the end
    of the stage come before those in its middle.
    """
    first, last, own = stages[at].first, stages[at].last, layout_of(stages[at])
    if own is None or last - first >= SHORT:
        return
    windows = [(a, b) for a in range(first, last + 1) for b in range(a, last + 1)]
    for a, b in sorted(windows, key=lambda window: first < window[0] and window[1] < last):
        before = [own.stage(first, a - 1)] if first < a else []
        behind = [own.stage(b + 1, last)] if b < last else []
        for layout in (own, *candidates):
            if not _allowed(model, layout, [own.stage(a, b)]):
                continue
            if layout != own or (before and behind):
                yield _replaced(stages, at, at + 1, [*before, layout.stage(a, b), *behind])
            if a < b:
                singly = [layout.stage(layer, layer) for layer in range(a, b + 1)]
                yield _replaced(stages, at, at + 1, [*before, *singly, *behind])


def _rows(evaluator: Evaluator, stages: Sequence[Stage], start: int, stop: int) -> Iterator[tuple[Stage, ...]]:
    """Move one row from each device to each other."""
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
    """Move one row from each device to each other, in several consecutive stages on the same devices.

    Their shares may differ. A row that moves in one of them alone may cost transfers on both sides.
    """
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
    """Split a stage, merge two stages, or move a layer from one stage to the next."""
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
        for merged in dict.fromkeys((layout, following)):
            if _allowed(model, merged, stages[at : at + 2]):
                yield _replaced(stages, at, at + 2, [merged.stage(first, end)])
        for cut in (last, last + 2):
            if first < cut <= end:
                pair = [layout.stage(first, cut - 1), following.stage(cut, end)]
                if _allowed(model, layout, pair[:1]) and _allowed(model, following, pair[1:]):
                    yield _replaced(stages, at, at + 2, pair)


def _grids(evaluator: Evaluator, stages: Sequence[Stage], start: int, stop: int) -> Iterator[tuple[Stage, ...]]:
    """Exchange neighbouring strips, and put rectangles in place of strips if there are few rows per device."""
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
    """Return rectangles of these shares in `bands` bands from the top down, with as many devices in each band."""
    names, regions, top = list(shares), dict[str, UnitRect](), 0.0
    total = sum(shares.values())
    for band in range(bands):
        in_band = names[band * len(names) // bands : (band + 1) * len(names) // bands]
        height = sum(shares[name] for name in in_band)
        bottom = 1.0 if band == bands - 1 else top + height / total
        left = 0.0
        for name in in_band:
            right = 1.0 if name == in_band[-1] else left + shares[name] / height
            regions[name] = UnitRect(top, bottom, left, right)
            left = right
        top = bottom
    return regions


def _allowed(model: Model, layout: Layout, stages: Sequence[Stage]) -> bool:
    """Return whether stages may be on a layout: several devices share only layers that can be split."""
    layers = model.layers[stages[0].first : stages[-1].last + 1]
    return len(layout.devices) == 1 or all(layer.splittable or layer.by_features for layer in layers)


def _slowest(evaluator: Evaluator, stage: Stage) -> float:
    """Estimate the time of a stage: that of its slowest device, without overlap."""
    shares = {name: (r.row_stop - r.row_start) * (r.col_stop - r.col_start) for name, r in stage.regions.items()}
    return max(share * _seconds(evaluator, name, [stage]) for name, share in shares.items())


def _seconds(evaluator: Evaluator, name: str, stages: Sequence[Stage]) -> float:
    """Return the time of all rows of consecutive stages on one device."""
    table = evaluator.table
    return float(table.whole_seconds(stages[0].first, stages[-1].last + 1)[table.position[name]])


def _runs(stages: Sequence[Stage]) -> list[tuple[int, int]]:
    """Return [start, stop) of every run of consecutive stages on the same layout."""
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
    """Put new stages in place of old ones, with the transfer options of the first old one."""
    old = stages[start]
    with_options = (s.model_copy(update={"codecs": old.codecs, "halo_first": old.halo_first}) for s in instead)
    return (*stages[:start], *with_options, *stages[stop:])


KINDS: tuple[Neighbourhood, ...] = (_rows, _cuts, _grids)
# Kinds that lead quickly to a local optimum.
NEAR: tuple[Neighbourhood, ...] = (_rows, _bands, _cuts)
