"""Capture of a network (torch module, exported program or ONNX file) as a `Model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from coedge.core.errors import CaptureError, innermost_message
from coedge.core.values import as_arrays
from coedge.graph.analysis import model_from_proto
from coedge.graph.input_shapes import check_inputs, with_shapes
from coedge.graph.model import Model
from coedge.graph.simplify import simplify
from coedge.graph.torch_export import export_module, export_program, load_program, load_torch


def capture(model: Any, example: Any = None, name: str | None = None) -> Model:
    """Convert a network to a graph with static shapes that can be planned and split.

    Args:
        model: a `torch.nn.Module` (taken in eval mode), a `torch.export.ExportedProgram`, or a path to a
            `.pt2` or `.onnx` file (with or without external data).
        example: the input, or a tuple of inputs, with the shapes to run at: [N, C, H, W], float32 or uint8,
            tensors or arrays. A program or an ONNX file with static shapes needs none.
        name: shown to users. By default the name of the class or of the file.

    Raises:
        CaptureError: the model does not export, or its inputs are not what a split needs. The message
            quotes the operator or the line.
    """
    read = _from_file if isinstance(model, (str, Path)) else _from_object
    proto, structure, default_name = read(model, example)
    return capture_proto(proto, name or default_name, as_arrays(example), structure)


def capture_proto(
    proto: onnx.ModelProto, name: str, example: tuple[np.ndarray, ...] = (), structure: str | None = None
) -> Model:
    """Convert an ONNX model: take shapes from the example, simplify with ONNX Runtime, analyse.

    Raises:
        CaptureError: see `capture`.
    """
    proto = with_shapes(proto, example)
    check_inputs(proto)
    simplified = simplify(proto)
    graph = simplified.proto.graph
    if not graph.node:
        raise CaptureError(f"{name}: nothing is computed from the inputs")
    constant = {i.name for i in graph.initializer}
    for output in graph.output:
        if output.name in constant:
            raise CaptureError(f"{name}: output {output.name!r} does not depend on the inputs; leave it out")
    return model_from_proto(
        simplified.proto, name, weights=simplified.weights, shapes=simplified.shapes, dtypes=simplified.dtypes,
        structure=structure, original=proto,
    )  # fmt: skip


def _from_file(path: str | Path, example: Any) -> tuple[onnx.ModelProto, str | None, str]:
    """Return (ONNX graph, structure of the outputs, name) of a file. The example is not needed."""
    path = Path(path)
    if not path.exists():
        raise CaptureError(f"{path} does not exist")
    if path.suffix == ".onnx":
        return _load_onnx(path), None, path.stem
    if path.suffix == ".pt2":
        return *export_program(load_program(path)), path.stem
    raise CaptureError(f"{path}: expected a .onnx or .pt2 file, not {path.suffix or 'one without a suffix'}")


def _from_object(model: Any, example: Any) -> tuple[onnx.ModelProto, str | None, str]:
    """Return (ONNX graph, structure of the outputs, name) of a module, a program or an ONNX model."""
    if isinstance(model, onnx.ModelProto):
        return model, None, model.graph.name or "model"
    torch = load_torch()
    if isinstance(model, torch.nn.Module):
        return *export_module(model, example), type(model).__name__
    if isinstance(model, torch.export.ExportedProgram):
        return *export_program(model), "program"
    raise CaptureError(
        f"cannot capture a {type(model).__name__}: give a torch.nn.Module, a torch.export program, "
        "or the path of an .onnx or .pt2 file"
    )


def _load_onnx(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path))
    except Exception as error:
        raise CaptureError(f"{path} cannot be read as ONNX: {innermost_message(error)}") from error
