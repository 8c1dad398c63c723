"""Rewrites that make reductions over rows and columns splittable, applied once when a model is captured.

    GlobalAveragePool, ReduceMean over H, W           ->  partial sum, [all-gather], combine, scale
    InstanceNormalization, GroupNormalization,
    LayerNormalization over H, W                      ->  mean, subtract, variance, divide  (two reductions)
    Reshape - InstanceNormalization - Reshape         ->  the same, with groups on an axis of their own

The result is ordinary ONNX. With a single share, `combine` reduces an axis of extent one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from coedge.graph.graph import Node, Tensor, fresh_name
from coedge.graph.rules.reduce import COMBINE, PARTIAL, SHARE, reduced_axes, reduces_space


@dataclass
class Draft:
    """The values of a graph that is being rewritten. New nodes add constants, shapes and dtypes."""

    constants: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    _count: int = field(default=0)

    def copy(self) -> Draft:
        """Return a copy, on which a rewrite can be tried."""
        return Draft(dict(self.constants), dict(self.shapes), dict(self.dtypes))

    def constant(self, value: np.ndarray) -> str:
        name = ""
        while not name or name in self.constants or name in self.shapes:
            self._count += 1
            name = f"coedge.constant_{self._count}"
        self.constants[name] = value
        return name

    def value(self, output: str, part: str) -> str:
        """Return a name for an intermediate value of the nodes that make `output`."""
        return fresh_name(f"coedge.{output}/{part}", self.shapes, self.constants)

    def node(
        self,
        op: str,
        inputs: Iterable[str],
        output: str,
        shape: tuple[int, ...],
        like: str,
        name: str = "",
        **attributes: object,
    ) -> onnx.NodeProto:
        self.shapes[output] = shape
        self.dtypes.setdefault(output, self.dtypes[like])
        return helper.make_node(op, list(inputs), [output], name=name or f"{op}:{output}", **attributes)

    def reduce(
        self,
        op: str,
        source: str,
        output: str,
        axes: list[int],
        shape: tuple[int, ...],
        keepdims: int,
        name: str,
    ) -> onnx.NodeProto:
        inputs = [source, self.constant(np.array(axes, np.int64))]
        return self.node(op, inputs, output, shape, source, name, keepdims=keepdims)

    def squeeze(
        self, op: str, source: str, output: str, axes: list[int], shape: tuple[int, ...], name: str
    ) -> onnx.NodeProto:
        return self.node(op, [source, self.constant(np.array(axes, np.int64))], output, shape, source, name)


_FLOATS = ("float32", "float16", "float64")
# The result of these does not depend on the order of the pixels.
ORDERLESS = frozenset(("GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMin"))


def expand(node: Node, tensors: Mapping[str, Tensor], draft: Draft) -> list[onnx.NodeProto] | None:
    """Return the nodes that replace this one. None: it is not rewritten."""
    if node.domain or not node.inputs or node.inputs[0] not in tensors:
        return None
    tensor = tensors[node.inputs[0]]
    if not tensor.spatial or tensor.partial_extent or any(node.outputs[1:]):
        return None
    rank = len(tensor.shape)
    attributes = node.attributes
    constant_rest = all(not n or n in draft.constants for n in node.inputs[1:])

    if node.op in ("GlobalAveragePool", "GlobalMaxPool"):
        op = "ReduceMean" if node.op == "GlobalAveragePool" else "ReduceMax"
        return _reduction(op, node, tensor, list(range(2, rank)), True, draft)
    if node.op in ("AveragePool", "MaxPool") and _pools_everything(attributes, tensor):
        op = "ReduceMean" if node.op == "AveragePool" else "ReduceMax"
        return _reduction(op, node, tensor, [2, 3], True, draft)
    if node.op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin") and not node.name.startswith(
        (PARTIAL, COMBINE)
    ):
        axes = reduced_axes(node, rank, draft.constants)
        if axes:
            return _reduction(node.op, node, tensor, axes, bool(attributes.get("keepdims", 1)), draft)
        return None
    if tensor.dtype not in _FLOATS or not constant_rest:
        return None
    epsilon = float(attributes.get("epsilon", 1e-5))
    channels_first = rank == 4 and (tensor.row_axis, tensor.col_axis) == (2, 3)
    if node.op == "InstanceNormalization" and channels_first:
        shape = (tensor.shape[1], 1, 1)
        scale, bias = (draft.constants[n].reshape(shape) for n in node.inputs[1:3])
        return _normalise(node.inputs[0], node.outputs[0], tensor.shape, [2, 3], epsilon, scale, bias, draft)
    if node.op == "LayerNormalization":
        axis = int(attributes.get("axis", -1)) % rank
        axes = list(range(axis, rank))
        if reduces_space(tensor, axes):
            scale = draft.constants[node.inputs[1]]
            has_bias = len(node.inputs) > 2 and node.inputs[2]
            bias = draft.constants[node.inputs[2]] if has_bias else np.zeros((), tensor.dtype)
            # A scale that differs from row to row would be a constant with rows, which a tile cannot hold.
            if scale.size == 1 or not _varies(scale, bias, tensor, axis):
                return _normalise(node.inputs[0], node.outputs[0], tensor.shape, axes, epsilon, scale, bias, draft)
    if node.op == "GroupNormalization" and channels_first:
        groups = int(attributes["num_groups"])
        return _group_norm(
            node.inputs[0], node.outputs[0], tensor, groups, epsilon,
            draft.constants[node.inputs[1]], draft.constants[node.inputs[2]], draft,
        )  # fmt: skip
    return None


def _varies(scale: np.ndarray, bias: np.ndarray, tensor: Tensor, axis: int) -> bool:
    rank = len(tensor.shape)
    for spatial in (tensor.row_axis, tensor.col_axis):
        if spatial is None or spatial < axis:
            continue
        for value in (scale, bias):
            position = spatial - rank + value.ndim
            if position >= 0 and value.shape[position] > 1:
                return True
    return False


def _pools_everything(attributes: Mapping[str, Any], tensor: Tensor) -> bool:
    kernel = attributes.get("kernel_shape")
    return (
        (tensor.row_axis, tensor.col_axis) == (2, 3)
        and list(kernel or []) == [tensor.rows, tensor.cols]
        and not any(attributes.get("pads") or [])
        and attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and all(d == 1 for d in attributes.get("dilations") or [1])
    )


def _reduction(
    op: str, node: Node, tensor: Tensor, axes: list[int], keepdims: bool, draft: Draft
) -> list[onnx.NodeProto] | None:
    if not reduces_space(tensor, axes) or (op == "ReduceMean" and tensor.dtype not in _FLOATS):
        return None
    return reduction(op, node.inputs[0], node.outputs[0], tensor.shape, axes, keepdims, draft)


def reduction(
    op: str, source: str, output: str, shape: tuple[int, ...], axes: list[int], keepdims: bool, draft: Draft
) -> list[onnx.NodeProto]:
    """Return the nodes of a reduction in parts: partial -> share -> combine (-> scale) (-> squeeze)."""
    base = "ReduceSum" if op == "ReduceMean" else op
    kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    squeezed = tuple(extent for axis, extent in enumerate(shape) if axis not in axes)
    partial, share, combined, scaled = (draft.value(output, part) for part in ("partial", "share", "sum", "mean"))
    nodes = [
        draft.reduce(base, source, partial, axes, kept, 1, PARTIAL + output),
        draft.squeeze("Unsqueeze", partial, share, [0], (1, *kept), SHARE + output),
    ]
    last = combined if op == "ReduceMean" or not keepdims else output
    nodes.append(draft.reduce(base, share, last, [0], kept, 0, COMBINE + output))
    if op == "ReduceMean":
        count = math.prod(shape[axis] for axis in axes)
        factor = draft.constant(np.array(1.0 / count, dtype=draft.dtypes[source]))
        nodes.append(draft.node("Mul", [last, factor], scaled if not keepdims else output, kept, source))
        last = scaled if not keepdims else output
    if not keepdims:
        nodes.append(draft.squeeze("Squeeze", last, output, axes, squeezed, f"Squeeze:{output}"))
    return nodes


def _normalise(
    source: str,
    output: str,
    shape: tuple[int, ...],
    axes: list[int],
    epsilon: float,
    scale: np.ndarray,
    bias: np.ndarray,
    draft: Draft,
) -> list[onnx.NodeProto]:
    """Return the nodes of (x - mean) / sqrt(variance + epsilon) * scale + bias, with the variance about the mean."""
    dtype = draft.dtypes[source]
    kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    name = {
        part: draft.value(output, part)
        for part in ("mean", "centred", "square", "variance", "safe", "deviation", "unit", "scaled")
    }
    nodes = reduction("ReduceMean", source, name["mean"], shape, axes, True, draft)
    nodes.append(draft.node("Sub", [source, name["mean"]], name["centred"], shape, source))
    nodes.append(draft.node("Mul", [name["centred"]] * 2, name["square"], shape, source))
    nodes += reduction("ReduceMean", name["square"], name["variance"], shape, axes, True, draft)
    epsilon_name = draft.constant(np.array(epsilon, dtype))
    nodes.append(draft.node("Add", [name["variance"], epsilon_name], name["safe"], kept, source))
    nodes.append(draft.node("Sqrt", [name["safe"]], name["deviation"], kept, source))
    nodes.append(draft.node("Div", [name["centred"], name["deviation"]], name["unit"], shape, source))
    nodes.append(draft.node("Mul", [name["unit"], draft.constant(scale)], name["scaled"], shape, source))
    nodes.append(draft.node("Add", [name["scaled"], draft.constant(bias)], output, shape, source))
    return nodes


def _group_norm(
    source: str,
    output: str,
    tensor: Tensor,
    groups: int,
    epsilon: float,
    scale: np.ndarray,
    bias: np.ndarray,
    draft: Draft,
) -> list[onnx.NodeProto]:
    """Return the nodes of a group normalisation, with groups as an axis: [N, C, H, W] -> [N, G, C/G, H, W].

    Scale and bias are per group or per channel.
    """
    n, c, h, w = tensor.shape
    grouped, normed = draft.value(output, "grouped"), draft.value(output, "normed")
    wide = (n, groups, c // groups, h, w)

    def spread(value: np.ndarray) -> np.ndarray:
        return value.reshape(1, groups, -1, 1, 1) if value.size > 1 else value.reshape(())

    nodes = [draft.node("Reshape", [source, draft.constant(np.array(wide, np.int64))], grouped, wide, source)]
    nodes += _normalise(grouped, normed, wide, [2, 3, 4], epsilon, spread(scale), spread(bias), draft)
    back = draft.constant(np.array(tensor.shape, np.int64))
    nodes.append(draft.node("Reshape", [normed, back], output, tensor.shape, source))
    return nodes


def group_norm_pattern(
    nodes: list[onnx.NodeProto],
    position: int,
    tensors: Mapping[str, Tensor],
    draft: Draft,
    uses: Mapping[str, int],
) -> tuple[list[onnx.NodeProto], set[int]] | None:
    """Recognise a group normalisation that an exporter wrote as Reshape, InstanceNormalization, Reshape.

    Returns:
        The new nodes and the positions that they replace. None: the pattern does not begin here.
    """
    first = nodes[position]
    if first.op_type != "Reshape" or first.input[0] not in tensors or uses.get(first.output[0]) != 1:
        return None
    tensor = tensors[first.input[0]]
    middle = draft.shapes.get(first.output[0], ())
    if (tensor.row_axis, tensor.col_axis) != (2, 3) or len(tensor.shape) != 4 or len(middle) < 3:
        return None
    groups = middle[1]
    if middle[0] != tensor.shape[0] or tensor.shape[1] % groups:
        return None
    following = [i for i in range(position + 1, len(nodes)) if first.output[0] in nodes[i].input]
    if not following or nodes[following[0]].op_type != "InstanceNormalization":
        return None
    norm = nodes[following[0]]
    if uses.get(norm.output[0]) != 1 or any(n not in draft.constants for n in norm.input[1:]):
        return None
    last = [i for i in range(following[0] + 1, len(nodes)) if norm.output[0] in nodes[i].input]
    if not last or nodes[last[0]].op_type != "Reshape" or draft.shapes[nodes[last[0]].output[0]] != tensor.shape:
        return None
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    scale, bias = (draft.constants[n] for n in norm.input[1:3])
    made = _group_norm(first.input[0], nodes[last[0]].output[0], tensor, groups, epsilon, scale, bias, draft)
    return made, {position, following[0], last[0]}
