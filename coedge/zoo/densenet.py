"""A small DenseNet-BC: Huang et al., "Densely Connected Convolutional Networks", 2017.

Built by the paper's rules (bottlenecks of 4 * growth, transitions that halve the channels) with blocks of 4,
8 and 8 layers at growth 16. Normalisation comes before the convolutions, so half of it cannot be folded
into a preceding convolution.
"""

from __future__ import annotations

import torch
from torch import nn

from ._common import ConvNorm, scaled, seeded

_GROWTH = 16
_BLOCKS = (4, 8, 8)


class DenseLayer(nn.Module):
    """A layer that appends `growth` channels computed from all previous ones: (N, C, H, W) -> (N, C + growth, H, W)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            ConvNorm(inputs, 4 * growth, 1),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.branch(x)], 1)


class DenseNet(nn.Module):
    """DenseNet-BC: (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, num_classes: int, growth: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [ConvNorm(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
        for index, count in enumerate(blocks):
            if index > 0:  # transition
                layers += [nn.BatchNorm2d(channels), nn.ReLU()]
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(count):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return out


def densenet(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> DenseNet:
    """Build DenseNet-BC with 3 blocks; `width` scales the growth."""
    return seeded(lambda: DenseNet(num_classes, scaled(_GROWTH, width), _BLOCKS), seed)
