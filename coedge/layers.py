"""Layers: the runs of nodes that plans are made of.

A layer begins at an operator that costs something (convolution, pooling, dense, a whole operator) or that
waits for everybody (combine), and takes along the cheap operators that follow it. A stage is a run of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from coedge.graph import Graph, Node, Tensor
from coedge.rules import Rule


@dataclass(frozen=True, slots=True)
class Layer:
    """Nodes [first, stop) of the graph.

    Attributes:
        name: of the node that gives the layer its cost.
        tensor: the activation whose rows measure how much of the layer a device computes.
        splittable: several devices can each compute a part. Otherwise one device should take it.
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


def make_layers(graph: Graph, rules: tuple[Rule, ...]) -> tuple[Layer, ...]:
    starts = [0]
    costs_already = False
    for node, rule in zip(graph.nodes, rules):
        if not _begins(graph, node, rule):
            continue
        if costs_already or rule.kind == "combine":
            start = node.index
            # A dequantisation belongs to the operator that reads it, so that 8-bit values are what travels.
            while start - 1 > starts[-1] and _feeds_only(graph, start - 1, node):
                start -= 1
            if start > starts[-1]:
                starts.append(start)
        costs_already = True
    bounds = [*starts, len(graph.nodes)]
    return tuple(
        _layer(index, first, stop, graph, rules) for index, (first, stop) in enumerate(zip(bounds, bounds[1:]))
    )


def _begins(graph: Graph, node: Node, rule: Rule) -> bool:
    if rule.kind in ("combine", "whole"):
        return True
    if node.op in _ANCHORS:
        # A 1x1 convolution of one pixel, as in a squeeze-and-excite block, is nobody's stage.
        return rule.kind != "dense" or node.op in ("Gemm", "MatMul") or _made(graph, node).spatial
    return False


def _made(graph: Graph, node: Node) -> Tensor:
    """The first output that is not left out."""
    return next(graph.tensors[name] for name in node.outputs if name)


def _feeds_only(graph: Graph, position: int, node: Node) -> bool:
    made = graph.nodes[position]
    return made.op == "DequantizeLinear" and set(made.outputs) <= set(node.inputs)


def _layer(index: int, first: int, stop: int, graph: Graph, rules: tuple[Rule, ...]) -> Layer:
    nodes = graph.nodes[first:stop]
    real = [n for n in nodes if rules[n.index].kind != "partial"] or list(nodes)
    anchors = [n for n in real if _begins(graph, n, rules[n.index])]
    # The combine that opens a layer works on one pixel; what the layer costs lies behind it.
    main = next(
        (n for n in anchors if _made(graph, n).spatial),
        max(real, key=lambda n: _made(graph, n).whole.area),
    )
    tensor = _made(graph, main)
    splittable = tensor.spatial and not any(rules[n.index].kind == "whole" for n in nodes)
    return Layer(index, first, stop, main.name, main.op, tensor.name, tensor.rows, tensor.cols, splittable)


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
