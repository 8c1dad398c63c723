"""Export of torch modules and programs to ONNX. torch is imported when it is first needed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from coedge.core.errors import CaptureError, innermost_message
from coedge.core.silence import silenced
from coedge.core.values import as_arrays
from coedge.frontend.agreement import TorchReference
from coedge.frontend.example import check_call
from coedge.frontend.input_shapes import check_input

# The exporter, and its loggers. Its errors come back as exceptions.
PACKAGES = ("torch", "onnxscript", "onnx_ir", "onnx")
LOGGERS = (
    *("torch.onnx", "torch.export", "torch._export", "torch.fx", "torch._dynamo", "torch._functorch"),
    *("torch._subclasses", "torch._decomp", "onnxscript", "onnx_ir"),
)
# Arguments of torch's operators that select training: of dropout and of batch normalisation.
TRAINING_FLAGS = ("train", "training", "dropout_p")


class Exported(NamedTuple):
    """A network as ONNX.

    Attributes:
        structure: of the outputs, see `Model.structure`. None where torch cannot write it down.
        reference: the program that it was exported from; None for a file.
    """

    proto: onnx.ModelProto
    structure: str | None = None
    reference: TorchReference | None = None


def load_torch() -> Any:
    """Import torch.

    Raises:
        CaptureError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise CaptureError(
            "capturing a module needs torch, which is not installed here: pip install 'coedge[full]'"
        ) from None
    return torch


def export_module(module: Any, example: Any) -> Exported:
    """Export a module in eval mode; its training flags are restored afterwards.

    Raises:
        CaptureError: the example is missing or is no image, `forward` takes something else, or the module does not
            export.
    """
    torch = load_torch()
    if example is None:
        raise CaptureError("capturing a module needs an example input: coedge.capture(module, example)")
    values = example if isinstance(example, (tuple, list)) else (example,)
    values = tuple(as_arrays(v)[0] if isinstance(v, np.ndarray) else v for v in values)
    for value in values:
        dtype = str(value.dtype).removeprefix("torch.")
        check_input("example", tuple(value.shape), dtype, "; convert it: x.float(), x.astype('float32')")
    check_call(module, len(values))
    # torch does not read negative strides.
    tensors = tuple(torch.from_numpy(np.array(v, order="C")) if isinstance(v, np.ndarray) else v for v in values)
    training = {m: m.training for m in module.modules()}
    try:
        module.eval()
        with silenced(PACKAGES, LOGGERS), torch.no_grad():
            program = torch.export.export(module, tensors, strict=False)
        return export_program(program)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{type(module).__name__} does not export: {innermost_message(error)}") from error
    finally:
        for part, mode in training.items():
            part.training = mode


def load_program(path: Path) -> Any:
    """Load a `torch.export.ExportedProgram` from a file.

    Raises:
        CaptureError: the file holds something else.
    """
    torch = load_torch()
    try:
        with silenced(PACKAGES, LOGGERS):
            return torch.export.load(path)
    except Exception as error:
        raise CaptureError(f"{path} is not a torch.export program: {innermost_message(error)}") from error


def export_program(program: Any) -> Exported:
    """Export a `torch.export.ExportedProgram`.

    Raises:
        CaptureError: an output is not a tensor, the program is in training mode, or it does not export.
    """
    import torch
    from torch.utils import _pytree

    _refuse_training(program)
    for position, output in enumerate(program.graph_signature.output_specs):
        if hasattr(output.arg, "value"):
            raise CaptureError(
                f"value {position} of what the module returns is {output.arg.value!r}, not a tensor; "
                "wrap the module in one that returns tensors only"
            )
    try:
        with silenced(PACKAGES, LOGGERS), torch.no_grad():
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        raise CaptureError(f"the program does not export to ONNX: {innermost_message(error)}") from error
    structure = None
    with contextlib.suppress(NotImplementedError, AttributeError, ValueError):
        structure = _pytree.treespec_dumps(program.call_spec.out_spec)
    proto = exported.model_proto  # written anew, with all weights, each time it is read
    return Exported(proto, structure, TorchReference(exported.exported_program, proto))


def _refuse_training(program: Any) -> None:
    """Check that no operator draws numbers at random or uses statistics of the batch.

    Raises:
        CaptureError: one does; names it.
    """
    import torch

    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        given = dict(zip((argument.name for argument in schema.arguments), node.args)) | dict(node.kwargs)
        modes = [bool(given.get(name, False)) for name in TRAINING_FLAGS if name in {a.name for a in schema.arguments}]
        shown = f"{schema.name.removeprefix('aten::')} {node.name!r}"
        if any(modes):
            raise CaptureError(f"{shown} is in training mode; call module.eval() before torch.export.export")
        if not modes and torch.Tag.nondeterministic_seeded in node.target.tags:
            raise CaptureError(
                f"{shown} draws numbers at random, so that devices would disagree; if it is left from training, call "
                "module.eval() before the export; else make the random numbers an input of the network"
            )
