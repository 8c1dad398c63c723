"""One form for ONNX graphs of any age: what old files and exporters write differently is made the same.

initialisers        are no inputs of the graph (files of IR version 3 list them among its inputs), and are read
local functions     are replaced by their nodes
standard operators  have the empty domain, whose other name is `ai.onnx`
names               do not begin with `coedge.`, which marks the names that this package makes; those of nodes are
                    distinct in each graph
IR version          at least the one that the operator sets need
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx import helper

from coedge.graph.graph import fresh_name, inner_graphs, make_names_distinct
from coedge.graph.large_weights import without_initializers

# The mark of names that this package makes: of nodes, where a region rule reads it, and of constants.
RESERVED = "coedge."
RENAMED = "model."
STANDARD = "ai.onnx"


def normal_form(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in normal form. The model itself stays as it is.

    A default value of an input (an initialiser of the same name) becomes a constant.
    """
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    made = without_initializers(proto, ())
    graph = made.graph
    read = {name for inner in graphs_of(graph) for node in inner.node for name in node.input}
    read |= {output.name for output in graph.output}
    _keep(graph.initializer, lambda one: one.name in read)
    constant = {one.name for one in graph.initializer} | {one.values.name for one in graph.sparse_initializer}
    given = {one.name for one in proto.graph.initializer} | constant
    _keep(graph.input, lambda one: one.name not in given)
    for inner in graphs_of(graph):
        for node in inner.node:
            node.domain = "" if node.domain == STANDARD else node.domain
    for one in made.opset_import:
        one.domain = "" if one.domain == STANDARD else one.domain
    _rename(graph)
    for inner in graphs_of(graph):
        make_names_distinct(inner.node)
    # Versions below 4 demand initialisers among the inputs.
    made.ir_version = max(made.ir_version, helper.find_min_ir_version_for(made.opset_import, ignore_unknown=True), 4)
    return made


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside its nodes, such as the branches of an If."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs_of(inner)


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    kept = [one for one in items if wanted(one)]
    if len(kept) < len(items):
        del items[:]
        items.extend(kept)


def _rename(graph: onnx.GraphProto) -> None:
    """Rename nodes and inner values whose names begin as this package's do. Inputs and outputs keep their names."""
    public = {value.name for value in (*graph.input, *graph.output)}
    present = {name for inner in graphs_of(graph) for name in _names(inner)} | public
    new: dict[str, str] = {}
    for name in sorted(present - public):
        if name.startswith(RESERVED):
            new[name] = fresh_name(RENAMED + name, present)
            present.add(new[name])
    for inner in graphs_of(graph):
        for node in inner.node:
            if node.name.startswith(RESERVED):
                node.name = RENAMED + node.name
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name in new:
                        names[position] = new[name]
        for value in (*inner.initializer, *inner.value_info, *inner.input, *inner.output):
            value.name = new.get(value.name, value.name)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        yield from node.output
    for value in (*graph.initializer, *graph.input, *graph.output):
        yield value.name
