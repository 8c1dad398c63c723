"""A plan under way: stages of strips whose edges may lie between rows, and from there to stages and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coedge.plan.plan import Stage
from orchestrator.search.layout import Layout, layout_of


@dataclass(frozen=True, slots=True)
class DraftStage:
    """Layers [first, stop) on a layout."""

    first: int
    stop: int
    layout: Layout


def as_stages(stages: Sequence[DraftStage]) -> tuple[Stage, ...]:
    return tuple(stage.layout.stage(stage.first, stage.stop - 1) for stage in stages)


def as_draft(stages: Sequence[Stage]) -> tuple[DraftStage, ...] | None:
    """None where a stage is a grid."""
    made = []
    for stage in stages:
        layout = layout_of(stage)
        if layout is None:
            return None
        made.append(DraftStage(stage.first, stage.last + 1, layout))
    return tuple(made)
