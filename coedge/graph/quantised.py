"""Order of the nodes of a quantised (QDQ) network, such that 8-bit values travel at the cuts.

    Conv - QuantizeLinear  |  DequantizeLinear - Conv - QuantizeLinear  |  ...        cuts lie at |

ONNX Runtime runs the nodes between a DequantizeLinear and a QuantizeLinear as one integer operator. With these cuts
no such operator is divided between two tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from coedge.graph.graph import captured_names

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def tighten(proto: onnx.ModelProto) -> None:
    """Move each QuantizeLinear directly behind its producer, and each DequantizeLinear directly before its reader.

    A DequantizeLinear with several readers is copied for each of them.
    """
    nodes = list(proto.graph.node)
    constants = {i.name for i in proto.graph.initializer}
    fixed = {o.name for o in proto.graph.output} | {name for node in nodes for name in captured_names(node)}
    steady = [set(node.input[1:]) <= constants for node in nodes]  # the scale is constant
    late = {
        node.output[0]: node
        for node, known in zip(nodes, steady)
        if node.op_type == DEQUANTISE and known and node.output[0] not in fixed
    }
    made_by = {name: index for index, node in enumerate(nodes) for name in node.output if name not in late}
    behind: dict[int, list[int]] = {}
    for index, (node, known) in enumerate(zip(nodes, steady)):
        if node.op_type == QUANTISE and known and node.input[0] in made_by:
            behind.setdefault(made_by[node.input[0]], []).append(index)
    moved = {index for indices in behind.values() for index in indices}
    ordered: list[onnx.NodeProto] = []
    placed: set[str] = set()

    def place(index: int) -> None:
        node = nodes[index]
        for position, name in enumerate(node.input):
            if name in late:
                own = onnx.NodeProto()
                own.CopyFrom(late[name])
                if name in placed:
                    node.input[position] = own.output[0] = f"{name}/{node.output[0]}.{position}"
                    own.name = f"{own.name}/{node.output[0]}.{position}"
                placed.add(name)
                ordered.append(own)
        ordered.append(node)
        for following in behind.get(index, ()):
            place(following)

    for index, node in enumerate(nodes):
        if index not in moved and not (node.op_type == DEQUANTISE and node.output[0] in late):
            place(index)
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)


def rounded_later(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Return the names of the values that some later QuantizeLinear depends on."""
    names: set[str] = set()
    for node in reversed(nodes):
        if node.op_type == QUANTISE or names.intersection(node.output):
            names.update(node.input)
    return names
