"""The graph of a network: nodes in topological order, tensors with static shapes and a spatial layout.

[N, C, H, W]   row_axis 2, col_axis 3       channels first
[N, H, W, C]   row_axis 1, col_axis 2       channels last
[N, F]         row_axis 1, features         a dense layer's output: each feature is a row; there is no image
[N, C]         row_axis None: one pixel     a pooled image
[1, N, C, 1, 1] with partial_extent (H, W)  one device's share of a sum over H x W; axis 0 counts shares
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from coedge.core.region import Region


@dataclass(frozen=True, slots=True)
class Tensor:
    """An activation: a value between nodes that depends on the input. Constants are not tensors in this sense.

    Attributes:
        features: the rows are the output features of a dense layer, not rows of an image.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_axis: int | None = None
    col_axis: int | None = None
    partial_extent: tuple[int, int] | None = None
    features: bool = False

    @property
    def rows(self) -> int:
        if self.partial_extent:
            return self.partial_extent[0]
        return 1 if self.row_axis is None else self.shape[self.row_axis]

    @property
    def cols(self) -> int:
        if self.partial_extent:
            return self.partial_extent[1]
        return 1 if self.col_axis is None else self.shape[self.col_axis]

    @property
    def whole(self) -> Region:
        return Region(0, self.rows, 0, self.cols)

    @property
    def divisible(self) -> bool:
        """True if several devices can each hold a part: rows or columns of an image, or features."""
        return self.rows > 1 or self.cols > 1

    @property
    def spatial(self) -> bool:
        """True if the tensor is an image of several pixels."""
        return self.divisible and not self.features

    def as_pixel(self) -> Tensor:
        """Return this tensor as one pixel, which cannot be divided, for rules that do not handle features."""
        return replace(self, row_axis=None, features=False)

    def region_shape(self, region: Region) -> tuple[int, ...]:
        """Return the shape of the array that holds a region (one share, for a partial sum)."""
        shape = list(self.shape)
        if not self.partial_extent:
            if self.row_axis is not None:
                shape[self.row_axis] = max(region.row_stop - region.row_start, 0)
            if self.col_axis is not None:
                shape[self.col_axis] = max(region.col_stop - region.col_start, 0)
        return tuple(shape)

    def region_nbytes(self, region: Region) -> int:
        nbytes = _line_nbytes(self.shape, self.dtype, None if self.partial_extent else (self.row_axis, self.col_axis))
        if not self.partial_extent:
            if self.row_axis is not None:
                nbytes *= max(0, region.row_stop - region.row_start)
            if self.col_axis is not None:
                nbytes *= max(0, region.col_stop - region.col_start)
        return nbytes

    def slices(self, held: Region, wanted: Region) -> tuple[slice, ...]:
        """Return the index of region `wanted` in an array that holds region `held`."""
        index = [slice(None)] * len(self.shape)
        if not self.partial_extent:
            if self.row_axis is not None:
                index[self.row_axis] = slice(wanted.row_start - held.row_start, wanted.row_stop - held.row_start)
            if self.col_axis is not None:
                index[self.col_axis] = slice(wanted.col_start - held.col_start, wanted.col_stop - held.col_start)
        return tuple(index)


@functools.cache
def _line_nbytes(shape: tuple[int, ...], dtype: str, without: tuple[int | None, int | None] | None) -> int:
    """Return the bytes of an array that has one row and one column."""
    counts = [extent for axis, extent in enumerate(shape) if axis not in (without or ())]
    return math.prod(counts) * np.dtype(dtype).itemsize


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node, such as the branches of an If."""
    return [
        graph
        for attribute in node.attribute
        for graph in ((attribute.g,) if attribute.HasField("g") else attribute.graphs)
    ]


def captured_names(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the values that the graphs inside a node read from outside of them, each once."""
    names: dict[str, None] = {}
    for graph in inner_graphs(node):
        made = {value.name for value in (*graph.input, *graph.initializer)}
        made.update(name for inner in graph.node for name in inner.output)
        read = (name for inner in graph.node for name in (*inner.input, *captured_names(inner)))
        names.update(dict.fromkeys(name for name in read if name and name not in made))
    return tuple(names)


def fresh_name(name: str, *taken: Container[str]) -> str:
    """Return `name`, or with a number behind it if it is taken."""
    made, count = name, 1
    while any(made in names for names in taken):
        count += 1
        made = f"{name}_{count}"
    return made


def make_names_distinct(nodes: Iterable[onnx.NodeProto]) -> None:
    """Rename the nodes of a graph that have the name of an earlier one. ONNX Runtime refuses a name for two nodes."""
    taken: set[str] = set()
    for position, node in enumerate(nodes):
        if node.name in taken:
            node.name = fresh_name(f"{node.name}_{position}", taken)
        if node.name:
            taken.add(node.name)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. `inputs` are activations and constants in the operator's order; "" is an omitted input."""

    index: int
    proto: onnx.NodeProto = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...] = ()

    @property
    def op(self) -> str:
        return str(self.proto.op_type)

    @property
    def name(self) -> str:
        return str(self.proto.name) or f"{self.op}_{self.index}"

    @property
    def domain(self) -> str:
        return "" if self.proto.domain == "ai.onnx" else str(self.proto.domain)

    @property
    def attributes(self) -> dict[str, Any]:
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order, tensors and constants."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def activations(self, node: Node) -> tuple[str, ...]:
        """Return the inputs of a node that are not constant, in order, each once."""
        names = (*node.inputs, *node.captured)
        return tuple(dict.fromkeys(n for n in names if n and n not in self.constants))
