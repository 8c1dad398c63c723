"""Inputs of an ONNX graph: checks that they are images, and static shapes taken from an example."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from coedge.core.errors import CaptureError, DynamicShape

_DTYPES = ("float32", "uint8")


def check_input(label: str, shape: tuple[int, ...], dtype: str, remedy: str = "") -> None:
    """Check that an input is a batch of images.

    Args:
        remedy: what to do about another dtype.

    Raises:
        CaptureError: the input does not have four dimensions, is empty, or is neither float32 nor uint8.
    """
    if len(shape) != 4:
        raise CaptureError(
            f"input {label!r} has {len(shape)} dimensions, {list(shape)}; a split needs images: [N, C, H, W]"
        )
    if dtype not in _DTYPES:
        raise CaptureError(f"input {label!r} is {dtype}; inputs are float32 or uint8{remedy}")
    if any(extent < 1 for extent in shape):
        raise CaptureError(f"input {label!r} is empty: {list(shape)}")


def check_inputs(proto: onnx.ModelProto) -> None:
    """Check that the inputs of a graph are images of static shape.

    Raises:
        DynamicShape: an input has a dynamic dimension.
        CaptureError: there is no input, or one is no batch of images.
    """
    if not proto.graph.input:
        raise CaptureError("the model has no inputs: it computes the same for every image")
    for value in proto.graph.input:
        if value.type.WhichOneof("value") != "tensor_type":
            raise CaptureError(f"input {value.name!r} is not a tensor; inputs are images: [N, C, H, W]")
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            raise DynamicShape(
                f"input {value.name!r} states no shape; give an example of the shape to run at: "
                "coedge.capture(path, example)"
            )
        dims = kind.shape.dim
        unknown = [d.dim_param or "?" for d in dims if _extent(d) is None]
        if unknown:
            raise DynamicShape(
                f"input {value.name!r} has a dynamic dimension ({', '.join(unknown)}); "
                "give an example of the shape to run at: coedge.capture(path, example)"
            )
        check_input(value.name, tuple(d.dim_value for d in dims), str(_dtype(value)))


def set_shapes(proto: onnx.ModelProto, example: tuple[np.ndarray, ...]) -> None:
    """Give the inputs of a model the shapes of the example. Without an example, they stay as they are.

    Raises:
        CaptureError: the example does not fit the inputs: number, dtype or static dimensions.
    """
    if not example:
        return
    if not proto.graph.input:
        raise CaptureError("the model has no inputs: it computes the same for every image")
    inputs = proto.graph.input
    if len(inputs) != len(example):
        raise CaptureError(
            f"the model takes {len(inputs)} inputs ({', '.join(i.name for i in inputs)}), the example has "
            f"{len(example)}; give a tuple with one array for each"
        )
    for value, array in zip(inputs, example):
        kind = value.type.tensor_type
        dtype = _dtype(value)
        if array.dtype != dtype:
            raise CaptureError(f"input {value.name!r} of the model is {dtype}, the example is {array.dtype}")
        given = [_extent(d) for d in kind.shape.dim]
        fits = len(given) == array.ndim and all(g in (None, e) for g, e in zip(given, array.shape))
        if kind.HasField("shape") and not fits:
            shown = [g if g is not None else "?" for g in given]
            raise CaptureError(
                f"input {value.name!r} of the model has shape {shown}, the example has {list(array.shape)}"
            )
        del kind.shape.dim[:]
        for extent in array.shape:
            kind.shape.dim.add().dim_value = extent
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")


def _extent(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """Return the extent of a dimension. None: it is dynamic, which some exporters write as -1 or 0."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None


def _dtype(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    kind = value.type.tensor_type.elem_type
    if not kind:
        raise CaptureError(f"input {value.name!r} states no type; inputs are float32 or uint8")
    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    return dtype
