"""How a device's region of a stage is cut, so that what others wait for is computed and sent before the rest.

    rows that are fetched from the device above          own rows of the stage before
    - - - - - - - - - - - - - - - - - - - - - - -        |                          |
    |  border: the device above waits for it,   | 1 ---> needs a fetched row
    |  or it needs rows that are fetched        |
    |-------------------------------------------|
    |                                           |
    |  interior: nobody waits for it, and all   | 3 ---> needs own rows only
    |  that it needs is here                    |
    |                                           |
    |-------------------------------------------|
    |  border                                   | 2 ---> needs a fetched row
    - - - - - - - - - - - - - - - - - - - - - - -
    rows that are fetched from the device below

Each piece is a computation of its own, in the order of the numbers, and is sent as soon as it is there: the
borders travel while the interior is computed. A device runs the first step that is ready, so where fetched
rows are still on their way it begins with the interior. Grids have borders on the left and on the right as
well. The rows around a cut are computed twice where the stage has windows: that is what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from coedge.core.region import Region, UnitRect
from coedge.graph.graph import Tensor

# Where in the region a part that needs nothing of others is looked for: in the middle first.
_PROBES = (1 / 2, 1 / 4, 3 / 4)


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of a device's share of a stage.

    Attributes:
        wanted: the region of each of the stage's results in it; those that have a pixel in it.
        inner: the interior.
    """

    wanted: Mapping[str, Region]
    inner: bool = True


def split_halo_first(
    rect: UnitRect,
    tensors: Sequence[Tensor],
    fetched: Iterable[tuple[str, Region]],
    is_local: Callable[[Mapping[str, Region]], bool],
) -> list[Portion]:
    """The pieces of a share, in the order in which they are to be computed; a single one if there is no interior.

    For every result, the regions of the pieces make up the region of the share.

    Args:
        rect: the share.
        tensors: the stage's results.
        fetched: what others fetch of the share, by result.
        is_local: whether regions of the results can be computed from what the device holds, fetching nothing.
    """
    fetched = list(fetched)
    awaited = _without(rect, tensors, fetched)
    local = _local_part(rect, tensors, is_local)
    both = _intersection(awaited, local)
    inner = next((r for r in (both, awaited, local) if _regions(r, tensors)), rect)
    interior = Portion(_regions(inner, tensors))
    before: list[Portion] = []
    after: list[Portion] = []
    for part in _minus(rect, inner):
        portion = Portion(_regions(part, tensors), inner=False)
        if portion.wanted:
            waited_for = any(not r.intersection(portion.wanted[n]).empty for n, r in fetched if n in portion.wanted)
            (before if waited_for else after).append(portion)
    return [*before, interior, *after]


def _regions(rect: UnitRect, tensors: Iterable[Tensor]) -> dict[str, Region]:
    """What a share has of each tensor, where it has a pixel of it."""
    regions = {tensor.name: rect.of_extent(tensor.rows, tensor.cols) for tensor in tensors}
    return {name: region for name, region in regions.items() if not region.empty}


def _without(rect: UnitRect, tensors: Sequence[Tensor], fetched: Iterable[tuple[str, Region]]) -> UnitRect:
    """The share without what others fetch of it. Each fetched region is cut off together with all that lies
    between it and one side of the share: the side for which least is lost."""
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
    """A largest part of the share that needs nothing of others; an empty one if none was found.

    Grown from one pixel of the finest result, side by side: what a larger part needs contains what a smaller
    one needs.
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
        # Edges that reach the share's own are those, not pixels of the finest result: others may be coarser.
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
    """Moves one side outwards as far as the part stays local. `edges` run from the outermost inwards.

    Borders are thin, so the steps from outside are small at first; then halves.
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
    """What lies above, below, left and right of a part of a rectangle."""
    return [
        rect._replace(row_stop=inner.row_start),
        rect._replace(row_start=inner.row_stop),
        UnitRect(inner.row_start, inner.row_stop, rect.col_start, inner.col_start),
        UnitRect(inner.row_start, inner.row_stop, inner.col_stop, rect.col_stop),
    ]
