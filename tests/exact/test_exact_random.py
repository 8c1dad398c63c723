"""Split output equals unsplit output, for random small networks of every operator, under random plans.

The networks are ONNX graphs, written node by node: a chain of one to six blocks, each of which draws its own
parameters. Networks that ONNX Runtime refuses are rejected. All others must be captured and be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.printer
import pytest
import torch
from hypothesis import given, note, reject
from hypothesis import strategies as st
from nets import Net, check_split, examples, image, intermediates, make_plan, one_stage, plans, session
from nets import unsplit as run_unsplit
from torch import nn
from torch.nn import functional

from coedge.core.region import UNIT, UnitRect
from coedge.frontend.capture import capture
from coedge.graph.analysis import model_from_skeleton
from coedge.graph.model import Model
from coedge.plan.plan import even_plan, strips
from workers.runtime.in_process import run_in_process

OPSETS = [11, 13, 17, 18, 20, 21, 22]


@dataclass
class Flow:
    """Current end of the chain: a tensor [N, C, H, W]."""

    net: Net
    draw: Callable[[st.SearchStrategy[Any]], Any]
    x: str
    shape: tuple[int, int, int, int]

    def pick(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, **attributes: Any) -> str:
        return self.net.op("Conv", x, self.net.weight(outputs, inputs, kernel, kernel), **attributes)


Block = Callable[[Flow], tuple[str, tuple[int, int, int, int]]]
BLOCKS: dict[str, tuple[Block, int]] = {}


def block(since: int = 11) -> Callable[[Block], Block]:
    def add(function: Block) -> Block:
        BLOCKS[function.__name__] = (function, since)
        return function

    return add


def _window(flow: Flow, pooling: bool = False) -> tuple[dict[str, Any], tuple[int, int], tuple[int, int]]:
    """Draw the attributes of a window; return them with the kernel and the output extents."""
    extents = flow.shape[2:]
    dilated = not pooling or flow.net.opset >= 19
    kernel = [flow.number(1, min(7, e)) for e in extents]
    strides = [flow.number(1, 4) for _ in extents]
    dilations = [flow.number(1, 3) if dilated and (k - 1) * 3 < e else 1 for k, e in zip(kernel, extents)]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    if dilated:
        attributes["dilations"] = dilations
    mode = flow.pick("pads", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")
    if mode == "pads":
        most = [min(k - 1, 4) if pooling else 4 for k in kernel]
        pads = [flow.number(0, m) for m in (*most, *most)]
        attributes["pads"] = pads
        out = [(e + pads[i] + pads[i + 2] - reach[i]) // strides[i] + 1 for i, e in enumerate(extents)]
    elif mode == "VALID":
        attributes["auto_pad"] = mode
        out = [(e - r) // s + 1 for e, r, s in zip(extents, reach, strides)]
    else:
        attributes["auto_pad"] = mode
        out = [-(-e // s) for e, s in zip(extents, strides)]
    if min(out) < 1:
        reject()
    return attributes, (kernel[0], kernel[1]), (out[0], out[1])


@block()
def conv(flow: Flow) -> Any:
    n, c, _, _ = flow.shape
    attributes, kernel, out = _window(flow)
    group = flow.pick(1, 1, 2, c) if c % 2 == 0 else flow.pick(1, c)
    outputs = group * flow.number(1, 3)
    weight = flow.net.weight(outputs, c // group, *kernel)
    inputs = [flow.x, weight, flow.net.vector(outputs)] if flow.number(0, 1) else [flow.x, weight]
    return flow.net.op("Conv", *inputs, group=group, **attributes), (n, outputs, *out)


@block()
def max_pool(flow: Flow) -> Any:
    n, c, _h, _w = flow.shape
    attributes, _, out = _window(flow, pooling=True)
    attributes.pop("dilations", None)
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = flow.number(0, 1)
    attributes["dilations"] = [1, 1]
    return flow.net.op("MaxPool", flow.x, **attributes), (n, c, *out)


@block()
def average_pool(flow: Flow) -> Any:
    n, c, _, _ = flow.shape
    attributes, _, out = _window(flow, pooling=True)
    attributes["count_include_pad"] = flow.number(0, 1)
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = flow.number(0, 1)
    return flow.net.op("AveragePool", flow.x, **attributes), (n, c, *out)


@block()
def lp_pool(flow: Flow) -> Any:
    n, c, _, _ = flow.shape
    attributes, _, out = _window(flow, pooling=True)
    attributes.pop("dilations", None)
    return flow.net.op("LpPool", flow.x, p=2, **attributes), (n, c, *out)


@block()
def pool_of_everything(flow: Flow) -> Any:
    _n, _c, h, w = flow.shape
    kind = flow.pick("MaxPool", "AveragePool")
    pooled = flow.net.op(kind, flow.x, kernel_shape=[h, w], strides=[flow.number(1, 2)] * 2)
    return flow.net.op("Add", flow.x, pooled), flow.shape


@block()
def pad(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    mode = flow.pick("constant", "constant", "reflect", "edge")
    low, high = (-2, 5) if mode == "constant" else (0, 3)
    if flow.number(0, 9) == 0:
        low = -1
    pads = [flow.number(max(low, min(0, 1 - e // 2)), min(high, e - 1)) for e in (h, w, h, w)]
    extra = flow.number(0, 1) if mode == "constant" else 0
    inputs = [flow.x, flow.net.ints(0, extra, pads[0], pads[1], 0, 0, pads[2], pads[3])]
    if mode == "constant" and flow.number(0, 1):
        inputs.append(flow.net.const(0.5))
    elif flow.net.opset >= 18 and flow.number(0, 1):
        inputs = [flow.x, flow.net.ints(*pads), "", flow.net.ints(2, -1)]
        extra = 0
    shape = (n, c + extra, h + pads[0] + pads[2], w + pads[1] + pads[3])
    return flow.net.op("Pad", *inputs, mode=mode), shape


@block()
def enlarge(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    mode = flow.pick("nearest", "linear", "cubic")
    where = flow.pick("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": where}
    if mode == "nearest":
        attributes["nearest_mode"] = flow.pick("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    if flow.number(0, 3) == 0:  # sizes, not always a multiple
        high, wide = h + flow.number(0, h), w * flow.number(1, 2)
        roi = flow.net.const(np.zeros(0)) if flow.net.opset < 13 else ""
        empty = flow.net.const(np.zeros(0)) if flow.net.opset < 13 else ""
        return flow.net.op("Resize", flow.x, roi, empty, flow.net.ints(n, c, high, wide), **attributes), (
            n,
            c,
            high,
            wide,
        )
    scales = [flow.pick(1.0, 2.0, 3.0, 1.5, 2.1, 0.5), flow.pick(1.0, 2.0, 4.0, 1.3)]
    high, wide = int(h * np.float32(scales[0])), int(w * np.float32(scales[1]))
    if min(high, wide) < 1 or high * wide > 4000:
        reject()
    return flow.net.resize(flow.x, [1, 1, *scales], **attributes), (n, c, high, wide)


@block()
def transposed_conv(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    kernel = [flow.number(1, 5), flow.number(1, 5)]
    strides = [flow.number(1, 4), flow.number(1, 4)]
    dilations = [flow.number(1, 2), flow.number(1, 2)]
    group = flow.pick(1, c)
    outputs = flow.number(1, 2)
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    natural = [(e - 1) * s + d * (k - 1) + 1 for e, s, d, k in zip((h, w), strides, dilations, kernel)]
    added = [flow.number(0, max(s, d) - 1) for s, d in zip(strides, dilations)]
    mode = flow.pick("pads", "pads", "output_shape", "VALID", "SAME_UPPER", "SAME_LOWER")
    if mode == "pads":
        pads = [flow.number(0, 2) for _ in range(4)]
        attributes |= {"pads": pads, "output_padding": added}
        out = [e + a - pads[i] - pads[i + 2] for i, (e, a) in enumerate(zip(natural, added))]
    elif mode == "output_shape":
        out = [max(1, e + flow.number(-3, 1)) for e in natural]
        attributes |= {"output_shape": out, "auto_pad": flow.pick("NOTSET", "SAME_UPPER", "SAME_LOWER")}
        if flow.number(0, 1):
            attributes["output_padding"] = added
    else:
        attributes["auto_pad"] = mode
        out = natural if mode == "VALID" else [h * strides[0], w * strides[1]]
    if min(out) < 1 or out[0] * out[1] > 4000:
        reject()
    inputs = [flow.x, flow.net.weight(c, outputs, *kernel)]
    if flow.number(0, 1):
        inputs.append(flow.net.vector(outputs * group))
    return flow.net.op("ConvTranspose", *inputs, **attributes), (n, outputs * group, out[0], out[1])


@block()
def depth_to_space(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    size = flow.number(2, 3)
    deep = flow.conv(flow.x, c, 2 * size * size)
    mode = flow.pick("DCR", "CRD")
    return flow.net.op("DepthToSpace", deep, blocksize=size, mode=mode), (n, 2, h * size, w * size)


@block()
def space_to_depth(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    size = flow.number(1, 3)
    if h < size or w < size:
        reject()
    even = flow.net.slice(flow.net.slice(flow.x, 0, h - h % size, 2), 0, w - w % size, 3)
    out = flow.net.op("SpaceToDepth", even, blocksize=size)
    return out, (n, c * size * size, h // size, w // size)


@block()
def activation(flow: Flow) -> Any:
    kind = flow.pick("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Softplus", "Elu", "HardSigmoid", "Abs", "Clip", "PRelu")
    inputs = [flow.x]
    if kind == "Clip":
        inputs += [flow.net.const(-0.5), flow.net.const(2.0)]
    if kind == "PRelu":
        inputs.append(flow.net.const(flow.net.random.uniform(0, 1, (flow.shape[1], 1, 1))))
    return flow.net.op(kind, *inputs), flow.shape


@block()
def batch_norm(flow: Flow) -> Any:
    c = flow.shape[1]
    values = [flow.net.vector(c, 0.5, 2), flow.net.vector(c), flow.net.vector(c), flow.net.vector(c, 0.5, 2)]
    return flow.net.op("BatchNormalization", flow.x, *values), flow.shape


@block()
def with_a_constant(flow: Flow) -> Any:
    """Combine with a scalar, a value per channel or column, or a whole map such as a learned position."""
    _n, c, h, w = flow.shape
    shape = flow.pick((), (c, 1, 1), (1, c, 1, 1), (w,), (h, 1), (1, c, h, w))
    return flow.net.op(
        flow.pick("Add", "Mul", "Sub"), flow.x, flow.net.const(flow.net.random.uniform(0.5, 2, shape))
    ), flow.shape


@block()
def residual(flow: Flow) -> Any:
    _n, c, _h, _w = flow.shape
    inner = flow.net.op("Relu", flow.conv(flow.x, c, c, 3, pads=[1, 1, 1, 1]))
    return flow.net.op("Add", flow.x, flow.conv(inner, c, c, 3, pads=[1, 1, 1, 1])), flow.shape


@block()
def strided_residual(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    stride = flow.number(2, 3)
    long = flow.conv(flow.x, c, 4, 3, pads=[1, 1, 1, 1], strides=[stride] * 2)
    short = flow.conv(flow.x, c, 4, 1, strides=[stride] * 2)
    return flow.net.op("Add", long, short), (n, 4, -(-h // stride), -(-w // stride))


@block()
def unet_skip(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    if h < 2 or w < 2:
        reject()
    down = flow.net.op("MaxPool", flow.x, kernel_shape=[2, 2], strides=[2, 2])
    deep = flow.net.op("Relu", flow.conv(down, c, c, 3, pads=[1, 1, 1, 1]))
    if flow.number(0, 1):
        up = flow.net.op("ConvTranspose", deep, flow.net.weight(c, 2, 2, 2), strides=[2, 2])
        added = 2
    else:
        up = flow.net.resize(
            deep,
            [1, 1, 2, 2],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        added = c
    if h % 2 or w % 2:
        up = flow.net.op("Pad", up, flow.net.ints(0, 0, 0, 0, 0, 0, h % 2, w % 2))
    return flow.net.op("Concat", flow.x, up, axis=1), (n, c + added, h, w)


@block()
def squeeze_excite(flow: Flow) -> Any:
    _n, c, _h, _w = flow.shape
    kind = flow.pick("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin")
    pooled = flow.net.op(kind, flow.x) if kind.startswith("G") else flow.net.reduce(kind, flow.x, [2, 3])
    gate = flow.net.op("Relu", flow.conv(pooled, c, 2))
    gate = flow.net.op("Sigmoid", flow.conv(gate, 2, c))
    return flow.net.op("Mul", flow.x, gate), flow.shape


@block()
def dense_excite(flow: Flow) -> Any:
    """Squeeze-and-excite with dense layers: the spatial axes are removed and inserted again."""
    _n, c, _h, _w = flow.shape
    pooled = flow.net.reduce("ReduceMean", flow.x, [2, 3], keepdims=0)
    gate = flow.net.op("Gemm", pooled, flow.net.weight(c, c), flow.net.vector(c))
    gate = flow.net.squeeze("Unsqueeze", flow.net.op("Sigmoid", gate), [2, 3])
    return flow.net.op("Mul", flow.x, gate), flow.shape


@block()
def reduction(flow: Flow) -> Any:
    """Reduce over any axes and broadcast the result back."""
    kinds = [
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSumExp",
    ]
    kind = flow.pick(*kinds)
    axes = list(flow.pick((2,), (3,), (2, 3), (1,), (1, 2, 3), (0, 1, 2, 3), (1, 2), (-1, -2), (1, 3)))
    keeps = flow.number(0, 1)
    reduced = flow.net.reduce(kind, flow.x, axes, keepdims=keeps)
    if not keeps:
        axes = sorted(a % 4 for a in axes)
        if len(axes) == 4:
            return flow.net.op("Add", flow.x, reduced), flow.shape
        reduced = flow.net.squeeze("Unsqueeze", reduced, axes)
    low = flow.net.op("Tanh", reduced)
    return flow.net.op("Add", flow.x, low), flow.shape


@block()
def instance_norm(flow: Flow) -> Any:
    _n, c, h, w = flow.shape
    if h * w < 6:
        reject()
    values = [flow.net.vector(c, 0.5, 2), flow.net.vector(c)]
    return flow.net.op("InstanceNormalization", flow.x, *values, epsilon=1e-3), flow.shape


@block()
def group_norm(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    if h * w < 6:
        reject()
    groups = flow.pick(*[g for g in (1, 2, 3, c) if c % g == 0])
    if flow.net.opset >= 18 and flow.number(0, 1):
        count = groups if flow.net.opset < 21 else c
        values = [flow.net.vector(count, 0.5, 2), flow.net.vector(count)]
        return flow.net.op("GroupNormalization", flow.x, *values, num_groups=groups, epsilon=1e-3), flow.shape
    flat = flow.net.op("Reshape", flow.x, flow.net.ints(0, groups, -1))
    values = [flow.net.vector(groups, 0.5, 2), flow.net.vector(groups)]
    normed = flow.net.op("InstanceNormalization", flat, *values, epsilon=1e-3)
    return flow.net.op("Reshape", normed, flow.net.ints(n, c, h, w)), flow.shape


@block(17)
def layer_norm(flow: Flow) -> Any:
    _n, c, h, w = flow.shape
    where = flow.pick("channels last", "all", "all but varying", "columns")
    if where == "channels last":
        if c < 3:
            reject()
        last = flow.net.op("Transpose", flow.x, perm=[0, 2, 3, 1])
        normed = flow.net.op(
            "LayerNormalization", last, flow.net.vector(c, 0.5, 2), flow.net.vector(c), axis=-1, epsilon=1e-3
        )
        return flow.net.op("Transpose", normed, perm=[0, 3, 1, 2]), flow.shape
    if h * w < 6 or w < 3:
        reject()
    shape = {"all": (c, 1, 1), "all but varying": (c, h, w), "columns": (w,)}[where]
    full = (w,) if where == "columns" else (c, h, w)
    scale = np.broadcast_to(flow.net.random.uniform(0.5, 2, shape), full)
    axis = -1 if where == "columns" else 1
    return flow.net.op("LayerNormalization", flow.x, flow.net.const(scale), axis=axis, epsilon=1e-3), flow.shape


@block()
def normalise_along(flow: Flow) -> Any:
    kind = flow.pick("Softmax", "Softmax", "LogSoftmax", "LpNormalization")
    return flow.net.op(kind, flow.x, axis=flow.pick(None, 1, 2, 3, -1, -3)), flow.shape


@block()
def local_response(flow: Flow) -> Any:
    return flow.net.op("LRN", flow.x, size=3, alpha=0.1), flow.shape


@block()
def channels_last(flow: Flow) -> Any:
    """Transpose to [N, H, W, C] and back, with operators on the moved axes between."""
    n, c, h, w = flow.shape
    y = flow.net.op("Transpose", flow.x, perm=[0, 2, 3, 1])
    for _ in range(flow.number(0, 2)):
        what = flow.pick("bias", "relu", "softmax", "mean", "spatial mean", "matmul", "slice", "pad", "flat")
        if what == "bias":
            y = flow.net.op("Add", y, flow.net.vector(c))
        elif what == "relu":
            y = flow.net.op("Relu", y)
        elif what == "softmax":
            y = flow.net.op("Softmax", y, axis=3)
        elif what == "mean":
            y = flow.net.op("Add", y, flow.net.reduce("ReduceMean", y, [3]))
        elif what == "spatial mean":
            y = flow.net.op("Add", y, flow.net.reduce("ReduceMean", y, [1, 2]))
        elif what == "matmul":
            y = flow.net.op("MatMul", y, flow.net.weight(c, c))
        elif what == "slice" and h > 2:
            y, h = flow.net.slice(y, 1, h, 1), h - 1
        elif what == "pad":
            y, h = flow.net.op("Pad", y, flow.net.ints(0, 1, 0, 0, 0, 1, 0, 0)), h + 2
        elif what == "flat":
            y = flow.net.op("Relu", flow.net.op("Reshape", y, flow.net.ints(n, h, w * c)))
            y = flow.net.op("Reshape", y, flow.net.ints(n, h, w, c))
    return flow.net.op("Transpose", y, perm=[0, 3, 1, 2]), (n, c, h, w)


@block()
def swap_rows_and_columns(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    return flow.net.op("Transpose", flow.x, perm=[0, 1, 3, 2]), (n, c, w, h)


@block()
def shuffle(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    groups = 2 if c % 2 == 0 else c
    y = flow.net.op("Reshape", flow.x, flow.net.ints(n, groups, c // groups, h, w))
    y = flow.net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return flow.net.op("Reshape", y, flow.net.ints(0, -1, h, w)), flow.shape


@block()
def five_axes(flow: Flow) -> Any:
    """Reshape to [N, C, H, W, 1] or [N, 1, C, H, W] and back, and normalise or reduce there."""
    _n, c, h, w = flow.shape
    if h * w < 6:
        reject()
    last = flow.number(0, 1)
    y = flow.net.squeeze("Unsqueeze", flow.x, [4 if last else 1])
    what = flow.pick("relu", "norm", "mean")
    if what == "relu":
        y = flow.net.op("Relu", y)
    elif what == "norm":
        count = c if last else 1
        y = flow.net.op(
            "InstanceNormalization", y, flow.net.vector(count, 0.5, 2), flow.net.vector(count), epsilon=1e-3
        )
    else:
        y = flow.net.op("Add", y, flow.net.reduce("ReduceMean", y, [2, 3, 4]))
    return flow.net.squeeze("Squeeze", y, [4 if last else 1]), flow.shape


@block()
def cut_rows(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    axis = flow.number(2, 3)
    extent = flow.shape[axis]
    step = flow.pick(1, 1, 2, 3, -1, -2)
    start, stop = flow.number(-extent - 1, extent), flow.number(-extent - 1, extent + 3)
    if step < 0 and stop < 0:
        stop = -(2**60)
    left = len(range(extent)[slice(start, None if stop < -extent - 1 else stop, step)])
    if not left:
        reject()
    shape = (n, c, left, w) if axis == 2 else (n, c, h, left)
    return flow.net.slice(flow.x, start, stop, axis if flow.number(0, 1) else axis - 4, step), shape


@block()
def join_channels(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    left = flow.conv(flow.x, c, 2, 3, pads=[1, 1, 1, 1])
    right = flow.net.op("MaxPool", flow.x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return flow.net.op("Concat", left, right, flow.x, axis=flow.pick(1, -3)), (n, 2 + 2 * c, h, w)


@block()
def join_rows(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    axis = flow.number(2, 3)
    y = flow.net.op("Concat", flow.x, flow.net.op("Relu", flow.x), axis=axis)
    return y, (n, c, 2 * h, w) if axis == 2 else (n, c, h, 2 * w)


@block()
def split_channels(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    if c < 2:
        reject()
    first = flow.number(1, c - 1)
    one, two = flow.net.split(flow.x, 1, [first, c - first])
    two = flow.conv(two, c - first, first, 3, pads=[1, 1, 1, 1])
    return flow.net.op("Mul", one, two), (n, first, h, w)


@block()
def split_rows(flow: Flow) -> Any:
    _n, _c, h, _w = flow.shape
    if h < 2:
        reject()
    one, two = flow.net.split(flow.x, 2, [h // 2, h - h // 2])
    return flow.net.op("Concat", two, one, axis=2), flow.shape


@block()
def pick_channels(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    if flow.number(0, 1):
        one = flow.net.op("Gather", flow.x, flow.net.const(flow.number(-c, c - 1), "int64"), axis=1)
        return flow.net.squeeze("Unsqueeze", one, [1]), (n, 1, h, w)
    indices = [flow.number(-c, c - 1) for _ in range(3)]
    return flow.net.op("Gather", flow.x, flow.net.ints(*indices), axis=1), (n, 3, h, w)


@block()
def pick_rows(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    return flow.net.op("Gather", flow.x, flow.net.ints(0, h - 1, h // 2), axis=2), (n, c, 3, w)


@block()
def attention(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    if h * w > 400:
        reject()
    keys = flow.net.op("Reshape", flow.x, flow.net.ints(n, c, h * w))
    scores = flow.net.op("MatMul", flow.net.op("Transpose", keys, perm=[0, 2, 1]), keys)
    weights = flow.net.op("Softmax", scores, axis=2)
    mixed = flow.net.op("MatMul", keys, flow.net.op("Transpose", weights, perm=[0, 2, 1]))
    return flow.net.op("Add", flow.x, flow.net.op("Reshape", mixed, flow.net.ints(n, c, h, w))), flow.shape


@block()
def einsum(flow: Flow) -> Any:
    weight = flow.net.weight(flow.shape[2], flow.shape[2])
    return flow.net.op("Einsum", flow.x, weight, equation="nchw,kh->nckw"), flow.shape


@block(16)
def grid_sample(flow: Flow) -> Any:
    n, c, _, _ = flow.shape
    grid = flow.net.const(flow.net.random.uniform(-1, 1, (n, 5, 6, 2)))
    return flow.net.op("GridSample", flow.x, grid), (n, c, 5, 6)


@block()
def running_sum(flow: Flow) -> Any:
    y = flow.net.op("CumSum", flow.x, flow.net.const(flow.number(-3, 3), "int64"))
    return flow.net.op("Tanh", y), flow.shape


@block()
def best_of(flow: Flow) -> Any:
    n, c, h, w = flow.shape
    axis = flow.pick(1, 2, 3)
    k = flow.number(1, min(2, flow.shape[axis]))
    best = flow.net.ops("TopK", flow.x, flow.net.ints(k), outputs=2, axis=axis)[0]
    shape = [n, c, h, w]
    shape[axis] = k
    return best, tuple(shape)


@block()
def scatter_of_places(flow: Flow) -> Any:
    """Make a shape that depends on the values: the number of values above zero."""
    places = flow.net.op("NonZero", flow.net.op("Relu", flow.x))
    places = flow.net.op("Cast", places, to=onnx.TensorProto.FLOAT)
    if flow.number(0, 1):
        places = flow.net.op("MatMul", flow.net.const(flow.net.random.uniform(0, 1, (2, 4))), places)
    if flow.number(0, 1):
        places = flow.net.op("Reshape", places, flow.net.ints(1, -1))
    count = flow.net.reduce("ReduceSum", places, [0, 1], 0)
    return flow.net.op("Add", flow.x, flow.net.op("Tanh", flow.net.op("Mul", count, flow.net.const(1e-3)))), flow.shape


@block(13)
def quantised(flow: Flow) -> Any:
    """8-bit convolutions as quantisers write them: the weights, too, go through a node.

    Not in chains: there the last bit of what comes in would decide which way a value is rounded.
    """
    n, c, h, w = flow.shape
    net = flow.net
    scale = [net.const(0.04), net.const(0, "uint8" if flow.number(0, 1) else "int8")]
    y, channels = net.op("QuantizeLinear", flow.x, *scale), c
    for _ in range(flow.number(1, 2)):
        values = net.const(net.random.integers(-90, 90, (3, channels, 3, 3)), "int8")
        weight = net.op("DequantizeLinear", values, net.const(0.01), net.const(0, "int8"))
        y = net.op("DequantizeLinear", y, *scale)
        y = net.op("QuantizeLinear", net.op("Conv", y, weight, pads=[1, 1, 1, 1]), *scale)
        channels = 3
    return net.op("DequantizeLinear", y, *scale), (n, channels, h, w)


def _end(flow: Flow) -> str:
    n, c, h, w = flow.shape
    kind = flow.pick("none", "none", "flatten", "pool", "mean", "lstm", "argmax", "mean of all")
    net = flow.net
    if kind == "flatten":
        return net.op("Gemm", net.op("Flatten", flow.x), net.weight(5, c * h * w), net.vector(5), transB=1)
    if kind in ("pool", "mean", "mean of all"):
        # Means of positive numbers: other means may be near zero, where every rounding is relatively large.
        flow.x = net.op("Sigmoid", flow.x)
    if kind == "pool":
        flat = net.op("Flatten", net.op("GlobalAveragePool", flow.x))
        return net.op("Softmax", net.op("Gemm", flat, net.weight(5, c), transB=1), axis=1)
    if kind == "mean":
        return net.op("MatMul", net.reduce("ReduceMean", flow.x, [2, 3], keepdims=0), net.weight(c, 3))
    if kind == "lstm":
        rows = net.op("Reshape", net.op("Transpose", flow.x, perm=[2, 0, 1, 3]), net.ints(h, n, c * w))
        last = net.fresh()
        net.add("LSTM", [rows, net.weight(1, 8, c * w), net.weight(1, 8, 2)], ["", last], hidden_size=2)
        return last
    if kind == "argmax":
        return net.op("Cast", net.op("Sign", flow.x), to=onnx.TensorProto.INT32) if flow.number(0, 1) else flow.x
    if kind == "mean of all":
        return net.reduce("ReduceMean", flow.x, [0, 1, 2, 3], keepdims=flow.number(0, 1))
    return flow.x


@st.composite
def nets(draw: st.DrawFn, names: tuple[str, ...] = tuple(BLOCKS), longest: int = 6) -> onnx.ModelProto:
    least = min(BLOCKS[name][1] for name in names)
    opset = draw(st.sampled_from([o for o in OPSETS if o >= least]))
    net = Net(opset, seed=draw(st.integers(0, 99)))
    shape = (
        draw(st.sampled_from([1, 1, 1, 2])),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 17)),
        draw(st.integers(1, 13)),
    )
    dtype = draw(st.sampled_from(["float32", "float32", "float32", "uint8"]))
    x = net.input(shape, dtype)
    if dtype == "uint8":
        x = net.op("Div", net.op("Cast", x, to=onnx.TensorProto.FLOAT), net.const(64.0))
    flow = Flow(net, draw, x, shape)
    seen = []
    for _ in range(draw(st.integers(1, longest))):
        usable = [name for name in names if BLOCKS[name][1] <= opset]
        flow.x, flow.shape = BLOCKS[draw(st.sampled_from(usable))][0](flow)
        seen.append(flow.x)
    if min(flow.shape) < 1 or np.prod(flow.shape) > 40_000:
        reject()
    end = _end(flow)
    others = seen if draw(st.integers(0, 3)) == 0 else []
    return net.proto(*dict.fromkeys([*others, end]))


def arrays_for(model: Model) -> list[Any]:
    return [image(t.shape, t.dtype, seed=i) for i, t in enumerate(model.inputs)]


def captured(proto: onnx.ModelProto) -> Model:
    """Capture a graph; reject it if ONNX Runtime refuses it unsplit."""
    try:
        run = session(proto)
        run.run(
            None,
            {i.name: np.zeros(i.shape, np.uint8 if "uint8" in i.type else np.float32) for i in run.get_inputs()},
        )
    except Exception:
        reject()
    return capture(proto)


def exact_under_random_plans(proto: onnx.ModelProto, data: st.DataObject, count: int = 2) -> None:
    note(onnx.printer.to_text(proto))
    model = captured(proto)
    arrays = arrays_for(model)
    expected, inside = run_unsplit(model, arrays), intermediates(model, arrays)
    if any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        inside = {}  # with all values as outputs, 8-bit convolutions are not fused and round differently
    for _ in range(count):
        check_split(model, data.draw(plans(model)), arrays, expected, inside)


@pytest.mark.parametrize("name", BLOCKS)
@given(data=st.data())
@examples(60, 10)
def test_every_operator_alone(name: str, data: st.DataObject) -> None:
    exact_under_random_plans(data.draw(nets((name,), longest=1)), data)


@given(proto=nets(tuple(name for name in BLOCKS if name != "quantised")), data=st.data())
@examples(400, 60)
def test_chains(proto: onnx.ModelProto, data: st.DataObject) -> None:
    exact_under_random_plans(proto, data)


# ---------------------------------------------------------------- cases by hand


Case = Callable[[], tuple[Net, tuple[str, ...]]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def start(opset: int = 20, shape: tuple[int, ...] = (1, 4, 8, 6)) -> Net:
    net = Net(opset)
    net.input(shape)
    return net


@case
def only_the_last_state_of_an_lstm() -> Any:
    net = start()
    rows = net.op("Reshape", net.op("Transpose", "x", perm=[2, 0, 1, 3]), net.ints(8, 1, 24))
    net.add("LSTM", [rows, net.weight(1, 8, 24), net.weight(1, 8, 2)], ["", "last"], hidden_size=2)
    return net, ("last",)


@case
def softmax_flattened_before_opset_13() -> Any:
    net = start(11)
    return net, (net.op("Softmax", "x"),)


@case
def best_row_of_one() -> Any:
    net = start(13, (1, 4, 1, 6))
    return net, (net.op("Cast", net.op("ArgMax", "x", axis=2, keepdims=0), to=onnx.TensorProto.FLOAT),)


@case
def resized_by_a_scale_that_only_looks_like_one() -> Any:
    net = start(13, (1, 1, 3, 3))
    return net, (net.resize("x", [1, 1, 2.1, 1.3], mode="linear"),)


@case
def channels_resized_to_as_many() -> Any:
    net = start(13, (1, 3, 4, 4))
    return net, (net.resize("x", [1, 1.3, 2, 2], mode="nearest"),)


@case
def cropped_and_resized_to_the_same_size() -> Any:
    net = start(13)
    roi = net.const([0, 0, 0.25, 0.25, 1, 1, 0.75, 0.75])
    given = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    return net, (net.op("Resize", "x", roi, net.const([1, 1, 1, 1]), **given),)


@case
def resized_within_an_aspect_ratio() -> Any:
    net = start(18, (1, 1, 3, 3))
    given = {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger", "mode": "linear"}
    return net, (net.op("Resize", "x", "", "", net.ints(4, 5), **given),)


@case
def resized_along_named_axes() -> Any:
    net = start(18)
    return net, (net.op("Resize", "x", "", net.const([2, 3]), axes=[-1, 2], mode="linear"),)


@case
def transposed_convolution_to_a_given_shape() -> Any:
    net = start(13, (1, 1, 4, 3))
    return net, (net.op("ConvTranspose", "x", net.weight(1, 1, 2, 2), strides=[2, 2], output_shape=[5, 6]),)


@case
def transposed_convolution_with_padding_and_a_given_shape() -> Any:
    net = start(13, (1, 1, 3, 3))
    given = {"strides": [2, 2], "output_padding": [1, 1], "output_shape": [5, 4]}
    return net, (net.op("ConvTranspose", "x", net.weight(1, 1, 1, 1), **given),)


@case
def stride_longer_than_the_kernel_under_same() -> Any:
    net = start(13, (1, 1, 12, 8))
    given = {"auto_pad": "SAME_UPPER", "strides": [4, 4]}
    return net, (net.op("Conv", "x", net.weight(1, 1, 1, 1), **given),)


@case
def last_window_beyond_the_end() -> Any:
    net = start(13, (1, 1, 5, 4))
    return net, (net.op("MaxPool", "x", kernel_shape=[1, 1], strides=[3, 3], ceil_mode=1),)


@case
def last_window_over_the_end() -> Any:
    net = start(20, (1, 2, 8, 6))
    given = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    return net, (net.op("MaxPool", "x", **given), net.op("AveragePool", "x", **given))


@case
def dilated_pool_under_same() -> Any:
    net = start(20, (1, 1, 6, 5))
    given = {"auto_pad": "SAME_UPPER", "kernel_shape": [2, 2], "dilations": [2, 2]}
    return net, (net.op("AveragePool", "x", **given),)


@case
def a_scalar() -> Any:
    net = start()
    return net, (net.reduce("ReduceMean", net.op("Abs", "x"), [0, 1, 2, 3], keepdims=0),)


@case
def bias_that_flows() -> Any:
    net = start()
    bias = net.reduce("ReduceMean", "x", [0, 2, 3], keepdims=0)
    y = net.op("Conv", "x", net.weight(4, 4, 3, 3), bias, pads=[1, 1, 1, 1])
    return net, (net.op("ConvTranspose", y, net.weight(4, 4, 3, 3), bias),)


@case
def weights_that_flow() -> Any:
    net = start()
    pooled = net.op("Sigmoid", net.op("GlobalAveragePool", "x"))
    weight = net.op("Mul", pooled, net.weight(2, 4, 3, 3))
    return net, (net.op("Conv", "x", weight, pads=[1, 1, 1, 1]),)


@case
def as_many_of_the_best_as_the_image_says() -> Any:
    net = start()
    count = net.op("Clip", net.reduce("ReduceMax", "x", [0, 1, 2, 3], keepdims=0), net.const(2), net.const(2))
    count = net.op("Reshape", net.op("Cast", count, to=onnx.TensorProto.INT64), net.ints(1))
    return net, tuple(net.ops("TopK", "x", count, outputs=2, axis=1))


@case
def quantised_block_by_block() -> Any:
    net = start(21)
    scale = net.const(net.random.uniform(0.01, 0.02, (1, 2, 8, 6)))
    zero = net.const(np.zeros((1, 2, 8, 6)), "int8")
    y = net.op("QuantizeLinear", "x", scale, zero, axis=1, block_size=2)
    return net, (net.op("DequantizeLinear", y, scale, zero, axis=1, block_size=2),)


@case
def global_pool_of_what_cannot_be_split() -> Any:
    net = start()
    return net, (net.op("GlobalAveragePool", net.op("Softmax", "x", axis=2)),)


@case
def an_if_over_the_image() -> Any:
    def branch(op: str) -> onnx.GraphProto:
        out = onnx.helper.make_tensor_value_info(op, onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph([onnx.helper.make_node(op, ["x"], [op])], op, [], [out])

    net = start(13)
    positive = net.op("Greater", net.reduce("ReduceMax", "x", [0, 1, 2, 3], keepdims=0), net.const(0))
    y = net.op("If", positive, then_branch=branch("Relu"), else_branch=branch("Neg"))
    return net, (net.op("Conv", y, net.weight(3, 4, 3, 3)),)


@case
def outputs_that_are_twice_the_same_or_left_over() -> Any:
    net = start(13)
    y = net.op("Conv", "x", net.weight(4, 4, 3, 3))
    half = net.ops("Split", y, outputs=2, axis=1)[1]
    net.add("MaxPool", [half], ["pooled", "places"], kernel_shape=[2, 2])
    return net, (half, "pooled", "places")


@case
def names_that_a_rewrite_might_use() -> Any:
    net = start(13)
    for name in ("y/partial", "y/sum", "tile.1"):
        net.add("Relu", ["x"], [name])
    net.add("GlobalAveragePool", ["x"], ["y"])
    net.add("Sum", ["y/partial", "y", "y/sum", "tile.1"], ["z"])
    return net, (net.resize("z", [1, 1, 2, 2], mode="linear"),)


@case
def an_image_with_its_channels_last() -> Any:
    net = start(13, (1, 12, 9, 3))
    y = net.op("Conv", net.op("Transpose", "x", perm=[0, 3, 1, 2]), net.weight(2, 3, 3, 3))
    return net, (net.op("Transpose", y, perm=[0, 2, 3, 1]),)


@case
def a_pixel_spread_over_an_image() -> Any:
    net = start(13)
    y = net.op("Conv", "x", net.weight(4, 4, 3, 3))
    pooled = net.op("GlobalAveragePool", y)
    expanded = net.op("Expand", pooled, net.ints(1, 4, 6, 4))
    resized = net.op("Resize", pooled, "", "", net.ints(1, 4, 6, 4), mode="linear")
    return net, (net.op("Concat", y, expanded, resized, axis=1),)


@case
def the_batch_reduced_and_moved() -> Any:
    net = start(13, (2, 4, 8, 6))
    moved = net.op("Relu", net.op("Transpose", "x", perm=[2, 0, 1, 3]))
    return net, (moved, net.reduce("ReduceMean", "x", [0]), net.reduce("ReduceMax", "x", [0, 2, 3], 0))


ROWS = [
    {"a": UNIT},
    strips({"a": 1, "b": 1, "c": 1}),
    strips({"c": 1, "a": 5}),
    {"a": UnitRect(0, 0.5, 0, 0.5), "b": UnitRect(0.5, 1, 0, 0.5), "c": UnitRect(0, 1, 0.5, 1)},
]


def exact_and_the_same_at_a_worker(model: Model) -> None:
    """Check one stage and a stage per layer, on strips and a mosaic, also with the model as a worker reads it."""
    arrays = arrays_for(model)
    again = model_from_skeleton(model.skeleton, model.weights)
    assert (again.hash, again.rules, again.layers) == (model.hash, model.rules, model.layers)
    expected, inside = run_unsplit(model, arrays), intermediates(model, arrays)
    for rects in ROWS:
        check_split(model, one_stage(model, rects, "a"), arrays, expected, inside)
        check_split(again, make_plan(again, [(1, rects)] * len(model.layers), "b"), arrays, expected, inside)


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    net, outputs = CASES[name]()
    exact_and_the_same_at_a_worker(capture(net.proto(*outputs)))


def test_quantised_convolutions_are_split() -> None:
    net = start(13)
    scale = [net.const(0.02), net.const(0, "int8")]
    values = net.const(net.random.integers(-90, 90, (4, 4, 3, 3)), "int8")
    weight = net.op("DequantizeLinear", values, *scale)
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", *scale), *scale)
    model = capture(net.proto(net.op("Conv", y, weight, pads=[1, 1, 1, 1])))
    assert [r.kind for n, r in zip(model.graph.nodes, model.rules) if n.op == "Conv"] == ["window"]


# ---------------------------------------------------------------- from torch


class Normed(nn.Module):
    """Network with every normalisation and with squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True), nn.BatchNorm2d(8)])
        self.excite = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.SiLU(), nn.Conv2d(4, 8, 1))
        self.last = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm in self.norms:
            x = functional.gelu(norm(x))
        x = x * self.excite(x).sigmoid()
        out: torch.Tensor = self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class Attending(nn.Module):
    """Network with convolutions around attention over all pixels, and a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.position = nn.Parameter(torch.randn(1, 8, 6, 5))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), nn.Conv2d(8, 12, 1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x) + self.position
        y = x.flatten(2).transpose(1, 2)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        out: torch.Tensor = self.up(y.transpose(1, 2).reshape(x.shape))
        return out


class Branching(nn.Module):
    """Network with pooling, padding, resizing and concatenation of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 5, padding=2, padding_mode="reflect")
        self.b = nn.Conv2d(3, 6, 3, padding=2, dilation=2, padding_mode="replicate")
        self.c = nn.Conv2d(12, 6, 3, stride=2, groups=3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        joined = torch.cat([self.a(x), self.b(x)], 1)
        small = self.c(functional.max_pool2d(joined, 3, 2, 1, ceil_mode=True))
        large = functional.interpolate(small, size=joined.shape[2:], mode="bilinear", align_corners=False)
        twice = functional.interpolate(small, scale_factor=2, mode="nearest")
        means = functional.adaptive_avg_pool2d(joined, (3, 3))
        return {"sum": joined[:, ::2] + large, "twice": functional.avg_pool2d(twice, 3, 2, 1), "means": means}


class ConvNext(nn.Module):
    """Network with a block that is channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.depth = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.narrow(functional.gelu(self.wide(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", [Normed, Attending, Branching, ConvNext])
def test_torch_module(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = kind().eval(), torch.randn(1, 3, 24, 20)
    with torch.inference_mode():
        expected = module(x)
    model = capture(module, x)
    exact_and_the_same_at_a_worker(model)
    got = run_in_process(model, even_plan(model, 3), x)
    pairs = [(got[k], expected[k]) for k in expected] if isinstance(expected, dict) else [(got, expected)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
