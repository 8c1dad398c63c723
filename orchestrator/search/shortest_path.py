"""The best cuts and device sets: a shortest path over (cut, layout).

    D[j, B] = min over i < j, A of   D[i, A] + move(A -> B, i, j) + stage(i, j, B)

A node is a cut with the layout of the stage before it; an edge is a stage. The costs take a barrier between
stages, which the real schedule does not have: so the path is a draft, to be refined and judged by simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.search.costs import Costs

Array = NDArray[np.float64]
# (first, stop, index of the layout)
Path = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Prices:
    """What a path is to minimise.

    Attributes:
        second: of latency, as the barriers see it.
        joule: of computing and transmitting.
        busy: per device, a second of its kernels (for streams: what its time is worth to others).
        link: likewise a second of each link, [sender, receiver].
        transfer: what transfers count, against what they take: below one where they hide behind computing.
        memory: per device, a byte of weights.
    """

    second: float = 1.0
    joule: float = 0.0
    busy: Array | None = None
    link: Array | None = None
    transfer: float = 1.0
    memory: Array | None = None


def shortest_path(costs: Costs, prices: Prices) -> Path | None:
    """The cheapest path from the input at the source to the answer there; None: no layout is allowed."""
    count, sets = costs.count, len(costs.layouts)
    stage = _stage_costs(costs, prices)
    moves, halos = costs.moves, costs.halos
    second, joule = prices.second * prices.transfer, prices.joule
    move = second * moves.seconds + joule * moves.joules
    above = second * halos.above + joule * halos.joules_above
    below = second * halos.below + joule * halos.joules_below
    gather = second * halos.gather + joule * halos.gather_joules
    share = second * halos.share + joule * halos.share_joules
    if prices.link is not None:
        move = move + costs.priced_moves(prices.link)
        above, below = (kept + more for kept, more in zip((above, below), costs.priced_halos(prices.link)))
    source = _alone(costs, costs.profile.source)
    best = np.full((count + 1, sets), np.inf)
    back: dict[tuple[int, int], tuple[int, int]] = {}
    for stop in range(1, count + 1):
        halo = (
            costs.above[:stop, stop, None] * above
            + costs.below[:stop, stop, None] * below
            + costs.everybody[:stop, stop, None] * gather
            + costs.shares[:stop, stop, None] * share
        )
        waits = halo > 0
        fixed = stage[:stop, stop] + halo + second * waits * halos.latency
        # From the cut itself, the network's inputs lie on the source alone.
        before = best[:stop].copy()
        before[0] = np.inf
        before[0, source] = 0.0
        body = costs.body[:stop]
        total = (
            before[:, :, None]
            + body[:, None, None] * move[None]
            + (body > 0)[:, None, None] * second * moves.latency[None]
            + fixed[:, None, :]
        )
        flat = total.reshape(stop * sets, sets)
        chosen = flat.argmin(axis=0)
        best[stop] = flat[chosen, np.arange(sets)]
        for layout, index in enumerate(chosen):
            back[stop, layout] = divmod(int(index), sets)
    outputs = sum(t.region_nbytes(t.whole) for t in costs.model.outputs)
    final = best[count] + outputs * move[:, source] + second * moves.latency[:, source]
    layout = int(final.argmin())
    if not np.isfinite(final[layout]):
        return None
    stages: list[tuple[int, int, int]] = []
    stop = count
    while stop > 0:
        first, previous = back[stop, layout]
        stages.append((first, stop, layout))
        stop, layout = first, previous
    return tuple(reversed(stages))


def _stage_costs(costs: Costs, prices: Prices) -> Array:
    """[i, j, M]; infinite where a stage may not be."""
    cost = prices.second * costs.busy.max(axis=3) if prices.second else np.zeros(costs.allowed.shape)
    if prices.joule:
        watts = np.array([d.power.compute_watts for d in costs.profile.devices])
        idle = np.array([d.power.idle_watts for d in costs.profile.devices])
        cost = cost + prices.joule * costs.busy @ watts
        if costs.profile.joules == "total":
            taking_part = (costs.share > 0) @ idle
            cost = cost + prices.joule * costs.busy.max(axis=3) * taking_part
    if prices.busy is not None:
        cost = cost + costs.busy @ prices.busy
    if prices.memory is not None:
        cost = cost + costs.weights[:, :, None] * ((costs.share > 0) @ prices.memory)
        cost = cost + costs.shared_weights[:, :, None] * (costs.share @ prices.memory)
    return np.where(costs.allowed, cost, np.inf)


def _alone(costs: Costs, name: str) -> int:
    return next(i for i, layout in enumerate(costs.layouts) if layout.devices == (name,))
