"""Cuts and layouts of a draft: a shortest path over (cut, layout).

    D[j, B] = min over i < j, A of   D[i, A] + move(A -> B, i, j) + stage(i, j, B)

A node is a cut with the layout of the stage before it; an edge is a stage. The costs assume a barrier between stages,
which the real schedule does not have. A path is therefore a draft, to be refined and evaluated by simulation.
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
# Prices of a transfer: its time (a barrier after every stage), half of it (the rest overlaps with computing), and twice
# its time (it queues).
TRANSFERS = (1.0, 0.5, 2.0)


@dataclass(frozen=True)
class Prices:
    """Prices whose sum a path minimises.

    Attributes:
        second: of latency, with a barrier after each stage.
        joule: of computing and transmitting.
        busy: [device] of a second of each device's kernels (for streams, which share the devices).
        link: [sender, receiver] of a second of each link, likewise.
        transfer: factor on the time of transfers; below one if they overlap with computing.
        memory: [device] of a byte of constants.
    """

    second: float = 1.0
    joule: float = 0.0
    busy: Array | None = None
    link: Array | None = None
    transfer: float = 1.0
    memory: Array | None = None


def prices_of(objective: Objective, transfers: Sequence[float] = (1.0,)) -> list[Prices]:
    """Return the prices of an objective for each price of a transfer; one set of prices for the goal of energy."""
    if objective.goal == "energy":
        return [Prices(second=0.0, joule=1.0)]
    return [Prices(joule=objective.energy_weight, transfer=transfer) for transfer in transfers]


def shortest_path(costs: StageCosts, prices: Prices) -> Path | None:
    """Return the cheapest path from the input at the source to the answer there; None if no layout is allowed."""
    edges = _Edges(costs, prices)
    cheapest = _CheapestPaths(costs, edges)
    final = cheapest.cost[costs.count] + edges.answer
    layout = int(final.argmin())
    return cheapest.path_to(costs.count, layout) if np.isfinite(final[layout]) else None


def shortest_paths(costs: StageCosts, prices: Prices, most: int) -> list[Path]:
    """Return up to `most` paths, cheapest first. Each is the cheapest one through some (cut, layout)."""
    edges = _Edges(costs, prices)
    cheapest, sets = _CheapestPaths(costs, edges), len(costs.layouts)
    # Backwards: the cheapest rest from a cut on, by the layout before it.
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
    through = cheapest.cost[1:] + rest[1:]
    paths: dict[Path, None] = {}
    for at in through.ravel().argsort(kind="stable"):
        stop, layout = divmod(int(at), sets)
        if len(paths) == most or not np.isfinite(through[stop, layout]):
            break
        path, stop = list(cheapest.path_to(stop + 1, layout)), stop + 1
        while stop < costs.count:
            layout = int(behind[stop, layout])
            first, stop = stop, int(ends[stop, layout])
            path.append((first, stop, layout))
        paths[tuple(path)] = None
    return list(paths)


class _CheapestPaths:
    """Cheapest paths from the source to every node.

    Attributes:
        cost: [cut, layout] of the cheapest path to a cut, by the layout of the stage before it.
    """

    def __init__(self, costs: StageCosts, edges: _Edges) -> None:
        count, sets = costs.count, len(costs.layouts)
        self.cost = np.full((count + 1, sets), np.inf)
        # [cut, layout] cost up to a cut after the move to the layout of the stage behind it, and the layout before.
        moved, self._layout_before = np.full((count, sets), np.inf), np.zeros((count, sets), int)
        # [cut, layout] first layer of the stage before the cut.
        self._first = np.zeros((count + 1, sets), int)
        self.cost[0, costs.alone(costs.table.profile.source)] = 0.0
        everywhere = np.arange(sets)
        for stop in range(1, count + 1):
            total = self.cost[stop - 1][:, None] + edges.moves(stop - 1)
            self._layout_before[stop - 1] = total.argmin(axis=0)
            moved[stop - 1] = total[self._layout_before[stop - 1], everywhere]
            total = moved[:stop] + edges.stages(stop)
            self._first[stop] = total.argmin(axis=0)
            self.cost[stop] = total[self._first[stop], everywhere]

    def path_to(self, stop: int, layout: int) -> Path:
        """Return the cheapest path to a node."""
        stages: list[tuple[int, int, int]] = []
        while stop > 0:
            first = int(self._first[stop, layout])
            stages.append((first, stop, layout))
            stop, layout = first, int(self._layout_before[first, layout])
        return tuple(reversed(stages))


class _Edges:
    """Costs of the edges between nodes.

    Attributes:
        answer: [layout] of the move of the answer from the last stage to the source.
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
        source = costs.alone(costs.table.profile.source)
        outputs = sum(t.region_nbytes(t.whole) for t in costs.model.outputs)
        self.answer = outputs * self.move[:, source] + second * moves.latency[:, source]

    def moves(self, cut: int) -> Array:
        """Return [A, B] the cost of moving everything alive at a cut from layout A to layout B."""
        nbytes, costs = self.costs.body[cut], self.costs
        cost: Array = nbytes * self.move + (self.second * costs.moves.latency if nbytes > 0 else 0.0)
        return cost

    def stages(self, stop: int) -> Array:
        """Return [i, B] the cost of a stage of layers [i, stop) on layout B, with the halos that it fetches."""
        costs = self.costs
        halo = (
            costs.above[:stop, stop, None] * self.above
            + costs.below[:stop, stop, None] * self.below
            + costs.gathered[:stop, stop, None] * self.gather
            + costs.partial[:stop, stop, None] * self.share
        )
        cost: Array = self.stage[:stop, stop] + halo + self.second * (halo > 0) * costs.halos.latency
        return cost

    def into(self, stop: int) -> Array:
        """Return [i, A, B] the cost of a stage of layers [i, stop) on layout B after a stage on layout A."""
        cost: Array = self._all_moves[:stop] + self.stages(stop)[:, None, :]
        return cost

    @cached_property
    def _all_moves(self) -> Array:
        return np.stack([self.moves(cut) for cut in range(self.costs.count)])


def pareto_paths(costs: StageCosts, width: int, transfer: float = 1.0) -> list[Path]:
    """Return paths from the fastest to the least energy, none of which is both slower and costs more joules.

    A weighted sum of seconds and joules does not find the paths in the concave parts of the front.

    Args:
        width: number of labels kept at every node, spread evenly over the front there.
        transfer: price of a transfer, see `Prices`.
    """
    count, sets = costs.count, len(costs.layouts)
    seconds_of = _Edges(costs, Prices(transfer=transfer))
    joules_of = _Edges(costs, Prices(second=0.0, joule=1.0))
    source = costs.alone(costs.table.profile.source)
    # [cut, layout, label]
    seconds = np.full((count + 1, sets, width), np.inf)
    joules = np.full((count + 1, sets, width), np.inf)
    back = np.zeros((count + 1, sets, width), np.int64)
    seconds[0, source, 0] = joules[0, source, 0] = 0.0
    for stop in range(1, count + 1):
        more_seconds, more_joules = seconds_of.into(stop), joules_of.into(stop)
        for layout in range(sets):
            slow = (seconds[:stop] + more_seconds[:, :, layout, None]).ravel()
            costly = (joules[:stop] + more_joules[:, :, layout, None]).ravel()
            kept = _front(slow, costly, width)
            seconds[stop, layout, : len(kept)], joules[stop, layout, : len(kept)] = slow[kept], costly[kept]
            back[stop, layout, : len(kept)] = kept
    slow = (seconds[count] + seconds_of.answer[:, None]).ravel()
    costly = (joules[count] + joules_of.answer[:, None]).ravel()
    paths = []
    for label in _front(slow, costly, len(slow)):
        stop, at, stages = count, int(label), list[tuple[int, int, int]]()
        while stop > 0:
            layout, number = divmod(at, width)
            first, at = divmod(int(back[stop, layout, number]), sets * width)
            stages.append((first, stop, layout))
            stop = first
        paths.append(tuple(reversed(stages)))
    return paths


def _front(seconds: Array, joules: Array, width: int) -> NDArray[np.int64]:
    """Return the indices of the Pareto front, by seconds; evenly spread if there are more than `width`."""
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
    """Return [i, j, layout] the cost of computing stage [i, j); infinite where it is not allowed."""
    table, used = costs.table, costs.share > 0
    cost = prices.second * costs.slowest if prices.second else np.zeros(costs.allowed.shape)
    if prices.joule:
        cost = cost + prices.joule * costs.busy @ table.compute_watts
        if table.profile.joules == "total":
            cost = cost + prices.joule * costs.slowest * (used @ table.idle_watts)
    if prices.busy is not None:
        cost = cost + costs.busy @ prices.busy
    if prices.memory is not None:
        cost = cost + costs.weights[:, :, None] * (used @ prices.memory)
        cost = cost + costs.shared_weights[:, :, None] * (costs.share @ prices.memory)
    return np.where(costs.allowed, cost, np.inf)
