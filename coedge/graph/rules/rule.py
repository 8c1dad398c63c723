"""What the rule of one node says, and how operators are registered.

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
    """What a rule may look at: shapes and layouts of the activations, values of the constants."""

    tensors: Mapping[str, Tensor]
    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    opset: int

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
    """How one node is split.

    Attributes:
        kind: what sort of dependence it is. `dense` is split by output features; `pixel` has nothing to split.
        maps: per activation input, the (row, column) axis maps.
        layout: (row_axis, col_axis) of the outputs.
        why: for `whole`, the reason.
        partial_extent: for a device's share of a reduction, the (rows, columns) that it reduces.
        features: the rows of the outputs are features.
    """

    kind: RuleKind
    maps: Mapping[str, tuple[AxisMap, AxisMap]]
    layout: tuple[int | None, int | None]
    why: str = ""
    partial_extent: tuple[int, int] | None = None
    features: bool = False

    def needs(self, out: Region) -> dict[str, Region]:
        return {name: Region.of(rows.needs(out.rows), cols.needs(out.cols)) for name, (rows, cols) in self.maps.items()}

    def weight_slices(self, node: Node, adjust: Adjust) -> dict[int, WeightSlice]:
        """The constants that a tile reads in part only, by their position among the node's inputs."""
        return {}

    @abstractmethod
    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust: ...

    @abstractmethod
    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None: ...


class Emitter(ABC):
    """The tile under construction, as the `emit` half of a rule sees it.

    Constants stand under their names; those that a rule takes parts of, under the keys of the parts.
    """

    tensors: Mapping[str, Tensor]
    opset: int

    @contextlib.contextmanager
    def without_features(self, names: Iterable[str]) -> Iterator[None]:
        """For the time being shows these tensors as one pixel."""
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
    """Runs on any region as it stands: elementwise and whatever leaves the rows alone."""

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        return ()

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        tile.copy(node, inputs)


@dataclass(frozen=True)
class WholeRule(Plain):
    """Needs every input whole and computes every output whole."""


RuleFunction = Callable[[Node, Context], "Rule | str"]
FUNCTIONS: dict[str, RuleFunction] = {}
KNOWS_FEATURES: set[str] = set()


def register(*ops: str, knows_features: bool = False) -> Callable[[RuleFunction], RuleFunction]:
    """Makes a function the one that finds the rule of these operators.

    Args:
        knows_features: what it says of rows holds for features as well. Others see such an input as one pixel.
    """

    def add(function: RuleFunction) -> RuleFunction:
        for op in ops:
            FUNCTIONS[op] = function
            if knows_features:
                KNOWS_FEATURES.add(op)
        return function

    return add


def whole_rule(node: Node, context: Context, why: str, restores_rows: bool) -> Rule:
    names = [n for n in dict.fromkeys((*node.inputs, *node.captured)) if n and not context.is_constant(n)]
    maps: dict[str, tuple[AxisMap, AxisMap]] = {
        n: (Whole(context.tensors[n].rows), Whole(context.tensors[n].cols)) for n in names
    }
    # An operator may leave out its first output, as an LSTM does of which only the last state is wanted.
    shape = next(context.shapes[name] for name in node.outputs if name)
    layout = (2, 3) if restores_rows and len(shape) == 4 else (None, None)
    spatial = any(context.tensors[n].spatial for n in names)
    if not spatial and layout == (None, None):
        return WholeRule("pixel", maps, layout, why)
    return WholeRule("whole", maps, layout, why)


def local_kind(tensor: Tensor) -> RuleKind:
    """`local` where there are rows to be local to, `pixel` where there is one pixel."""
    return "local" if tensor.divisible else "pixel"


def crop_of(held: Region, wanted: Region) -> tuple[int, int, int, int]:
    """Rows and columns to drop from `held` to get `wanted`: (above, below, left, right)."""
    return (
        wanted.row_start - held.row_start,
        held.row_stop - wanted.row_stop,
        wanted.col_start - held.col_start,
        held.col_stop - wanted.col_stop,
    )
