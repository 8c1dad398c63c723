"""One version of the standard operators: older models are converted, so that generated nodes have one form.

Nodes that tiles and rewrites generate (Slice, Pad, Split, reductions, ...) have the form of `OPSET`, which holds in
every later version too.
"""

from __future__ import annotations

import math
import re

import onnx
from onnx import helper, version_converter

from coedge.core.errors import CaptureError, innermost_message
from coedge.frontend.normal_form import STANDARD, graphs_of
from coedge.graph.large_weights import remove_inputs, with_inputs

OPSET = 18
# Initialisers with more elements than this are not given to the converter. Those that operators read as arguments
# (shapes, scales, axes) are smaller.
_KEPT_ELEMENTS = 1024


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model in normal form declares."""
    return next((int(one.version) for one in proto.opset_import if not one.domain), 1)


def refuse_newer(proto: onnx.ModelProto) -> None:
    """Check that the installed onnx knows the versions that a model in normal form declares.

    Raises:
        CaptureError: one is newer; names it, and the way out.
    """
    newest, version = onnx.defs.onnx_opset_version(), opset_of(proto)
    if version > newest:
        raise CaptureError(_newer(f"opset {version}", f"onnx {onnx.__version__}", str(newest)))
    if version < 1:
        raise CaptureError(f"the model is of opset {version}, which does not exist; export the model again")
    if proto.ir_version > onnx.IR_VERSION:
        raise CaptureError(_newer(f"IR version {proto.ir_version}", f"onnx {onnx.__version__}", str(onnx.IR_VERSION)))


def newer_than_runtime(message: str) -> str | None:
    """Return a message for ONNX Runtime's refusal of a version. None: the refusal is about something else."""
    import onnxruntime

    installed = f"onnxruntime {onnxruntime.__version__}"
    found = re.search(r"IR version: (\d+), max supported IR version: (\d+)", message)
    if found:
        return _newer(f"IR version {found[1]}", installed, found[2])
    found = re.search(r"Opset (\d+) is under development.* for domain (\S+) is till opset (\d+)", message, re.DOTALL)
    if found:
        domain = "" if found[2] == STANDARD else f" of {found[2]}"
        return _newer(f"opset {found[1]}{domain}", installed, found[3])
    return None


def _newer(version: str, installed: str, newest: str) -> str:
    return (
        f"the model is of {version}, newer than the installed {installed} takes (up to {newest}); upgrade: pip install "
        f"--upgrade onnx onnxruntime, or export the model again with an older version"
    )


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
    heavy = {i.name for i in proto.graph.initializer if math.prod(i.dims) > _KEPT_ELEMENTS}
    light = with_inputs(proto, heavy)
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
    remove_inputs(converted, heavy)
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
