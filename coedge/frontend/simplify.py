"""Simplification of an ONNX graph by ONNX Runtime: constants folded, batch norms fused, all shapes known."""

from __future__ import annotations

import contextlib
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coedge.core.errors import CaptureError, innermost_message
from coedge.graph.large_weights import LARGE_ELEMENTS, stub, without_initializers
from coedge.graph.quantised import tighten

# This optimiser turns a channels-last MatMul into a Gemm with one row per pixel, and no layer behind it could be split.
FLATTENS_ROWS = "MatMulAddFusion"


class Simplified(NamedTuple):
    """A simplified graph.

    Attributes:
        weights: values of the initialisers that are marked as external.
        shapes, dtypes: of activations whose shapes are not in the proto, or are wrong there.
    """

    proto: onnx.ModelProto
    weights: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


def simplify(proto: onnx.ModelProto) -> Simplified:
    """Apply the basic optimisations of ONNX Runtime, which leave standard operators only.

    Shapes that shape inference does not find are read off one run on zeros.

    Raises:
        CaptureError: ONNX Runtime refuses the model.
    """
    light, heavy = _without_dense_weights(proto)
    optimised = _optimised(light)
    tighten(optimised)
    with contextlib.suppress(Exception):
        optimised = onnx.shape_inference.infer_shapes(optimised)
    if any(_inferred_wrongly(node, optimised) for node in optimised.graph.node):
        unknown = [name for node in optimised.graph.node for name in node.output if name]
    else:
        unknown = _without_shape(optimised)
    shapes, dtypes = _observe(optimised, unknown) if unknown else ({}, {})
    return Simplified(optimised, _put_back(optimised, heavy), shapes, dtypes)


def _optimised(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(
                proto.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=[FLATTENS_ROWS],
            )
        except Exception as error:
            raise CaptureError(f"ONNX Runtime does not take the model: {innermost_message(error)}") from error
        return onnx.load(str(target))


def _without_dense_weights(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return the model with the large weights of dense layers as inputs, and those weights.

    Nothing in them can be simplified, and passing hundreds of megabytes to ONNX Runtime and back takes seconds.
    """
    read_by: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            read_by.setdefault(name, set()).add(node.op_type)
    returned = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
    heavy = [
        i
        for i in proto.graph.initializer
        if read_by.get(i.name, set()) <= {"Gemm", "MatMul"}
        and i.name not in returned
        and math.prod(i.dims) > LARGE_ELEMENTS
    ]
    if not heavy:
        return proto, []
    light = without_initializers(proto, {i.name for i in heavy})
    light.graph.input.extend(helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in heavy)
    return light, heavy


def _put_back(proto: onnx.ModelProto, heavy: list[onnx.TensorProto]) -> dict[str, np.ndarray]:
    """Turn the inputs that stand for weights into constants again, and return the values, which stay outside."""
    names = {i.name for i in heavy}
    inputs = [i for i in proto.graph.input if i.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.graph.initializer.extend(stub(i.name, i.data_type, i.dims) for i in heavy)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in heavy}


def _inferred_wrongly(node: onnx.NodeProto, proto: onnx.ModelProto) -> bool:
    """Return whether shape inference and kernel may disagree about the output of a node.

    They may for pooling with a last window that begins beyond the end, for dilated pooling under SAME, for transposed
    convolution to a given shape, and for resizing by a factor such as 2.1, where 10 rows become 20 or 21.
    """
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type.endswith("Pool"):
        dilated = any(d > 1 for d in given.get("dilations", ()))
        same = given.get("auto_pad", b"NOTSET").startswith(b"SAME")
        return bool(given.get("ceil_mode", 0)) or (dilated and same)
    if node.op_type == "Resize" and len(node.input) > 2:
        scales = [numpy_helper.to_array(i) for i in proto.graph.initializer if i.name == node.input[2]]
        return any((values != np.round(values)).any() for values in scales)
    return node.op_type == "ConvTranspose" and "output_shape" in given


def _without_shape(proto: onnx.ModelProto) -> list[str]:
    known = {
        info.name
        for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
        if info.type.tensor_type.HasField("shape")
        and all(d.HasField("dim_value") for d in info.type.tensor_type.shape.dim)
    }
    return [o for node in proto.graph.node for o in node.output if o and o not in known]


def _observe(proto: onnx.ModelProto, names: list[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shapes and dtypes that these values have in a run on zeros."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    present = {o.name for o in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(uint8)": np.uint8}
    feeds = {i.name: np.zeros(i.shape, kinds.get(i.type, np.float32)) for i in session.get_inputs()}
    values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))
    return (
        {n: tuple(np.shape(values[n])) for n in names},
        {n: str(np.asarray(values[n]).dtype) for n in names},
    )
