"""`aofl`: fused blocks of layers, their borders by dynamic programming (Zhou et al., AOFL, SEC 2019).

    layers     0   1   2   3   4   5   6
    blocks   [ 0   1   2 | 3   4 | 5   6 ]    inside a block nobody talks: overlap is recomputed
                         ^       ^            at a border devices fetch what they lack

    block(i, j) = max over devices of  transfer at i + compute of layers i .. j - 1 with their overlap
    best(j)     = min over i < j of    best(i) + block(i, j)

A device's share of the rows is as its measured speed, and the degree of parallelism is chosen too: all devices, or
only the faster half of them, and so on down to one, which is the fastest or the source. In the paper the source
gathers and scatters everything at each border; here blocks are stages, so only what a device lacks travels, from
whoever has it. Layers that cannot be split are blocks of their own on one device. Under an energy goal the programme
adds up joules instead of seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage, strips
from coedge.profile.profile import Profile
from orchestrator.schemes.fused_blocks import Array, Backwards, block_costs
from orchestrator.schemes.scheme import best_of, full_seconds, on_one_device, place_whole


def aofl(model: Model, profile: Profile, objective: Objective) -> Plan:
    goals = [objective]
    if objective.deadline_ms is not None:
        goals.append(Objective())  # least energy may come too late
    speeds = {name: 1 / max(full_seconds(model, profile, name, True), 1e-12) for name in profile.names}
    receptive_fields = Backwards(model)
    drafts: list[tuple[Stage, ...]] = []
    for degree in degrees(len(speeds)):
        used = sorted(speeds, key=lambda name: -speeds[name])[:degree]
        shares = {name: speed for name, speed in speeds.items() if name in used}
        drafts += fused_stages(receptive_fields, profile, shares, goals)
    drafts.append(on_one_device(model, profile.source))
    return best_of("aofl", model, profile, objective, drafts)


def degrees(count: int) -> Iterator[int]:
    """All devices, half of them, a quarter, down to one."""
    while count:
        yield count
        count //= 2


def fused_stages(
    receptive_fields: Backwards, profile: Profile, shares: Mapping[str, float], goals: list[Objective]
) -> list[tuple[Stage, ...]]:
    """For each goal the blocks of least cost, on strips proportional to the shares."""
    model, total = receptive_fields.model, sum(shares.values())
    alone = place_whole(model, profile, {name: share / total for name, share in shares.items()}, goals[0])
    regions = strips(shares)
    runs = runs_of(model)
    # One device exchanges nothing: its blocks are as long as they can be.
    tables = {
        first: block_costs(receptive_fields, profile, regions, alone, first, stop)
        for splittable, first, stop in runs
        if splittable and len(regions) > 1
    }
    made = []
    for goal in goals:
        stages: list[Stage] = []
        for splittable, first, stop in runs:
            borders = cheapest_borders(tables[first].cost(goal)) if first in tables else [0, stop - first]
            for a, b in itertools.pairwise(borders):
                chosen = dict(regions) if splittable else {alone: UNIT}
                stage = Stage(first=first + a, last=first + b - 1, regions=chosen)
                if stages and len(chosen) == 1 and stages[-1].regions == chosen:
                    stage = stage.model_copy(update={"first": stages.pop().first})
                stages.append(stage)
        made.append(tuple(stages))
    return made


def runs_of(model: Model) -> list[tuple[bool, int, int]]:
    """Runs of layers [first, stop) that can all be split, or that all cannot."""
    changes = [b.index for a, b in itertools.pairwise(model.layers) if a.splittable != b.splittable]
    borders = [0, *changes, len(model.layers)]
    return [(model.layers[a].splittable, a, b) for a, b in itertools.pairwise(borders)]


def cheapest_borders(cost: Array) -> list[int]:
    """Borders 0 = b0 < b1 < ... = n that minimise the sum of cost[b, next b], by dynamic programming.

    Args:
        cost: (n, n + 1), of a block [i, j).
    """
    count = len(cost)
    least, before = [0.0], [0]
    for stop in range(1, count + 1):
        sums = np.array(least) + cost[:stop, stop]
        # Of equals the longest block: a border for nothing is a stage for nothing.
        before.append(int(np.argmax(sums <= sums.min() * (1 + 1e-12))))
        least.append(float(sums[before[-1]]))
    borders = [count]
    while borders[-1]:
        borders.append(before[borders[-1]])
    return borders[::-1]
