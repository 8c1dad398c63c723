"""Reductions. A reduction over rows *and* columns is split in two at capture (see `coedge.graph.rewrite`):

partial   each device reduces the region that it owns              kind "partial"
combine   each device that needs the result reduces all shares     kind "combine", after a small all-gather
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coedge.graph.axis_map import AxisMap, Same, Whole
from coedge.graph.graph import Node, Tensor
from coedge.graph.rules.rule import Context, Plain, Rule, local_kind, register

PARTIAL = "coedge.partial:"
SHARE = "coedge.share:"
COMBINE = "coedge.combine:"


@dataclass(frozen=True)
class ShareRule(Plain):
    """A combine. It needs the shares of the whole extent."""


def reduced_axes(node: Node, rank: int, constants: Mapping[str, np.ndarray]) -> list[int] | None:
    """Return the axes of a Reduce operator. None: they are not constant."""
    if len(node.inputs) > 1 and node.inputs[1]:
        value = constants.get(node.inputs[1])
        if value is None:
            return None
        if value.size:
            return sorted(int(a) % rank for a in value.reshape(-1))
    return [] if node.attributes.get("noop_with_empty_axes", 0) else list(range(rank))


@register(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
def reduce(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source):
        return "reduces a constant"
    tensor = context.tensors[source]
    name = node.name
    if name.startswith(PARTIAL):
        return Plain("partial", {source: (Same(), Same())}, (None, None), partial_extent=(tensor.rows, tensor.cols))
    if name.startswith(COMBINE):
        shape = context.out_shape(node)
        layout = (len(shape) - 2, len(shape) - 1) if len(shape) >= 2 else (None, None)
        if not all(axis is None or shape[axis] == 1 for axis in layout):
            layout = (None, None)
        return Plain("combine", {source: (Whole(tensor.rows), Whole(tensor.cols))}, layout)
    axes = reduced_axes(node, len(tensor.shape), context.constants)
    if axes is None:
        return "its axes are not constant"
    keeps = bool(node.attributes.get("keepdims", 1))
    maps: list[AxisMap] = []
    for axis, extent in ((tensor.row_axis, tensor.rows), (tensor.col_axis, tensor.cols)):
        maps.append(Whole(extent) if axis in axes and extent > 1 else Same())
    if all(isinstance(m, Whole) for m in maps):
        return f"{node.op} over rows and columns has no partial form"

    def moved(old: int | None) -> int | None:
        if old is None or keeps:
            return old
        return None if old in axes else old - sum(axis < old for axis in axes)

    return Plain(
        local_kind(tensor),
        {source: (maps[0], maps[1])},
        (moved(tensor.row_axis), moved(tensor.col_axis)),
    )


def reduces_space(tensor: Tensor, axes: list[int]) -> bool:
    """Return whether a reduction over `axes` covers all pixels of a tensor that has several."""
    gone = [
        axis in axes or extent == 1 for axis, extent in ((tensor.row_axis, tensor.rows), (tensor.col_axis, tensor.cols))
    ]
    return tensor.spatial and all(gone)
