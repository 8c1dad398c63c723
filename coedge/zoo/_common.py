"""Parts that the families share: seeding, initialisation, channel rounding, convolution + batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def seeded(construct: Callable[[], Net], seed: int) -> Net:
    """Construct and initialise a network in eval mode. The global random state is not changed."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the accelerators, which are not forked here.
        torch.default_generator.manual_seed(seed)
        net = construct()
        initialise(net)
    return net.eval()


def divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`: at least one of them, and never less than nine tenths of the value."""
    rounded = max(divisor, int(value / divisor + 0.5) * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor


def scaled(channels: int, width: float) -> int:
    """Scale a channel count. Width 1 gives the number of the paper, even if it is not a multiple of 8."""
    return channels if width == 1.0 else divisible(channels * width)


class ConvNorm(nn.Sequential):
    """A convolution without bias, padded to keep the size at stride 1, then batch norm and an activation.

    Args:
        act: activation class, None for a linear layer.
        scale: initial size of the output; below 1 for the end of a residual branch.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: Callable[[], nn.Module] | None = nn.ReLU,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        if act is not None:
            self.act = act()
        # The Kaiming gain compensates for the half of the power that a rectifier removes. A linear layer removes none.
        self.scale = scale if act is not None else scale / math.sqrt(2.0)


# A sum of many unit-size branches would double the power at every block.
BRANCH_SCALE = 0.5


@torch.no_grad()
def initialise(net: nn.Module) -> None:
    """Set Kaiming-normal weights, small biases, and batch-norm statistics away from the identity.

    A trained batch-norm is never the identity, and folding an identity would hide mistakes.
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=_std(module))
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(-0.5, 0.5).exp_()  # log-uniform: the mean gain stays near 1
    for module in net.modules():
        if isinstance(module, ConvNorm):
            module.conv.weight.mul_(module.scale)


def _std(module: nn.Conv2d | nn.Linear | nn.ConvTranspose2d) -> float:
    if isinstance(module, nn.ConvTranspose2d):
        # Only 1 in stride^2 of the kernel's taps contributes to an output pixel. No rectifier follows in the zoo.
        taps = math.prod(module.kernel_size) / math.prod(module.stride)
        return math.sqrt(module.groups / (module.in_channels * taps))
    return math.sqrt(2.0 / math.prod(module.weight.shape[1:]))


def feature_size(layers: Iterable[nn.Module], image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width after a chain of convolutions and max-pools (other layers keep the size).

    Raises:
        ValueError: the image is too small for the chain.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    windows = [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.MaxPool2d))]
    height, width = (_side(windows, size, axis) for axis in (0, 1))
    return height, width


def _side(windows: list[nn.Conv2d | nn.MaxPool2d], size: tuple[int, int], axis: int) -> int:
    def along(value: int | str | tuple[int, ...] | None) -> int:
        assert value is not None and not isinstance(value, str)
        return value if isinstance(value, int) else value[axis]

    side = size[axis]
    for layer in windows:
        kernel, stride, pad = along(layer.kernel_size), along(layer.stride), along(layer.padding)
        room = side + 2 * pad - kernel
        if isinstance(layer, nn.MaxPool2d) and layer.ceil_mode:
            out = -(-room // stride) + 1
            out -= (out - 1) * stride >= side + pad  # a window must start inside the image
        else:
            out = room // stride + 1
        if out < 1 or room < 0:
            raise ValueError(f"an image of {size[0]} x {size[1]} is too small for this network")
        side = out
    return side
