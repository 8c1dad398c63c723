"""The MODEL and IMAGE arguments: loading them, and the unsplit output to compare with."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from coedge import zoo
from coedge.core.errors import CaptureError, DynamicShape, InputError
from coedge.core.package_data import PHOTOGRAPH
from coedge.core.values import relative_difference
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from orchestrator.cli.image_file import read_image
from orchestrator.cli.inputs import check_keep_local

# Mean and standard deviation of ImageNet per channel, for pixels scaled to 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

FILES = (".onnx", ".pt2")


def photograph() -> Path:
    """Return the path of the photograph in the package."""
    return PHOTOGRAPH


def load_model(spec: str, size: int = 224) -> Model:
    """Load a model and capture it for one image.

    Normalisation is put in front of a module (from the zoo or a factory), so that it takes uint8 pixels.

    Raises:
        CaptureError: there is no such model, or it cannot be exported.
    """
    if spec.endswith(FILES):
        return _load_file(spec, size)
    import torch

    module = load_module(spec, size)
    name = spec.rsplit(":", 1)[-1]
    return capture(module, torch.zeros(1, 3, size, size, dtype=torch.uint8), name=name)


def load_module(spec: str, size: int = 224) -> Any:
    """Load a torch module and put normalisation in front of it.

    Raises:
        CaptureError: there is no such module.
    """
    if ":" in spec:
        module = _from_factory(spec)
    elif spec in zoo.NAMES:
        options: dict[str, Any] = {"image_size": size} if spec in ("alexnet", "vgg_f", "vgg16") else {}
        try:
            module = zoo.build(spec, **options)
        except ValueError as error:
            raise CaptureError(f"{spec}: {error}; give a larger --size") from None
    elif Path(spec).suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise CaptureError(
            f"{spec}: {Path(spec).suffix} files hold weights, or code for one version of torch. Give a "
            "package.module:factory that builds the module and loads them, or export the module to .pt2 or .onnx"
        )
    else:
        try:
            zoo.build(spec)
        except ValueError as error:
            raise CaptureError(f"{error}; or give a .onnx / .pt2 file, or package.module:factory") from None
        raise CaptureError(f"there is no model {spec!r}")
    from coedge.frontend.input_normalisation import with_normalisation

    return with_normalisation(module, MEAN, STD)


def _load_file(spec: str, size: int) -> Model:
    """Capture a file; if it has open dimensions, with an image of the given size."""
    try:
        return capture(spec)
    except DynamicShape:
        pass
    failures: CaptureError | None = None
    for dtype in (np.float32, np.uint8):
        try:
            return capture(spec, np.zeros((1, 3, size, size), dtype))
        except CaptureError as error:
            failures = failures or error
    assert failures is not None
    raise failures


def _from_factory(spec: str) -> Any:
    """Import `package.module:factory` and return the module that the factory makes."""
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise CaptureError(f"{spec!r} is not package.module:factory, such as my_nets:small for small() in my_nets.py")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        imported = importlib.import_module(module_name)
    except Exception as error:
        raise CaptureError(f"cannot import {module_name!r} of {spec!r}: {type(error).__name__}: {error}") from error
    if not hasattr(imported, attribute):
        near = difflib.get_close_matches(attribute, dir(imported), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise CaptureError(f"{module_name} has no {attribute!r}; {hint}MODEL is package.module:factory")
    factory = getattr(imported, attribute)
    import torch

    try:
        module = factory() if callable(factory) and not isinstance(factory, torch.nn.Module) else factory
    except Exception as error:
        raise CaptureError(f"{spec} raised {type(error).__name__}: {error}; it is called without arguments") from error
    if not isinstance(module, torch.nn.Module):
        raise CaptureError(f"{spec} made a {type(module).__name__}, not a torch.nn.Module")
    return module


def load_image(path: str | Path, model: Model) -> np.ndarray:
    """Load an image and resize it to the model's input. `image_file` says how each kind of file is taken.

    Returns:
        uint8 pixels, or normalised float32 if the model's input is float32.

    Raises:
        InputError: the file is not an image, or the model does not take one image of 1 or 3 channels.
    """
    if len(model.inputs) != 1:
        raise InputError(f"{model.name} takes {len(model.inputs)} inputs, not one image; use the Python API")
    tensor = model.inputs[0]
    channels_last = tensor.col_axis == 2
    channels = tensor.shape[3] if channels_last else tensor.shape[1]
    if tensor.shape[0] != 1 or channels not in (1, 3):
        raise InputError(f"{model.name} takes {list(tensor.shape)}, not one image of 1 or 3 channels")
    pixels: np.ndarray = read_image(path, tensor.rows, tensor.cols, channels)
    if tensor.dtype != "uint8":
        mean, std = (np.array(MEAN), np.array(STD)) if channels == 3 else (np.array(0.5), np.array(0.25))
        pixels = ((pixels.astype(np.float32) / 255) - mean) / std
    if not channels_last:
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[None]).astype(tensor.dtype, copy=False)


def capture_model(spec: str, size: int, keep_local: int = 0) -> Model:
    """Load a model with a spinner, and check that it has as many layers as are to stay on the source.

    Raises:
        CaptureError: see `load_model`.
        PlanError: it has fewer layers.
    """
    from orchestrator.cli.console import busy

    with busy(f"exporting {spec} to ONNX"):
        model = load_model(spec, size)
    check_keep_local(keep_local, model)
    return model


def unsplit(model: Model, array: np.ndarray) -> list[np.ndarray]:
    """Run the network as exported, unsplit, on this machine and return its outputs."""
    from workers.runtime.kernels import unsplit_session

    outputs: list[np.ndarray] = unsplit_session(model, 1).run(None, {model.inputs[0].name: array})
    return outputs


def difference(got: Any, expected: list[np.ndarray]) -> float:
    """Return the largest |split - unsplit| / max |unsplit| of all outputs; see `relative_difference`."""
    pairs = zip(_leaves(got), expected, strict=True)
    return max((relative_difference(np.asarray(a), b) for a, b in pairs), default=0.0)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
