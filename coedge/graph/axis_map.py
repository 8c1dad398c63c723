"""Axis maps: the interval of the input that an interval of the output needs, along one spatial axis.

There is one class per family of operators. `needs` returns the interval of the input that the output interval
[a, b) reads, clipped to the input. The clipped positions are the operator's own padding.

    Window, kernel 3, stride 1, padding 1, an output of rows 2..5 of 8:

        input   0 [1  2  3  4  5] 6  7        needs rows 1..6: one halo row on each side
        output  0  1 [2  3  4] 5  6  7
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from coedge.core.region import Interval


class AxisMap(Protocol):
    """A map from intervals of an output axis to intervals of an input axis."""

    def needs(self, out: Interval) -> Interval: ...


@dataclass(frozen=True, slots=True)
class Same:
    """A row-local operator: output row o reads input row o."""

    def needs(self, out: Interval) -> Interval:
        return out


@dataclass(frozen=True, slots=True)
class Whole:
    """A dependence of every output row on the whole input. The input may have one row, which is broadcast."""

    extent: int

    def needs(self, out: Interval) -> Interval:
        return Interval(0, self.extent)


@dataclass(frozen=True, slots=True)
class Window:
    """Convolution and pooling: output row o reads input rows o s - p + d t for t in 0..k-1."""

    extent: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    pad: int = 0

    def unclipped(self, out: Interval) -> Interval:
        start = out.start * self.stride - self.pad
        return Interval(start, (out.stop - 1) * self.stride - self.pad + self.dilation * (self.kernel - 1) + 1)

    def needs(self, out: Interval) -> Interval:
        inside = self.unclipped(out).clip(self.extent)
        if inside.length:
            return inside
        # The window lies entirely in the padding. One row at the border keeps the tile well formed.
        row = min(max(inside.start, 0), self.extent - 1)
        return Interval(row, row + 1)


@dataclass(frozen=True, slots=True)
class Repeat:
    """Nearest resize and depth-to-space: output row o reads input row o // factor."""

    extent: int
    factor: int

    def needs(self, out: Interval) -> Interval:
        return Interval(out.start // self.factor, -(-out.stop // self.factor))


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear resize by an integer factor: output row o reads the two rows beside `(o + offset) / f - offset`.

    `offset` is 0.5 for half-pixel centres and 0 for asymmetric coordinates.
    """

    extent: int
    factor: int
    offset: float

    def needs(self, out: Interval) -> Interval:
        def source(row: int) -> int:
            return math.floor((row + self.offset) / self.factor - self.offset)

        return Interval(source(out.start), source(out.stop - 1) + 2).clip(self.extent)


@dataclass(frozen=True, slots=True)
class Spread:
    """Transposed convolution: input row i writes output rows i s - p + d t for t in 0..k-1."""

    extent: int
    kernel: int
    stride: int
    dilation: int
    pad: int

    def needs(self, out: Interval) -> Interval:
        reach = self.dilation * (self.kernel - 1)
        first, last = out.start + self.pad, out.stop - 1 + self.pad
        # With a kernel shorter than its stride, some output rows depend on no input row. They need one all the same,
        # because a tile cannot be empty.
        start = min(-(-(first - reach) // self.stride), first // self.stride)
        stop = max(last // self.stride + 1, start + 1)
        start = min(max(start, 0), self.extent - 1)
        return Interval(start, min(max(stop, start + 1), self.extent))


@dataclass(frozen=True, slots=True)
class Mirror:
    """Reflecting or repeating padding: border rows of the output read rows inside the input."""

    extent: int
    pad: int
    reflect: bool

    def needs(self, out: Interval) -> Interval:
        start, stop = out.start - self.pad, out.stop - self.pad
        inside = Interval(start, stop).clip(self.extent)
        edge = 1 if self.reflect else 0
        if start < 0:
            deepest = min(-start + edge, self.extent)
            inside = Interval(0, max(inside.stop, deepest))
        if stop > self.extent:
            deepest = max(self.extent - (stop - self.extent) - edge, 0)
            inside = Interval(min(inside.start, deepest), self.extent)
        if inside.length:
            return inside
        row = min(max(inside.start, 0), self.extent - 1)
        return Interval(row, row + 1)
