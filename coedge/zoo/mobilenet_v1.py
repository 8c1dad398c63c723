"""MobileNet: Howard et al., "MobileNets: Efficient CNNs for Mobile Vision Applications", 2017 (table 1)."""

from __future__ import annotations

import torch
from torch import nn

from ._common import ConvNorm, scaled, seeded

# (channels, stride) of each depthwise-separable pair
_PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution per channel, then a 1x1 convolution across channels."""
    return nn.Sequential(ConvNorm(inputs, inputs, 3, stride, groups=inputs), ConvNorm(inputs, outputs, 1))


class MobileNetV1(nn.Module):
    """MobileNet: (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2)]
        for outputs, stride in _PAIRS:
            layers.append(separable(channels, scaled(outputs, width), stride))
            channels = scaled(outputs, width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def mobilenet_v1(num_classes: int = 1000, width: float = 1.0, seed: int = 0) -> MobileNetV1:
    """Build MobileNet, with plain rectifiers as in the paper."""
    return seeded(lambda: MobileNetV1(num_classes, width), seed)
