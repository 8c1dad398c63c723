"""Cost of every possible stage on every layout: the tables of the shortest path.

A stage is layers [i, j) on one layout. Its time is that of its slowest strip, overlap included. Before it, its inputs
move from the layout of the stage before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coedge.core.region import edges_to_rows
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.search.layout import Layout
from orchestrator.search.receptive_field import ReceptiveFields

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moves:
    """Moves from layout A to layout B, per byte alive at the cut.

    Attributes:
        seconds: [A, B] of the busiest sender or receiver.
        joules: [A, B] of all senders and receivers.
        latency: [A, B] of an empty message on the slowest link in use.
    """

    seconds: Array
    joules: Array
    latency: Array


@dataclass(frozen=True)
class Halos:
    """Exchanges inside one layout, [layout], per byte.

    Attributes:
        above, below, joules_above, joules_below: of halo rows from the neighbour above, and from the one below.
        latency: of an empty message on the slowest link between neighbours; not per byte.
        gather, gather_joules: of a tensor that every device needs whole.
        share, share_joules: of a partial result that every device sends to every other.
    """

    above: Array
    below: Array
    joules_above: Array
    joules_below: Array
    latency: Array
    gather: Array
    gather_joules: Array
    share: Array
    share_joules: Array


class StageCosts:
    """Tables over layers [0, L], M layouts and N devices.

    Attributes:
        share, start, stop: [M, N] strip of each device, in the unit square.
        several: [M] whether the layout has several devices.
        busy: [i, j, M, N] seconds that device N computes in stage [i, j).
        allowed: [i, j, M] whether the stage may be on the layout.
        weights, shared_weights: [i, j] bytes of constants that every device holds whole; that the devices share.
        body: [i] bytes alive at the cut before layer i.
        above, below: [i, j] bytes of halo rows above and below a strip, of all inputs of the stage.
        gathered: [i, j] bytes of inputs that every device needs whole.
        partial: [i, j] bytes of inputs of which every device holds a partial result.
    """

    def __init__(
        self, table: CostTable, receptive_fields: ReceptiveFields, layouts: Sequence[Layout], keep_local: int = 0
    ) -> None:
        self.table, self.model, self.layouts = table, table.model, tuple(layouts)
        self.receptive_fields, self.keep_local = receptive_fields, keep_local
        self.count = len(self.model.layers)
        sets, devices = len(self.layouts), len(table.names)
        self.share, self.start, self.stop = (np.zeros((sets, devices)) for _ in range(3))
        for row, layout in enumerate(self.layouts):
            for name, start, stop, share in zip(layout.devices, layout.edges, layout.edges[1:], layout.shares):
                at = (row, table.position[name])
                self.share[at], self.start[at], self.stop[at] = share, start, stop
        self.several = np.array([len(layout.devices) > 1 for layout in self.layouts])
        self._compute()
        self._exchange()
        pairs = [[receptive_fields.weights(i, j) for j in range(self.count + 1)] for i in range(self.count)]
        self.weights, self.shared_weights = np.moveaxis(np.array(pairs), 2, 0)
        self.moves = self._moves()
        self.halos = self._halos()

    @cached_property
    def slowest(self) -> Array:
        """[i, j, M] seconds until the last device has computed the stage."""
        seconds: Array = self.busy.max(axis=3)
        return seconds

    def with_links(self, table: CostTable) -> StageCosts:
        """Return the costs of the same devices on other links."""
        other = copy.copy(self)
        other.table = table
        other.moves, other.halos = other._moves(), other._halos()
        return other

    def on_layouts(self, layouts: Sequence[Layout]) -> StageCosts:
        """Return the costs on other layouts."""
        return StageCosts(self.table, self.receptive_fields, layouts, self.keep_local)

    def alone(self, name: str) -> int:
        """Return the index of the layout with everything on one device."""
        return next(i for i, layout in enumerate(self.layouts) if layout.devices == (name,))

    def held_nbytes(self, path: Sequence[tuple[int, int, int]]) -> Array:
        """Return [N] bytes of constants that each device holds, for stages (first, stop, layout)."""
        held = np.zeros(len(self.table.names))
        for first, stop, layout in path:
            share = self.share[layout]
            held += self.weights[first, stop] * (share > 0) + self.shared_weights[first, stop] * share
        return held

    def priced_moves(self, price: Array) -> Array:
        """Return [A, B] the cost per byte alive at the cut.

        Args:
            price: [sender, receiver] of a second of the link.
        """
        priced = self.table.seconds_per_byte * price
        return np.stack([(self._moved(a) * priced).sum(axis=(1, 2)) for a in range(len(self.layouts))])

    def priced_halos(self, price: Array) -> tuple[Array, Array]:
        """Return [M] the cost per byte of halo above, and below, with a price as for `priced_moves`."""
        priced = self.table.seconds_per_byte * price
        above, below = np.zeros(len(self.layouts)), np.zeros(len(self.layouts))
        for row, layout in enumerate(self.layouts):
            at = [self.table.position[name] for name in layout.devices]
            above[row] = sum(priced[a, b] for a, b in zip(at, at[1:]))
            below[row] = sum(priced[b, a] for a, b in zip(at, at[1:]))
        return above, below

    def _compute(self) -> None:
        """Fill in `busy` and `allowed`."""
        layers, count, table = self.model.layers, self.count, self.table
        sets, devices = self.share.shape
        splits = np.array([layer.splittable or layer.by_features for layer in layers])
        used = self.share > 0
        has_above, has_below = used & (self.start > 0), used & (self.stop < 1)
        self.busy = np.zeros((count, count + 1, sets, devices))
        self.allowed = np.zeros((count, count + 1, sets), bool)
        for stop in range(1, count + 1):
            end = self.receptive_fields.end(stop)
            # Whole rows, as in the plan: if a tensor has few rows, some devices get none.
            high = table.rows[:stop, None, None]
            own = edges_to_rows(self.stop[None], high) - edges_to_rows(self.start[None], high)
            halo = has_above[None] * end.above[:, None, None] + has_below[None] * end.below[:, None, None]
            # Devices without rows in the stage's last layer compute nothing.
            rows = np.clip(own + halo, 0, high) * (own[-1:] > 0)
            rows = np.where(end.whole[:, None, None], high, rows) * used[None] * end.needed[:, None, None]
            rows[:, ~self.several] = used[~self.several] * high * end.needed[:, None, None]
            self.busy[:stop, stop] = np.cumsum(table.seconds(0, rows)[::-1], axis=0)[::-1]
            # Several devices may take a stage that begins after the last layer that cannot be split.
            whole = np.flatnonzero(~splits[:stop])
            begin = int(whole[-1]) + 1 if len(whole) else 0
            self.allowed[:stop, stop] = ~self.several[None]
            self.allowed[begin:stop, stop] |= self.several[None]
        if self.keep_local:
            alone = np.arange(sets) == self.alone(table.profile.source)
            self.allowed[: self.keep_local] &= alone

    def _exchange(self) -> None:
        """Fill in `body`, `above`, `below`, `gathered` and `partial`."""
        shape = (self.count, self.count + 1)
        self.above, self.below, self.gathered, self.partial = (np.zeros(shape) for _ in range(4))
        for stop in range(1, self.count + 1):
            for first, inputs in enumerate(self.receptive_fields.end(stop).inputs):
                for item in inputs:
                    if item.partial:
                        self.partial[first, stop] += item.nbytes
                    elif item.whole:
                        self.gathered[first, stop] += item.nbytes
                    else:
                        self.above[first, stop] += max(item.above, 0.0) * item.row_nbytes
                        self.below[first, stop] += max(item.below, 0.0) * item.row_nbytes
        self.body = np.zeros(self.count)
        for first, cut in enumerate(self.model.cuts):
            # Everything alive moves with the layout, even if only a later stage needs it.
            alive = [self.model.graph.tensors[name] for name in cut.tensors]
            self.body[first] = sum(t.region_nbytes(t.whole) for t in alive if not t.partial_extent)

    def _moves(self) -> Moves:
        table, sets = self.table, len(self.layouts)
        seconds, joules, latencies = (np.zeros((sets, sets)) for _ in range(3))
        for before in range(sets):
            moved = self._moved(before)
            wire = moved * table.seconds_per_byte
            seconds[before] = np.maximum(wire.sum(axis=2).max(axis=1), wire.sum(axis=1).max(axis=1))
            joules[before] = (wire * table.transfer_watts).sum(axis=(1, 2))
            latencies[before] = np.where(moved > 1e-9, table.message_seconds, 0.0).max(axis=(1, 2))
        return Moves(seconds, joules, latencies)

    def _moved(self, before: int) -> Array:
        """Return [B, sender, receiver] the part of the image that moves from layout `before` to each other."""
        start, stop = self.start, self.stop
        overlap = np.minimum(stop[before][None, :, None], stop[:, None, :]) - np.maximum(
            start[before][None, :, None], start[:, None, :]
        )
        holds = (self.share[before] > 0)[None, :, None] & (self.share > 0)[:, None, :]
        moved: Array = np.maximum(overlap, 0.0) * holds * (1 - np.eye(len(self.table.names)))
        return moved

    def _halos(self) -> Halos:
        per_byte, latency, watts = self.table.seconds_per_byte, self.table.message_seconds, self.table.transfer_watts
        columns: list[list[float]] = []
        for row, layout in enumerate(self.layouts):
            at = [self.table.position[name] for name in layout.devices]
            pairs = list(zip(at, at[1:]))
            above = [per_byte[a, b] for a, b in pairs] or [0.0]
            below = [per_byte[b, a] for a, b in pairs] or [0.0]
            inside, inside_watts = per_byte[np.ix_(at, at)], watts[np.ix_(at, at)]
            gather = inside * self.share[row, at][:, None]
            columns.append(
                [
                    max(above), max(below),
                    sum(per_byte[a, b] * watts[a, b] for a, b in pairs),
                    sum(per_byte[b, a] * watts[b, a] for a, b in pairs),
                    max([latency[a, b] for a, b in (*pairs, *((b, a) for a, b in pairs))] or [0.0]),
                    max(gather.sum(axis=1).max(), gather.sum(axis=0).max()),
                    float((gather * inside_watts).sum()),
                    max(inside.sum(axis=1).max(), inside.sum(axis=0).max()),
                    float((inside * inside_watts).sum()),
                ]
            )  # fmt: skip
        return Halos(*np.array(columns).T)
