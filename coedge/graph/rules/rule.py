"""The region rule of a node, and the registry of rules by operator.

A rule has two halves. Planning calls `needs` (the input regions of an output region) and `adjust` (a few integers: the
pads and crops that make the operator correct on a tile). A worker calls `emit`, which writes the operator into the
tile's graph with those integers. `adjust` holds no absolute row numbers, so that one tile serves regions of any size.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coedge.core.region import Region
from coedge.graph.axis_map import AxisMap, Whole
from coedge.graph.graph import Node, Tensor
from coedge.graph.weight_slice import WeightSlice

Adjust = tuple[int, ...]
RuleKind = Literal["local", "window", "partial", "combine", "dense", "pixel", "whole"]


@dataclass(frozen=True, slots=True)
class Context:
    """The facts that a rule may use: shapes and layouts of the activations, values of the constants."""

    tensors: Mapping[str, Tensor]
    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]

    def constant(self, node: Node, position: int) -> np.ndarray | None:
        if position >= len(node.inputs) or not node.inputs[position]:
            return None
        return self.constants.get(node.inputs[position])

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def out_shape(self, node: Node, position: int = 0) -> tuple[int, ...]:
        return self.shapes[node.outputs[position]]


@dataclass(frozen=True)
class Rule(ABC):
    """The way in which one node is split.

    Attributes:
        kind: the kind of dependence. `dense` is split by output features; `pixel` has nothing to split.
        maps: the (row, column) axis maps of each activation input.
        layout: (row_axis, col_axis) of the outputs.
        why: the reason why the node is `whole`.
        partial_extent: the (rows, columns) that a device's share of a reduction reduces.
        features: the rows of the outputs are features.
    """

    kind: RuleKind
    maps: Mapping[str, tuple[AxisMap, AxisMap]]
    layout: tuple[int | None, int | None]
    why: str = ""
    partial_extent: tuple[int, int] | None = None
    features: bool = False

    def needs(self, out: Region) -> dict[str, Region]:
        """Return the region of each activation input that a region of the outputs needs."""
        return {name: Region.of(rows.needs(out.rows), cols.needs(out.cols)) for name, (rows, cols) in self.maps.items()}

    def weight_slices(self, node: Node, adjust: Adjust) -> dict[int, WeightSlice]:
        """Return the constants that a tile reads in part only, by their position among the node's inputs."""
        return {}

    @abstractmethod
    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        """Return the integers that make the operator correct on a tile, such as pads and crops."""

    @abstractmethod
    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        """Write the operator into the graph of a tile."""


class Emitter(ABC):
    """A tile under construction: the interface that `Rule.emit` writes to.

    A constant has its own name. A slice of a constant has the key of the slice.
    """

    tensors: Mapping[str, Tensor]

    @contextlib.contextmanager
    def without_features(self, names: Iterable[str]) -> Iterator[None]:
        """Present these tensors as one pixel inside the `with` block."""
        seen = self.tensors
        self.tensors = {**seen, **{name: seen[name].as_pixel() for name in names}}
        try:
            yield
        finally:
            self.tensors = seen

    @abstractmethod
    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: object) -> None: ...

    @abstractmethod
    def copy(self, node: Node, inputs: list[str], outputs: list[str] | None = None, **changed: object) -> None: ...

    @abstractmethod
    def constant(self, value: np.ndarray) -> str: ...

    @abstractmethod
    def fresh(self) -> str: ...

    @abstractmethod
    def crop(self, name: str, tensor: Tensor, crop: tuple[int, int, int, int], output: str | None = None) -> str: ...


@dataclass(frozen=True)
class Plain(Rule):
    """An operator that needs no adjustment on a region, such as an elementwise one."""

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        return ()

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        tile.copy(node, inputs)


@dataclass(frozen=True)
class WholeRule(Plain):
    """An operator that needs all inputs whole and computes all outputs whole."""


RuleFunction = Callable[[Node, Context], "Rule | str"]
FUNCTIONS: dict[str, RuleFunction] = {}
KNOWS_FEATURES: set[str] = set()


def register(*ops: str, knows_features: bool = False) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function that finds the rule of these operators.

    Args:
        knows_features: the rule also holds for features as rows. Other rules see such an input as one pixel.
    """

    def add(function: RuleFunction) -> RuleFunction:
        for op in ops:
            FUNCTIONS[op] = function
            if knows_features:
                KNOWS_FEATURES.add(op)
        return function

    return add


def whole_rule(node: Node, context: Context, why: str, restores_rows: bool) -> Rule:
    """Return the rule of a node that cannot be split.

    Args:
        why: the reason, for users.
        restores_rows: a later operator reads rows of the output, so the output gets a row and a column axis.
    """
    names = [n for n in dict.fromkeys((*node.inputs, *node.captured)) if n and not context.is_constant(n)]
    maps: dict[str, tuple[AxisMap, AxisMap]] = {
        n: (Whole(context.tensors[n].rows), Whole(context.tensors[n].cols)) for n in names
    }
    # An operator may omit its first output, as an LSTM does if only its last state is read.
    shape = next(context.shapes[name] for name in node.outputs if name)
    layout = (2, 3) if restores_rows and len(shape) == 4 else (None, None)
    spatial = any(context.tensors[n].spatial for n in names)
    if not spatial and layout == (None, None):
        return WholeRule("pixel", maps, layout, why)
    return WholeRule("whole", maps, layout, why)


def local_kind(tensor: Tensor) -> RuleKind:
    """Return `local` for a tensor that can be divided, `pixel` for one pixel."""
    return "local" if tensor.divisible else "pixel"


def crop_of(held: Region, wanted: Region) -> tuple[int, int, int, int]:
    """Return the rows and columns to drop from `held` to get `wanted`: (above, below, left, right)."""
    return (
        wanted.row_start - held.row_start,
        held.row_stop - wanted.row_stop,
        wanted.col_start - held.col_start,
        held.col_stop - wanted.col_stop,
    )
