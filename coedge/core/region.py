"""Rectangles of rows and columns, in whole pixels (`Region`) and of the unit square (`UnitRect`).

Intervals are half open. A tensor that has no rows, such as the output of a dense layer, is treated as
one pixel: extent (1, 1). Thus nothing below needs a special case for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import PlanError


class Interval(NamedTuple):
    """Positions [start, stop) along one axis."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return max(0, self.stop - self.start)

    def hull(self, other: Interval) -> Interval:
        return Interval(min(self.start, other.start), max(self.stop, other.stop))

    def clip(self, extent: int) -> Interval:
        return Interval(max(self.start, 0), min(self.stop, extent))


class Region(NamedTuple):
    """Rows [row_start, row_stop) x columns [col_start, col_stop) of one tensor."""

    row_start: int
    row_stop: int
    col_start: int
    col_stop: int

    @classmethod
    def of(cls, rows: Interval, cols: Interval) -> Region:
        return cls(rows.start, rows.stop, cols.start, cols.stop)

    @property
    def rows(self) -> Interval:
        return Interval(self.row_start, self.row_stop)

    @property
    def cols(self) -> Interval:
        return Interval(self.col_start, self.col_stop)

    @property
    def area(self) -> int:
        return max(0, self.row_stop - self.row_start) * max(0, self.col_stop - self.col_start)

    @property
    def empty(self) -> bool:
        return self.row_stop <= self.row_start or self.col_stop <= self.col_start

    def hull(self, other: Region) -> Region:
        """Return the smallest region that contains both."""
        return Region.of(self.rows.hull(other.rows), self.cols.hull(other.cols))

    def intersection(self, other: Region) -> Region:
        return Region(
            max(self.row_start, other.row_start),
            min(self.row_stop, other.row_stop),
            max(self.col_start, other.col_start),
            min(self.col_stop, other.col_stop),
        )

    def contains(self, other: Region) -> bool:
        return other.empty or self.intersection(other) == other

    def minus(self, other: Region) -> list[Region]:
        """Return this region without `other`, as at most four disjoint regions: above, below, left, right."""
        hole = self.intersection(other)
        if hole.empty:
            return [] if self.empty else [self]
        if hole == self:
            return []
        parts = []
        if hole.row_start > self.row_start:
            parts.append(Region(self.row_start, hole.row_start, self.col_start, self.col_stop))
        if hole.row_stop < self.row_stop:
            parts.append(Region(hole.row_stop, self.row_stop, self.col_start, self.col_stop))
        if hole.col_start > self.col_start:
            parts.append(Region(hole.row_start, hole.row_stop, self.col_start, hole.col_start))
        if hole.col_stop < self.col_stop:
            parts.append(Region(hole.row_start, hole.row_stop, hole.col_stop, self.col_stop))
        return parts

    def __str__(self) -> str:
        return f"rows {self.row_start}..{self.row_stop}, columns {self.col_start}..{self.col_stop}"


ONE_PIXEL = Region(0, 1, 0, 1)


class UnitRect(NamedTuple):
    """A rectangle of the unit square: the share of every tensor that a device produces in a stage."""

    row_start: float = 0.0
    row_stop: float = 1.0
    col_start: float = 0.0
    col_stop: float = 1.0

    def of_extent(self, rows: int, cols: int) -> Region:
        """Return the pixels of a tensor with these numbers of rows and columns that belong to this share."""
        return Region(
            edge_to_row(self.row_start, rows),
            edge_to_row(self.row_stop, rows),
            edge_to_row(self.col_start, cols),
            edge_to_row(self.col_stop, cols),
        )


UNIT = UnitRect()


def edge_to_row(edge: float, extent: int) -> int:
    """Return the row (or column) of a tensor on which an edge of the unit square falls, rounded half up.

    The rounding is monotone: shares that meet in the unit square meet in every tensor. Lowering, the search and the
    schemes all round with this function. Python's `round` rounds half to even, so that a plan and its Programs would
    disagree about the row in the middle.

    Args:
        edge: from 0 to 1.
        extent: number of rows (or columns) of the tensor.
    """
    return math.floor(edge * extent + 0.5)


def edges_to_rows(edges: NDArray[np.float64], extents: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `edge_to_row` of every edge and extent, broadcast against each other."""
    rows: NDArray[np.float64] = np.floor(edges * extents + 0.5)
    return rows


def check_cover(rects: Iterable[UnitRect]) -> None:
    """Check that the rectangles cover the unit square exactly once.

    Raises:
        PlanError: a rectangle lies outside of the square, two overlap, or there is a gap.
    """
    _check_cover(tuple(rects))


@functools.lru_cache(4096)  # a search checks the same rectangles many times
def _check_cover(rects: tuple[UnitRect, ...]) -> None:
    for rect in rects:
        if not all(math.isfinite(edge) for edge in rect):
            raise PlanError(f"a region has an edge that is not a number: {tuple(rect)}")
        if not (0 <= rect.row_start <= rect.row_stop <= 1 and 0 <= rect.col_start <= rect.col_stop <= 1):
            raise PlanError(f"a region lies outside of the unit square or ends before it starts: {tuple(rect)}")
    row_edges = sorted({0.0, 1.0} | {edge for rect in rects for edge in rect[:2]})
    col_edges = sorted({0.0, 1.0} | {edge for rect in rects for edge in rect[2:]})
    for top, bottom in zip(row_edges, row_edges[1:]):
        for left, right in zip(col_edges, col_edges[1:]):
            owners = sum(
                rect.row_start <= top and bottom <= rect.row_stop and rect.col_start <= left and right <= rect.col_stop
                for rect in rects
            )
            if owners != 1:
                what = "belongs to no device" if owners == 0 else f"belongs to {owners} devices"
                raise PlanError(
                    f"rows {top:.4f}..{bottom:.4f}, columns {left:.4f}..{right:.4f} of the unit square {what}; "
                    "the regions of a stage must cover it exactly once"
                )
