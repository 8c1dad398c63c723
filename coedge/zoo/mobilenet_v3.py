"""MobileNet v3: Howard et al., "Searching for MobileNetV3", 2019 (table 1, the Large network)."""

from __future__ import annotations

import torch
from torch import nn

from ._common import BRANCH_SCALE, ConvNorm, divisible, scaled, seeded

# (kernel, expanded channels, channels, squeeze-and-excite, hard-swish, stride)
_BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
_LAST, _DENSE = 960, 1280


class SqueezeExcite(nn.Module):
    """A gate that scales each channel by a number in 0..1, computed from the mean of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible(channels / 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x * self.gate(x)
        return out


class Block(nn.Module):
    """An inverted residual of v2 with an optional squeeze-and-excite before it narrows."""

    def __init__(
        self, inputs: int, outputs: int, hidden: int, kernel: int, excite: bool, swish: bool, stride: int
    ) -> None:
        super().__init__()
        act = nn.Hardswish if swish else nn.ReLU
        self.added = stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(ConvNorm(inputs, hidden, 1, act=act))
        layers.append(ConvNorm(hidden, hidden, kernel, stride, groups=hidden, act=act))
        if excite:
            layers.append(SqueezeExcite(hidden))
        layers.append(ConvNorm(hidden, outputs, 1, act=None, scale=BRANCH_SCALE if self.added else 1.0))
        self.branch = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.branch(x)
        return x + out if self.added else out


class MobileNetV3(nn.Module):
    """MobileNet v3: (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        channels = scaled(16, width)
        layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2, act=nn.Hardswish)]
        for kernel, hidden, outputs, excite, swish, stride in _BLOCKS:
            layers.append(Block(channels, scaled(outputs, width), scaled(hidden, width), kernel, excite, swish, stride))
            channels = scaled(outputs, width)
        last, dense = scaled(_LAST, width), scaled(_DENSE, width)
        layers.append(ConvNorm(channels, last, 1, act=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(last, dense), nn.Hardswish(), nn.Linear(dense, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def mobilenet_v3(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> MobileNetV3:
    """Build MobileNet v3 Large."""
    return seeded(lambda: MobileNetV3(num_classes, width), seed)
