"""The portions of a stage's shares as tiles. Results are kept, because a search lowers many plans with equal stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from coedge.core.region import Region, UnitRect
from coedge.execution.program import Tile, Work
from coedge.graph.graph import Tensor
from coedge.graph.model import Model
from coedge.graph.receptive_field import backward_pass
from coedge.plan.halo_first import Portion, split_halo_first
from coedge.plan.plan import Stage
from coedge.plan.tiles import tile_of

# Stages with such a node are not split into portions. A `whole` node needs the whole share in any case. The partial
# sums of a reduction are combined by number and order, which portions would change.
_UNDIVIDED = frozenset(("whole", "partial", "combine"))

# What a portion reads: a region of every input of its tile.
Needs = tuple[tuple[str, Region], ...]


class PortionTile(NamedTuple):
    """A portion of a share as a tile.

    Attributes:
        regions: the region of every tensor in the tile.
        work: how much of each layer the portion computes.
    """

    portion: Portion
    tile: Tile
    regions: dict[str, Region]
    reads: Needs
    work: tuple[Work, ...]


class _StageNodes(NamedTuple):
    """The facts about a run of layers that do not depend on its shares.

    Attributes:
        first, stop: its nodes.
        results: the tensors that it makes and that are read behind it.
        inputs: the names of all activations that its nodes read, sorted.
        undivided: its shares cannot be split into portions.
    """

    first: int
    stop: int
    results: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    undivided: bool


class Portions:
    """Tiles of portions of one model, by stage and share."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._nodes: dict[tuple[int, int], _StageNodes] = {}
        self._shares: dict[tuple[int, int, UnitRect], PortionTile | None] = {}
        self._portions: dict[tuple[object, ...], list[PortionTile]] = {}
        self._reads: dict[tuple[object, ...], Needs] = {}

    def share(self, stage: Stage, rect: UnitRect) -> PortionTile | None:
        """Return a device's share of a stage in one portion; None if the share has no pixel."""
        key = (stage.first, stage.last, rect)
        if key not in self._shares:
            regions = {t.name: rect.of_extent(t.rows, t.cols) for t in self._nodes_of(stage).results}
            wanted = {name: region for name, region in regions.items() if not region.empty}
            self._shares[key] = self._tile(stage, Portion(wanted)) if wanted else None
        return self._shares[key]

    def divisible(self, stage: Stage) -> bool:
        """Return whether shares of a stage can be split into portions."""
        return not self._nodes_of(stage).undivided

    def halo_first(
        self,
        stage: Stage,
        rect: UnitRect,
        fetched: Sequence[tuple[str, Region]],
        held: Mapping[str, Sequence[Region]],
    ) -> list[PortionTile]:
        """Return the portions of a share in the order in which they are computed, the awaited ones first.

        Args:
            fetched: the regions of the share that other devices fetch.
            held: the regions that the device holds before the stage, by tensor.
        """
        nodes = self._nodes_of(stage)

        def is_local(part: Mapping[str, Region]) -> bool:
            reads = self._reads_of(nodes.first, nodes.stop, part)
            return not any(covering_parts(held.get(name, ()), region)[1] for name, region in reads)

        held_inputs = tuple((name, tuple(held[name])) for name in nodes.inputs if name in held)
        key = (nodes.first, nodes.stop, rect, tuple(fetched), held_inputs)
        if key not in self._portions:
            portions = split_halo_first(rect, nodes.results, fetched, is_local)
            self._portions[key] = [self._tile(stage, portion) for portion in portions]
        return self._portions[key]

    def _reads_of(self, first: int, stop: int, wanted: Mapping[str, Region]) -> Needs:
        """Return what nodes [first, stop) read for a part of their results."""
        key = (first, stop, *wanted.items())
        needs = self._reads.get(key)
        if needs is None:
            reads: dict[str, Region] = {}
            for _ in backward_pass(reversed(self._model.backward_regions[first:stop]), wanted, reads):
                pass
            needs = self._reads[key] = tuple(reads.items())
        return needs

    def _nodes_of(self, stage: Stage) -> _StageNodes:
        nodes = self._nodes.get((stage.first, stage.last))
        if nodes is None:
            nodes = self._nodes[stage.first, stage.last] = _stage_nodes(self._model, stage)
        return nodes

    def _tile(self, stage: Stage, portion: Portion) -> PortionTile:
        layers = self._model.layers[stage.first : stage.last + 1]
        tile, regions = tile_of(self._model, layers[0].first, layers[-1].stop, portion.wanted)
        work = (Work(x.index, regions[x.tensor].area / x.cols) for x in layers if x.tensor in regions)
        return PortionTile(portion, tile, regions, tuple((name, regions[name]) for name in tile.inputs), tuple(work))


def _stage_nodes(model: Model, stage: Stage) -> _StageNodes:
    graph, layers = model.graph, model.layers
    first, stop = layers[stage.first].first, layers[stage.last].stop
    nodes = graph.nodes[first:stop]
    later = {name for node in graph.nodes[stop:] for name in graph.activations(node)} | set(graph.outputs)
    return _StageNodes(
        first, stop,
        tuple(graph.tensors[name] for node in nodes for name in node.outputs if name in later),
        tuple(sorted({name for node in nodes for name in graph.activations(node)})),
        any(rule.kind in _UNDIVIDED for rule in model.rules[first:stop]),
    )  # fmt: skip


def covering_parts(held: Sequence[Region], region: Region) -> tuple[list[tuple[int, Region]], list[Region]]:
    """Split a region by the held regions that it can be read from.

    Returns:
        Disjoint parts of the region, as (position in `held`, part), and the regions that no held region covers.
    """
    parts: list[tuple[int, Region]] = []
    missing = [region]
    for position, patch in enumerate(held):
        if not missing:
            break
        rest: list[Region] = []
        for hole in missing:
            part = hole.intersection(patch)
            if part.empty:
                rest.append(hole)
            else:
                parts.append((position, part))
                rest += hole.minus(part)
        missing = rest
    return parts, missing
