"""Operators that move axes or select parts. A node whose row axis cannot be followed is whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coedge.core.region import ONE_PIXEL, Region
from coedge.graph.axis_map import AxisMap, Same, Whole, Window
from coedge.graph.graph import Node, Tensor
from coedge.graph.rules.reduce import SHARE
from coedge.graph.rules.rule import Adjust, Context, Emitter, Plain, Rule, crop_of, local_kind, register

_INT64_MAX = np.iinfo(np.int64).max


def _follow(tensor: Tensor, out_shape: tuple[int, ...]) -> tuple[int | None, int | None] | str:
    """Return the row and column axes after a reshape: axes of the same extent behind as many elements."""
    found: list[int | None] = []
    for axis, label in ((tensor.row_axis, "rows"), (tensor.col_axis, "columns")):
        if axis is None or tensor.shape[axis] == 1:
            found.append(None)
            continue
        before = math.prod(tensor.shape[:axis])
        match = [
            i
            for i, extent in enumerate(out_shape)
            if extent == tensor.shape[axis] and math.prod(out_shape[:i]) == before
        ]
        if not match:
            return f"reshapes through the {label}"
        found.append(match[0])
    return found[0], found[1]


@dataclass(frozen=True)
class ReshapeRule(Rule):
    """A reshape of axes other than the rows. adjust = (1,) if all columns are held: the extent of the rows is -1."""

    source: str = ""

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        return (int(out.cols.length == self.cols),)

    cols: int = 1

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        before, after = tile.tensors[node.inputs[0]], tile.tensors[node.outputs[0]]
        if after.row_axis is None and after.col_axis is None:
            tile.copy(node, inputs)
            return
        shape: list[int] = list(after.shape)
        if after.col_axis is None or adjust[0]:
            if after.row_axis is not None:
                shape[after.row_axis] = -1
        elif after.row_axis is None:
            shape[after.col_axis] = -1
        else:
            # The extents of rows and columns both vary, so they are taken from the input.
            measured, parts = tile.fresh(), []
            tile.node("Shape", [inputs[0]], [measured])
            for axis, extent in enumerate(shape):
                origin = {after.row_axis: before.row_axis, after.col_axis: before.col_axis}.get(axis)
                if origin is None:
                    parts.append(tile.constant(np.array([extent], np.int64)))
                else:
                    part = tile.fresh()
                    tile.node("Gather", [measured, tile.constant(np.array([origin], np.int64))], [part], axis=0)
                    parts.append(part)
            target = tile.fresh()
            tile.node("Concat", parts, [target], axis=0)
            tile.node("Reshape", [inputs[0], target], list(node.outputs))
            return
        tile.node("Reshape", [inputs[0], tile.constant(np.array(shape, np.int64))], list(node.outputs))


@register("Reshape", "Flatten", knows_features=True)
def reshape(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source):
        return "reshapes a constant"
    if node.op == "Reshape" and context.constant(node, 1) is None:
        return "its shape is not constant"
    tensor, out_shape = context.tensors[source], context.out_shape(node)
    if 0 in out_shape:
        return "is empty"
    layout = _follow(tensor, out_shape)
    if isinstance(layout, str):
        return layout
    return ReshapeRule(local_kind(tensor), {source: (Same(), Same())}, layout, source=source, cols=tensor.cols)


@register("Squeeze", "Unsqueeze", knows_features=True)
def squeeze(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source):
        return "works on a constant"
    tensor, out_shape = context.tensors[source], context.out_shape(node)
    if node.name.startswith(SHARE):
        return Plain("partial", {source: (Same(), Same())}, (None, None), partial_extent=tensor.partial_extent)
    given = node.attributes.get("axes")
    if given is None:
        value = context.constant(node, 1)
        if value is None and (node.op == "Unsqueeze" or (len(node.inputs) > 1 and node.inputs[1])):
            return "its axes are not constant"
        given = [i for i, extent in enumerate(tensor.shape) if extent == 1] if value is None else value
    rank = max(len(tensor.shape), len(out_shape))
    axes = sorted(int(a) % rank for a in given)

    def moved(old: int | None) -> int | None:
        if old is None:
            return None
        if node.op == "Squeeze":
            return None if old in axes else old - sum(axis < old for axis in axes)
        kept = [i for i in range(rank) if i not in axes]
        return kept[old]

    # Without explicit axes a tile of one row would lose its row axis as well.
    return SqueezeRule(
        local_kind(tensor),
        {source: (Same(), Same())},
        (moved(tensor.row_axis), moved(tensor.col_axis)),
        axes=tuple(axes),
    )


@dataclass(frozen=True)
class SqueezeRule(Plain):
    axes: tuple[int, ...] = ()

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        tile.copy(node, [inputs[0], tile.constant(np.array(self.axes, np.int64))])


@register("Transpose", knows_features=True)
def transpose(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source):
        return "transposes a constant"
    tensor = context.tensors[source]
    order = list(node.attributes.get("perm") or reversed(range(len(tensor.shape))))

    def moved(old: int | None) -> int | None:
        return None if old is None else order.index(old)

    return Plain(local_kind(tensor), {source: (Same(), Same())}, (moved(tensor.row_axis), moved(tensor.col_axis)))


@register("Concat")
def concat(node: Node, context: Context) -> Rule | str:
    flowing = [n for n in dict.fromkeys(node.inputs) if not context.is_constant(n)]
    tensors = [context.tensors[n] for n in flowing]
    layout = (tensors[0].row_axis, tensors[0].col_axis)
    if any(
        (t.row_axis, t.col_axis) != layout or (t.rows, t.cols) != (tensors[0].rows, tensors[0].cols) for t in tensors
    ):
        return "joins tensors of different layouts"
    axis = int(node.attributes["axis"]) % len(context.out_shape(node))
    if axis in layout:
        return "joins along the rows"
    if len(flowing) < len(dict.fromkeys(node.inputs)) and tensors[0].spatial:
        return "joins a constant that has rows"
    return Plain(local_kind(tensors[0]), {n: (Same(), Same()) for n in flowing}, layout)


@register("Split")
def split(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    tensor = context.tensors[source]
    if len(node.inputs) > 1 and node.inputs[1] and context.constant(node, 1) is None:
        return "its sizes are not constant"
    if int(node.attributes.get("axis", 0)) % len(tensor.shape) in (tensor.row_axis, tensor.col_axis):
        return "splits along the rows"
    return Plain(local_kind(tensor), {source: (Same(), Same())}, (tensor.row_axis, tensor.col_axis))


@dataclass(frozen=True)
class SliceRule(Plain):
    """A slice. Along rows and columns the tile holds only the selected interval, so only the step remains."""

    starts: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        tensor = tile.tensors[node.inputs[0]]
        spatial = (tensor.row_axis, tensor.col_axis)
        starts = [0 if axis in spatial else start for axis, start in zip(self.axes, self.starts)]
        stops = [_INT64_MAX if axis in spatial else stop for axis, stop in zip(self.axes, self.stops)]
        lists = [tile.constant(np.array(v, np.int64)) for v in (starts, stops, self.axes, self.steps)]
        tile.node("Slice", [inputs[0], *lists], list(node.outputs))


@register("Slice")
def slice_(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source):
        return "slices a constant"
    tensor = context.tensors[source]
    given = [context.constant(node, i) for i in range(1, len(node.inputs))]
    if any(value is None and node.inputs[i + 1] for i, value in enumerate(given)):
        return "its bounds are not constant"
    starts, stops = (list(map(int, np.asarray(given[i]).reshape(-1))) for i in (0, 1))
    axes_value = given[2] if len(given) > 2 and given[2] is not None else np.arange(len(starts))
    steps_value = given[3] if len(given) > 3 and given[3] is not None else np.ones(len(starts), np.int64)
    axes = [int(a) % len(tensor.shape) for a in np.asarray(axes_value).reshape(-1)]
    steps = [int(s) for s in np.asarray(steps_value).reshape(-1)]
    by_axis = {axis: (start, stop, step) for axis, start, stop, step in zip(axes, starts, stops, steps)}
    maps: list[AxisMap] = []
    for axis in (tensor.row_axis, tensor.col_axis):
        if axis is None or axis not in by_axis:
            maps.append(Same())
            continue
        start, stop, step = by_axis[axis]
        if step < 1:
            return "runs backwards along the rows"
        extent = tensor.shape[axis]
        start = slice(start, stop, step).indices(extent)[0]
        maps.append(Window(extent, stride=step, pad=-start))
    return SliceRule(local_kind(tensor), {source: (maps[0], maps[1])}, (tensor.row_axis, tensor.col_axis),
        starts=tuple(starts), stops=tuple(stops), axes=tuple(axes), steps=tuple(steps),
    )  # fmt: skip


@register("Gather")
def gather(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    indices = context.constant(node, 1)
    if context.is_constant(source) or indices is None:
        return "its indices are not constant"
    tensor = context.tensors[source]
    axis = int(node.attributes.get("axis", 0)) % len(tensor.shape)
    if axis in (tensor.row_axis, tensor.col_axis):
        return "gathers along the rows"

    def moved(old: int | None) -> int | None:
        return old if old is None or old < axis else old + indices.ndim - 1

    return Plain(local_kind(tensor), {source: (Same(), Same())}, (moved(tensor.row_axis), moved(tensor.col_axis)))


@dataclass(frozen=True)
class SpreadPixelRule(Rule):
    """An expansion of one pixel to an image. The tile makes the whole image and cuts out the region.

    adjust = (above, below, left, right) to cut. These are absolute, so the tile serves one region only.
    """

    extent: Region = ONE_PIXEL

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        return crop_of(self.extent, out)

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        crop = (adjust[0], adjust[1], adjust[2], adjust[3])
        whole = tile.fresh() if any(crop) else node.outputs[0]
        tile.copy(node, inputs, [whole])
        if any(crop):
            tile.crop(whole, tile.tensors[node.outputs[0]], crop, node.outputs[0])


@register("Expand")
def expand(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source) or context.constant(node, 1) is None:
        return "its shape is not constant"
    tensor, out_shape = context.tensors[source], context.out_shape(node)
    if tensor.spatial or len(out_shape) != len(tensor.shape):
        return "expands along the rows"
    if out_shape == tensor.shape:
        return Plain("pixel", {source: (Same(), Same())}, (tensor.row_axis, tensor.col_axis))
    layout = (tensor.row_axis, tensor.col_axis)
    if layout == (None, None) and len(out_shape) == 4:
        layout = (2, 3)
    if any(axis is None for axis in layout):
        return "expands a tensor without rows"
    rows, cols = (out_shape[axis] for axis in layout if axis is not None)
    return SpreadPixelRule("local", {source: (Whole(1), Whole(1))}, layout, extent=Region(0, rows, 0, cols))
