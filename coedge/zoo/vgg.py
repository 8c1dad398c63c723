"""Two networks from Oxford's Visual Geometry Group, both plain chains of convolutions and dense layers.

VGG-F: Chatfield et al., "Return of the Devil in the Details", 2014 (table 1, CNN-F). Its two local response
normalisations are left out. VGG-16: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale
Image Recognition", 2015 (table 1, column D).
"""

from __future__ import annotations

import torch
from torch import nn

from ._common import feature_size, scaled, seeded

_DENSE = 4096
_VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # (convolutions, channels), pooled after each


class VGG(nn.Module):
    """A VGG network: (N, 3, H, W) -> (N, num_classes), for the H x W given as `image_size`."""

    def __init__(
        self,
        features: nn.Sequential,
        channels: int,
        dense: int,
        num_classes: int,
        image_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        high, wide = feature_size(features, image_size)
        self.features = features
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


def _vgg_f(num_classes: int, image_size: int | tuple[int, int], width: float) -> VGG:
    first, rest = scaled(64, width), scaled(256, width)

    def pool() -> nn.Module:
        # "x2 pool" in the paper; the released models have 3 x 3 windows, the last one cut off at the border
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    features = nn.Sequential(
        nn.Conv2d(3, first, 11, 4), nn.ReLU(), pool(),
        nn.Conv2d(first, rest, 5, 1, 2), nn.ReLU(), pool(),
        nn.Conv2d(rest, rest, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(rest, rest, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(rest, rest, 3, 1, 1), nn.ReLU(), pool(),
    )  # fmt: skip
    return VGG(features, rest, scaled(_DENSE, width), num_classes, image_size)


def _vgg16(num_classes: int, image_size: int | tuple[int, int], width: float) -> VGG:
    layers: list[nn.Module] = []
    channels = 3
    for repeats, outputs in _VGG16:
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, scaled(outputs, width), 3, 1, 1), nn.ReLU()]
            channels = scaled(outputs, width)
        layers.append(nn.MaxPool2d(2))
    return VGG(nn.Sequential(*layers), channels, scaled(_DENSE, width), num_classes, image_size)


def vgg_f(num_classes: int = 1000, image_size: int | tuple[int, int] = 224, width: float = 1.0, seed: int = 0) -> VGG:
    """Build VGG-F (5 convolutions, 3 dense layers), without response normalisation."""
    return seeded(lambda: _vgg_f(num_classes, image_size, width), seed)


def vgg16(num_classes: int = 1000, image_size: int | tuple[int, int] = 224, width: float = 1.0, seed: int = 0) -> VGG:
    """Build VGG-16 (13 convolutions, 3 dense layers), for images of at least 32 x 32."""
    return seeded(lambda: _vgg16(num_classes, image_size, width), seed)
