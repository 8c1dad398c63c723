"""Computing time of one strip of one stage, as an affine function of its share of the rows."""

from __future__ import annotations

from orchestrator.evaluation.cost_table import CostTable
from orchestrator.search.draft import DraftStage
from orchestrator.search.receptive_field import ReceptiveFields


def strip_seconds(
    table: CostTable, receptive_fields: ReceptiveFields, stage: DraftStage, position: int
) -> tuple[float, float]:
    """Return (base, slope): the strip computes for `base + slope * share` seconds.

    Args:
        position: of the strip in the stage's layout. Its present share decides how much of its halo lies inside the
            tensor.
    """
    layout, end = stage.layout, receptive_fields.end(stage.stop)
    device, share = table.position[layout.devices[position]], layout.shares[position]
    alone, last = len(layout.devices) == 1, len(layout.devices) - 1
    base = slope = 0.0
    for index in range(stage.first, stage.stop):
        if not end.needed[index]:
            continue
        times = table.at_end if index == stage.stop - 1 else table.inside
        per_row, height = float(times.per_row[index, device]), float(table.rows[index])
        base += float(times.fixed[index, device])
        if alone or end.whole[index]:
            base += per_row * height
            continue
        halo = (end.above[index] if position else 0.0) + (end.below[index] if position < last else 0.0)
        # A strip whose halo passes the border of the tensor computes no more rows than there are.
        base += per_row * min(halo, height * (1 - share))
        slope += per_row * height
    return base, slope
