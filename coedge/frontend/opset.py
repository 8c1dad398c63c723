"""One version of the standard operators: older models are converted, so that generated nodes have one form.

Nodes that tiles and rewrites generate (Slice, Pad, Split, reductions, ...) have the form of `OPSET`, which holds in
every later version too.
"""

from __future__ import annotations

import re

import onnx
from onnx import helper, version_converter

from coedge.core.errors import CaptureError, innermost_message
from coedge.frontend.normal_form import graphs_of
from coedge.graph.large_weights import without_initializers

OPSET = 18
# Initialisers with more elements than this are not given to the converter. Those that operators read as arguments
# (shapes, scales, axes) are smaller.
_KEPT_ELEMENTS = 1024


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model in normal form declares."""
    return next((int(one.version) for one in proto.opset_import if not one.domain), 1)


def at_current_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with standard operators of version `OPSET` or later.

    Args:
        proto: in normal form.

    Raises:
        CaptureError: an operator cannot be converted; names it.
    """
    version = opset_of(proto)
    if version >= OPSET:
        return proto
    heavy = {i.name for i in proto.graph.initializer if _elements(i) > _KEPT_ELEMENTS}
    light = without_initializers(proto, heavy)
    light.graph.input.extend(
        helper.make_tensor_value_info(i.name, i.data_type, list(i.dims))
        for i in proto.graph.initializer
        if i.name in heavy
    )
    # Shapes that a file states may be wrong, and the converter uses them.
    del light.graph.value_info[:]
    try:
        converted = version_converter.convert_version(light, OPSET)
    except Exception as error:
        operator = _operator(str(error), light)
        raise CaptureError(
            f"the model is of opset {version}, and its operator {operator} cannot be converted to opset {OPSET}; "
            f"export the model again with opset {OPSET} or later"
        ) from error
    kept = [value for value in converted.graph.input if value.name not in heavy]
    del converted.graph.input[:]
    converted.graph.input.extend(kept)
    converted.graph.initializer.extend(i for i in proto.graph.initializer if i.name in heavy)
    if version < 11:
        _as_before_opset_11(converted)
    converted.ir_version = max(proto.ir_version, helper.find_min_ir_version_for(converted.opset_import, True))
    return converted


def _as_before_opset_11(proto: onnx.ModelProto) -> None:
    """Give Resize nodes the coordinates of Upsample and of Resize 10, which the converter leaves out."""
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            if node.op_type == "Resize" and not node.domain:
                present = {attribute.name for attribute in node.attribute}
                for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                    if name not in present:
                        node.attribute.append(helper.make_attribute(name, value))


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for extent in tensor.dims:
        count *= extent
    return count


def _operator(message: str, proto: onnx.ModelProto) -> str:
    """Return the operator that a message of the converter is about.

    Its adapters are named after operator and versions, such as `scan_8_9`.
    """
    present = sorted({node.op_type for graph in graphs_of(proto.graph) for node in graph.node}, key=len, reverse=True)
    words = set(re.split(r"[^a-z0-9]+", message.lower()))
    for name in present:
        if re.search(rf"\b{re.escape(name)}(?![a-z])", message) or name.lower() in words:
            return repr(name)
    return f"({innermost_message(Exception(message))})"
