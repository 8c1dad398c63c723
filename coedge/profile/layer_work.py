"""The work of each layer of a model, from the shapes of its graph alone: multiply-adds and bytes moved.

Seconds depend on the device; `coedge.profile.cost_model` predicts them from this work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coedge.graph.graph import Node, Tensor
from coedge.graph.layers import Layer
from coedge.graph.model import Model

Family = Literal["stem", "conv", "pointwise", "depthwise", "transposed", "dense", "pool", "other"]

# The input that holds the weights, by operator.
_WEIGHTS = {
    "Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3,
    "Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3,
}  # fmt: skip
_DENSE = frozenset(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"))
_POOLS = frozenset(("MaxPool", "AveragePool", "LpPool"))
# These change the shape and move no bytes.
_VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"))
# The kernels of convolutions and dense layers apply these to their own results.
_ACTIVATIONS = frozenset(("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"))
# Convolutions with at most this many input channels (an image) run on a separate kernel.
_IMAGE_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The work of a layer that one device computes completely.

    Attributes:
        family: family of the main operator. Layers of one family run on similar kernels, so at similar speeds.
        kind: main operator, weights and stride. Layers of one kind do the same work per pixel.
        rows: rows of the layer (see `Layer`).
        multiply_adds: multiply-adds of convolutions and dense layers. Pooling counts one per element of its windows.
            Work on a single pixel, in a layer of many, does not count: it does not grow with the rows.
        moved_nbytes: bytes that grow with the rows: activations that the operators read and write, and the weights
            of a dense layer, because each row of its output reads its own weights.
        weight_nbytes: bytes of the other weights. They are read for any number of rows.
    """

    family: Family
    kind: str
    rows: int
    multiply_adds: float
    moved_nbytes: float
    weight_nbytes: float


def layer_costs(model: Model) -> tuple[LayerCost, ...]:
    """Return the cost of every layer of the model, in order."""
    makers = {name: node for node in model.graph.nodes for name in node.outputs if name}
    return tuple(_cost(model, layer, makers) for layer in model.layers)


def multiply_adds(model: Model, node: Node) -> float:
    """Return the multiply-adds of one operator for its whole output; 0 without weights or with unknown shapes."""
    made = _shape(model, next((name for name in node.outputs if name), ""))
    if node.op in _POOLS:
        return float(math.prod(made) * math.prod(node.attributes.get("kernel_shape", ())))
    weights = _weights(model, node)
    if not weights:
        return 0.0
    if node.op == "ConvTranspose":
        return float(math.prod(_shape(model, node.inputs[0])) * math.prod(weights[1:]))
    if node.op in _DENSE:
        inner = weights[-1] if node.attributes.get("transB") or len(weights) == 1 else weights[-2]
        return float(math.prod(made) * inner)
    return float(math.prod(made) * math.prod(weights[1:]))


def _cost(model: Model, layer: Layer, makers: dict[str, Node]) -> LayerCost:
    adds = moved = weights = 0.0
    for node in model.graph.nodes[layer.first : layer.stop]:
        made = [model.graph.tensors[name] for name in node.outputs if name]
        read = [model.graph.tensors[name] for name in model.graph.activations(node)]
        constants = sum(model.graph.constants[n].nbytes for n in node.inputs if n in model.graph.constants)
        grows = not layer.splittable or any(tensor.spatial for tensor in made)
        if grows:
            adds += multiply_adds(model, node)
        if grows and node.op in _DENSE:
            moved += constants
        else:
            weights += constants
        if not _free(node, makers):
            moved += sum(_nbytes(tensor) for tensor in (*read, *made))
    main = makers[layer.tensor]
    return LayerCost(_family(model, main), _kind(model, main), layer.rows, adds, moved, weights)


def _free(node: Node, makers: dict[str, Node]) -> bool:
    """Return whether the operator moves no bytes of its own."""
    maker = makers.get(node.inputs[0]) if node.inputs else None
    return node.op in _VIEWS or (node.op in _ACTIVATIONS and maker is not None and maker.op in _WEIGHTS)


def _family(model: Model, node: Node) -> Family:
    weights = _weights(model, node)
    if node.op in _POOLS:
        return "pool"
    if node.op in _DENSE:
        return "dense"
    if node.op == "ConvTranspose":
        return "transposed"
    if len(weights) < 3:
        return "other"
    if weights[1] == 1 and int(node.attributes.get("group", 1)) > 1:
        return "depthwise"
    if math.prod(weights[2:]) == 1:
        return "pointwise"
    return "stem" if weights[1] <= _IMAGE_CHANNELS else "conv"


def _kind(model: Model, node: Node) -> str:
    """Return the kind of an operator, such as `Conv 64x3x7x7 s2x2`."""
    given = node.attributes
    window = _weights(model, node) or tuple(given.get("kernel_shape", ()))
    words = [node.op, "x".join(str(extent) for extent in window)]
    for key, letter in (("strides", "s"), ("dilations", "d")):
        if any(step != 1 for step in given.get(key, ())):
            words.append(letter + "x".join(str(step) for step in given[key]))
    if given.get("group", 1) != 1:
        words.append(f"g{given['group']}")
    return " ".join(word for word in words if word)


def _weights(model: Model, node: Node) -> tuple[int, ...]:
    """Return the shape of an operator's weights; empty if it has none."""
    position = _WEIGHTS.get(node.op, len(node.inputs))
    return _shape(model, node.inputs[position]) if position < len(node.inputs) else ()


def _shape(model: Model, name: str) -> tuple[int, ...]:
    if name in model.graph.constants:
        return tuple(model.graph.constants[name].shape)
    return model.graph.tensors[name].shape if name in model.graph.tensors else ()


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
