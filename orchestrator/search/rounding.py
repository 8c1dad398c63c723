"""Move the edges of a draft to whole rows.

nearest     every edge moves to the nearest row of its stage; edges that meet still meet
fair        rows are given one at a time to the device that would finish first with it, which suits few rows
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from coedge.core.region import edge_to_row
from coedge.graph.model import Model
from coedge.plan.plan import Stage
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.search.draft import DraftStage, as_stages
from orchestrator.search.layout import Layout
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.shortest_path import Path
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.strip_cost import strip_seconds


def stage_rows(model: Model, stage: DraftStage) -> int:
    """Return the rows of a stage's last layer, in which its edges are counted."""
    return model.layers[stage.stop - 1].rows


def nearest(model: Model, stages: Sequence[DraftStage]) -> tuple[DraftStage, ...]:
    rounded = []
    for stage in stages:
        rows = stage_rows(model, stage)
        rounded.append(_with_edges(stage, [edge_to_row(edge, rows) for edge in stage.layout.edges], rows))
    return tuple(rounded)


def fair(table: CostTable, receptive_fields: ReceptiveFields, stages: Sequence[DraftStage]) -> tuple[DraftStage, ...]:
    return tuple(_fair(table, receptive_fields, stage) for stage in stages)


def _fair(table: CostTable, receptive_fields: ReceptiveFields, stage: DraftStage) -> DraftStage:
    rows, layout = stage_rows(table.model, stage), stage.layout
    if len(layout.devices) == 1:
        return stage
    seconds = [strip_seconds(table, receptive_fields, stage, at) for at in range(len(layout.devices))]
    # Whole rows of the draft are kept; the rows that its fractions add up to are distributed.
    counts = [int(share * rows + 1e-6) for share in layout.shares]

    def finish(device: int) -> tuple[float, int]:
        base, slope = seconds[device]
        return base + slope * (counts[device] + 1) / rows, device

    queue = [finish(device) for device in range(len(counts))]
    heapq.heapify(queue)
    for _ in range(rows - sum(counts)):
        _, device = heapq.heappop(queue)
        counts[device] += 1
        heapq.heappush(queue, finish(device))
    edges = [0]
    for count in counts:
        edges.append(edges[-1] + count)
    return _with_edges(stage, edges, rows)


def _with_edges(stage: DraftStage, edges: Sequence[int], rows: int) -> DraftStage:
    """Return the stage with edges on these rows, without the devices that have no row."""
    kept = [(name, a, b) for name, a, b in zip(stage.layout.devices, edges, edges[1:]) if b > a]
    if not kept:
        return stage
    values = (0.0, *(b / rows for _, _, b in kept[:-1]), 1.0)
    return DraftStage(stage.first, stage.stop, Layout(tuple(name for name, _, _ in kept), values))


def stages_of_path(path: Path, costs: StageCosts) -> tuple[Stage, ...]:
    """Return a shortest path as stages whose edges lie on rows."""
    stages = tuple(DraftStage(first, stop, costs.layouts[layout]) for first, stop, layout in path)
    return as_stages(nearest(costs.model, stages))
