"""Beam search over (cut, layout) with a finish time for every device, without a barrier between stages.

    arrival[d]  when everything is there that d needs from the stage before and does not own: the finish of its
                owners, then the up-link of each and the down-link of d, one message after the other
    clock[d]    = max(clock[d], arrival[d]) + seconds that d computes in the stage

A shortest path needs one number per node. Here several partial paths to a node may each become the best. The beam keeps
those that are cheapest if all devices share the rest of the work as they get free. Transfers that overlap with
computing cost nothing.

With halo first, a device sends a part of its rows as soon as that part is computed. A device that waits for rows of
others computes its interior first:

    plain        waits | all of its rows | sends
    halo first   interior | waits | borders | sends      rows of others arrive late
                 borders | sends | interior              rows of others are there
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
# Partial paths kept per cut and layout.
KEPT = 3
# Parts of the image below this are rounding errors.
LEAST_PART = 1e-9


@dataclass(frozen=True)
class _Beam:
    """Partial paths to one cut.

    Attributes:
        layout: [n] of the last stage.
        clocks: [n, device] seconds, when each device has computed its part.
        begun, varying: [n, device] seconds. The first part p of a device's rows is there at begun + p varying, and no
            later than its clock.
        joules: [n] so far.
        cost: [n] estimate of the whole path.
        first, before: [n] the cut where the last stage begins, and the index of the partial path to there.
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
    def concatenated(cls, parts: list[_Beam]) -> _Beam:
        fields = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def beam_paths(costs: StageCosts, prices: Prices, most: int, halo_first: bool = False) -> list[Path]:
    """Return up to `most` paths from the input at the source to the answer there, cheapest first.

    Args:
        prices: of a second, a joule and a transfer; the others are ignored.
        halo_first: every stage computes first what other devices wait for.
    """
    search = _Search(costs, prices, halo_first)
    reached = {0: search.begin()}
    for stop in range(1, costs.count + 1):
        parts = [search.through(reached[first], first, stop) for first in range(stop)]
        reached[stop] = _cheapest_of_each_layout(_Beam.concatenated(parts))
    ends = reached[costs.count]
    total = search.final_cost(ends)
    return list(dict.fromkeys(_back(reached, costs.count, int(end)) for end in total.argsort(kind="stable")[:most]))


def _back(reached: dict[int, _Beam], stop: int, index: int) -> Path:
    """Return the path whose last stage is partial path `index` to cut `stop`."""
    stages: list[tuple[int, int, int]] = []
    while stop > 0:
        partial = reached[stop]
        first = int(partial.first[index])
        stages.append((first, stop, int(partial.layout[index])))
        stop, index = first, int(partial.before[index])
    return tuple(reversed(stages))


def _cheapest_of_each_layout(partial: _Beam) -> _Beam:
    """Return the cheapest partial paths of each layout."""
    order = np.lexsort((partial.cost, partial.layout))
    layouts = partial.layout[order]
    place = np.arange(len(order)) - np.searchsorted(layouts, layouts)
    return partial[order[place < KEPT]]


class _Search:
    def __init__(self, costs: StageCosts, prices: Prices, halo_first: bool) -> None:
        self.costs, self.prices, self.halo_first = costs, prices, halo_first
        self.start, self.stop, self.table = costs.start, costs.stop, costs.table
        self.latency = self.table.message_seconds * prices.transfer
        # [cut, device] fixed seconds of all layers before the cut.
        fixed = self.table.inside.fixed
        self.fixed = np.vstack([np.zeros((1, fixed.shape[1])), np.cumsum(fixed, axis=0)])
        alone = costs.busy[:, costs.count][:, ~costs.several].sum(axis=2)
        # [cut, device] seconds of everything from the cut on.
        self.rest = np.vstack([alone, np.zeros((1, alone.shape[1]))])

    def begin(self) -> _Beam:
        at = self.costs.alone(self.table.profile.source)
        nothing, clocks = np.zeros(1, np.intp), np.zeros((1, len(self.table.names)))
        return _Beam(np.array([at]), clocks, clocks, clocks, np.zeros(1), np.zeros(1), nothing, nothing)

    def through(self, partial: _Beam, first: int, stop: int) -> _Beam:
        """Extend every partial path by a stage of layers [first, stop), on every layout that is allowed."""
        costs = self.costs
        sets = np.flatnonzero(costs.allowed[first, stop])
        busy = costs.busy[first, stop][sets]
        body = costs.body[first]
        # In parts of the image. A tensor that every device needs whole is sent whole to every device.
        everything = costs.gathered[first, stop] > 0
        halos = np.array([costs.above[first, stop], costs.below[first, stop]])
        above, below = np.ones(2) if everything else halos / max(body, 1.0)
        begins = np.where(busy > 0, np.maximum(self.start[sets] - above, 0.0), 2.0)
        ends = np.where(busy > 0, np.minimum(self.stop[sets] + below, 1.0), 2.0)
        arrival, received, joules = self._arrivals(partial, begins, ends, float(body))
        before = partial.clocks[:, None, :]
        fixed = np.where(busy > 0, self.fixed[stop] - self.fixed[first], 0.0)
        varying = np.maximum(busy - fixed, 0.0)
        begun = clocks = np.where(busy > 0, np.maximum(before, arrival) + busy, before)
        seconds = busy
        if self.halo_first:
            # The part of the output that waits is about the part of the input that comes from others.
            lacking = np.minimum(received / np.maximum(self.stop[sets] - self.start[sets], LEAST_PART), 1.0)
            borders = varying * lacking + np.where(lacking > 0, fixed, 0.0)
            interior = varying * (1 - lacking) + np.where(lacking < 1, fixed, 0.0)
            late, cut = arrival > before, (busy > 0) & costs.several[sets, None]
            started = np.where(late, np.maximum(before + interior, arrival), before)
            clocks = np.where(cut, started + borders + np.where(late, 0.0, interior), clocks)
            begun = np.where(cut, started + fixed, clocks)
            seconds = np.where(cut, borders + interior, busy)
        joules += partial.joules[:, None] + seconds @ self.table.compute_watts
        cost = self._cost(clocks, joules, stop)
        # No more than these would be kept per layout.
        index = cost.argsort(axis=0, kind="stable")[:KEPT].ravel()
        at = np.tile(np.arange(len(sets)), len(index) // max(len(sets), 1))
        return _Beam(
            sets[at], clocks[index, at], begun[index, at], varying[at],
            joules[index, at], cost[index, at], np.full(len(index), first, np.intp), index,
        )  # fmt: skip

    def final_cost(self, partial: _Beam) -> Array:
        """Return [n] the cost when the answer is at the source."""
        costs, only = self.costs, np.arange(len(self.table.names)) == self.table.source
        nbytes = float(sum(t.region_nbytes(t.whole) for t in costs.model.outputs))
        arrival, _, joules = self._arrivals(
            partial, np.where(only, 0.0, 2.0)[None], np.where(only, 1.0, 2.0)[None], nbytes
        )
        seconds = np.maximum(arrival[:, 0, self.table.source], partial.clocks[:, self.table.source])
        total: Array = self.prices.second * seconds + self.prices.joule * (partial.joules + joules[:, 0])
        return total

    def _cost(self, clocks: Array, joules: Array, cut: int) -> Array:
        """Return [n, layout] the cost if all devices share the rest as they get free, and it takes no joules."""
        seconds: Array = functools.reduce(np.maximum, np.moveaxis(clocks, 2, 0))
        if cut < self.costs.count:
            speed = 1 / np.maximum(self.rest[cut], 1e-12)
            # Half way to a barrier at the cut, because the rest cannot be divided arbitrarily.
            seconds = (seconds + np.maximum(seconds, (1 + clocks @ speed) / speed.sum())) / 2
        cost: Array = self.prices.second * seconds + self.prices.joule * joules
        return cost

    def _arrivals(self, partial: _Beam, begins: Array, ends: Array, nbytes: float) -> tuple[Array, Array, Array]:
        """Return when each device has what lies in [begins, ends) of the image, and how much of it others send.

        Args:
            begins, ends: [layout, device] in the unit square.
            nbytes: size of the whole image.

        Returns:
            [n, layout, device] seconds; [n, layout, device] parts of the image; [n, layout] joules on links.
        """
        owners, at = np.unique(partial.layout, return_inverse=True)
        devices = range(len(self.table.names))
        arrival = [np.zeros((len(at), len(begins))) for _ in devices]
        joules = np.zeros((len(owners), len(begins)))
        received = np.zeros((*joules.shape, len(self.table.names)))
        # Loop over pairs, because NumPy is slow on axes as short as that of the devices.
        for sender in devices:
            own_begins, own_ends = self.start[owners, sender, None], self.stop[owners, sender, None]
            own = np.maximum(own_ends - own_begins, LEAST_PART)
            # Messages are made and sent one after the other.
            made, up_link = np.zeros_like(joules), np.zeros_like(joules)
            for receiver in devices:
                if receiver == sender:
                    continue
                part = np.minimum(own_ends, ends[:, receiver]) - np.maximum(own_begins, begins[:, receiver])
                moves = part > LEAST_PART
                part = np.where(moves, part, 0.0)
                received[:, :, receiver] += part
                wire = part * (nbytes * self.table.seconds_per_byte[sender, receiver])
                up_link += wire * self.prices.transfer
                joules += wire * self.table.transfer_watts[sender, receiver]
                behind = np.where(moves, up_link + self.latency[sender, receiver], -np.inf)
                ready = partial.clocks[:, sender, None]
                if self.halo_first:
                    made += part
                    of_all = np.minimum(made / own, 1.0)[at]
                    ready = np.minimum(
                        partial.begun[:, sender, None] + partial.varying[:, sender, None] * of_all, ready
                    )
                np.maximum(arrival[receiver], behind[at] + ready, out=arrival[receiver])
        return np.stack(arrival, axis=2), received[at], joules[at]
