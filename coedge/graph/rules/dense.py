"""Dense layers, split by output features, and operators that read features as one pixel.

The rows of a dense output are its features. Each needs the whole input and its own slice of the weights:

    [N, K] x [K, F] + [F]      a device makes features [a, b)  of  columns [a, b) of the matrix and [a, b) of the bias
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from coedge.core.region import ONE_PIXEL, Region
from coedge.graph.axis_map import Same, Whole
from coedge.graph.graph import Node
from coedge.graph.rules.rule import Adjust, Context, Emitter, Plain, Rule, local_kind, register
from coedge.graph.weight_slice import WeightSlice


@dataclass(frozen=True)
class DenseRule(Rule):
    """A product of one pixel with constant weights.

    adjust = () for all features, else (start, stop). These are absolute, so the tile serves one region only.

    Attributes:
        count: number of output features.
        sliced: the axis of the features in each constant that has them, by the position of the constant in the inputs.
    """

    count: int = 1
    sliced: Mapping[int, int] = field(default_factory=dict)

    def weight_slices(self, node: Node, adjust: Adjust) -> dict[int, WeightSlice]:
        if not adjust:
            return {}
        return {i: WeightSlice(node.inputs[i], axis, adjust[0], adjust[1]) for i, axis in self.sliced.items()}

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        return () if out.rows.length == self.count else (out.row_start, out.row_stop)

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        parts = self.weight_slices(node, adjust)
        tile.copy(node, [parts[i].key if i in parts else name for i, name in enumerate(inputs)])


def _dense(node: Node, context: Context, weight: np.ndarray, axis: int) -> Rule:
    name, shape = node.inputs[0], context.out_shape(node)
    tensor, count = context.tensors[name], shape[-1]
    sliced = {1: axis}
    bias = context.constant(node, 2)
    if bias is not None and bias.ndim and bias.shape[-1] == count > 1:
        sliced[2] = bias.ndim - 1
    return DenseRule(
        "dense", {name: (Whole(tensor.rows), Whole(tensor.cols))}, (len(shape) - 1, None),
        features=True, count=count, sliced=sliced,
    )  # fmt: skip


@register("Gemm", knows_features=True)
def gemm(node: Node, context: Context) -> Rule | str:
    name, weight = node.inputs[0], context.constant(node, 1)
    if context.is_constant(name) or weight is None:
        return "multiplies two tensors that are not constant, or a constant from the left"
    if len(node.inputs) > 2 and node.inputs[2] and not context.is_constant(node.inputs[2]):
        return "its bias is not constant"
    if context.tensors[name].spatial:
        return "its input has rows"
    if node.attributes.get("transA", 0):
        return "its input is transposed"
    return _dense(node, context, weight, 0 if node.attributes.get("transB", 0) else 1)


@register("MatMul", knows_features=True)
def matmul(node: Node, context: Context) -> Rule | str:
    name, weight = node.inputs[0], context.constant(node, 1)
    flows = not context.is_constant(name)
    if flows and weight is not None and weight.ndim == 2:
        tensor = context.tensors[name]
        if not tensor.spatial and len(tensor.shape) == 2:
            return _dense(node, context, weight, 1)
    return _channel_mix(node, context)


def _channel_mix(node: Node, context: Context) -> Rule | str:
    """Return the rule of a product with a constant matrix, which mixes the last axis and is local in the others."""
    name, weight = node.inputs[0], context.constant(node, 1)
    if context.is_constant(name) or weight is None:
        return "multiplies two tensors that are not constant, or a constant from the left"
    tensor = context.tensors[name]
    if weight.ndim != 2 or not tensor.spatial:
        return "has no rows apart from the axis that it mixes"
    if len(tensor.shape) - 1 in (tensor.row_axis, tensor.col_axis):
        return "mixes the columns"
    return Plain(local_kind(tensor), {name: (Same(), Same())}, (tensor.row_axis, tensor.col_axis))


@dataclass(frozen=True)
class GatheringRule(Rule):
    """A rule for an operator that does not handle features and reads some: it gets all of them, as one pixel.

    Attributes:
        inner: the rule that the node would have if its inputs had no features.
        gathered: names of the inputs that have features.
    """

    inner: Rule | None = None
    gathered: tuple[str, ...] = ()

    @classmethod
    def around(cls, inner: Rule, extents: Mapping[str, int]) -> GatheringRule:
        """Wrap a rule.

        Args:
            extents: number of features of each input that has features.
        """
        whole = {name: (Whole(extent), Whole(1)) for name, extent in extents.items()}
        return cls(
            inner.kind, {**inner.maps, **whole}, inner.layout, inner.why, inner.partial_extent,
            inner=inner, gathered=tuple(extents),
        )  # fmt: skip

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        assert self.inner is not None
        return self.inner.adjust(out, {**ins, **dict.fromkeys(self.gathered, ONE_PIXEL)})

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        assert self.inner is not None
        with tile.without_features(self.gathered):
            self.inner.emit(tile, node, inputs, adjust)
