"""Window operators: convolution, pooling, padding, transposed convolution, space-to-depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coedge.core.region import Interval, Region
from coedge.graph.axis_map import AxisMap, Mirror, Same, Spread, Whole, Window
from coedge.graph.graph import Node, Tensor
from coedge.graph.rules.rule import Adjust, Context, Emitter, Plain, Rule, crop_of, register


@dataclass(frozen=True)
class WindowRule(Rule):
    """A window operator with padding that is explicit in each tile.

    adjust = (above, left, below, right, ceil): the padding inside this region, in ONNX's order, and whether the last
    window may extend beyond the end (`ceil_mode`).
    """

    source: str = ""
    extents: tuple[int, int] = (1, 1)
    pads_after: tuple[int, int] = (0, 0)
    ceil: bool = False

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        before, after, over = [], [], False
        for side, axis_map in enumerate(self.maps[self.source]):
            if not isinstance(axis_map, Window):
                before.append(0)
                after.append(0)
                continue
            wanted = (out.rows, out.cols)[side]
            asked, extent = axis_map.unclipped(wanted), self.extents[side]
            hangs = asked.stop > extent + self.pads_after[side]
            before.append(max(0, -asked.start))
            after.append(self.pads_after[side] if hangs else max(0, asked.stop - extent))
            over = over or (hangs and self.ceil)
        return (before[0], before[1], after[0], after[1], int(over))

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        pads = list(adjust[:4])
        if self.ceil:
            tile.copy(node, inputs, pads=pads, auto_pad=None, ceil_mode=adjust[4])
        else:
            tile.copy(node, inputs, pads=pads, auto_pad=None)


def _spatial_lists(node: Node, kernel: tuple[int, ...]) -> tuple[list[int], list[int]]:
    attributes = node.attributes
    return (
        list(attributes.get("strides") or [1] * len(kernel)),
        list(attributes.get("dilations") or [1] * len(kernel)),
    )


def _padding(
    node: Node, shape: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]] | None:
    """Return the explicit padding (before, after) per spatial axis, with `auto_pad` resolved for the static shape.

    None: the ONNX standard and the kernels of ONNX Runtime do not agree. This is so for SAME with a dilation, and for
    SAME with a stride that leaves two or more rows unread, where the padding is negative.
    """
    mode = node.attributes.get("auto_pad", b"NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else str(mode)
    count = len(kernel)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for extent, k, s, d in zip(shape[-count:], kernel, strides, dilations):
            total = (-(-extent // s) - 1) * s + d * (k - 1) + 1 - extent
            if d > 1 or total < -1:
                return None
            total = max(0, total)
            small, large = total // 2, total - total // 2
            before.append(small if mode == "SAME_UPPER" else large)
            after.append(large if mode == "SAME_UPPER" else small)
        return before, after
    if mode == "VALID":
        return [0] * count, [0] * count
    pads = list(node.attributes.get("pads") or [0] * (2 * count))
    return pads[:count], pads[count:]


@register("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool")
def window(node: Node, context: Context) -> Rule | str:
    if any(node.outputs[1:]):
        return "has more than one output"
    source = node.inputs[0]
    if context.is_constant(source):
        return "slides over a constant"
    tensor = context.tensors[source]
    if len(tensor.shape) != 4:
        return f"has {len(tensor.shape) - 2} spatial axes, not 2"
    if node.op.startswith("Conv"):
        kernel = context.shapes[node.inputs[1]][2:]
    else:
        kernel = tuple(node.attributes["kernel_shape"])
    # Weights need not be constant: those of a quantised model are dequantised by a separate node.
    weights = [n for n in dict.fromkeys(node.inputs[1:]) if n and not context.is_constant(n)]
    if any(context.tensors[n].spatial for n in weights):
        return "its weights have rows"
    flowing: dict[str, tuple[AxisMap, AxisMap]] = {n: (Whole(1), Whole(1)) for n in weights}
    strides, dilations = _spatial_lists(node, kernel)
    padding = _padding(node, tensor.shape, kernel, strides, dilations)
    if padding is None:
        return "is dilated, or skips rows, and leaves its padding to the runtime"
    before, after = padding
    if not tensor.spatial:
        axes = {source: (Same() if context.out_shape(node)[2] == 1 else Whole(1), Same())}
        if context.out_shape(node)[2:] == (1, 1):
            return Plain("pixel", {**axes, **flowing}, (2, 3))
    if (tensor.row_axis, tensor.col_axis) != (2, 3):
        return "its rows are not on the axis it slides along"
    ceil = bool(node.attributes.get("ceil_mode", 0))
    maps: list[AxisMap] = []
    for side in (0, 1):
        reach = dilations[side] * (kernel[side] - 1) + 1
        if max(before[side], after[side]) >= reach:
            return "a window may lie entirely in the padding"
        maps.append(Window(tensor.shape[2 + side], kernel[side], strides[side], dilations[side], before[side]))
    return WindowRule(
        "window", {source: (maps[0], maps[1]), **flowing}, (2, 3),
        source=source, extents=(tensor.rows, tensor.cols), pads_after=(after[0], after[1]), ceil=ceil,
    )  # fmt: skip


@dataclass(frozen=True)
class PadRule(Rule):
    """A Pad. adjust = (above, left, below, right) pads, then a crop (above, below, left, right)."""

    source: str = ""
    pads_before: tuple[int, int] = (0, 0)

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        held = ins[self.source]
        pads: list[tuple[int, int]] = []
        produced: list[Interval] = []
        for side in (0, 1):
            wanted, inside = (out.rows, out.cols)[side], (held.rows, held.cols)[side]
            # The same axis, in output coordinates.
            inside = Interval(inside.start + self.pads_before[side], inside.stop + self.pads_before[side])
            before, after = max(0, inside.start - wanted.start), max(0, wanted.stop - inside.stop)
            pads.append((before, after))
            produced.append(Interval(inside.start - before, inside.stop + after))
        crop = crop_of(Region.of(produced[0], produced[1]), out)
        return (pads[0][0], pads[1][0], pads[0][1], pads[1][1], *crop)

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        tensor = tile.tensors[node.inputs[0]]
        rank = len(tensor.shape)
        original = self.other_pads
        begin, end = list(original[:rank]), list(original[rank:])
        for axis, first, last in (
            (tensor.row_axis, adjust[0], adjust[2]),
            (tensor.col_axis, adjust[1], adjust[3]),
        ):
            if axis is not None:
                begin[axis], end[axis] = first, last
        crop = (adjust[4], adjust[5], adjust[6], adjust[7])
        padded = tile.fresh() if any(crop) else node.outputs[0]
        pads = tile.constant(np.array(begin + end, np.int64))
        tile.copy(node, [inputs[0], pads, *inputs[2:3]], [padded], axes=None)
        if any(crop):
            tile.crop(padded, tile.tensors[node.outputs[0]], crop, node.outputs[0])

    other_pads: tuple[int, ...] = ()


@register("Pad")
def pad(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source):
        return "pads a constant"
    tensor: Tensor = context.tensors[source]
    given = context.constant(node, 1)
    if given is None or (len(node.inputs) > 2 and node.inputs[2] and context.constant(node, 2) is None):
        return "its pads are not constant"
    rank = len(tensor.shape)
    axes_value = context.constant(node, 3)
    axes = [int(a) % rank for a in axes_value] if axes_value is not None else list(range(rank))
    pads = [0] * (2 * rank)
    for position, padded in enumerate(axes):
        pads[padded], pads[rank + padded] = int(given[position]), int(given[len(axes) + position])
    mode = node.attributes.get("mode", b"constant").decode()
    if mode not in ("constant", "reflect", "edge"):
        return f"pads in mode {mode!r}"
    maps: list[AxisMap] = []
    before: list[int] = []
    for axis in (tensor.row_axis, tensor.col_axis):
        first, last = (0, 0) if axis is None else (pads[axis], pads[rank + axis])
        extent = 1 if axis is None else tensor.shape[axis]
        before.append(first)
        if not first and not last:
            maps.append(Same())
        elif mode == "constant" or min(first, last) < 0:
            if mode != "constant":
                return "reflects by a negative pad"
            maps.append(Window(extent, pad=first))
        else:
            maps.append(Mirror(extent, first, reflect=mode == "reflect"))
    return PadRule(
        "window", {source: (maps[0], maps[1])}, (tensor.row_axis, tensor.col_axis),
        source=source, pads_before=(before[0], before[1]), other_pads=tuple(pads),
    )  # fmt: skip


@dataclass(frozen=True)
class SpreadRule(Rule):
    """A transposed convolution. adjust = (above, left, below, right) to cut, then (rows, columns) to add."""

    source: str = ""

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        held = ins[self.source]
        cut: list[tuple[int, int, int]] = []
        for side, axis_map in enumerate(self.maps[self.source]):
            assert isinstance(axis_map, Spread)
            wanted, inside = (out.rows, out.cols)[side], (held.rows, held.cols)[side]
            reach = axis_map.dilation * (axis_map.kernel - 1)
            first = inside.start * axis_map.stride - axis_map.pad
            last = (inside.stop - 1) * axis_map.stride + reach + 1 - axis_map.pad
            below = last - wanted.stop
            cut.append((wanted.start - first, max(0, below), max(0, -below)))
        return (cut[0][0], cut[1][0], cut[0][1], cut[1][1], cut[0][2], cut[1][2])

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        tile.copy(
            node,
            inputs,
            pads=list(adjust[:4]),
            output_padding=list(adjust[4:6]),
            auto_pad=None,
            output_shape=None,
        )


@register("ConvTranspose")
def spread(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source):
        return "slides over a constant"
    weights = [n for n in dict.fromkeys(node.inputs[1:]) if n and not context.is_constant(n)]
    if any(context.tensors[n].spatial for n in weights):
        return "its weights have rows"
    flowing: dict[str, tuple[AxisMap, AxisMap]] = {n: (Whole(1), Whole(1)) for n in weights}
    tensor = context.tensors[source]
    if len(tensor.shape) != 4 or (tensor.row_axis, tensor.col_axis) != (2, 3):
        return "its rows are not on the axis it slides along"
    kernel = context.shapes[node.inputs[1]][2:]
    strides, dilations = _spatial_lists(node, kernel)
    out_shape = context.out_shape(node)
    mode = node.attributes.get("auto_pad", b"NOTSET").decode()
    maps: list[AxisMap] = []
    for side in (0, 1):
        natural = (tensor.shape[2 + side] - 1) * strides[side] + dilations[side] * (kernel[side] - 1) + 1
        if mode == "NOTSET" and not node.attributes.get("output_shape"):
            pads = list(node.attributes.get("pads") or [0] * 4)
            first = pads[side]
        else:
            added = (node.attributes.get("output_padding") or [0, 0])[side]
            total = max(0, natural + added - out_shape[2 + side])
            first = total // 2 if mode == "SAME_UPPER" else total - total // 2
        most = max(strides[side], dilations[side])
        # An adjusted tile may need to add up to stride - 1 rows; the operator allows no more than that.
        if out_shape[2 + side] - (natural - first) >= most:
            return "adds more rows than its stride"
        maps.append(Spread(tensor.shape[2 + side], kernel[side], strides[side], dilations[side], first))
    return SpreadRule("window", {source: (maps[0], maps[1]), **flowing}, (2, 3), source=source)


@register("SpaceToDepth")
def space_to_depth(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    tensor = context.tensors[source]
    if (tensor.row_axis, tensor.col_axis) != (2, 3):
        return "its rows are not on the axis it works along"
    block = int(node.attributes["blocksize"])
    maps = (Window(tensor.rows, block, block), Window(tensor.cols, block, block))
    return Plain("window", {source: maps}, (2, 3))
