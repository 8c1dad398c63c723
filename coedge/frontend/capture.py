"""Capture of a network (torch module, exported program or ONNX file) as a `Model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from coedge.core.errors import CaptureError, CoEdgeError, innermost_message, reason_of
from coedge.frontend.agreement import TorchReference, check_conversion
from coedge.frontend.example import example_arrays
from coedge.frontend.input_shapes import check_inputs, set_shapes
from coedge.frontend.normal_form import normal_form
from coedge.frontend.opset import at_current_opset, opset_of, refuse_newer
from coedge.frontend.randomness import refuse_randomness
from coedge.frontend.simplify import simplify
from coedge.frontend.torch_export import Exported, export_module, export_program, load_program, load_torch
from coedge.frontend.trial_run import example_feeds
from coedge.graph.analysis import model_from_proto
from coedge.graph.model import Model


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
    arrays = example_arrays(example)
    read = _from_file if isinstance(model, (str, Path)) else _from_object
    exported, default_name = read(model, example)
    return capture_proto(exported.proto, name or default_name, arrays, exported.structure, exported.reference)


def capture_proto(
    proto: onnx.ModelProto,
    name: str,
    example: tuple[np.ndarray, ...] = (),
    structure: str | None = None,
    reference: TorchReference | None = None,
) -> Model:
    """Convert an ONNX model: normal form, current opset, shapes of the example, simplified, run once, analysed.

    Args:
        reference: the network in torch. The outputs of the run are compared with its outputs.

    Raises:
        CaptureError: see `capture`.
    """
    try:
        return _captured(proto, name, example, structure, reference)
    except CoEdgeError:
        raise
    except Exception as error:  # onnx and protobuf raise errors of many types for files that are not valid
        raise CaptureError(f"{name} is not a valid ONNX model: {innermost_message(error)}") from error


def _captured(
    given: onnx.ModelProto,
    name: str,
    example: tuple[np.ndarray, ...],
    structure: str | None,
    reference: TorchReference | None,
) -> Model:
    written = normal_form(given)
    if not written.graph.node:
        raise CaptureError(f"{name}: nothing is computed from the inputs")
    refuse_newer(written)
    refuse_randomness(written, opset_of(written))
    set_shapes(written, example)
    check_inputs(written)
    proto = at_current_opset(written)
    feeds = example_feeds(proto, example)
    simplified = simplify(proto, feeds)
    graph = simplified.proto.graph
    constant = {i.name for i in graph.initializer}
    for output in graph.output:
        if output.name in constant:
            raise CaptureError(f"{name}: output {output.name!r} does not depend on the inputs; leave it out")
    if proto is not written:
        check_conversion(written, feeds, simplified.outputs)
    if reference is not None:
        reference.check(feeds, simplified.outputs)
    return model_from_proto(
        simplified.proto, name, weights=simplified.weights, shapes=simplified.shapes, dtypes=simplified.dtypes,
        dynamic=simplified.dynamic, structure=structure, original=proto,
    )  # fmt: skip


def _from_file(path: str | Path, example: Any) -> tuple[Exported, str]:
    """Return the ONNX graph of a file, and a name. The example is not needed."""
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {reason_of(error)}"
        raise CaptureError(f"{path!s:.200} {reason}") from error
    if path.suffix == ".onnx":
        return Exported(_load_onnx(path)), path.stem
    if path.suffix == ".pt2":
        return export_program(load_program(path)), path.stem
    raise CaptureError(f"{path}: expected a .onnx or .pt2 file, not {path.suffix or 'one without a suffix'}")


def _from_object(model: Any, example: Any) -> tuple[Exported, str]:
    """Return the ONNX graph of a module, a program or an ONNX model, and a name."""
    if isinstance(model, onnx.ModelProto):
        return Exported(model), model.graph.name or "model"
    torch = load_torch()
    if isinstance(model, torch.nn.Module):
        return export_module(model, example), type(model).__name__
    if isinstance(model, torch.export.ExportedProgram):
        return export_program(model), "program"
    raise CaptureError(
        f"cannot capture a {type(model).__name__}: give a torch.nn.Module, a torch.export program, "
        "or the path of an .onnx or .pt2 file"
    )


def _load_onnx(path: Path) -> onnx.ModelProto:
    if not path.stat().st_size:
        raise CaptureError(f"{path} is empty; export the model again, or copy the file again")
    try:
        proto = onnx.load(str(path))
    except Exception as error:
        raise CaptureError(f"{path} cannot be read as ONNX: {innermost_message(error)}") from error
    if not proto.HasField("graph"):
        raise CaptureError(f"{path} is not an ONNX model: it has no graph")
    return proto
