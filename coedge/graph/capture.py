"""From what people have (a torch module, an exported program, an ONNX file) to a `Model`."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coedge.core.errors import CaptureError, DynamicShape
from coedge.core.values import as_arrays
from coedge.graph.large_weights import stub, without_initializers
from coedge.graph.model import Model, model_from_proto
from coedge.graph.quantised import tighten

_DTYPES = ("float32", "uint8")
LARGE_ELEMENTS = 1_000_000
# Makes a channels-last MatMul a Gemm of all pixels in one row each: nothing could be split behind it.
FLATTENS_ROWS = "MatMulAddFusion"


def capture(model: Any, example: Any = None, name: str | None = None) -> Model:
    """Turns a network into a graph with static shapes that can be planned and split.

    Args:
        model: a `torch.nn.Module` (taken in eval mode), a `torch.export.ExportedProgram`, or a path to a
            `.pt2` or `.onnx` file (with or without external data).
        example: the input, or a tuple of inputs, with the shapes to run at: [N, C, H, W], float32 or uint8,
            tensors or arrays. A program or an ONNX file with static shapes needs none.
        name: for people; the class or the file otherwise.

    Raises:
        CaptureError: the model does not export, or its inputs are not what a split needs. The message
            quotes the operator or the line.
    """
    structure: str | None = None
    if isinstance(model, (str, Path)):
        path = Path(model)
        if not path.exists():
            raise CaptureError(f"{path} does not exist")
        name = name or path.stem
        if path.suffix == ".onnx":
            proto = _load_onnx(path)
        elif path.suffix == ".pt2":
            proto, structure = _export_program(_load_program(path))
        else:
            raise CaptureError(f"{path}: expected a .onnx or .pt2 file, not {path.suffix or 'one without a suffix'}")
    else:
        torch = _torch()
        if isinstance(model, torch.nn.Module):
            name = name or type(model).__name__
            proto, structure = _export_module(model, example)
        elif isinstance(model, torch.export.ExportedProgram):
            name = name or "program"
            proto, structure = _export_program(model)
        elif isinstance(model, onnx.ModelProto):
            name = name or model.graph.name or "model"
            proto = model
        else:
            raise CaptureError(
                f"cannot capture a {type(model).__name__}: give a torch.nn.Module, a torch.export program, "
                "or the path of an .onnx or .pt2 file"
            )
    return capture_proto(proto, name, as_arrays(example), structure)


def capture_proto(
    proto: onnx.ModelProto, name: str, example: tuple[np.ndarray, ...] = (), structure: str | None = None
) -> Model:
    """A model from ONNX: shapes fixed to the example's, simplified by ONNX Runtime, analysed."""
    proto = _with_shapes(proto, example)
    _check_inputs(proto)
    light, heavy = _without_dense_weights(proto)
    simplified, shapes, dtypes = _simplify(light)
    weights = _put_back(simplified, heavy)
    if not simplified.graph.node:
        raise CaptureError(f"{name}: nothing is computed from the inputs")
    constant = {i.name for i in simplified.graph.initializer}
    for output in simplified.graph.output:
        if output.name in constant:
            raise CaptureError(f"{name}: output {output.name!r} does not depend on the inputs; leave it out")
    return model_from_proto(
        simplified, name, weights=weights, shapes=shapes, dtypes=dtypes, structure=structure, original=proto
    )


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise CaptureError(
            "capturing a module needs torch, which is not installed here: pip install 'coedge[full]'"
        ) from None
    return torch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter is talkative; what matters of it comes back as an exception."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _export_module(module: Any, example: Any) -> tuple[onnx.ModelProto, str | None]:
    torch = _torch()
    if example is None:
        raise CaptureError("capturing a module needs an example input: coedge.capture(module, example)")
    values = example if isinstance(example, (tuple, list)) else (example,)
    for value in values:
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise CaptureError(
                f"the example holds a {type(value).__name__}; give a tensor or an array, or a tuple of them"
            )
    tensors = tuple(torch.as_tensor(v) for v in values)
    for tensor in tensors:
        _check_input("example", tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    training = {m: m.training for m in module.modules()}
    try:
        module.eval()
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, tensors, strict=False)
        return _export_program(program)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{type(module).__name__} does not export: {_cause(error)}") from error
    finally:
        for part, mode in training.items():
            part.training = mode


def _load_program(path: Path) -> Any:
    torch = _torch()
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(f"{path} is not a torch.export program: {_cause(error)}") from error


def _export_program(program: Any) -> tuple[onnx.ModelProto, str | None]:
    import torch
    from torch.utils import _pytree

    for position, output in enumerate(program.graph_signature.output_specs):
        if hasattr(output.arg, "value"):
            raise CaptureError(
                f"value {position} of what the module returns is {output.arg.value!r}, not a tensor; "
                "wrap the module in one that returns tensors only"
            )
    try:
        with _quiet(), torch.no_grad():
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        raise CaptureError(f"the program does not export to ONNX: {_cause(error)}") from error
    structure = None
    with contextlib.suppress(NotImplementedError, AttributeError, ValueError):
        structure = _pytree.treespec_dumps(program.call_spec.out_spec)
    return exported.model_proto, structure


def _cause(error: BaseException) -> str:
    """The innermost message: the exporter wraps what the module raised, or the operator that it lacks."""
    seen: list[str] = []
    current: BaseException | None = error
    while current is not None and len(seen) < 8:
        text = " ".join(str(current).split())
        if text:
            seen.append(f"{type(current).__name__}: {text}")
        current = current.__cause__ or current.__context__
    return (seen[-1] if seen else type(error).__name__)[:1500]


def _load_onnx(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path))
    except Exception as error:
        raise CaptureError(f"{path} cannot be read as ONNX: {_cause(error)}") from error


def _check_input(label: str, shape: tuple[int, ...], dtype: str) -> None:
    if len(shape) != 4:
        raise CaptureError(
            f"input {label!r} has {len(shape)} dimensions, {list(shape)}; a split needs images: [N, C, H, W]"
        )
    if dtype not in _DTYPES:
        raise CaptureError(f"input {label!r} is {dtype}; inputs are float32 or uint8")
    if any(extent < 1 for extent in shape):
        raise CaptureError(f"input {label!r} is empty: {list(shape)}")


def _graph_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constant = {i.name for i in proto.graph.initializer}
    return [i for i in proto.graph.input if i.name not in constant]


def _check_inputs(proto: onnx.ModelProto) -> None:
    inputs = _graph_inputs(proto)
    if not inputs:
        raise CaptureError("the model has no inputs")
    for value in inputs:
        kind = value.type.tensor_type
        dims = kind.shape.dim
        unknown = [d.dim_param or "?" for d in dims if not d.HasField("dim_value")]
        if unknown:
            raise DynamicShape(
                f"input {value.name!r} has a dynamic dimension ({', '.join(unknown)}); "
                "give an example of the shape to run at: coedge.capture(path, example)"
            )
        dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        _check_input(value.name, tuple(d.dim_value for d in dims), dtype)


def _with_shapes(proto: onnx.ModelProto, example: tuple[np.ndarray, ...]) -> onnx.ModelProto:
    """The model with the example's shapes for its inputs."""
    if not example:
        return proto
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    inputs = _graph_inputs(fixed)
    if len(inputs) != len(example):
        raise CaptureError(f"the model takes {len(inputs)} inputs, the example has {len(example)}")
    for value, array in zip(inputs, example):
        kind = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if array.dtype != dtype:
            raise CaptureError(f"input {value.name!r} of the model is {dtype}, the example is {array.dtype}")
        given = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        fits = len(given) == array.ndim and all(g in (None, e) for g, e in zip(given, array.shape))
        if kind.HasField("shape") and not fits:
            shown = [g if g is not None else "?" for g in given]
            raise CaptureError(
                f"input {value.name!r} of the model has shape {shown}, the example has {list(array.shape)}"
            )
        del kind.shape.dim[:]
        for extent in array.shape:
            kind.shape.dim.add().dim_value = extent
    del fixed.graph.value_info[:]
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    return fixed


def _simplify(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]], dict[str, str]]:
    """ONNX Runtime's basic optimisations: constants and batch norms folded, shapes known.

    They use standard operators only. What shape inference leaves open is read off one run on zeros.
    """
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
            raise CaptureError(f"ONNX Runtime does not take the model: {_cause(error)}") from error
        simplified = onnx.load(str(target))
    tighten(simplified)
    with contextlib.suppress(Exception):
        simplified = onnx.shape_inference.infer_shapes(simplified)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    if any(_inferred_wrongly(node, simplified) for node in simplified.graph.node):
        unknown = [o for node in simplified.graph.node for o in node.output if o]
    else:
        unknown = _without_shape(simplified)
    if unknown:
        shapes, dtypes = _observe(simplified, unknown)
    return simplified, shapes, dtypes


def _without_dense_weights(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """The model with the large weights of dense layers as inputs, and those weights.

    There is nothing to simplify in them, and passing hundreds of megabytes back and forth takes seconds.
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
    """Makes the inputs constants again; their values, which stay outside of the proto."""
    names = {i.name for i in heavy}
    inputs = [i for i in proto.graph.input if i.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.graph.initializer.extend(stub(i.name, i.data_type, i.dims) for i in heavy)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in heavy}


def _inferred_wrongly(node: onnx.NodeProto, proto: onnx.ModelProto) -> bool:
    """Whether shape inference and kernel may disagree, so that only a run tells the shape.

    Pooling whose last window would begin beyond the end, or that is dilated under SAME; transposed
    convolution to a given shape; resizing by 2.1, where 10 rows become 20 or 21.
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
