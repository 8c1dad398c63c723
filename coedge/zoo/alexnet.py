"""AlexNet in its single-tower form: Krizhevsky, "One weird trick for parallelizing CNNs", 2014.

The 2012 network without its split over two GPUs and without local response normalisation: 61.1 M parameters.
"""

from __future__ import annotations

import torch
from torch import nn

from ._common import feature_size, scaled, seeded

# (channels, kernel, stride, padding, pooled afterwards)
_CONVS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)
_DENSE = 4096


class AlexNet(nn.Module):
    """AlexNet: (N, 3, H, W) -> (N, num_classes), for the H x W given as `image_size`."""

    def __init__(self, num_classes: int, image_size: int | tuple[int, int], width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for outputs, kernel, stride, padding, pooled in _CONVS:
            layers += [nn.Conv2d(channels, scaled(outputs, width), kernel, stride, padding), nn.ReLU()]
            if pooled:
                layers.append(nn.MaxPool2d(3, 2))
            channels = scaled(outputs, width)
        high, wide = feature_size(layers, image_size)
        dense = scaled(_DENSE, width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * high * wide, dense),
            nn.ReLU(),
            nn.Linear(dense, dense),
            nn.ReLU(),
            nn.Linear(dense, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x).flatten(1))
        return out


def alexnet(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, width: float = 1.0, seed: int = 0
) -> AlexNet:
    """Build AlexNet, single tower, for images of at least 63 x 63."""
    return seeded(lambda: AlexNet(num_classes, image_size, width), seed)
