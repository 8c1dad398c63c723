"""Cheap paths over (cut, layout) that know when each device is done: a clock for every device, no barrier.

    come[d]   what d needs of the stage before and does not own: when its owners were done, then the up-link of each
              and the down-link of d, one message after the other
    clock[d]  = max(clock[d], come[d]) + seconds that d computes in the stage

A shortest path needs one number at each node; here several ways to a node may each be the best in the end. Those are
kept that look cheapest when the rest is shared by all devices as they get free: a beam, so the paths are drafts, but
drafts in which what hides behind computing costs nothing.

Where borders are made first, a device sends a part of its rows as soon as that part is made, and where it has to wait
for what it lacks it has made the rest before:

    plain           waits   |  all of its rows  | sends
    borders first   the interior |  waits  | the borders | sends          what it lacks came late
                    the borders | sends | the interior                    it was there
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.search.shortest_path import Path, Prices
from orchestrator.search.stage_costs import Array, StageCosts

Indices = NDArray[np.intp]
# Of a cut on a layout.
KEPT = 3
# Of the image; less is none.
LEAST_PART = 1e-9


@dataclass(frozen=True)
class _Beam:
    """Ways to one cut.

    Attributes:
        layout: [n] of the last stage.
        clocks: [n, device] seconds, when each has made its part.
        begun, varying: [n, device] seconds: a part p of its rows, the first that it makes, is there at
            begun + p varying, and no later than its clock.
        joules: [n] so far.
        cost: [n] what they may lead to.
        first, before: [n] the cut where the last stage begins, and which of the ways to there this one continues.
    """

    layout: Indices
    clocks: Array
    begun: Array
    varying: Array
    joules: Array
    cost: Array
    first: Indices
    before: Indices

    def __getitem__(self, chosen: Indices) -> _Beam:
        return _Beam(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    @classmethod
    def joined(cls, parts: list[_Beam]) -> _Beam:
        fields = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def clocked_paths(costs: StageCosts, prices: Prices, most: int, halo_first: bool = False) -> list[Path]:
    """Up to so many paths from the input at the source to the answer there, cheapest first.

    Args:
        prices: of a second, of a joule and of what transfers count; the others do not count here.
        halo_first: whether every stage makes first what others wait for.
    """
    search = _Search(costs, prices, halo_first)
    reached = {0: search.begin()}
    for stop in range(1, costs.count + 1):
        parts = [search.through(reached[first], first, stop) for first in range(stop)]
        reached[stop] = _few_of_each(_Beam.joined(parts))
    ends = reached[costs.count]
    total = search.answered(ends)
    return list(dict.fromkeys(_back(reached, costs.count, int(end)) for end in total.argsort(kind="stable")[:most]))


def _back(reached: dict[int, _Beam], stop: int, way: int) -> Path:
    stages: list[tuple[int, int, int]] = []
    while stop > 0:
        ways = reached[stop]
        first = int(ways.first[way])
        stages.append((first, stop, int(ways.layout[way])))
        stop, way = first, int(ways.before[way])
    return tuple(reversed(stages))


def _few_of_each(ways: _Beam) -> _Beam:
    """The cheapest few on each layout."""
    order = np.lexsort((ways.cost, ways.layout))
    layouts = ways.layout[order]
    place = np.arange(len(order)) - np.searchsorted(layouts, layouts)
    return ways[order[place < KEPT]]


class _Search:
    def __init__(self, costs: StageCosts, prices: Prices, halo_first: bool) -> None:
        self.costs, self.prices, self.halo_first = costs, prices, halo_first
        self.start, self.stop = costs.start, costs.stop
        self.per_byte, latency = costs.per_byte()
        self.latency = latency * prices.transfer
        self.watts = costs.watts()
        self.compute_watts = np.array([device.power.compute_watts for device in costs.profile.devices])
        self.source = costs.names.index(costs.profile.source)
        # [cut, device] of everything before.
        self.fixed = np.vstack([np.zeros((1, len(costs.names))), np.cumsum(costs.fixed, axis=0)])
        alone = costs.busy[:, costs.count][:, ~costs.several].sum(axis=2)
        # [cut, device] everything from there on.
        self.rest = np.vstack([alone, np.zeros((1, alone.shape[1]))])

    def begin(self) -> _Beam:
        at = next(i for i, layout in enumerate(self.costs.layouts) if layout.devices == (self.costs.profile.source,))
        nothing, clocks = np.zeros(1, np.intp), np.zeros((1, len(self.costs.names)))
        return _Beam(np.array([at]), clocks, clocks, clocks, np.zeros(1), np.zeros(1), nothing, nothing)

    def through(self, ways: _Beam, first: int, stop: int) -> _Beam:
        """Every way with a stage of layers [first, stop) behind it, on every layout that may have it."""
        costs = self.costs
        sets = np.flatnonzero(costs.allowed[first, stop])
        busy = costs.busy[first, stop][sets]
        body = costs.body[first]
        # In parts of the image; what everybody needs whole, everybody gets whole.
        everything = costs.everybody[first, stop] > 0
        halos = np.array([costs.above[first, stop], costs.below[first, stop]])
        above, below = np.ones(2) if everything else halos / max(body, 1.0)
        begins = np.where(busy > 0, np.maximum(self.start[sets] - above, 0.0), 2.0)
        ends = np.where(busy > 0, np.minimum(self.stop[sets] + below, 1.0), 2.0)
        come, got, joules = self._come(ways, begins, ends, float(body))
        before = ways.clocks[:, None, :]
        fixed = np.where(busy > 0, self.fixed[stop] - self.fixed[first], 0.0)
        varying = np.maximum(busy - fixed, 0.0)
        begun = clocks = np.where(busy > 0, np.maximum(before, come) + busy, before)
        seconds = busy
        if self.halo_first:
            # A row for a row: what a device lacks of its input is about what it cannot make of its output.
            lacking = np.minimum(got / np.maximum(self.stop[sets] - self.start[sets], LEAST_PART), 1.0)
            borders = varying * lacking + np.where(lacking > 0, fixed, 0.0)
            interior = varying * (1 - lacking) + np.where(lacking < 1, fixed, 0.0)
            late, cut = come > before, (busy > 0) & costs.several[sets, None]
            started = np.where(late, np.maximum(before + interior, come), before)
            clocks = np.where(cut, started + borders + np.where(late, 0.0, interior), clocks)
            begun = np.where(cut, started + fixed, clocks)
            seconds = np.where(cut, borders + interior, busy)
        joules += ways.joules[:, None] + seconds @ self.compute_watts
        cost = self._cost(clocks, joules, stop)
        # No more of them are kept; most would only be carried along.
        way = cost.argsort(axis=0, kind="stable")[:KEPT].ravel()
        at = np.tile(np.arange(len(sets)), len(way) // max(len(sets), 1))
        return _Beam(
            sets[at], clocks[way, at], begun[way, at], varying[at],
            joules[way, at], cost[way, at], np.full(len(way), first, np.intp), way,
        )  # fmt: skip

    def answered(self, ways: _Beam) -> Array:
        """[n] the cost when the answer is with the source."""
        costs, only = self.costs, np.arange(len(self.costs.names)) == self.source
        nbytes = float(sum(t.region_nbytes(t.whole) for t in costs.model.outputs))
        come, _, joules = self._come(ways, np.where(only, 0.0, 2.0)[None], np.where(only, 1.0, 2.0)[None], nbytes)
        seconds = np.maximum(come[:, 0, self.source], ways.clocks[:, self.source])
        total: Array = self.prices.second * seconds + self.prices.joule * (ways.joules + joules[:, 0])
        return total

    def _cost(self, clocks: Array, joules: Array, cut: int) -> Array:
        """[n, B]: if all devices shared the rest as they get free, and it took no more joules."""
        seconds: Array = functools.reduce(np.maximum, np.moveaxis(clocks, 2, 0))
        if cut < self.costs.count:
            speed = 1 / np.maximum(self.rest[cut], 1e-12)
            # Midway between that and a barrier here: not everything of the rest can be shared.
            seconds = (seconds + np.maximum(seconds, (1 + clocks @ speed) / speed.sum())) / 2
        cost: Array = self.prices.second * seconds + self.prices.joule * joules
        return cost

    def _come(self, ways: _Beam, begins: Array, ends: Array, nbytes: float) -> tuple[Array, Array, Array]:
        """[n, B, device] when everything is there that lies in [begins, ends) of the image, and how much of it came
        from others; [n, B] joules on links."""
        owners, at = np.unique(ways.layout, return_inverse=True)
        devices = range(len(self.costs.names))
        come = [np.zeros((len(at), len(begins))) for _ in devices]
        joules = np.zeros((len(owners), len(begins)))
        got = np.zeros((*joules.shape, len(self.costs.names)))
        # Pair by pair: NumPy is slow at axes as short as that of the devices.
        for sender in devices:
            own_begins, own_ends = self.start[owners, sender, None], self.stop[owners, sender, None]
            own = np.maximum(own_ends - own_begins, LEAST_PART)
            # One message is made and sent after the other.
            made, up_link = np.zeros_like(joules), np.zeros_like(joules)
            for receiver in devices:
                if receiver == sender:
                    continue
                part = np.minimum(own_ends, ends[:, receiver]) - np.maximum(own_begins, begins[:, receiver])
                moves = part > LEAST_PART
                part = np.where(moves, part, 0.0)
                got[:, :, receiver] += part
                wire = part * (nbytes * self.per_byte[sender, receiver])
                up_link += wire * self.prices.transfer
                joules += wire * self.watts[sender, receiver]
                behind = np.where(moves, up_link + self.latency[sender, receiver], -np.inf)
                ready = ways.clocks[:, sender, None]
                if self.halo_first:
                    made += part
                    of_all = np.minimum(made / own, 1.0)[at]
                    ready = np.minimum(ways.begun[:, sender, None] + ways.varying[:, sender, None] * of_all, ready)
                np.maximum(come[receiver], behind[at] + ready, out=come[receiver])
        return np.stack(come, axis=2), got[at], joules[at]
