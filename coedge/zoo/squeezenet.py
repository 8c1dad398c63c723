"""SqueezeNet 1.1: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016.

Version 1.1 is the authors' later release: a smaller first convolution and earlier pools than the paper's 1.0.
"""

from __future__ import annotations

import torch
from torch import nn

from ._common import scaled, seeded

# (squeezed channels, channels of each of the two expansions); None is a pool
_FIRES = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU())


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


class Fire(nn.Module):
    """A 1x1 squeeze, then a 1x1 and a 3x3 expansion in parallel: (N, C, H, W) -> (N, 2 * expanded, H, W)."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = _conv(inputs, squeezed, 1)
        self.ones = _conv(squeezed, expanded, 1)
        self.threes = _conv(squeezed, expanded, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x)
        return torch.cat([self.ones(x), self.threes(x)], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: (N, 3, H, W) -> (N, num_classes). Outputs are >= 0: the last convolution is rectified."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        channels = scaled(64, width)
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 2), nn.ReLU(), _pool()]
        for row in _FIRES:
            if row is None:
                layers.append(_pool())
            else:
                squeezed, expanded = (scaled(value, width) for value in row)
                layers.append(Fire(channels, squeezed, expanded))
                channels = 2 * expanded
        self.features = nn.Sequential(*layers)
        self.classifier = _conv(channels, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x)).mean((2, 3))
        return out


def squeezenet(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> SqueezeNet:
    """Build SqueezeNet 1.1."""
    return seeded(lambda: SqueezeNet(num_classes, width), seed)
