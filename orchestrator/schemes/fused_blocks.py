"""What fused blocks of layers cost on given strips, for every block within a run of layers that can be split."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coedge.core.objective import Objective
from coedge.core.region import UNIT, Interval, UnitRect
from coedge.graph.axis_map import AxisMap
from coedge.graph.graph import Node
from coedge.graph.layers import Layer
from coedge.graph.model import Model
from coedge.graph.rules.rule import WholeRule
from coedge.profile.profile import DeviceProfile, Profile
from orchestrator.evaluation.kernel_times import kernel_times
from orchestrator.schemes.traffic import made_whole

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BlockCosts:
    """What the blocks [i, j) of a run of n layers cost: (n, n + 1)."""

    seconds: Array
    joules: Array

    def cost(self, objective: Objective) -> Array:
        # The objective is arithmetic: it takes arrays as well as numbers.
        costs: Array = np.asarray(objective.cost(self.seconds, self.joules))  # type: ignore[arg-type]
        return costs


def block_costs(
    receptive_fields: Backwards, profile: Profile, regions: Mapping[str, UnitRect], alone: str, first: int, stop: int
) -> BlockCosts:
    """The costs of all blocks within layers [first, stop), which can all be split.

    Args:
        regions: the strips, by device.
        alone: who has what layers made that cannot be split.
    """
    model = receptive_fields.model
    wires, held = Wires(profile, tuple(regions), alone), Held(model, profile.source, regions, alone, first, stop)
    kernels = BlockTimes([profile.by_name[name] for name in regions], first, stop)
    watts = np.array([profile.by_name[name].power.compute_watts for name in regions])
    count = stop - first
    seconds, joules = np.zeros((count, count + 1)), np.zeros((count, count + 1))
    for end in range(1, count + 1):
        rows = [[0] * len(regions) for _ in range(end)]
        reads: list[int] = []
        for d, rect in enumerate(regions.values()):
            for index, computed, needed in receptive_fields.walk(rect, first, first + end):
                rows[index - first][d] = computed
                for tensor, interval in needed.items():
                    reads += (index - first, d, held.index[tensor], *interval)
        waiting, sending = wires.cost(held.nbytes(end, reads))
        # A block computes all of its layers: from where it starts to its end.
        computing = np.cumsum(kernels.seconds(np.array(rows))[::-1], axis=0)[::-1]
        seconds[:end, end] = (waiting + computing).max(axis=1)
        joules[:end, end] = computing @ watts + sending
    return BlockCosts(seconds, joules)


class BlockTimes:
    """What layers [first, stop) take on the devices of the strips: arrays of (layers, devices)."""

    def __init__(self, devices: Sequence[DeviceProfile], first: int, stop: int) -> None:
        self._inside, self._last = (kernel_times(devices, range(first, stop), ends) for ends in (False, True))

    def seconds(self, rows: NDArray[np.int64]) -> Array:
        """Of the first layers, as many as there are rows given for; a device's last layer ends its stage."""
        computed, layers = rows > 0, np.arange(len(rows))[:, None]
        is_last = layers == np.where(computed, layers, -1).max(axis=0)
        fixed, per_row = (np.where(is_last, a[: len(rows)], b[: len(rows)]) for a, b in zip(self._last, self._inside))
        seconds: Array = np.where(computed, fixed + per_row * rows, 0.0)
        return seconds


def senders_of(source: str, names: Iterable[str], alone: str) -> list[str]:
    """Who may have what a block reads: the devices of the strips, first, and those that have tensors whole."""
    return list(dict.fromkeys((*names, source, alone)))


class Held:
    """Who has which rows of what, before layers [first, stop): arrays of (tensors, senders)."""

    def __init__(
        self, model: Model, source: str, regions: Mapping[str, UnitRect], alone: str, first: int, stop: int
    ) -> None:
        senders, whole = senders_of(source, regions, alone), made_whole(model)
        alive = dict.fromkeys(name for cut in model.cuts[first:stop] for name in cut.tensors)
        tensors = [model.graph.tensors[name] for name in alive]
        self.index = {name: index for index, name in enumerate(alive)}
        self.devices = len(regions)
        self.start, self.stop = (np.zeros((len(tensors), len(senders))) for _ in range(2))
        for index, tensor in enumerate(tensors):
            owners: Mapping[str, UnitRect] = regions
            if tensor.name in model.graph.inputs:
                owners = {source: UNIT}
            elif tensor.name in whole:
                owners = {alone: UNIT}
            for name, rect in owners.items():
                rows = rect.of_extent(tensor.rows, tensor.cols).rows
                self.start[index, senders.index(name)], self.stop[index, senders.index(name)] = rows
        nbytes = [tensor.region_nbytes(tensor.whole) for tensor in tensors]
        # A share of a reduction is one array, however many rows were reduced.
        self.share_nbytes = np.array([n if t.partial_extent else 0 for n, t in zip(nbytes, tensors)], float)
        self.row_nbytes = np.array([0 if t.partial_extent else n / t.rows for n, t in zip(nbytes, tensors)], float)

    def nbytes(self, count: int, reads: list[int]) -> Array:
        """Bytes that blocks read before each of `count` layers: (layers, devices, senders), their own among them.

        Args:
            reads: layer, device, tensor, first row and stop row of one, then of the next.
        """
        total = np.zeros((count, self.devices, self.start.shape[1]))
        if reads:
            layer, device, tensor, start, stop = np.array(reads).reshape(-1, 5).T
            rows = np.minimum(self.stop[tensor], stop[:, None]) - np.maximum(self.start[tensor], start[:, None])
            moved = rows * self.row_nbytes[tensor, None] + self.share_nbytes[tensor, None]
            np.add.at(total, (layer, device), np.where(rows > 0, moved, 0.0))
        return total


class Wires:
    """The links into each device of the strips: arrays of (devices, senders)."""

    def __init__(self, profile: Profile, names: tuple[str, ...], alone: str) -> None:
        senders = senders_of(profile.source, names, alone)
        self.seconds_per_byte, self.latency, self.watts = (np.zeros((len(names), len(senders))) for _ in range(3))
        self.shared = [(np.zeros((len(names), len(senders))), medium.bytes_per_second) for medium in profile.media]
        for d, s in itertools.product(range(len(names)), range(len(senders))):
            if names[d] == senders[s]:
                continue
            link = profile.link(senders[s], names[d])
            self.seconds_per_byte[d, s] = 1 / link.bytes_per_second
            self.latency[d, s] = link.latency_seconds
            sending, receiving = profile.by_name[senders[s]].power, profile.by_name[names[d]].power
            self.watts[d, s] = sending.transmit_watts + receiving.receive_watts
            for (takes, _), medium in zip(self.shared, profile.media):
                takes[d, s] = {senders[s], names[d]} & set(medium.devices) != set()

    def cost(self, nbytes: Array) -> tuple[Array, Array]:
        """Seconds until each device has what it reads, (blocks, devices), and joules on the wire, (blocks,).

        A device waits for its own down-link, for the up-links of those who send to it, and for shared media.
        """
        wire = nbytes * self.seconds_per_byte
        busy = wire > 0
        up_links = np.where(busy, wire.sum(axis=1)[:, None, :], 0.0).max(axis=2)
        seconds = np.maximum(wire.sum(axis=2), up_links)
        for takes, bytes_per_second in self.shared:
            passed = (nbytes * takes).sum(axis=(1, 2)) / bytes_per_second
            seconds = np.maximum(seconds, np.where((busy & (takes > 0)).any(axis=2), passed[:, None], 0.0))
        seconds += np.where(busy, self.latency, 0.0).max(axis=2)
        return seconds, (wire * self.watts).sum(axis=(1, 2))


class Backwards:
    """From the end of a block to its earliest start: what a strip computes and reads.

    What a tensor needs depends on the end of the block alone, so one pass serves all starts.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        # By layer, its nodes from the last to the first: outputs, rows where it is all or nothing, whether the
        # layer is measured by it, and the row maps of what it reads.
        self.layers = [
            [_row_rule(model, node, layer) for node in reversed(model.graph.nodes[layer.first : layer.stop])]
            for layer in model.layers
        ]

    def walk(self, rect: UnitRect, first: int, stop: int) -> Iterator[tuple[int, int, dict[str, Interval]]]:
        """For a strip and a block that ends before layer `stop`.

        Yields:
            From layer `stop - 1` back to `first`: the layer, how many of its rows are computed, and by tensor the
            rows that a block reads which starts with it (the same dictionary each time).
        """
        tensors = self.model.graph.tensors
        alive = self.model.cuts[stop].tensors if stop < len(self.layers) else self.model.graph.outputs
        own = {name: rect.of_extent(tensors[name].rows, tensors[name].cols).rows for name in alive}
        reads: dict[str, Interval] = {}
        for index in range(stop - 1, first - 1, -1):
            computed = 0
            for outputs, everything, measured, row_maps in self.layers[index]:
                out: Interval | None = None
                for name in outputs:
                    for rows in (own.get(name), reads.pop(name, None)):
                        if rows is not None and rows[1] > rows[0]:
                            out = rows if out is None else out.hull(rows)
                if out is None:
                    continue
                out = everything or out
                if measured:
                    computed = out.length
                for name, row_map in row_maps:
                    rows = row_map.needs(out)
                    reads[name] = reads[name].hull(rows) if name in reads else rows
            yield index, computed, reads


RowRule = tuple[list[str], Interval | None, bool, list[tuple[str, AxisMap]]]


def _row_rule(model: Model, node: Node, layer: Layer) -> RowRule:
    rule, outputs = model.rules[node.index], [name for name in node.outputs if name]
    whole = model.graph.tensors[outputs[0]].whole.rows if isinstance(rule, WholeRule) else None
    return outputs, whole, layer.tensor in outputs, [(name, rows) for name, (rows, _) in rule.maps.items()]
