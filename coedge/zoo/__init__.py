"""A zoo of convolutional networks, for trying deployment.

Every network is written from the tables of its paper and has seeded random weights. The graphs are realistic and of
known size, and nothing is downloaded. The networks are for inference only: they have no dropout and no auxiliary
training heads.

    >>> from coedge import zoo
    >>> net = zoo.build("resnet18")
    >>> net(zoo.example("resnet18")).shape
    torch.Size([1, 1000])
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, and listing the networks does not need it
    import onnx
    import torch
    from torch import nn

__all__ = ["NAMES", "build", "example", "quantised"]

# Factory name to the submodule that has it.
_FAMILIES: dict[str, str] = {
    "alexnet": "alexnet",
    "vgg_f": "vgg",
    "vgg16": "vgg",
    "googlenet": "googlenet",
    "mobilenet_v1": "mobilenet_v1",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3",
    "resnet18": "resnet",
    "resnet50": "resnet",
    "squeezenet": "squeezenet",
    "densenet": "densenet",
    "shufflenet_v2": "shufflenet",
    "unet": "unet",
    "ssd": "ssd",
}
_USUAL_SIZE = 224
_SIZES: dict[str, int] = {"ssd": 300}
# Their dense layers fix the resolution.
_OF_ONE_SIZE = ("alexnet", "vgg_f", "vgg16")

NAMES: tuple[str, ...] = tuple(_FAMILIES)


def _known(name: str) -> str:
    if name in _FAMILIES:
        return name
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)  # cutoff 0: always offer the nearest one
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown network {name!r}; {hint}The zoo has: {', '.join(NAMES)}")


def build(name: str, **options: Any) -> nn.Module:
    """Build a network in eval mode. The same call always gives the same weights.

    Args:
        name: one of `NAMES`.
        **options: passed to the factory. All take `num_classes`, `width` (scales the channels) and `seed`;
            the ones whose dense layers fix the resolution (alexnet, vgg_f, vgg16) also take `image_size`.

    Raises:
        ValueError: there is no network of this name.
    """
    module = importlib.import_module(f"{__name__}.{_FAMILIES[_known(name)]}")
    net: nn.Module = getattr(module, name)(**options)
    return net


def example(
    name: str,
    batch: int = 1,
    image_size: int | tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return a seeded random input, unit normal, of shape (batch, 3, height, width).

    Args:
        name: one of `NAMES`.
        batch: number of images.
        image_size: one side, or (height, width); None for the usual size of that network.
        dtype: floating type, None for float32.

    Raises:
        ValueError: there is no network of this name.
    """
    usual = _SIZES.get(_known(name), _USUAL_SIZE)
    import torch

    size = usual if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)  # a separate generator leaves the global one unchanged
    images = torch.randn(batch, 3, height, width, generator=generator)
    return images if dtype is None else images.to(dtype)


def quantised(name: str, image_size: int | tuple[int, int] | None = None, **options: Any) -> onnx.ModelProto:
    """Build an 8-bit network as ONNX in QDQ format, calibrated on the photograph that comes with the package.

    Args:
        name: one of `NAMES`.
        image_size: one side, or (height, width); None for the usual size of that network.
        **options: passed to the factory.

    Raises:
        ValueError: there is no network of this name.
    """
    size = _SIZES.get(_known(name), _USUAL_SIZE) if image_size is None else image_size
    if name in _OF_ONE_SIZE:
        options["image_size"] = size
    from coedge.zoo.eight_bit import photograph, quantise

    height, width = (size, size) if isinstance(size, int) else size
    return quantise(build(name, **options), photograph(height, width), name)
