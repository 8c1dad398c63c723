"""Split output equals unsplit output, for networks with blocks that the zoo does not have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import difference, unsplit
from torch import nn
from torch.nn import functional

import coedge


class ConvNeXtBlock(nn.Module):
    """Block that is channels-last in the middle: layer norm and two dense layers on every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(functional.gelu(self.wide(y))).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Network with a position embedding, ConvNeXt blocks, and a pooled pixel spread over the image (ASPP)."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, rows // 4, cols // 4))
        self.blocks = nn.Sequential(ConvNeXtBlock(16), ConvNeXtBlock(16))
        self.pooled = nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(32, 4, 3, padding=2, dilation=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x) + self.position)
        pooled = functional.relu(self.pooled(x.mean((2, 3), keepdim=True)))
        spread = functional.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.head(torch.cat([x, spread], 1)))


@pytest.fixture(scope="module")
def pyramid() -> tuple[coedge.Model, Pyramid, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Pyramid(64, 80).eval()
        x = torch.randn(1, 3, 64, 80)
    return coedge.capture(module, x), module, x


def test_every_node_can_be_split(pyramid: tuple[coedge.Model, Pyramid, torch.Tensor]) -> None:
    assert "not split" not in pyramid[0].describe()


@pytest.mark.parametrize(
    "plan",
    [
        {"devices": 3},
        {"devices": 4, "stage_layers": 3},
        {"grid": (2, 2)},
        {"grid": (2, 3), "stage_layers": 2},
        {"devices": 3, "stage_layers": 99, "boundaries": [0.02, 0.5]},
        {"devices": 5, "boundaries": [0.1, 0.1, 0.13, 0.9]},
    ],
    ids=str,
)
def test_split_is_exact(pyramid: tuple[coedge.Model, Pyramid, torch.Tensor], plan: dict[str, object]) -> None:
    model, module, x = pyramid
    made = coedge.even_plan(model, **plan)  # type: ignore[arg-type]
    y = coedge.run_in_process(model, made, x)
    assert difference(y.numpy(), unsplit(model, [x.numpy()])[0]) <= 1e-5
    with torch.no_grad():
        assert difference(y.numpy(), module(x).numpy()) <= 1e-3
    assert np.isfinite(y.numpy()).all()
