"""Costs of fused blocks of layers on given strips, for every block within a run of layers that can be split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coedge.core.objective import Objective
from coedge.core.region import UNIT, Interval, UnitRect
from coedge.graph.model import Model
from coedge.graph.receptive_field import backward_pass
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.schemes.traffic import made_whole

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BlockCosts:
    """Costs [i, j] of the blocks [i, j) of a run of n layers, of shape (n, n + 1)."""

    seconds: Array
    joules: Array

    def cost(self, objective: Objective) -> Array:
        # The objective is arithmetic: it takes arrays as well as numbers.
        costs: Array = np.asarray(objective.cost(self.seconds, self.joules))  # type: ignore[arg-type]
        return costs


def block_costs(
    needs: BlockNeeds, table: CostTable, regions: Mapping[str, UnitRect], alone: str, first: int, stop: int
) -> BlockCosts:
    """Return the costs of all blocks within layers [first, stop), which can all be split.

    Args:
        regions: the strips, by device.
        alone: the device that makes the results of layers that cannot be split.
    """
    source = table.profile.source
    wires, held = BlockLinks(table, tuple(regions), alone), Held(table.model, source, regions, alone, first, stop)
    devices = [table.position[name] for name in regions]
    count = stop - first
    seconds, joules = np.zeros((count, count + 1)), np.zeros((count, count + 1))
    for end in range(1, count + 1):
        rows = np.zeros((end, len(table.names)))
        reads: list[int] = []
        for d, rect in enumerate(regions.values()):
            for index, computed, needed in needs.walk(rect, first, first + end):
                rows[index - first, devices[d]] = computed
                for tensor, interval in needed.items():
                    reads += (index - first, d, held.index[tensor], *interval)
        waiting, sending = wires.cost(held.nbytes(end, reads))
        # A block that starts at a layer computes all layers from there to its end.
        kernels = table.seconds(first, rows)[:, devices]
        computing = np.cumsum(kernels[::-1], axis=0)[::-1]
        seconds[:end, end] = (waiting + computing).max(axis=1)
        joules[:end, end] = computing @ table.compute_watts[devices] + sending
    return BlockCosts(seconds, joules)


def senders_of(source: str, names: Iterable[str], alone: str) -> list[str]:
    """Return the devices that may hold what a block reads: those of the strips, then those that hold whole tensors."""
    return list(dict.fromkeys((*names, source, alone)))


class Held:
    """Rows of each tensor that each device holds before layers [first, stop).

    Attributes:
        index: position of a tensor by its name.
        start, stop: [tensor, sender] rows.
    """

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
        # A partial result of a reduction has the same size whatever the number of rows.
        self.share_nbytes = np.array([n if t.partial_extent else 0 for n, t in zip(nbytes, tensors)], float)
        self.row_nbytes = np.array([0 if t.partial_extent else n / t.rows for n, t in zip(nbytes, tensors)], float)

    def nbytes(self, count: int, reads: list[int]) -> Array:
        """Return [layer, device, sender] the bytes that a block starting at each layer reads, its own included.

        Args:
            reads: layer, device, tensor, first row and stop row of one read, then of the next.
        """
        total = np.zeros((count, self.devices, self.start.shape[1]))
        if reads:
            layer, device, tensor, start, stop = np.array(reads).reshape(-1, 5).T
            rows = np.minimum(self.stop[tensor], stop[:, None]) - np.maximum(self.start[tensor], start[:, None])
            moved = rows * self.row_nbytes[tensor, None] + self.share_nbytes[tensor, None]
            np.add.at(total, (layer, device), np.where(rows > 0, moved, 0.0))
        return total


class BlockLinks:
    """Links into each device of the strips: arrays [device, sender]."""

    def __init__(self, table: CostTable, names: tuple[str, ...], alone: str) -> None:
        senders = senders_of(table.profile.source, names, alone)
        pairs = np.ix_([table.position[name] for name in senders], [table.position[name] for name in names])
        self.seconds_per_byte, self.latency = table.link_seconds[pairs].T, table.latency[pairs].T
        self.watts = table.transfer_watts[pairs].T
        self.media = [(medium.uses[pairs].T, medium.bytes_per_second) for medium in table.media]

    def cost(self, nbytes: Array) -> tuple[Array, Array]:
        """Return seconds until each device has what it reads, [block, device], and joules on the wire, [block].

        A device waits for its own down-link, for the up-links of the devices that send to it, and for shared media.

        Args:
            nbytes: [block, device, sender].
        """
        wire = nbytes * self.seconds_per_byte
        busy = wire > 0
        up_links = np.where(busy, wire.sum(axis=1)[:, None, :], 0.0).max(axis=2)
        seconds = np.maximum(wire.sum(axis=2), up_links)
        for uses, bytes_per_second in self.media:
            passed = (nbytes * uses).sum(axis=(1, 2)) / bytes_per_second
            seconds = np.maximum(seconds, np.where((busy & uses).any(axis=2), passed[:, None], 0.0))
        seconds += np.where(busy, self.latency, 0.0).max(axis=2)
        return seconds, (wire * self.watts).sum(axis=(1, 2))


class BlockNeeds:
    """Rows that a strip computes and reads, from the end of a block back to its earliest start.

    The rows needed of a tensor depend only on the end of the block, so one pass serves all starts.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._rules = [tuple(reversed(model.backward_rows[layer.first : layer.stop])) for layer in model.layers]

    def walk(self, rect: UnitRect, first: int, stop: int) -> Iterator[tuple[int, int, dict[str, Interval]]]:
        """Go back from layer `stop - 1` to layer `first`, for one strip and a block that ends before `stop`.

        Yields:
            The layer, the number of its rows that are computed, and the rows of each tensor that a block starting
            there reads. It is the same dictionary each time.
        """
        model, tensors = self.model, self.model.graph.tensors
        alive = model.cuts[stop].tensors if stop < len(model.layers) else model.graph.outputs
        own = {name: rect.of_extent(tensors[name].rows, tensors[name].cols).rows for name in alive}
        wanted = {name: rows for name, rows in own.items() if rows.length}
        reads: dict[str, Interval] = {}
        for index in range(stop - 1, first - 1, -1):
            computed = 0
            for field in backward_pass(self._rules[index], wanted, reads):
                if model.layers[index].tensor in field.rule.outputs:
                    computed = field.computed.length
            yield index, computed, reads
