"""Refusal of networks in training mode: their output is drawn at random or depends on the batch."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coedge.core.errors import CaptureError
from coedge.frontend.normal_form import graphs_of

_GENERATORS = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
_ADVICE = "export the network in eval mode (module.eval())"


def refuse_randomness(proto: onnx.ModelProto, opset: int) -> None:
    """Check that the output of a network is determined by its input.

    Neighbouring devices would draw different numbers for the rows that both compute.

    Args:
        opset: version of the standard operators that the nodes are written in.

    Raises:
        CaptureError: an operator draws numbers at random or is in training mode; names it.
    """
    constants: dict[str, onnx.TensorProto] = {}
    for graph in graphs_of(proto.graph):
        constants.update({one.name: one for one in graph.initializer})
        constants.update(
            {n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"}
        )
        for node in graph.node:
            if node.domain:
                continue
            shown = f"{node.op_type} {node.name or next(iter(node.output), '')!r}"
            if node.op_type in _GENERATORS:
                raise CaptureError(
                    f"{shown} draws numbers at random, so that devices would disagree; if it is left from training, "
                    f"{_ADVICE}; else make the random numbers an input of the network"
                )
            if _trains(node, opset, constants):
                raise CaptureError(f"{shown} is in training mode; {_ADVICE}")


def _trains(node: onnx.NodeProto, opset: int, constants: dict[str, onnx.TensorProto]) -> bool:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type not in ("Dropout", "BatchNormalization"):
        return False
    if opset < 7:
        return not given.get("is_test", 0)
    if node.op_type == "BatchNormalization":
        return bool(given.get("training_mode", 0)) or (opset < 14 and len(node.output) > 1 and any(node.output[1:]))
    if opset < 12 or len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    # A mode that is computed may be either.
    return mode is None or bool(np.any(numpy_helper.to_array(mode)))
