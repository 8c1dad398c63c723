"""Operators that enlarge: resize by an integer factor, up-sample, depth-to-space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coedge.core.region import Interval, Region
from coedge.graph.axis_map import AxisMap, Linear, Repeat, Same
from coedge.graph.graph import Node
from coedge.graph.rules.rule import Adjust, Context, Emitter, Rule, crop_of, register


@dataclass(frozen=True)
class EnlargeRule(Rule):
    """An operator that enlarges its input and is then cropped. adjust = (above, below, left, right) to crop."""

    source: str = ""
    factors: tuple[int, int] = (1, 1)

    def adjust(self, out: Region, ins: Mapping[str, Region]) -> Adjust:
        held = ins[self.source]
        rows, cols = (
            Interval(axis.start * factor, axis.stop * factor)
            for axis, factor in zip((held.rows, held.cols), self.factors)
        )
        return crop_of(Region.of(rows, cols), out)

    def emit(self, tile: Emitter, node: Node, inputs: list[str], adjust: Adjust) -> None:
        crop = (adjust[0], adjust[1], adjust[2], adjust[3])
        whole = tile.fresh() if any(crop) else node.outputs[0]
        if node.op == "Resize":
            # Sizes are absolute; scales are the same for every tile.
            tensor = tile.tensors[node.inputs[0]]
            scales = np.ones(len(tensor.shape), np.float32)
            for axis, factor in ((tensor.row_axis, self.factors[0]), (tensor.col_axis, self.factors[1])):
                if axis is not None:
                    scales[axis] = factor
            tile.copy(
                node,
                [inputs[0], "", tile.constant(scales)],
                [whole],
                axes=None,
                keep_aspect_ratio_policy=None,
            )
        else:
            tile.copy(node, inputs, [whole])
        if any(crop):
            tile.crop(whole, tile.tensors[node.outputs[0]], crop, node.outputs[0])


@register("Resize")
def resize(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    if context.is_constant(source):
        return "resizes a constant"
    if any(n and not context.is_constant(n) for n in node.inputs[1:]):
        return "its scales are not constant"
    tensor, out_shape = context.tensors[source], context.out_shape(node)
    attributes = node.attributes
    mode = attributes.get("mode", b"nearest").decode()
    where = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounding = attributes.get("nearest_mode", b"round_prefer_floor").decode()
    if attributes.get("antialias", 0) or attributes.get("exclude_outside", 0):
        return "is anti-aliased or excludes the outside"
    if where == "tf_crop_and_resize" or attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return "crops, or keeps the aspect ratio"
    scales = _scales(node, context, tensor.shape, out_shape)
    factors: list[int] = []
    maps: list[AxisMap] = []
    for index, scale in enumerate(scales):
        if index not in (tensor.row_axis, tensor.col_axis) and scale != 1:
            return "resizes an axis that is neither rows nor columns"
    for axis in (tensor.row_axis, tensor.col_axis):
        extent = 1 if axis is None else tensor.shape[axis]
        factor = 1 if axis is None else int(scales[axis])
        if axis is not None and factor != scales[axis]:
            return f"scales by {scales[axis]:.4g}, which is not an integer"
        factors.append(factor)
        if factor == 1:
            maps.append(Same())
        elif mode == "nearest":
            centred = where in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
            # With half-pixel centres and an integer factor no coordinate falls halfway between two rows,
            # so both ways of rounding give row o // factor.
            exact = (where == "asymmetric" and rounding == "floor") or (
                centred and rounding in ("round_prefer_floor", "round_prefer_ceil")
            )
            if not exact:
                return f"nearest with {where} and {rounding}"
            maps.append(Repeat(extent, factor))
        elif mode == "linear":
            if where in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
                maps.append(Linear(extent, factor, 0.5))
            elif where == "asymmetric":
                maps.append(Linear(extent, factor, 0.0))
            else:
                return f"linear with {where} coordinates"
        else:
            return f"resizes in mode {mode!r}"
    return EnlargeRule(
        "window", {source: (maps[0], maps[1])}, (tensor.row_axis, tensor.col_axis),
        source=source, factors=(factors[0], factors[1]),
    )  # fmt: skip


def _scales(node: Node, context: Context, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> list[float]:
    """Return the scale of every axis.

    Extents do not determine it: scales of 2 and 2.1 both turn 3 rows into 6, with different values.
    """
    given = context.constant(node, 2)
    if given is None or not given.size:
        return [larger / extent for extent, larger in zip(shape, out_shape)]
    scales = [1.0] * len(shape)
    for axis, scale in zip(node.attributes.get("axes", range(len(shape))), given):
        scales[axis] = float(scale)
    return scales


@register("DepthToSpace")
def depth_to_space(node: Node, context: Context) -> Rule | str:
    source = node.inputs[0]
    tensor = context.tensors[source]
    if (tensor.row_axis, tensor.col_axis) != (2, 3):
        return "its rows are not on the axis it works along"
    block = int(node.attributes["blocksize"])
    maps = (Repeat(tensor.rows, block), Repeat(tensor.cols, block))
    return EnlargeRule("window", {source: maps}, (2, 3), source=source, factors=(block, block))
