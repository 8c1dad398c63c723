"""A small U-Net: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015.

Four halvings as in the paper, but a quarter of its channels, padded convolutions (so that the output has the
size of the input) and batch-norm.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from ._common import ConvNorm, scaled, seeded

_BASE, _LEVELS = 16, 4


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(ConvNorm(inputs, outputs), ConvNorm(outputs, outputs))


class Up(nn.Module):
    """A step of the upward path: doubles the size, concatenates the skip of the same level, and filters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.grow = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.filter = _double(2 * outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.grow(x)
        below, beside = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        if below or beside:  # the pool dropped an odd row or column
            x = functional.pad(x, (0, beside, 0, below))
        out: torch.Tensor = self.filter(torch.cat([skip, x], 1))
        return out


class UNet(nn.Module):
    """U-Net: (N, 3, H, W) -> (N, num_classes, H, W), before any softmax, with H and W at least 16."""

    def __init__(self, num_classes: int, base: int, levels: int) -> None:
        super().__init__()
        channels = [base * 2**level for level in range(levels + 1)]
        self.first = _double(3, base)
        self.pool = nn.MaxPool2d(2)
        steps = list(pairwise(channels))
        self.down = nn.ModuleList(_double(upper, lower) for upper, lower in steps)
        self.up = nn.ModuleList(Up(lower, upper) for upper, lower in reversed(steps))
        self.classifier = nn.Conv2d(base, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.first(x)]
        for block in self.down:
            skips.append(block(self.pool(skips[-1])))
        x = skips.pop()
        for block in self.up:
            x = block(x, skips.pop())
        out: torch.Tensor = self.classifier(x)
        return out


def unet(num_classes: int = 2, width: float = 1.0, seed: int = 0) -> UNet:
    """Build U-Net of base width 16, for per-pixel classes."""
    return seeded(lambda: UNet(num_classes, scaled(_BASE, width), _LEVELS), seed)
