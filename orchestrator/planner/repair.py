"""A plan without the devices that were lost: the others take over their shares, at once and without a search."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from coedge.core.region import UNIT, UnitRect
from coedge.plan.plan import Plan, Stage


def without_devices(plan: Plan, lost: Collection[str], source: str) -> Plan:
    """Return the plan in which the shares of lost devices are given to the others of the same stage.

    Strips keep their order and the proportions of their sizes, which follow from the speeds of their devices. In a
    grid, the device with the largest share takes all. A stage without other devices goes to the source. The plan has
    no prediction, and is not checked against an objective.

    Args:
        source: the device that has the input from now on.
    """
    stages = tuple(_repaired(stage, lost, source) for stage in plan.stages)
    devices = tuple(name for name in plan.devices if name not in lost)
    named = ", ".join(sorted(set(plan.devices) & set(lost)))
    update = {
        "devices": devices if source in devices else (*devices, source),
        "source": source,
        "sink": source if plan.sink in lost or plan.sink == plan.source else plan.sink,
        "stages": stages,
        "predicted": None,
        "feasible": True,
        "reason": f"the plan of before without {named}",
    }
    return plan.model_copy(update=update)


def _repaired(stage: Stage, lost: Collection[str], source: str) -> Stage:
    shares = {
        name: rect
        for name, rect in stage.regions.items()
        if rect.row_stop > rect.row_start and rect.col_stop > rect.col_start
    }
    kept = {name: rect for name, rect in shares.items() if name not in lost}
    if len(kept) == len(shares):
        return stage
    codecs = {channel: codec for channel, codec in stage.codecs.items() if not set(channel.split(">")) & set(lost)}
    return stage.model_copy(update={"regions": _cover(kept, source), "codecs": codecs})


def _cover(kept: dict[str, UnitRect], source: str) -> dict[str, UnitRect]:
    """Return shares of the whole unit square for devices that had a part of it."""
    if not kept:
        return {source: UNIT}
    if all((rect.col_start, rect.col_stop) == (0.0, 1.0) for rect in kept.values()):
        names = sorted(kept, key=lambda name: kept[name].row_start)
        edges = _edges([kept[name].row_stop - kept[name].row_start for name in names])
        return {name: UnitRect(row_start=a, row_stop=b) for name, (a, b) in zip(names, edges, strict=True)}
    if all((rect.row_start, rect.row_stop) == (0.0, 1.0) for rect in kept.values()):
        names = sorted(kept, key=lambda name: kept[name].col_start)
        edges = _edges([kept[name].col_stop - kept[name].col_start for name in names])
        return {name: UnitRect(col_start=a, col_stop=b) for name, (a, b) in zip(names, edges, strict=True)}
    largest = max(kept, key=lambda name: _area(kept[name]))
    return {largest: UNIT}


def _edges(sizes: Sequence[float]) -> list[tuple[float, float]]:
    """Return adjoining intervals from 0 to 1 in the proportions of some sizes."""
    total = sum(sizes)
    stops = [min(1.0, end / total) for end in itertools.accumulate(sizes)]
    stops[-1] = 1.0
    return list(itertools.pairwise([0.0, *stops]))


def _area(rect: UnitRect) -> float:
    return (rect.row_stop - rect.row_start) * (rect.col_stop - rect.col_start)
