"""The tile of a run of nodes: which operators make a region of the results, on which regions of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from coedge.core.region import Region
from coedge.execution.program import Tile, TileNode
from coedge.graph.model import Model
from coedge.graph.receptive_field import NodeField, backward_pass
from coedge.graph.rules.rule import crop_of


class NeededRegions(NamedTuple):
    """The receptive field of the wanted regions within a run of nodes.

    Attributes:
        regions: the region of every tensor that is read or made.
        nodes: the nodes that take part, last node first.
    """

    regions: dict[str, Region]
    nodes: list[NodeField[Region]]


def needed_regions(model: Model, first: int, stop: int, wanted: Mapping[str, Region]) -> NeededRegions:
    """Return what nodes [first, stop) compute and read for the wanted regions of their results."""
    regions = dict(wanted)
    nodes: list[NodeField[Region]] = []
    reads: dict[str, Region] = {}
    for field in backward_pass(reversed(model.backward_regions[first:stop]), wanted, reads):
        # Outputs that are neither wanted nor read are left out.
        regions.update((name, field.computed) for name in field.rule.outputs if name in regions)
        for name, part in field.reads.items():
            regions.setdefault(name, part)  # until the node that makes it, or the end of the pass, gives the hull
        nodes.append(field)
    regions.update(reads)
    return NeededRegions(regions, nodes)


def tile_of(model: Model, first: int, stop: int, wanted: Mapping[str, Region]) -> tuple[Tile, dict[str, Region]]:
    """Return the tile of nodes [first, stop) that makes the wanted regions, and the region of every tensor in it."""
    regions, fields = needed_regions(model, first, stop, wanted)
    nodes: list[TileNode] = []
    made: set[str] = set()
    # The pass is over, so the region that the tile holds of each tensor is known, and crops can be taken from it.
    for rule, computed, reads in reversed(fields):
        made.update(name for name in rule.outputs if name in regions)
        crops = tuple((n, crop_of(regions[n], region)) for n, region in reads.items() if regions[n] != region)
        nodes.append(TileNode(rule.index, model.rules[rule.index].adjust(computed, reads), crops))
    inputs = tuple(name for name in regions if name not in made)
    fixed = tuple(n for n in inputs if regions[n].cols.length == model.graph.tensors[n].cols)
    results = tuple(name for name in wanted if name in made)
    return Tile(tuple(nodes), inputs, results, fixed), regions
