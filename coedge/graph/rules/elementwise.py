"""Row-local operators: elementwise ones, and those that mix only axes other than rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coedge.core.region import ONE_PIXEL, Region
from coedge.graph.axis_map import AxisMap, Same, Whole
from coedge.graph.graph import Node, Tensor
from coedge.graph.rules.rule import Adjust, Context, Emitter, Plain, Rule, RuleKind, crop_of, local_kind, register
from coedge.graph.weight_slice import WeightSlice

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos",
    "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid",
    "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Clip", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where",
    "Xor",
)  # fmt: skip


@register(*_UNARY, *_BROADCAST, knows_features=True)
def elementwise(node: Node, context: Context) -> Rule | str:
    out_rank = len(context.out_shape(node))
    flowing = [n for n in dict.fromkeys(node.inputs) if n and not context.is_constant(n)]
    if not flowing:
        return "depends on constants only"
    if any(context.tensors[n].partial_extent for n in flowing):
        return "works on a partial sum"

    # Axes count from the right, as in NumPy broadcasting. An input of extent one does not define the layout
    # if another input has more rows.
    layout: list[int | None] = [None, None]
    for side, extent_of in ((0, "rows"), (1, "cols")):
        best = 1
        for name in flowing:
            tensor = context.tensors[name]
            axis = (tensor.row_axis, tensor.col_axis)[side]
            extent = getattr(tensor, extent_of)
            if axis is not None and (layout[side] is None or extent > best):
                layout[side], best = axis + out_rank - len(tensor.shape), extent
    shape = context.out_shape(node)
    on_features = any(context.tensors[n].features for n in flowing)

    maps: dict[str, tuple[AxisMap, AxisMap]] = {}
    varying: dict[str, list[int | None]] = {}
    for name in dict.fromkeys(n for n in node.inputs if n):
        in_shape = context.constants[name].shape if context.is_constant(name) else context.tensors[name].shape
        axis_maps: list[AxisMap] = []
        for side, out_axis in enumerate(layout):
            in_axis = None if out_axis is None else out_axis - out_rank + len(in_shape)
            extent = 1 if in_axis is None or in_axis < 0 else in_shape[in_axis]
            if out_axis is not None and extent > 1:
                if context.is_constant(name):
                    varying.setdefault(name, [None, None])[side] = in_axis
                    axis_maps.append(Same())
                    continue
                tensor = context.tensors[name]
                if on_features and not tensor.divisible:
                    varying.setdefault(name, [None, None])[side] = in_axis
                    axis_maps.append(Whole(1))
                    continue
                if (tensor.row_axis, tensor.col_axis)[side] != in_axis:
                    return f"input {name!r} has its {('rows', 'columns')[side]} on another axis"
                axis_maps.append(Same())
            elif out_axis is not None and shape[out_axis] == 1:
                axis_maps.append(Same())
            else:
                if not context.is_constant(name):
                    tensor = context.tensors[name]
                    own = (tensor.rows, tensor.cols)[side]
                    if own > 1:
                        return f"input {name!r} has its {('rows', 'columns')[side]} on another axis"
                axis_maps.append(Whole(1))
        if not context.is_constant(name):
            maps[name] = (axis_maps[0], axis_maps[1])
    kind: RuleKind = "local" if any(context.tensors[n].divisible for n in flowing) else "pixel"
    if varying:
        extent = Region(0, _extent(shape, layout[0]), 0, _extent(shape, layout[1]))
        return VaryingRule(kind, maps, (layout[0], layout[1]), varying=varying, extent=extent)
    return Plain(kind, maps, (layout[0], layout[1]))


def _extent(shape: tuple[int, ...], axis: int | None) -> int:
    return 1 if axis is None else shape[axis]


@dataclass(frozen=True)
class VaryingRule(Rule):
    """An elementwise operator with constants that differ from row to row, such as a position embedding.

    adjust = rows and columns to cut off those constants (above, below, left, right). These are absolute, so the tile
    serves one region only.

    Attributes:
        varying: the (row, column) axis of each such constant. With features, also that of an input of one pixel,
            which every device holds whole.
        extent: extent of the output.
    """

    varying: Mapping[str, list[int | None]] = field(default_factory=dict)
    extent: Region = ONE_PIXEL

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        return crop_of(self.extent, out)

    def weight_slices(self, node: Node, adjust: Adjust) -> dict[int, WeightSlice]:
        if not (self.features and any(adjust)):
            return {}
        start, stop = adjust[0], self.extent.row_stop - adjust[1]
        constants = [(i, n) for i, n in enumerate(node.inputs) if n in self.varying and n not in self.maps]
        return {i: WeightSlice(n, axis, start, stop) for i, n in constants if (axis := self.varying[n][0]) is not None}

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        parts = self.weight_slices(node, adjust)
        crop = (adjust[0], adjust[1], adjust[2], adjust[3])
        cut = []
        for position, name in enumerate(inputs):
            axes = self.varying.get(node.inputs[position])
            if position in parts:
                name = parts[position].key
            elif axes is not None and any(crop):
                name = tile.crop(name, Tensor(name, "", (), axes[0], axes[1]), crop)
            cut.append(name)
        tile.copy(node, cut)


@register("BatchNormalization", "LRN", "Dropout", knows_features=True)
def channelwise(node: Node, context: Context) -> Rule | str:
    if any(node.outputs[1:]):
        return "has more than one output"
    name = node.inputs[0]
    tensor = context.tensors[name]
    # Parameters need not be constant: those of a quantised model are dequantised by separate nodes.
    flowing = [n for n in node.inputs[1:] if n and not context.is_constant(n)]
    if context.is_constant(name) or any(context.tensors[n].divisible for n in flowing):
        return "its parameters are not constant"
    maps: dict[str, tuple[AxisMap, AxisMap]] = {n: (Whole(1), Whole(1)) for n in flowing}
    maps[name] = (Same(), Same())
    if tensor.features and not flowing and tensor.row_axis == 1 and node.op == "BatchNormalization":
        parameters: dict[str, list[int | None]] = {parameter: [0, None] for parameter in node.inputs[1:]}
        return VaryingRule("local", {name: (Same(), Same())}, (1, None), varying=parameters, extent=tensor.whole)
    if tensor.row_axis == 1 or tensor.col_axis == 1:
        return "its channels are the rows"
    return Plain(local_kind(tensor), maps, (tensor.row_axis, tensor.col_axis))


@register("QuantizeLinear", "DequantizeLinear", knows_features=True)
def quantise(node: Node, context: Context) -> Rule | str:
    name = node.inputs[0]
    if context.is_constant(name) or any(n and not context.is_constant(n) for n in node.inputs[1:]):
        return "its scale is not constant"
    tensor = context.tensors[name]
    scale = context.constants[node.inputs[1]]
    if scale.ndim > 1:
        return "its scale varies from block to block"
    axis = int(node.attributes.get("axis", 1)) % max(len(tensor.shape), 1)
    if scale.size > 1 and axis in (tensor.row_axis, tensor.col_axis):
        return "its scale varies along the rows"
    return Plain(local_kind(tensor), {name: (Same(), Same())}, (tensor.row_axis, tensor.col_axis))


@register("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum")
def along_one_axis(node: Node, context: Context) -> Rule | str:
    name = node.inputs[0]
    tensor = context.tensors[name]
    if node.op == "CumSum":
        value = context.constant(node, 1)
        if value is None:
            return "its axis is not constant"
        axes = {int(value) % len(tensor.shape)}
    else:
        axes = {int(node.attributes.get("axis", -1)) % len(tensor.shape)}
    crossed = _extended(tensor, axes)
    if crossed:
        return f"normalises along the {crossed}"
    return Plain(local_kind(tensor), {name: (Same(), Same())}, (tensor.row_axis, tensor.col_axis))


@register("LayerNormalization", "RMSNormalization")
def layer_norm(node: Node, context: Context) -> Rule | str:
    name = node.inputs[0]
    tensor = context.tensors[name]
    if any(node.outputs[1:]) or any(n and not context.is_constant(n) for n in node.inputs[1:]):
        return "has more than one output, or its parameters are not constant"
    axis = int(node.attributes.get("axis", -1)) % len(tensor.shape)
    crossed = _extended(tensor, set(range(axis, len(tensor.shape))))
    if crossed:
        return f"normalises along the {crossed}"
    return Plain(local_kind(tensor), {name: (Same(), Same())}, (tensor.row_axis, tensor.col_axis))


@register("ArgMax", "ArgMin", "TopK")
def select(node: Node, context: Context) -> Rule | str:
    name = node.inputs[0]
    if any(n and not context.is_constant(n) for n in node.inputs[1:]):
        return "the number that it selects is not constant"
    tensor = context.tensors[name]
    axis = int(node.attributes.get("axis", -1 if node.op == "TopK" else 0)) % len(tensor.shape)
    crossed = _extended(tensor, {axis})
    if crossed:
        return f"selects along the {crossed}"
    keeps = node.op == "TopK" or bool(node.attributes.get("keepdims", 1))

    def moved(old: int | None) -> int | None:
        if old is None or keeps or old < axis:
            return old
        return None if old == axis else old - 1

    return Plain(local_kind(tensor), {name: (Same(), Same())}, (moved(tensor.row_axis), moved(tensor.col_axis)))


def _extended(tensor: object, axes: set[int]) -> str:
    """Return which spatial axis of more than one pixel is among `axes`: "rows", "columns" or ""."""
    if getattr(tensor, "row_axis") in axes and getattr(tensor, "rows") > 1:  # noqa: B009
        return "rows"
    if getattr(tensor, "col_axis") in axes and getattr(tensor, "cols") > 1:  # noqa: B009
        return "columns"
    return ""
