"""Layers: the runs of nodes that plans are made of.

A layer begins at an operator that costs something (convolution, pooling, dense, a whole operator) or that
waits for everybody (combine, or all features of a dense layer), and takes along the cheap operators that follow
it. A stage is a run of layers.

    MaxPool | Reshape Gemm Relu | Gemm Relu | Gemm | Softmax      what makes an image the input of a dense layer
                                                                  belongs to that layer
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coedge.graph.axis_map import Whole
from coedge.graph.graph import Graph, Node, Tensor
from coedge.graph.quantised import DEQUANTISE, QUANTISE
from coedge.graph.rules import Rule


@dataclass(frozen=True, slots=True)
class Layer:
    """Nodes [first, stop) of the graph.

    Attributes:
        name: of the node that gives the layer its cost.
        tensor: the activation whose rows measure how much of the layer a device computes.
        splittable: several devices can each compute a part of the rows of an image. Otherwise one device should
            take it, unless it is split `by_features`.
        by_features: several devices can each compute a part of a dense layer's output features, which are its
            rows. Each needs the whole input, and only its part of the weights.
    """

    index: int
    first: int
    stop: int
    name: str
    op: str
    tensor: str
    rows: int
    cols: int
    splittable: bool
    by_features: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """A position between two layers, with the tensors that are alive there.

    Attributes:
        layer: the cut lies before this layer.
        tensors: names of the activations that were made before the cut and are needed after it.
        nbytes: their total size.
    """

    layer: int
    tensors: tuple[str, ...]
    nbytes: int


_ANCHORS = frozenset(
    (
        "Conv", "ConvInteger", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Gemm", "MatMul",
        "MatMulInteger", "QLinearConv", "Resize", "Upsample",
    )
)  # fmt: skip
# What may make the vector of an image that a dense layer reads.
_MOVES = frozenset(
    (
        "Cast", DEQUANTISE, "Dropout", "Flatten", "Identity", QUANTISE, "Reshape", "Squeeze",
        "Transpose", "Unsqueeze",
    )
)  # fmt: skip


def make_layers(graph: Graph, rules: tuple[Rule, ...]) -> tuple[Layer, ...]:
    starts = [0]
    costs_already = False
    heads = {node.index: _head(graph, rules, node.index) for node in graph.nodes if rules[node.index].kind == "dense"}
    moved = {index for node, head in heads.items() for index in range(head, node)}
    features = _Features(graph, rules)
    for node, rule in zip(graph.nodes, rules):
        gathers = features.gathered_by(node)
        if node.index not in moved and (_begins(graph, node, rule) or gathers):
            start = head = heads.get(node.index, node.index)
            # A dequantisation belongs to the operator that reads it, so that 8-bit values are what travels.
            while start - 1 > starts[-1] and _is_dequantised_for(graph, start - 1, graph.nodes[head]):
                start -= 1
            alone = costs_already or rule.kind == "combine" or _quantises_images(graph, start)
            if alone and start > starts[-1]:
                starts.append(start)
                features.clear()
            costs_already = True
        features.add(node)
    bounds = [*starts, len(graph.nodes)]
    return tuple(
        _layer(index, first, stop, graph, rules) for index, (first, stop) in enumerate(zip(bounds, bounds[1:]))
    )


def _begins(graph: Graph, node: Node, rule: Rule) -> bool:
    if rule.kind in ("combine", "whole"):
        return True
    if node.op in _ANCHORS:
        # A 1x1 convolution of one pixel, as in a squeeze-and-excite block, is nobody's stage.
        return rule.kind != "pixel" or node.op in ("Gemm", "MatMul") or _made(graph, node).spatial
    return False


def _made(graph: Graph, node: Node) -> Tensor:
    """The first output that is not left out."""
    return next(graph.tensors[name] for name in node.outputs if name)


def _is_dequantised_for(graph: Graph, position: int, node: Node) -> bool:
    made = graph.nodes[position]
    return made.op == DEQUANTISE and set(made.outputs) <= set(node.inputs)


def _quantises_images(graph: Graph, stop: int) -> bool:
    """Whether nodes [0, stop) make 8-bit images of larger ones: a layer of their own, for who has the images."""
    wide = any(np.dtype(graph.tensors[name].dtype).itemsize > 1 for name in graph.inputs)
    return wide and stop > 0 and graph.nodes[stop - 1].op == QUANTISE


def _head(graph: Graph, rules: tuple[Rule, ...], dense: int) -> int:
    """The first of the nodes right before a dense one that only bring what they gather into the shape of its input.

    Itself, if nothing is gathered but by itself.
    """
    head = first = dense
    while first > 0:
        made = graph.nodes[first - 1]
        if made.op not in _MOVES or rules[made.index].kind not in ("whole", "pixel"):
            break
        if not set(made.outputs) & set(graph.nodes[first].inputs):
            break
        first -= 1
        if rules[first].kind == "whole" or _gathered(graph, rules[first]):
            head = first
    return head


def _gathered(graph: Graph, rule: Rule) -> set[str]:
    """The inputs of which a node reads all features."""
    tensors = {name: graph.tensors[name] for name, (rows, _) in rule.maps.items() if isinstance(rows, Whole)}
    return {name for name, tensor in tensors.items() if tensor.features and tensor.divisible}


class _Features:
    """The features that the dense nodes of a layer make, while its nodes are gone through in order."""

    def __init__(self, graph: Graph, rules: tuple[Rule, ...]) -> None:
        self._graph, self._rules = graph, rules
        self._made: set[str] = set()

    def gathered_by(self, node: Node) -> bool:
        """Whether a node that works on one pixel reads all of such features: whoever runs it waits for them."""
        if _made(self._graph, node).spatial:
            return False
        return bool(self._made & _gathered(self._graph, self._rules[node.index]))

    def add(self, node: Node) -> None:
        rule = self._rules[node.index]
        if rule.kind == "dense" or (rule.features and self._made & rule.maps.keys()):
            self._made.update(node.outputs)

    def clear(self) -> None:
        self._made.clear()


def _layer(index: int, first: int, stop: int, graph: Graph, rules: tuple[Rule, ...]) -> Layer:
    nodes = graph.nodes[first:stop]
    real = [n for n in nodes if rules[n.index].kind != "partial" and n.op != DEQUANTISE] or list(nodes)
    anchors = [n for n in real if _begins(graph, n, rules[n.index])]
    # The combine that opens a layer works on one pixel; what the layer costs lies behind it.
    main = next((n for n in anchors if _made(graph, n).spatial), max(real, key=lambda n: _weight(graph, rules, n)))
    tensor = _made(graph, main)
    splittable = tensor.spatial and not any(rules[n.index].kind == "whole" for n in nodes)
    return Layer(
        index, first, stop, main.name, main.op, tensor.name, tensor.rows, tensor.cols, splittable,
        by_features=rules[main.index].kind == "dense" and tensor.divisible,
    )  # fmt: skip


def _weight(graph: Graph, rules: tuple[Rule, ...], node: Node) -> tuple[int, bool]:
    """What a layer is about: the largest image, or else the dense node."""
    made = _made(graph, node)
    return made.whole.area if made.spatial else 1, rules[node.index].kind == "dense"


def make_cuts(graph: Graph, layers: tuple[Layer, ...]) -> tuple[Cut, ...]:
    made_at = dict.fromkeys(graph.inputs, -1)
    last_use: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.outputs:
            made_at[name] = node.index
        for name in graph.activations(node):
            last_use[name] = node.index
    for name in graph.outputs:
        last_use[name] = len(graph.nodes)
    cuts = []
    for layer in layers:
        alive = tuple(n for n, made in made_at.items() if made < layer.first <= last_use.get(n, -1))
        nbytes = sum(graph.tensors[n].region_nbytes(graph.tensors[n].whole) for n in alive)
        cuts.append(Cut(layer.index, alive, nbytes))
    return tuple(cuts)
