"""From edges anywhere to edges on rows.

nearest     every edge to the nearest row of its stage: edges that met still meet
fair        a row at a time to whoever would be ready first with it: few rows are shared as well as can be
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from coedge.core.region import edge_to_row
from coedge.graph.model import Model
from coedge.plan.plan import Stage
from coedge.profile.profile import Profile
from orchestrator.search.draft import DraftStage, as_stages
from orchestrator.search.layout import Layout
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.shortest_path import Path
from orchestrator.search.stage_costs import StageCosts


def stage_rows(model: Model, stage: DraftStage) -> int:
    """The rows in which a stage's edges are counted: those of its last layer."""
    return model.layers[stage.stop - 1].rows


def nearest(model: Model, stages: Sequence[DraftStage]) -> tuple[DraftStage, ...]:
    found = []
    for stage in stages:
        rows = stage_rows(model, stage)
        found.append(_with(stage, [edge_to_row(edge, rows) for edge in stage.layout.edges], rows))
    return tuple(found)


def fair(
    model: Model, profile: Profile, receptive_fields: ReceptiveFields, stages: Sequence[DraftStage]
) -> tuple[DraftStage, ...]:
    found = []
    for stage in stages:
        rows, layout = stage_rows(model, stage), stage.layout
        if len(layout.devices) == 1:
            found.append(stage)
            continue
        end, last = receptive_fields.end(stage.stop), len(layout.devices) - 1
        seconds: list[tuple[float, float]] = []
        for position, name in enumerate(layout.devices):
            base = slope = 0.0
            for index in range(stage.first, stage.stop):
                time = profile.by_name[name].layer_time(index, index == stage.stop - 1)
                halo = (end.above[index] if position else 0.0) + (end.below[index] if position < last else 0.0)
                base += time.fixed_seconds + time.seconds_per_row * halo
                slope += time.seconds_per_row * model.layers[index].rows / rows
            seconds.append((base, slope))
        # What the programme gives in full is kept; the rows that its fractions add up to are dealt out.
        counts = [int(share * rows + 1e-6) for share in layout.shares]
        ready = [(base + slope * (n + 1), i) for i, ((base, slope), n) in enumerate(zip(seconds, counts))]
        heapq.heapify(ready)
        for _ in range(rows - sum(counts)):
            _, i = heapq.heappop(ready)
            counts[i] += 1
            heapq.heappush(ready, (seconds[i][0] + seconds[i][1] * (counts[i] + 1), i))
        edges = [0]
        for n in counts:
            edges.append(edges[-1] + n)
        found.append(_with(stage, edges, rows))
    return tuple(found)


def _with(stage: DraftStage, edges: Sequence[int], rows: int) -> DraftStage:
    """The stage with edges on these rows; devices without a row are left out."""
    kept = [(name, a, b) for name, a, b in zip(stage.layout.devices, edges, edges[1:]) if b > a]
    if not kept:
        return stage
    values = (0.0, *(b / rows for _, _, b in kept[:-1]), 1.0)
    return DraftStage(stage.first, stage.stop, Layout(tuple(name for name, _, _ in kept), values))


def stages_of_path(path: Path, costs: StageCosts) -> tuple[Stage, ...]:
    """A shortest path as stages whose edges lie on rows."""
    stages = tuple(DraftStage(first, stop, costs.layouts[layout]) for first, stop, layout in path)
    return as_stages(nearest(costs.model, stages))
