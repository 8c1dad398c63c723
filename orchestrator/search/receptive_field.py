"""Receptive fields of strips: the rows that a strip needs beyond its own, for every possible stage.

    end of the stage         own rows of a strip      |=====|
    one layer back           a halo on both sides    -|=====|-
    start of the stage       larger at every layer ---|=====|---

The rows needed of a tensor depend only on the end of the stage, so one pass backwards from each end serves all starts.
Rows are counted on a strip in the middle of the tensor: `above` and `below` its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coedge.core.region import Interval, edge_to_row
from coedge.graph.model import Model
from coedge.graph.receptive_field import backward_pass

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StageInput:
    """A tensor that a stage reads and does not make.

    Attributes:
        layer: index of the layer that makes it; -1 for an input of the network.
        nbytes: size of the whole tensor, or of one partial result.
        above, below: rows that a strip needs beyond its own; negative if it does not need all of its own.
        whole: every strip needs the whole tensor.
        partial: every device holds a partial result of a reduction.
    """

    name: str
    layer: int
    rows: int
    nbytes: int
    above: float
    below: float
    whole: bool
    partial: bool

    @property
    def row_nbytes(self) -> float:
        return self.nbytes / self.rows


@dataclass(frozen=True)
class End:
    """Rows that all stages need that end before one cut.

    Attributes:
        above, below: [layer] rows computed beyond the strip's own.
        whole: [layer] whether every strip computes the whole layer.
        needed: [layer] whether anything of the layer is computed.
        inputs: for each layer, the tensors that a stage starting with it reads.
    """

    above: Vector
    below: Vector
    whole: NDArray[np.bool_]
    needed: NDArray[np.bool_]
    inputs: tuple[tuple[StageInput, ...], ...]


class ReceptiveFields:
    """Receptive fields of one model, computed at first use."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._ends: dict[int, End] = {}

    def end(self, stop: int) -> End:
        """Return the needs of stages that end before layer `stop`."""
        if stop not in self._ends:
            self._ends[stop] = self._pass(stop)
        return self._ends[stop]

    def inputs(self, first: int, stop: int) -> tuple[StageInput, ...]:
        return self.end(stop).inputs[first]

    def weights(self, first: int, stop: int) -> tuple[float, float]:
        """Return the bytes of constants of layers [first, stop) that every strip needs whole, and that strips share."""
        held, shared = self._weights
        return float(held[max(stop, first)] - held[first]), float(shared[max(stop, first)] - shared[first])

    @cached_property
    def _weights(self) -> tuple[Vector, Vector]:
        """Bytes of constants of all layers before each layer, needed whole and shared."""
        graph, layers = self.model.graph, self.model.layers
        held, shared = np.zeros(len(layers) + 1), np.zeros(len(layers) + 1)
        for layer in layers:
            names = {n for node in graph.nodes[layer.first : layer.stop] for n in (*node.inputs, *node.captured)}
            nbytes = sum(graph.constants[n].nbytes for n in names if n in graph.constants)
            (shared if layer.by_features else held)[layer.index + 1] = nbytes
        return np.cumsum(held), np.cumsum(shared)

    @cached_property
    def layer_of(self) -> dict[str, int]:
        """By tensor, the layer that makes it; -1 for inputs of the network."""
        made = dict.fromkeys(self.model.graph.inputs, -1)
        for layer in self.model.layers:
            for node in self.model.graph.nodes[layer.first : layer.stop]:
                made.update((name, layer.index) for name in node.outputs if name)
        return made

    @cached_property
    def last_use(self) -> dict[str, int]:
        """By tensor, the last layer that reads it; the number of layers for outputs."""
        last: dict[str, int] = {}
        for layer in self.model.layers:
            for node in self.model.graph.nodes[layer.first : layer.stop]:
                last.update((name, layer.index) for name in self.model.graph.activations(node))
        last.update((name, len(self.model.layers)) for name in self.model.graph.outputs)
        return last

    def _pass(self, stop: int) -> End:
        model, tensors = self.model, self.model.graph.tensors
        own = self._own(stop)
        start_of, stop_of = _edges([tensors[name].rows for name in own])
        strips = {name: _strip(tensors[name].rows, start_of, stop_of) for name in own}
        wanted = {name: rows for name, rows in strips.items() if rows.length}
        reads: dict[str, Interval] = {}
        inputs: list[tuple[StageInput, ...]] = [()] * stop
        above, below, whole, needed = (np.zeros(stop) for _ in range(4))
        for layer in reversed(model.layers[:stop]):
            index = layer.index
            for field in backward_pass(reversed(model.backward_rows[layer.first : layer.stop]), wanted, reads):
                if layer.tensor in field.rule.outputs:
                    needed[index] = True
                    above[index], below[index], whole[index] = _growth(field.computed, layer.rows, start_of, stop_of)
            inputs[index] = tuple(self._input(name, rows, start_of, stop_of) for name, rows in reads.items())
        return End(above, below, whole.astype(bool), needed.astype(bool), tuple(inputs))

    def _own(self, stop: int) -> list[str]:
        """Return the tensors that are made before a cut and needed behind it."""
        return [name for name, made in self.layer_of.items() if 0 <= made < stop <= self.last_use.get(name, -1)]

    def _input(self, name: str, rows: Interval, start_of: float, stop_of: float) -> StageInput:
        tensor = self.model.graph.tensors[name]
        above, below, whole = _growth(rows, tensor.rows, start_of, stop_of)
        return StageInput(
            name, self.layer_of[name], tensor.rows, tensor.region_nbytes(tensor.whole),
            above, below, whole, tensor.partial_extent is not None,
        )  # fmt: skip


def _edges(heights: list[int]) -> tuple[float, float]:
    """Return the edges of a strip in the middle, on rows of as many of the tensors as possible."""
    tall = [height for height in heights if height >= 4] or [max(heights, default=1)]
    rows = min(tall)
    margin = edge_to_row(1 / 3, rows)
    return margin / rows, (rows - margin) / rows


def _strip(rows: int, start: float, stop: float) -> Interval:
    return Interval(edge_to_row(start, rows), edge_to_row(stop, rows))


def _growth(rows_needed: Interval, rows: int, start: float, stop: float) -> tuple[float, float, bool]:
    """Return the rows needed above and below the strip's own, and whether the whole tensor is needed."""
    everything = rows_needed.start <= 0 and rows_needed.stop >= rows and (start > 0 or stop < 1)
    return start * rows - rows_needed.start, rows_needed.stop - stop * rows, everything
