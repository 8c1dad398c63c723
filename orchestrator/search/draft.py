"""Drafts of plans: stages of strips whose edges may lie between rows."""

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
    """Return the stages of a plan, without transfer options."""
    return tuple(stage.layout.stage(stage.first, stage.stop - 1) for stage in stages)


def as_draft(stages: Sequence[Stage]) -> tuple[DraftStage, ...] | None:
    """Return the draft of a plan's stages; None if a stage is a grid."""
    draft = []
    for stage in stages:
        layout = layout_of(stage)
        if layout is None:
            return None
        draft.append(DraftStage(stage.first, stage.last + 1, layout))
    return tuple(draft)


def with_options_of(stages: Sequence[Stage], models: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages with the transfer options of the stages that they replace one by one."""
    return tuple(
        stage.model_copy(update={"codecs": old.codecs, "halo_first": old.halo_first})
        for stage, old in zip(stages, models)
    )
