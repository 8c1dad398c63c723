"""`aofl`: fused blocks of layers, with borders from dynamic programming (Zhou et al., AOFL, SEC 2019).

    layers     0   1   2   3   4   5   6
    blocks   [ 0   1   2 | 3   4 | 5   6 ]    inside a block devices exchange nothing and recompute the overlap
                         ^       ^            at a border each device fetches what it does not have

    block(i, j) = max over devices of  transfer at i + compute of layers i .. j - 1 with their overlap
    best(j)     = min over i < j of    best(i) + block(i, j)

The rows of a device are proportional to its measured speed. The degree of parallelism is chosen too: all devices, the
faster half of them, and so on down to one, which is the fastest or the source. In the paper the source gathers and
scatters everything at each border. Here blocks are stages, so a device fetches only what it lacks, from the devices
that have it. Layers that cannot be split are blocks of their own on one device. For the goal of energy the programme
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
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.schemes.fused_blocks import Array, BlockNeeds, block_costs
from orchestrator.schemes.scheme import best_of, on_one_device, place_whole, speeds


def aofl(model: Model, profile: Profile, objective: Objective) -> Plan:
    goals = [objective]
    if objective.deadline_ms is not None:
        goals.append(Objective())  # the blocks of least energy may miss the deadline
    speed, table, needs = speeds(model, profile), CostTable.of(model, profile), BlockNeeds(model)
    drafts: list[tuple[Stage, ...]] = []
    for degree in degrees(len(speed)):
        used = sorted(speed, key=lambda name: -speed[name])[:degree]
        shares = {name: value for name, value in speed.items() if name in used}
        drafts += fused_stages(needs, table, shares, goals)
    drafts.append(on_one_device(model, profile.source))
    return best_of("aofl", model, profile, objective, drafts)


def degrees(count: int) -> Iterator[int]:
    """Yield the number of devices, half of it, a quarter, down to one."""
    while count:
        yield count
        count //= 2


def fused_stages(
    needs: BlockNeeds, table: CostTable, shares: Mapping[str, float], goals: list[Objective]
) -> list[tuple[Stage, ...]]:
    """Return, for each goal, the blocks of least cost on strips proportional to the shares."""
    model, total = table.model, sum(shares.values())
    alone = place_whole(model, table.profile, {name: share / total for name, share in shares.items()}, goals[0])
    regions = strips(shares)
    runs = runs_of(model)
    # A single device exchanges nothing, so its blocks are as long as possible.
    block_tables = {
        first: block_costs(needs, table, regions, alone, first, stop)
        for splittable, first, stop in runs
        if splittable and len(regions) > 1
    }
    made = []
    for goal in goals:
        stages: list[Stage] = []
        for splittable, first, stop in runs:
            borders = cheapest_borders(block_tables[first].cost(goal)) if first in block_tables else [0, stop - first]
            for a, b in itertools.pairwise(borders):
                chosen = dict(regions) if splittable else {alone: UNIT}
                stage = Stage(first=first + a, last=first + b - 1, regions=chosen)
                if stages and len(chosen) == 1 and stages[-1].regions == chosen:
                    stage = stage.model_copy(update={"first": stages.pop().first})
                stages.append(stage)
        made.append(tuple(stages))
    return made


def runs_of(model: Model) -> list[tuple[bool, int, int]]:
    """Return runs of layers (splittable, first, stop) that can all be split, or that all cannot."""
    changes = [b.index for a, b in itertools.pairwise(model.layers) if a.splittable != b.splittable]
    borders = [0, *changes, len(model.layers)]
    return [(model.layers[a].splittable, a, b) for a, b in itertools.pairwise(borders)]


def cheapest_borders(cost: Array) -> list[int]:
    """Return borders 0 = b0 < b1 < ... = n that minimise the sum of cost[b, next b], by dynamic programming.

    Args:
        cost: [i, j] of block [i, j), of shape (n, n + 1).
    """
    count = len(cost)
    least, before = [0.0], [0]
    for stop in range(1, count + 1):
        sums = np.array(least) + cost[:stop, stop]
        # Of equally good blocks take the longest: a stage fewer.
        before.append(int(np.argmax(sums <= sums.min() * (1 + 1e-12))))
        least.append(float(sums[before[-1]]))
    borders = [count]
    while borders[-1]:
        borders.append(before[borders[-1]])
    return borders[::-1]
