"""The best cuts and device sets: a shortest path over (cut, layout).

    D[j, B] = min over i < j, A of   D[i, A] + move(A -> B, i, j) + stage(i, j, B)

A node is a cut with the layout of the stage before it; an edge is a stage. The costs take a barrier between
stages, which the real schedule does not have: so the path is a draft, to be refined and judged by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coedge.core.objective import Objective
from orchestrator.search.stage_costs import StageCosts

Array = NDArray[np.float64]
# (first, stop, index of the layout)
Path = tuple[tuple[int, int, int], ...]
# What a transfer may count: all of it (a barrier after every stage), what does not hide, and more where it queues.
TRANSFERS = (1.0, 0.5, 2.0)


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


def prices_of(objective: Objective, transfers: Sequence[float] = (1.0,)) -> list[Prices]:
    """What an objective may mean: for each of what transfers may count; just once where time is worth nothing."""
    if objective.goal == "energy":
        return [Prices(second=0.0, joule=1.0)]
    return [Prices(joule=objective.energy_weight, transfer=transfer) for transfer in transfers]


def shortest_path(costs: StageCosts, prices: Prices) -> Path | None:
    """The cheapest path from the input at the source to the answer there; None: no layout is allowed."""
    edges = _Edges(costs, prices)
    ways = _CheapestPaths(costs, edges)
    final = ways.best[costs.count] + edges.answer
    layout = int(final.argmin())
    return ways.back(costs.count, layout) if np.isfinite(final[layout]) else None


def shortest_paths(costs: StageCosts, prices: Prices, most: int) -> list[Path]:
    """Up to so many paths, cheapest first: each is the cheapest with a stage that ends at some cut on some layout."""
    edges = _Edges(costs, prices)
    ways, sets = _CheapestPaths(costs, edges), len(costs.layouts)
    # The other way round: what is cheapest from a cut on, by the layout before it.
    rest = np.full((costs.count + 1, sets), np.inf)
    rest[costs.count] = edges.answer
    stages = [edges.stages(stop) for stop in range(1, costs.count + 1)]
    ends, behind = np.zeros((costs.count, sets), int), np.zeros((costs.count, sets), int)
    for first in range(costs.count - 1, -1, -1):
        total = np.stack([stages[stop - 1][first] + rest[stop] for stop in range(first + 1, costs.count + 1)])
        ends[first] = total.argmin(axis=0) + first + 1
        moved = edges.moves(first) + total.min(axis=0)
        behind[first] = moved.argmin(axis=1)
        rest[first] = moved.min(axis=1)
    through = ways.best[1:] + rest[1:]
    paths: dict[Path, None] = {}
    for at in through.ravel().argsort(kind="stable"):
        stop, layout = divmod(int(at), sets)
        if len(paths) == most or not np.isfinite(through[stop, layout]):
            break
        path, stop = list(ways.back(stop + 1, layout)), stop + 1
        while stop < costs.count:
            layout = int(behind[stop, layout])
            first, stop = stop, int(ends[stop, layout])
            path.append((first, stop, layout))
        paths[tuple(path)] = None
    return list(paths)


class _CheapestPaths:
    """The cheapest ways from the source.

    Attributes:
        best: [cut, layout], to a cut, by the layout of the stage before it.
    """

    def __init__(self, costs: StageCosts, edges: _Edges) -> None:
        count, sets = costs.count, len(costs.layouts)
        # From a cut on to what comes behind it, with the layout before that it is cheapest from; and the cut where
        # the stage before began.
        self.best, moved = np.full((count + 1, sets), np.inf), np.full((count, sets), np.inf)
        self._came, self._begun = np.zeros((count, sets), int), np.zeros((count + 1, sets), int)
        self.best[0, _alone(costs, costs.profile.source)] = 0.0
        everywhere = np.arange(sets)
        for stop in range(1, count + 1):
            ways = self.best[stop - 1][:, None] + edges.moves(stop - 1)
            self._came[stop - 1] = ways.argmin(axis=0)
            moved[stop - 1] = ways[self._came[stop - 1], everywhere]
            total = moved[:stop] + edges.stages(stop)
            self._begun[stop] = total.argmin(axis=0)
            self.best[stop] = total[self._begun[stop], everywhere]

    def back(self, stop: int, layout: int) -> Path:
        """The cheapest way to a cut on a layout."""
        stages: list[tuple[int, int, int]] = []
        while stop > 0:
            first = int(self._begun[stop, layout])
            stages.append((first, stop, layout))
            stop, layout = first, int(self._came[first, layout])
        return tuple(reversed(stages))


class _Edges:
    """What it costs to come from every cut and layout to another, and how the answer gets home.

    Attributes:
        answer: [layout], from the last stage to the source.
    """

    def __init__(self, costs: StageCosts, prices: Prices) -> None:
        self.costs, self.stage = costs, _stage_costs(costs, prices)
        moves, halos = costs.moves, costs.halos
        self.second = second = prices.second * prices.transfer
        joule = prices.joule
        self.move = second * moves.seconds + joule * moves.joules
        self.above = second * halos.above + joule * halos.joules_above
        self.below = second * halos.below + joule * halos.joules_below
        self.gather = second * halos.gather + joule * halos.gather_joules
        self.share = second * halos.share + joule * halos.share_joules
        if prices.link is not None:
            self.move = self.move + costs.priced_moves(prices.link)
            above, below = costs.priced_halos(prices.link)
            self.above, self.below = self.above + above, self.below + below
        source = _alone(costs, costs.profile.source)
        outputs = sum(t.region_nbytes(t.whole) for t in costs.model.outputs)
        self.answer = outputs * self.move[:, source] + second * moves.latency[:, source]

    def moves(self, cut: int) -> Array:
        """[A, B]: to bring what is alive at a cut from A to B."""
        nbytes, costs = self.costs.body[cut], self.costs
        cost: Array = nbytes * self.move + (self.second * costs.moves.latency if nbytes > 0 else 0.0)
        return cost

    def stages(self, stop: int) -> Array:
        """[i, B]: a stage of layers [i, stop) on B, with the halos that it fetches."""
        costs = self.costs
        halo = (
            costs.above[:stop, stop, None] * self.above
            + costs.below[:stop, stop, None] * self.below
            + costs.everybody[:stop, stop, None] * self.gather
            + costs.shares[:stop, stop, None] * self.share
        )
        cost: Array = self.stage[:stop, stop] + halo + self.second * (halo > 0) * costs.halos.latency
        return cost

    def into(self, stop: int) -> Array:
        """[i, A, B]: a stage of layers [i, stop) on B, behind one on A."""
        cost: Array = self._all_moves[:stop] + self.stages(stop)[:, None, :]
        return cost

    @cached_property
    def _all_moves(self) -> Array:
        return np.stack([self.moves(cut) for cut in range(self.costs.count)])


def pareto_paths(costs: StageCosts, width: int, transfer: float = 1.0) -> list[Path]:
    """Paths of which none is both slower and hungrier than another, from the fastest to the least joules.

    A weighted sum of seconds and joules, whatever its weights, misses those of them that lie in the hollows of
    the front.

    Args:
        width: how many are kept at every cut and layout, spread over those that there are.
        transfer: see `Prices`.
    """
    count, sets = costs.count, len(costs.layouts)
    seconds_of = _Edges(costs, Prices(transfer=transfer))
    joules_of = _Edges(costs, Prices(second=0.0, joule=1.0))
    source = _alone(costs, costs.profile.source)
    # [cut, layout, label]
    seconds = np.full((count + 1, sets, width), np.inf)
    joules = np.full((count + 1, sets, width), np.inf)
    back = np.zeros((count + 1, sets, width), np.int64)
    seconds[0, source, 0] = joules[0, source, 0] = 0.0
    for stop in range(1, count + 1):
        more_seconds, more_joules = seconds_of.into(stop), joules_of.into(stop)
        for layout in range(sets):
            slow = (seconds[:stop] + more_seconds[:, :, layout, None]).ravel()
            hungry = (joules[:stop] + more_joules[:, :, layout, None]).ravel()
            kept = _front(slow, hungry, width)
            seconds[stop, layout, : len(kept)], joules[stop, layout, : len(kept)] = slow[kept], hungry[kept]
            back[stop, layout, : len(kept)] = kept
    slow = (seconds[count] + seconds_of.answer[:, None]).ravel()
    hungry = (joules[count] + joules_of.answer[:, None]).ravel()
    paths = []
    for label in _front(slow, hungry, len(slow)):
        stop, at, stages = count, int(label), list[tuple[int, int, int]]()
        while stop > 0:
            layout, number = divmod(at, width)
            before = int(back[stop, layout, number])
            first, at = divmod(before, sets * width)
            stages.append((first, stop, layout))
            stop = first
        paths.append(tuple(reversed(stages)))
    return paths


def _front(seconds: Array, joules: Array, width: int) -> NDArray[np.int64]:
    """Where there is nothing better in both, by seconds; evenly spread, where that is more than so many."""
    finite = np.flatnonzero(np.isfinite(seconds) & np.isfinite(joules))
    order = finite[np.lexsort((joules[finite], seconds[finite]))]
    least = np.minimum.accumulate(joules[order])
    better = np.ones(len(order), bool)
    better[1:] = joules[order[1:]] < least[:-1] * (1 - 1e-9)
    front = order[better]
    if len(front) > width:
        front = front[np.linspace(0, len(front) - 1, width).round().astype(np.int64)]
    return front


def _stage_costs(costs: StageCosts, prices: Prices) -> Array:
    """[i, j, M]; infinite where a stage may not be."""
    cost = prices.second * costs.slowest if prices.second else np.zeros(costs.allowed.shape)
    if prices.joule:
        watts = np.array([d.power.compute_watts for d in costs.profile.devices])
        idle = np.array([d.power.idle_watts for d in costs.profile.devices])
        cost = cost + prices.joule * costs.busy @ watts
        if costs.profile.joules == "total":
            taking_part = (costs.share > 0) @ idle
            cost = cost + prices.joule * costs.slowest * taking_part
    if prices.busy is not None:
        cost = cost + costs.busy @ prices.busy
    if prices.memory is not None:
        cost = cost + costs.weights[:, :, None] * ((costs.share > 0) @ prices.memory)
        cost = cost + costs.shared_weights[:, :, None] * (costs.share @ prices.memory)
    return np.where(costs.allowed, cost, np.inf)


def _alone(costs: StageCosts, name: str) -> int:
    return next(i for i, layout in enumerate(costs.layouts) if layout.devices == (name,))
