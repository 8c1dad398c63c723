"""Layers: the runs of nodes that plans are made of.

A layer begins at an expensive operator (convolution, pooling, dense, a whole operator) or at one that waits for all
devices (combine, or a reader of all features of a dense layer). It includes the cheap operators that follow. A stage
is a run of layers.

    MaxPool | Reshape Gemm Relu | Gemm Relu | Gemm | Softmax      operators that reshape an image for a dense layer
                                                                  belong to that layer
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
        name: name of the most expensive node.
        tensor: the activation whose rows measure which part of the layer a device computes.
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
        "MatMulInteger", "QLinearConv", "Resize",
    )
)  # fmt: skip
# Operators that may turn an image into the vector that a dense layer reads.
_MOVES = frozenset(
    (
        "Cast", DEQUANTISE, "Dropout", "Flatten", "Identity", QUANTISE, "Reshape", "Squeeze",
        "Transpose", "Unsqueeze",
    )
)  # fmt: skip


def make_layers(graph: Graph, rules: tuple[Rule, ...]) -> tuple[Layer, ...]:
    """Return the layers of a graph, in topological order."""
    starts = [0]
    costs_already = False
    heads = {node.index: _head(graph, rules, node.index) for node in graph.nodes if rules[node.index].kind == "dense"}
    moved = {index for node, head in heads.items() for index in range(head, node)}
    features = _Features(graph, rules)
    for node, rule in zip(graph.nodes, rules):
        gathers = features.gathered_by(node)
        if node.index not in moved and (_begins(graph, node, rule) or gathers):
            start = head = heads.get(node.index, node.index)
            # A dequantisation belongs to the operator that reads it, so that 8-bit values travel.
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
        # A 1x1 convolution of one pixel, as in a squeeze-and-excite block, does not begin a layer.
        return rule.kind != "pixel" or node.op in ("Gemm", "MatMul") or _made(graph, node).spatial
    return False


def _made(graph: Graph, node: Node) -> Tensor:
    """Return the first output that is not omitted."""
    return next(graph.tensors[name] for name in node.outputs if name)


def _is_dequantised_for(graph: Graph, position: int, node: Node) -> bool:
    made = graph.nodes[position]
    return made.op == DEQUANTISE and set(made.outputs) <= set(node.inputs)


def _quantises_images(graph: Graph, stop: int) -> bool:
    """Return whether nodes [0, stop) turn the input images into 8-bit images.

    Such nodes are a layer of their own, which the source can run before anything travels.
    """
    wide = any(np.dtype(graph.tensors[name].dtype).itemsize > 1 for name in graph.inputs)
    return wide and stop > 0 and graph.nodes[stop - 1].op == QUANTISE


def _head(graph: Graph, rules: tuple[Rule, ...], dense: int) -> int:
    """Return the first node of the run before a dense node that only reshapes what it gathers.

    If no node of the run gathers anything, the dense node itself is returned.
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
    """Return the inputs of which a node reads all features."""
    tensors = {name: graph.tensors[name] for name, (rows, _) in rule.maps.items() if isinstance(rows, Whole)}
    return {name for name, tensor in tensors.items() if tensor.features and tensor.divisible}


class _Features:
    """The features that the dense nodes of a layer make, collected in a pass over its nodes."""

    def __init__(self, graph: Graph, rules: tuple[Rule, ...]) -> None:
        self._graph, self._rules = graph, rules
        self._made: set[str] = set()

    def gathered_by(self, node: Node) -> bool:
        """Return whether a node on one pixel reads all of these features, and so has to wait for all devices."""
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
    costly = [n for n in nodes if rules[n.index].kind != "partial" and n.op != DEQUANTISE] or list(nodes)
    anchors = [n for n in costly if _begins(graph, n, rules[n.index])]
    # A combine at the start of a layer works on one pixel and is cheap; the expensive nodes follow it.
    main = next((n for n in anchors if _made(graph, n).spatial), max(costly, key=lambda n: _weight(graph, rules, n)))
    tensor = _made(graph, main)
    splittable = tensor.spatial and not any(rules[n.index].kind == "whole" for n in nodes)
    return Layer(
        index, first, stop, main.name, main.op, tensor.name, tensor.rows, tensor.cols, splittable,
        by_features=rules[main.index].kind == "dense" and tensor.divisible,
    )  # fmt: skip


def _weight(graph: Graph, rules: tuple[Rule, ...], node: Node) -> tuple[int, bool]:
    """Return a sort key for the main node of a layer: the largest image first, then the dense node."""
    made = _made(graph, node)
    return made.whole.area if made.spatial else 1, rules[node.index].kind == "dense"


def make_cuts(graph: Graph, layers: tuple[Layer, ...]) -> tuple[Cut, ...]:
    """Return the cut before each layer."""
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
