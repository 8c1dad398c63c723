"""How far a stage reaches: the rows that a strip needs beyond its own, for every stage that a network could have.

    end of the stage         own rows of a strip      |=====|
    one layer back           a halo on both sides    -|=====|-
    start of the stage       grown by every layer  ---|=====|---

What a tensor needs depends on the end of the stage alone, so one pass backwards from each end serves all
starts. Rows are counted on a strip in the middle: `above` and `below` what is its own, where it has neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coedge.core.region import Interval, edge_to_row
from coedge.graph.model import Model
from coedge.graph.rules.rule import WholeRule

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StageInput:
    """A tensor that a stage reads and does not make.

    Attributes:
        layer: that makes it; -1 for an input of the network.
        nbytes: of the whole tensor; of one share, where every device makes one (`partial`).
        above, below: rows that a strip needs beyond its own. Negative: it does not even need all of its own.
        whole: every strip needs all of it.
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
    """What all stages need that end before one cut.

    Attributes:
        above, below: per layer before the cut, rows computed beyond the strip's own.
        whole: per layer, whether every strip computes all of it.
        needed: per layer, whether anything of it is computed.
        inputs: per layer, what a stage reads that starts with it.
    """

    above: Vector
    below: Vector
    whole: NDArray[np.bool_]
    needed: NDArray[np.bool_]
    inputs: tuple[tuple[StageInput, ...], ...]


class ReceptiveFields:
    """Tables of one model, made when first asked for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._ends: dict[int, End] = {}

    def end(self, stop: int) -> End:
        """For stages that end before layer `stop`."""
        if stop not in self._ends:
            self._ends[stop] = self._pass(stop)
        return self._ends[stop]

    def inputs(self, first: int, stop: int) -> tuple[StageInput, ...]:
        return self.end(stop).inputs[first]

    def weights(self, first: int, stop: int) -> tuple[float, float]:
        """Bytes of the constants of layers [first, stop): of which every strip needs all, and of which its share."""
        held, shared = self._weights
        return float(held[max(stop, first)] - held[first]), float(shared[max(stop, first)] - shared[first])

    @cached_property
    def _weights(self) -> tuple[Vector, Vector]:
        """Before each layer, likewise."""
        graph, layers = self.model.graph, self.model.layers
        held, shared = np.zeros(len(layers) + 1), np.zeros(len(layers) + 1)
        for layer in layers:
            names = {n for node in graph.nodes[layer.first : layer.stop] for n in (*node.inputs, *node.captured)}
            nbytes = sum(graph.constants[n].nbytes for n in names if n in graph.constants)
            (shared if layer.by_features else held)[layer.index + 1] = nbytes
        return np.cumsum(held), np.cumsum(shared)

    @cached_property
    def layer_of(self) -> dict[str, int]:
        """Per tensor, the layer that makes it; -1 for inputs."""
        made = dict.fromkeys(self.model.graph.inputs, -1)
        for layer in self.model.layers:
            for node in self.model.graph.nodes[layer.first : layer.stop]:
                made.update((name, layer.index) for name in node.outputs if name)
        return made

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Per tensor, the last layer that reads it; the number of layers for outputs."""
        last: dict[str, int] = {}
        for layer in self.model.layers:
            for node in self.model.graph.nodes[layer.first : layer.stop]:
                last.update((name, layer.index) for name in self.model.graph.activations(node))
        last.update((name, len(self.model.layers)) for name in self.model.graph.outputs)
        return last

    @cached_property
    def _row_maps(self) -> list[list[tuple[str, object]]]:
        """Per node, the row map of every activation that it reads."""
        return [[(name, maps[0]) for name, maps in rule.maps.items()] for rule in self.model.rules]

    def _pass(self, stop: int) -> End:
        model, tensors = self.model, self.model.graph.tensors
        own = self._own(stop)
        start_of, stop_of = _edges([tensors[name].rows for name in own])
        own_rows = {name: _strip(tensors[name].rows, start_of, stop_of) for name in own}
        need: dict[str, Interval] = {}
        computed: dict[str, Interval] = {}
        inputs: list[tuple[StageInput, ...]] = [()] * stop
        above, below, whole, needed = (np.zeros(stop) for _ in range(4))
        for layer in reversed(model.layers[:stop]):
            for node in reversed(model.graph.nodes[layer.first : layer.stop]):
                wanted: Interval | None = None
                for name in node.outputs:
                    for known in (need.get(name), own_rows.get(name)):
                        if known is not None and known.length:
                            wanted = known if wanted is None else wanted.hull(known)
                if wanted is None:
                    continue
                if isinstance(model.rules[node.index], WholeRule):
                    wanted = Interval(0, tensors[next(name for name in node.outputs if name)].rows)
                for name in node.outputs:
                    computed[name] = wanted
                for name, row_map in self._row_maps[node.index]:
                    rows = row_map.needs(wanted)  # type: ignore[attr-defined]
                    need[name] = rows if name not in need else need[name].hull(rows)
            found = computed.get(layer.tensor)
            if found is not None:
                index = layer.index
                needed[index] = True
                above[index], below[index], whole[index] = _growth(found, layer.rows, start_of, stop_of)
            inputs[layer.index] = tuple(
                self._input(name, rows, start_of, stop_of)
                for name, rows in need.items()
                if self.layer_of[name] < layer.index
            )
        return End(above, below, whole.astype(bool), needed.astype(bool), tuple(inputs))

    def _own(self, stop: int) -> list[str]:
        """The tensors that are made before the cut and needed behind it."""
        return [name for name, made in self.layer_of.items() if 0 <= made < stop <= self.last_use.get(name, -1)]

    def _input(self, name: str, rows: Interval, start_of: float, stop_of: float) -> StageInput:
        tensor = self.model.graph.tensors[name]
        above, below, whole = _growth(rows, tensor.rows, start_of, stop_of)
        return StageInput(
            name, self.layer_of[name], tensor.rows, tensor.region_nbytes(tensor.whole),
            above, below, whole, tensor.partial_extent is not None,
        )  # fmt: skip


def _edges(heights: list[int]) -> tuple[float, float]:
    """A strip in the middle whose edges fall on rows of as many of the tensors as possible."""
    tall = [height for height in heights if height >= 4] or [max(heights, default=1)]
    rows = min(tall)
    margin = edge_to_row(1 / 3, rows)
    return margin / rows, (rows - margin) / rows


def _strip(rows: int, start: float, stop: float) -> Interval:
    return Interval(edge_to_row(start, rows), edge_to_row(stop, rows))


def _growth(found: Interval, rows: int, start: float, stop: float) -> tuple[float, float, bool]:
    """(rows above its own, rows below, whether it is everything)."""
    everything = found.start <= 0 and found.stop >= rows and (start > 0 or stop < 1)
    return start * rows - found.start, found.stop - stop * rows, everything
