"""A small single-shot detector: Liu et al., "SSD: Single Shot MultiBox Detector", 2016.

The heads are the paper's; the backbone is a thin chain of depthwise-separable convolutions in the manner of
MobileNet, giving four maps at strides 16, 32, 64 and 128. Priors and suppression are left to the caller.
"""

from __future__ import annotations

import torch
from torch import nn

from ._common import ConvNorm, scaled, seeded
from .mobilenet_v1 import separable

_FIRST = 16
# For each map: the separable pairs leading to it as (channels, stride), and the anchors at each of its cells
_MAPS = (
    (((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)), 4),
    (((512, 2), (512, 1)), 6),
    (((256, 2),), 6),
    (((128, 2),), 4),
)


class SSD(nn.Module):
    """A detector: (N, 3, H, W) -> {"scores": (N, anchors, num_classes), "boxes": (N, anchors, 4)}.

    The scores are before any softmax. Anchors run over maps, then rows, columns, and anchors at one cell.
    """

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels = scaled(_FIRST, width)
        self.stem = ConvNorm(3, channels, 3, 2)
        self.stages, self.score_heads, self.box_heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for pairs, anchors in _MAPS:
            stage: list[nn.Module] = []
            for outputs, stride in pairs:
                stage.append(separable(channels, scaled(outputs, width), stride))
                channels = scaled(outputs, width)
            self.stages.append(nn.Sequential(*stage))
            self.score_heads.append(nn.Conv2d(channels, anchors * num_classes, 3, padding=1))
            self.box_heads.append(nn.Conv2d(channels, anchors * 4, 3, padding=1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        scores, boxes = [], []
        for stage, score_head, box_head in zip(self.stages, self.score_heads, self.box_heads, strict=True):
            x = stage(x)
            scores.append(_per_anchor(score_head(x), self.num_classes))
            boxes.append(_per_anchor(box_head(x), 4))
        return {"scores": torch.cat(scores, 1), "boxes": torch.cat(boxes, 1)}


def _per_anchor(x: torch.Tensor, values: int) -> torch.Tensor:
    """Reshape (N, anchors * values, H, W) to (N, H * W * anchors, values)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)


def ssd(num_classes: int = 21, width: float = 1.0, seed: int = 0) -> SSD:
    """Build SSD on a MobileNet-like backbone, by default with 20 classes and the background."""
    return seeded(lambda: SSD(num_classes, width), seed)
