"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", 2015 (table 1).

As in the paper there is no batch-norm; the auxiliary heads and the two local response normalisations are left
out.
"""

from __future__ import annotations

import torch
from torch import nn

from ._common import scaled, seeded

# 1x1; reduction and 3x3; reduction and 5x5; projection after the inner pool. None is a pool between stages.
_MODULES: tuple[tuple[int, int, int, int, int, int] | None, ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU())


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)  # the table's 112, 56, 28, 14, 7 need rounding up


class Inception(nn.Module):
    """Four parallel branches, concatenated: (N, inputs, H, W) -> (N, self.outputs, H, W)."""

    def __init__(
        self, inputs: int, ones: int, reduce3: int, threes: int, reduce5: int, fives: int, pooled: int
    ) -> None:
        super().__init__()
        self.ones = _conv(inputs, ones, 1)
        self.threes = nn.Sequential(_conv(inputs, reduce3, 1), _conv(reduce3, threes, 3))
        self.fives = nn.Sequential(_conv(inputs, reduce5, 1), _conv(reduce5, fives, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(inputs, pooled, 1))
        self.outputs = ones + threes + fives + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.ones(x), self.threes(x), self.fives(x), self.pooled(x)], 1)


class GoogLeNet(nn.Module):
    """GoogLeNet: (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        first, channels = scaled(64, width), scaled(192, width)
        layers: list[nn.Module] = [
            _conv(3, first, 7, 2), _pool(), _conv(first, first, 1), _conv(first, channels, 3), _pool()
        ]  # fmt: skip
        for row in _MODULES:
            if row is None:
                layers.append(_pool())
            else:
                ones, reduce3, threes, reduce5, fives, pooled = (scaled(value, width) for value in row)
                block = Inception(channels, ones, reduce3, threes, reduce5, fives, pooled)
                layers.append(block)
                channels = block.outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return out


def googlenet(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> GoogLeNet:
    """Build GoogLeNet (Inception v1)."""
    return seeded(lambda: GoogLeNet(num_classes, width), seed)
