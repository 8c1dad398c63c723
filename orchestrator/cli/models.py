"""What MODEL and IMAGE on the command line mean."""

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
from coedge.graph.capture import capture
from coedge.graph.model import Model

# Of ImageNet, channel by channel, for images scaled to 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

FILES = (".onnx", ".pt2")
MODEL_HELP = "A zoo name (such as resnet18), a .onnx or .pt2 file, or package.module:factory."


def photograph() -> Path:
    """The photograph that comes with the package."""
    return PHOTOGRAPH


def load_model(spec: str, size: int = 224) -> Model:
    """The model that the user means, captured for one image.

    A module (from the zoo or a factory) gets normalisation in front, so that it takes uint8 pixels.

    Raises:
        CaptureError: there is no such model, or it does not export.
    """
    if spec.endswith(FILES):
        return _load_file(spec, size)
    import torch

    module = load_module(spec, size)
    name = spec.rsplit(":", 1)[-1]
    return capture(module, torch.zeros(1, 3, size, size, dtype=torch.uint8), name=name)


def load_module(spec: str, size: int = 224) -> Any:
    """The torch module that the user means, with normalisation in front.

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
            f"{spec}: {Path(spec).suffix} files hold weights, or code of one version of torch. Give "
            "package.module:factory that builds the module and loads them, or export it to .pt2 or .onnx"
        )
    else:
        try:
            zoo.build(spec)
        except ValueError as error:
            raise CaptureError(f"{error}; or give a .onnx / .pt2 file, or package.module:factory") from None
        raise CaptureError(f"there is no model {spec!r}")
    from coedge.graph.normalise import with_normalisation

    return with_normalisation(module, MEAN, STD)


def _load_file(spec: str, size: int) -> Model:
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
    found = getattr(imported, attribute)
    import torch

    try:
        made = found() if callable(found) and not isinstance(found, torch.nn.Module) else found
    except Exception as error:
        raise CaptureError(f"{spec} raised {type(error).__name__}: {error}; it is called without arguments") from error
    if not isinstance(made, torch.nn.Module):
        raise CaptureError(f"{spec} made a {type(made).__name__}, not a torch.nn.Module")
    return made


def load_image(path: str | Path, model: Model) -> np.ndarray:
    """The image, resized to the model's input: uint8 pixels, or normalised float32 for a model of those.

    Raises:
        InputError: not an image, or the model takes something else than one RGB image.
    """
    from PIL import Image, UnidentifiedImageError

    if len(model.inputs) != 1:
        raise InputError(f"{model.name} takes {len(model.inputs)} inputs, not one image; use the Python API")
    tensor = model.inputs[0]
    channels_last = tensor.col_axis == 2
    channels = tensor.shape[3] if channels_last else tensor.shape[1]
    if tensor.shape[0] != 1 or channels not in (1, 3):
        raise InputError(f"{model.name} takes {list(tensor.shape)}, not one image of 1 or 3 channels")
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if channels == 1 else "RGB").resize((tensor.cols, tensor.rows))
    except FileNotFoundError:
        raise InputError(f"there is no image {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from None
    pixels = np.asarray(image).reshape(tensor.rows, tensor.cols, channels)
    if tensor.dtype != "uint8":
        mean, std = (np.array(MEAN), np.array(STD)) if channels == 3 else (np.array(0.5), np.array(0.25))
        pixels = ((pixels.astype(np.float32) / 255) - mean) / std
    if not channels_last:
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[None]).astype(tensor.dtype, copy=False)


def unsplit(model: Model, array: np.ndarray) -> list[np.ndarray]:
    """The outputs of the network before any rewrite, in one piece on this machine."""
    from workers.runtime.kernels import unsplit_session

    outputs: list[np.ndarray] = unsplit_session(model, 1).run(None, {model.inputs[0].name: array})
    return outputs


def difference(got: Any, expected: list[np.ndarray]) -> float:
    """Largest |split - unsplit| over the largest |unsplit|, over all outputs."""
    flat = _leaves(got)
    worst = 0.0
    for a, b in zip(flat, expected, strict=True):
        scale = float(np.abs(b).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(np.asarray(a, np.float64) - b.astype(np.float64)).max(initial=0)) / scale)
    return worst


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
