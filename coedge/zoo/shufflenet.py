"""ShuffleNet v2: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Design", 2018 (table 5).

The x1 column of the table.
"""

from __future__ import annotations

import torch
from torch import nn

from ._common import ConvNorm, scaled, seeded

_FIRST, _LAST = 24, 1024
_STAGES = ((4, 116), (8, 232), (4, 464))  # (units, channels)


def shuffle(x: torch.Tensor) -> torch.Tensor:
    """Interleave the two halves of the channels: a0 a1 .. b0 b1 .. -> a0 b0 a1 b1 .."""
    batch, channels, height, width = x.shape
    halves = x.view(batch, 2, channels // 2, height, width)
    return halves.transpose(1, 2).reshape(batch, channels, height, width)


class Unit(nn.Module):
    """Two branches, concatenated and shuffled.

    At stride 1 the channels are split between the branches and the left half passes unchanged; at stride 2
    both branches see all the channels and filter them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.split = stride == 1
        half = outputs // 2
        seen = inputs // 2 if self.split else inputs
        self.left: nn.Module = nn.Identity()
        if not self.split:
            self.left = nn.Sequential(ConvNorm(seen, seen, 3, stride, groups=seen, act=None), ConvNorm(seen, half, 1))
        self.right = nn.Sequential(
            ConvNorm(seen, half, 1),
            ConvNorm(half, half, 3, stride, groups=half, act=None),
            ConvNorm(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 1) if self.split else (x, x)
        return shuffle(torch.cat([self.left(left), self.right(right)], 1))


class ShuffleNetV2(nn.Module):
    """ShuffleNet v2: (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        channels = scaled(_FIRST, width)
        layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2), nn.MaxPool2d(3, 2, 1)]
        for count, wanted in _STAGES:
            outputs = scaled(wanted, width)
            for index in range(count):
                layers.append(Unit(channels, outputs, 2 if index == 0 else 1))
                channels = outputs
        last = scaled(_LAST, width)
        layers.append(ConvNorm(channels, last, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def shufflenet_v2(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> ShuffleNetV2:
    """Build ShuffleNet v2 x1.0. Other widths scale all channels and do not follow the table of the paper."""
    return seeded(lambda: ShuffleNetV2(num_classes, width), seed)
