"""MobileNet v2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018 (table 2)."""

from __future__ import annotations

import torch
from torch import nn

from ._common import BRANCH_SCALE, ConvNorm, scaled, seeded

# (expansion, channels, repeats, stride of the first)
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST = 1280


class InvertedResidual(nn.Module):
    """An inverted residual: widen, filter each channel, narrow without activation, add the input if shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.added = stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(ConvNorm(inputs, hidden, 1, act=nn.ReLU6))
        layers.append(ConvNorm(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6))
        layers.append(ConvNorm(hidden, outputs, 1, act=None, scale=BRANCH_SCALE if self.added else 1.0))
        self.branch = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.branch(x)
        return x + out if self.added else out


class MobileNetV2(nn.Module):
    """MobileNet v2: (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2, act=nn.ReLU6)]
        for expansion, wanted, repeats, first_stride in _STAGES:
            outputs = scaled(wanted, width)
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(channels, outputs, expansion, stride))
                channels = outputs
        last = scaled(_LAST, max(width, 1.0))  # the paper keeps the last layer wide in thin networks
        layers.append(ConvNorm(channels, last, 1, act=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def mobilenet_v2(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> MobileNetV2:
    """Build MobileNet v2."""
    return seeded(lambda: MobileNetV2(num_classes, width), seed)
