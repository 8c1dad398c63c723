"""Simplification of an ONNX graph by ONNX Runtime: constants folded, batch norms fused, all shapes observed."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from coedge.core.errors import CaptureError, innermost_message
from coedge.core.onnx_session import session_options
from coedge.frontend.data_shapes import data_dependent
from coedge.frontend.opset import newer_than_runtime
from coedge.frontend.trial_run import observe
from coedge.graph.large_weights import (
    LARGE_ELEMENTS,
    MOST_NBYTES,
    initializers_nbytes,
    remove_inputs,
    session_of,
    stub,
    with_inputs,
    with_stubs,
)
from coedge.graph.quantised import tighten

# This optimiser turns a channels-last MatMul into a Gemm with one row per pixel, and no layer behind it could be split.
FLATTENS_ROWS = "MatMulAddFusion"
# Constants with more elements than this are no shapes or indices, which shape inference reads.
READ_ELEMENTS = 4096


class Simplified(NamedTuple):
    """A simplified graph.

    Attributes:
        weights: values of the initialisers that are marked as external.
        shapes, dtypes: of all activations, in the trial run.
        dynamic: names of the activations whose shapes depend on the data.
        outputs: of the trial run.
    """

    proto: onnx.ModelProto
    weights: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    dynamic: frozenset[str]
    outputs: tuple[np.ndarray, ...]


def simplify(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Simplified:
    """Apply the basic optimisations of ONNX Runtime, which leave standard operators only.

    Shapes are those of one run: shape inference and kernels disagree about some operators.

    Args:
        feeds: the inputs of the trial run, by name.

    Raises:
        CaptureError: ONNX Runtime refuses the model, or cannot run it on these inputs.
    """
    light, heavy = _without_dense_weights(proto)
    optimised = _optimised(light)
    tighten(optimised)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in heavy}
    inferred = _inferred(optimised)
    trial = observe(optimised, {**feeds, **weights})
    _put_back(optimised, heavy)
    dynamic = data_dependent(optimised, inferred)
    return Simplified(optimised, weights, trial.shapes, trial.dtypes, dynamic, trial.outputs)


def _optimised(proto: onnx.ModelProto) -> onnx.ModelProto:
    options = session_options(1, "basic")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(target)
        if initializers_nbytes(proto) > MOST_NBYTES:
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        try:
            session_of(proto, 1, options, disabled=[FLATTENS_ROWS])
        except Exception as error:
            refusal = newer_than_runtime(str(error))
            raise CaptureError(
                refusal or f"ONNX Runtime does not take the model: {innermost_message(error)}"
            ) from error
        return onnx.load(str(target))


def _inferred(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the static shapes that follow from the operators and the shapes of the inputs.

    Raises:
        CaptureError: a value is not a tensor.
    """
    # Shape inference reads small constants only. A large graph would be copied twice.
    bare = with_stubs(proto, {i.name for i in proto.graph.initializer if math.prod(i.dims) > READ_ELEMENTS})
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    with contextlib.suppress(Exception):  # what is not inferred is taken as dependent on the data where it may be
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    found = {}
    for value in (*bare.graph.value_info, *bare.graph.output):
        if value.type.WhichOneof("value") not in (None, "tensor_type"):
            raise CaptureError(f"{value.name!r} is a sequence, a map or an optional; only tensors can travel")
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    return found


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
    return with_inputs(proto, {i.name for i in heavy}), heavy


def _put_back(proto: onnx.ModelProto, heavy: list[onnx.TensorProto]) -> None:
    """Turn the inputs that stand for weights into constants again, whose values stay outside."""
    remove_inputs(proto, {i.name for i in heavy})
    proto.graph.initializer.extend(stub(i.name, i.data_type, i.dims) for i in heavy)
