"""Residual networks: He et al., "Deep Residual Learning for Image Recognition", 2016 (table 1).

The bottleneck has its stride in the 3x3 convolution, not in the first 1x1 convolution as in the paper. Nearly all
published weights do so, and the number of parameters is the same.
"""

from __future__ import annotations

import torch
from torch import nn

from ._common import BRANCH_SCALE, ConvNorm, scaled, seeded

_CHANNELS = (64, 128, 256, 512)


class Residual(nn.Module):
    """A residual block: relu(branch(x) + shortcut(x)), where the shortcut is a 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, branch: list[nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, stride, act=None)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(self.branch(x) + self.shortcut(x))
        return out


def _basic(inputs: int, channels: int, stride: int) -> Residual:
    branch: list[nn.Module] = [
        ConvNorm(inputs, channels, 3, stride),
        ConvNorm(channels, channels, 3, act=None, scale=BRANCH_SCALE),
    ]
    return Residual(inputs, channels, stride, branch)


def _bottleneck(inputs: int, channels: int, stride: int) -> Residual:
    branch: list[nn.Module] = [
        ConvNorm(inputs, channels, 1),
        ConvNorm(channels, channels, 3, stride),
        ConvNorm(channels, 4 * channels, 1, act=None, scale=BRANCH_SCALE),
    ]
    return Residual(inputs, 4 * channels, stride, branch)


class ResNet(nn.Module):
    """A residual network: (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, num_classes: int, repeats: tuple[int, ...], bottleneck: bool, width: float) -> None:
        super().__init__()
        block, expansion = (_bottleneck, 4) if bottleneck else (_basic, 1)
        channels = scaled(_CHANNELS[0], width)
        self.stem = nn.Sequential(ConvNorm(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1))
        layers: list[nn.Module] = []
        for stage, (count, wanted) in enumerate(zip(repeats, _CHANNELS, strict=True)):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1  # the stem's pool has already halved stage 0
                layers.append(block(channels, scaled(wanted, width), stride))
                channels = expansion * scaled(wanted, width)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.pool(self.features(self.stem(x))).flatten(1))
        return out


def resnet18(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> ResNet:
    """Build ResNet-18, with two 3x3 convolutions per block."""
    return seeded(lambda: ResNet(num_classes, (2, 2, 2, 2), False, width), seed)


def resnet50(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> ResNet:
    """Build ResNet-50, with bottleneck blocks."""
    return seeded(lambda: ResNet(num_classes, (3, 4, 6, 3), True, width), seed)
