"""What every stage that a network could have would take on every layout: the tables of the shortest path.

A stage is layers [i, j) on one layout. Its time is that of its slowest strip, overlap included; what comes
before it is moving its inputs there from the layout before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coedge.core.region import edges_to_rows
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.evaluation.kernel_times import kernel_times
from orchestrator.search.flow import message_seconds
from orchestrator.search.layout import Layout
from orchestrator.search.receptive_field import ReceptiveFields

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moves:
    """Between layouts A (before) and B (after), per byte that is alive at the cut.

    Attributes:
        seconds: of the busiest sender or receiver, [A, B].
        joules: of all senders, [A, B].
        latency: of one message on the slowest of the links that are used, [A, B].
    """

    seconds: Array
    joules: Array
    latency: Array


@dataclass(frozen=True)
class Halos:
    """Between neighbours of one layout, per byte of halo above and below; and of what everybody needs."""

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
    """Tables over layers [0, L], layouts M and devices N.

    Attributes:
        fixed: [i, N] seconds that layer i takes device N whatever the rows, inside of a stage.
        busy: [i, j, M, N] seconds that device N computes in stage [i, j).
        allowed: [i, j, M] whether the stage may be on the layout.
        weights, shared_weights: [i, j] bytes of constants that every device holds; that each holds its share of.
        body: [i] bytes alive at the cut before layer i.
        above, below, everybody, shares: [i, j] bytes of the stage's inputs: halo rows above and below a strip,
            needed whole by everybody, and sums of which everybody has a share.
    """

    def __init__(
        self,
        model: Model,
        profile: Profile,
        receptive_fields: ReceptiveFields,
        layouts: Sequence[Layout],
        keep_local: int = 0,
    ) -> None:
        self.model, self.profile, self.layouts = model, profile, tuple(layouts)
        self.receptive_fields, self.keep_local = receptive_fields, keep_local
        self.names = profile.names
        self.count = len(model.layers)
        position = {name: index for index, name in enumerate(self.names)}
        sets = len(self.layouts)
        self.share = np.zeros((sets, len(self.names)))
        self.start = np.zeros((sets, len(self.names)))
        self.stop = np.zeros((sets, len(self.names)))
        for row, layout in enumerate(self.layouts):
            for name, start, stop, share in zip(layout.devices, layout.edges, layout.edges[1:], layout.shares):
                self.share[row, position[name]] = share
                self.start[row, position[name]], self.stop[row, position[name]] = start, stop
        self.several = np.array([len(layout.devices) > 1 for layout in self.layouts])
        self._stages()
        pairs = [[receptive_fields.weights(i, j) for j in range(self.count + 1)] for i in range(self.count)]
        self.weights, self.shared_weights = np.moveaxis(np.array(pairs), 2, 0)
        self.moves = self._moves()
        self.halos = self._halos()

    @cached_property
    def slowest(self) -> Array:
        """[i, j, M] seconds until the last device has computed the stage."""
        seconds: Array = self.busy.max(axis=3)
        return seconds

    def with_links(self, profile: Profile) -> StageCosts:
        """The same devices on other links: what they compute is not worked out again."""
        other = copy.copy(self)
        other.profile = profile
        other.moves, other.halos = other._moves(), other._halos()
        return other

    def on_layouts(self, layouts: Sequence[Layout]) -> StageCosts:
        """The same on other layouts."""
        return StageCosts(self.model, self.profile, self.receptive_fields, layouts, self.keep_local)

    def _stages(self) -> None:
        layers, count = self.model.layers, self.count
        sets, devices = self.share.shape
        heights = np.array([float(layer.rows) for layer in layers])
        splits = np.array([layer.splittable or layer.by_features for layer in layers])
        self.fixed, row_time = kernel_times(self.profile.devices, range(count), ends_stage=False)
        fixed_end, row_end = kernel_times(self.profile.devices, range(count), ends_stage=True)
        used = self.share > 0
        has_above = used & (self.start > 0)
        has_below = used & (self.stop < 1)
        self.busy = np.zeros((count, count + 1, sets, devices))
        self.allowed = np.zeros((count, count + 1, sets), bool)
        shape = (count, count + 1)
        self.above, self.below, self.everybody, self.shares = (np.zeros(shape) for _ in range(4))
        self.body = np.zeros(count)
        for stop in range(1, count + 1):
            end = self.receptive_fields.end(stop)
            # In whole rows, as they will be: of few rows some devices get none.
            high = heights[:stop, None, None]
            own = edges_to_rows(self.stop[None], high) - edges_to_rows(self.start[None], high)
            halo = has_above[None] * end.above[:, None, None] + has_below[None] * end.below[:, None, None]
            # What the last layer of a stage gives nobody a row of, nobody computes the layers before for.
            rows = np.clip(own + halo, 0, high) * (own[-1:] > 0)
            rows = np.where(end.whole[:, None, None], high, rows) * used[None] * end.needed[:, None, None]
            rows[:, ~self.several] = used[~self.several] * high * end.needed[:, None, None]
            computed = rows > 0
            seconds = computed * self.fixed[:stop, None] + rows * row_time[:stop, None]
            seconds[-1] = computed[-1] * fixed_end[stop - 1] + rows[-1] * row_end[stop - 1]
            self.busy[:stop, stop] = np.cumsum(seconds[::-1], axis=0)[::-1]
            # From the last layer that cannot be split on, several devices may take a stage.
            whole = np.flatnonzero(~splits[:stop])
            begin = int(whole[-1]) + 1 if len(whole) else 0
            self.allowed[:stop, stop] = ~self.several[None]
            self.allowed[begin:stop, stop] |= self.several[None]
            for first in range(stop):
                for item in end.inputs[first]:
                    if item.partial:
                        self.shares[first, stop] += item.nbytes
                    elif item.whole:
                        self.everybody[first, stop] += item.nbytes
                    else:
                        self.above[first, stop] += max(item.above, 0.0) * item.row_nbytes
                        self.below[first, stop] += max(item.below, 0.0) * item.row_nbytes
        for first, cut in enumerate(self.model.cuts):
            # What is alive moves with the layout, though a later stage may be the one that needs it.
            alive = [self.model.graph.tensors[name] for name in cut.tensors]
            self.body[first] = sum(t.region_nbytes(t.whole) for t in alive if not t.partial_extent)
        if self.keep_local:
            alone = np.array([layout.devices == (self.profile.source,) for layout in self.layouts])
            self.allowed[: self.keep_local] &= alone

    def held_nbytes(self, path: Sequence[tuple[int, int, int]]) -> Array:
        """Bytes of constants on every device, for stages (first, stop, layout)."""
        held = np.zeros(len(self.names))
        for first, stop, layout in path:
            share = self.share[layout]
            held += self.weights[first, stop] * (share > 0) + self.shared_weights[first, stop] * share
        return held

    def per_byte(self) -> tuple[Array, Array]:
        """Seconds per byte, and latency, from each device to each other; 0 to itself."""
        count = len(self.names)
        seconds, latency = np.zeros((count, count)), np.zeros((count, count))
        for a, sender in enumerate(self.names):
            for b, receiver in enumerate(self.names):
                if a != b:
                    link = self.profile.link(sender, receiver)
                    rates = [
                        link.bytes_per_second,
                        *(m.bytes_per_second for m in self.profile.media_between(sender, receiver)),
                    ]
                    seconds[a, b], latency[a, b] = 1 / min(rates), message_seconds(self.profile, sender, receiver)
        return seconds, latency

    def watts(self) -> Array:
        """[sender, receiver] while a byte passes."""
        send = np.array([d.power.transmit_watts for d in self.profile.devices])
        receive = np.array([d.power.receive_watts for d in self.profile.devices])
        watts: Array = send[:, None] + receive[None]
        return watts

    def _moves(self) -> Moves:
        per_byte, latency = self.per_byte()
        sets = len(self.layouts)
        seconds, joules, latencies = (np.zeros((sets, sets)) for _ in range(3))
        for before in range(sets):
            moved = self._moved(before)
            wire = moved * per_byte
            seconds[before] = np.maximum(wire.sum(axis=2).max(axis=1), wire.sum(axis=1).max(axis=1))
            joules[before] = (wire * self.watts()).sum(axis=(1, 2))
            latencies[before] = np.where(moved > 1e-9, latency, 0.0).max(axis=(1, 2))
        return Moves(seconds, joules, latencies)

    def _moved(self, before: int) -> Array:
        """[B, sender, receiver]: the part of the image that moves from one layout to each other."""
        start, stop = self.start, self.stop
        overlap = np.minimum(stop[before][None, :, None], stop[:, None, :]) - np.maximum(
            start[before][None, :, None], start[:, None, :]
        )
        holds = (self.share[before] > 0)[None, :, None] & (self.share > 0)[:, None, :]
        moved: Array = np.maximum(overlap, 0.0) * holds * (1 - np.eye(len(self.names)))
        return moved

    def priced_moves(self, price: Array) -> Array:
        """[A, B]: per byte alive at the cut, with a price on every second of a link, [sender, receiver]."""
        per_byte, _ = self.per_byte()
        return np.stack([(self._moved(a) * per_byte * price).sum(axis=(1, 2)) for a in range(len(self.layouts))])

    def priced_halos(self, price: Array) -> tuple[Array, Array]:
        """Per layout and byte of halo above and below, likewise."""
        per_byte, _ = self.per_byte()
        priced = per_byte * price
        position = {name: index for index, name in enumerate(self.names)}
        above, below = np.zeros(len(self.layouts)), np.zeros(len(self.layouts))
        for row, layout in enumerate(self.layouts):
            at = [position[name] for name in layout.devices]
            above[row] = sum(priced[a, b] for a, b in zip(at, at[1:]))
            below[row] = sum(priced[b, a] for a, b in zip(at, at[1:]))
        return above, below

    def _halos(self) -> Halos:
        per_byte, latency = self.per_byte()
        watts = self.watts()
        position = {name: index for index, name in enumerate(self.names)}
        columns: list[list[float]] = []
        for row, layout in enumerate(self.layouts):
            at = [position[name] for name in layout.devices]
            pairs = list(zip(at, at[1:]))
            above = [per_byte[a, b] for a, b in pairs] or [0.0]
            below = [per_byte[b, a] for a, b in pairs] or [0.0]
            inside = per_byte[np.ix_(at, at)]
            shares = self.share[row, at]
            gather = inside * shares[:, None]
            columns.append(
                [
                    max(above), max(below),
                    sum(per_byte[a, b] * watts[a, b] for a, b in pairs),
                    sum(per_byte[b, a] * watts[b, a] for a, b in pairs),
                    max([latency[a, b] for a, b in (*pairs, *((b, a) for a, b in pairs))] or [0.0]),
                    max(gather.sum(axis=1).max(), gather.sum(axis=0).max()),
                    float((gather * watts[np.ix_(at, at)]).sum()),
                    max(inside.sum(axis=1).max(), inside.sum(axis=0).max()),
                    float((inside * watts[np.ix_(at, at)]).sum()),
                ]
            )  # fmt: skip
        return Halos(*np.array(columns).T)
