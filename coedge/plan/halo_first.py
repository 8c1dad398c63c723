"""Halo first: a share is split into portions, so that rows that other devices wait for are computed and sent first.

    rows that are fetched from the device above
    - - - - - - - - - - - - - - - - - - - - - - -
    |  border: the device above waits for it,   | 1    reads fetched rows
    |  or it reads fetched rows                 |
    |-------------------------------------------|
    |                                           |
    |  interior: no device waits for it, and it | 3    reads rows that the device holds
    |  reads no fetched rows                    |
    |                                           |
    |-------------------------------------------|
    |  border                                   | 2    reads fetched rows
    - - - - - - - - - - - - - - - - - - - - - - -
    rows that are fetched from the device below

Each portion is a computation of its own. They are computed in the order of the numbers, and each is sent as soon as
it is computed, so the borders travel while the interior is computed. A device runs the first step that is ready:
while fetched rows are still on their way, it starts with the interior. Grids have borders on the left and right too.
The cost: where the stage has windows, the rows around the edge between two portions are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from coedge.core.region import Region, UnitRect
from coedge.graph.graph import Tensor

# Where the search for a local part starts, as a fraction of the share: in the middle first.
_PROBES = (1 / 2, 1 / 4, 3 / 4)


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of a device's share of a stage.

    Attributes:
        wanted: the region of each of the stage's results, without empty ones.
        inner: whether the portion is the interior.
    """

    wanted: Mapping[str, Region]
    inner: bool = True


def split_halo_first(
    rect: UnitRect,
    tensors: Sequence[Tensor],
    fetched: Iterable[tuple[str, Region]],
    is_local: Callable[[Mapping[str, Region]], bool],
) -> list[Portion]:
    """Split a share into portions, in computation order. Without an interior there is a single portion.

    For every result, the regions of the portions make up the region of the share.

    Args:
        rect: the share.
        tensors: the stage's results.
        fetched: the regions of the share that other devices fetch, as (result, region).
        is_local: returns whether regions of the results can be computed from what the device holds.
    """
    fetched = list(fetched)
    not_awaited = _without(rect, tensors, fetched)
    local = _local_part(rect, tensors, is_local)
    both = _intersection(not_awaited, local)
    inner = next((r for r in (both, not_awaited, local) if _regions(r, tensors)), rect)
    interior = Portion(_regions(inner, tensors))
    before: list[Portion] = []
    after: list[Portion] = []
    for part in _minus(rect, inner):
        portion = Portion(_regions(part, tensors), inner=False)
        if portion.wanted:
            awaited = any(not r.intersection(portion.wanted[n]).empty for n, r in fetched if n in portion.wanted)
            (before if awaited else after).append(portion)
    return [*before, interior, *after]


def _regions(rect: UnitRect, tensors: Iterable[Tensor]) -> dict[str, Region]:
    """Return the region of each tensor in a share, without empty ones."""
    regions = {tensor.name: rect.of_extent(tensor.rows, tensor.cols) for tensor in tensors}
    return {name: region for name, region in regions.items() if not region.empty}


def _without(rect: UnitRect, tensors: Sequence[Tensor], fetched: Iterable[tuple[str, Region]]) -> UnitRect:
    """Return the share without the regions that other devices fetch.

    Each fetched region is cut off together with everything between it and one side of the share. The side is chosen
    so that the smallest fraction is cut off.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    top, bottom, left, right = rect
    for name, part in fetched:
        tensor = by_name[name]
        own = rect.of_extent(tensor.rows, tensor.cols)
        lost = (
            (part.row_stop - own.row_start) / own.rows.length,
            (own.row_stop - part.row_start) / own.rows.length,
            (part.col_stop - own.col_start) / own.cols.length,
            (own.col_stop - part.col_start) / own.cols.length,
        )
        side = lost.index(min(lost))
        if side == 0:
            top = max(top, part.row_stop / tensor.rows)
        elif side == 1:
            bottom = min(bottom, part.row_start / tensor.rows)
        elif side == 2:
            left = max(left, part.col_stop / tensor.cols)
        else:
            right = min(right, part.col_start / tensor.cols)
    return _intersection(rect, UnitRect(top, bottom, left, right))


def _local_part(
    rect: UnitRect, tensors: Sequence[Tensor], is_local: Callable[[Mapping[str, Region]], bool]
) -> UnitRect:
    """Return a maximal part of the share that can be computed from what the device holds, or an empty one.

    The part starts as one pixel of the finest result. Its sides are moved outwards one after another. This works
    because a larger part needs everything that a smaller part needs.
    """

    def local(part: UnitRect) -> bool:
        return is_local(_regions(_intersection(rect, part), tensors))

    if local(rect):
        return rect
    rows, cols = max(t.rows for t in tensors), max(t.cols for t in tensors)
    own = rect.of_extent(rows, cols)
    for probe in _PROBES if not own.empty else ():
        row = own.row_start + int(own.rows.length * probe)
        col = own.col_start + int(own.cols.length * probe)
        # An edge that reaches the edge of the share is set to exactly that: coarser results are rounded from it.
        part = rect._replace(row_start=row / rows, row_stop=(row + 1) / rows)
        if not local(part):
            part = part._replace(col_start=col / cols, col_stop=(col + 1) / cols)
            if not local(part):
                continue
        part = _grow(part, 0, [rect.row_start, *(r / rows for r in range(own.row_start + 1, row + 1))], local)
        part = _grow(part, 1, [rect.row_stop, *(r / rows for r in range(own.row_stop - 1, row, -1))], local)
        if part[2:] == rect[2:]:
            return _intersection(rect, part)
        part = _grow(part, 2, [rect.col_start, *(c / cols for c in range(own.col_start + 1, col + 1))], local)
        part = _grow(part, 3, [rect.col_stop, *(c / cols for c in range(own.col_stop - 1, col, -1))], local)
        return _intersection(rect, part)
    return UnitRect(rect.row_start, rect.row_start, rect.col_start, rect.col_start)


def _grow(part: UnitRect, side: int, edges: Sequence[float], local: Callable[[UnitRect], bool]) -> UnitRect:
    """Move one side outwards as far as the part stays local. `edges` run from the outermost inwards.

    Borders are thin, so the search doubles its steps from the outside, and then bisects.
    """

    def moved(index: int) -> UnitRect:
        return UnitRect(*(edges[index] if i == side else edge for i, edge in enumerate(part)))

    bad, good, step = -1, len(edges), 1
    while bad + step < good:
        if local(moved(bad + step)):
            good = bad + step
            break
        bad += step
        step *= 2
    while good - bad > 1:
        middle = (bad + good) // 2
        if local(moved(middle)):
            good = middle
        else:
            bad = middle
    return part if good == len(edges) else moved(good)


def _intersection(a: UnitRect, b: UnitRect) -> UnitRect:
    return UnitRect(
        max(a.row_start, b.row_start),
        min(a.row_stop, b.row_stop),
        max(a.col_start, b.col_start),
        min(a.col_stop, b.col_stop),
    )


def _minus(rect: UnitRect, inner: UnitRect) -> list[UnitRect]:
    """Return the parts of a rectangle above, below, left and right of an inner one."""
    return [
        rect._replace(row_stop=inner.row_start),
        rect._replace(row_start=inner.row_stop),
        UnitRect(inner.row_start, inner.row_stop, rect.col_start, inner.col_start),
        UnitRect(inner.row_start, inner.row_stop, inner.col_stop, rect.col_stop),
    ]
