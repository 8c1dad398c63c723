"""`musical_chair`: layer by layer, equal rows for everybody or the whole layer on one device (Hadidi et al., 2018).

    layer        0        1        2        3        dense
    device a     rows     rows     rows     -        -
    device b     rows     rows     rows     all      all
    device c     rows     rows     rows     -        -

The paper (Musical Chair, arXiv 1802.02138) chooses for each layer between data and model parallelism, on devices that
are all alike. Its text is known here by summaries only, so this much is assumed:

* shares are equal, and the choice is made on the mean device and the mean link of the profile;
* whole layers go to the source, or to the device that other schemes take for what cannot be split: dense layers too,
  which the paper splits by output features;
* the choices are those of least cost in all: computing, and fetching what a layer reads from where the layer before
  it was, from the input at the source to the answer there (dynamic programming over the layers).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from coedge.graph import Tensor
from coedge.layers import Layer
from coedge.lowering import tile_of
from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Plan, Stage, strips
from coedge.profile import LayerTime, Profile
from coedge.region import UNIT, Region, UnitRect
from orchestrator.schemes.scheme import best, evaluate, place_whole

Regions = Mapping[str, UnitRect]


def musical_chair(model: Model, profile: Profile, objective: Objective) -> Plan:
    drafts = [choose(model, profile, objective)]
    if objective.deadline_ms is not None and (quickest := choose(model, profile, Objective())) not in drafts:
        # Least energy may come too late.
        drafts.append(quickest)
    return best((evaluate("musical_chair", model, profile, objective, stages) for stages in drafts), objective)


@dataclass(frozen=True)
class Mean:
    """The device and the link that stand for all: means over the profile."""

    times: tuple[LayerTime, ...]
    compute_watts: float
    transmit_watts: float
    seconds_per_byte: float
    latency_seconds: float


def mean_of(profile: Profile) -> Mean:
    times = zip(*(device.layers for device in profile.devices))
    links = [profile.link(a, b) for a, b in itertools.permutations(profile.names, 2)]
    return Mean(
        times=tuple(
            LayerTime(
                fixed_seconds=fmean(time.fixed_seconds for time in layer),
                seconds_per_row=fmean(time.seconds_per_row for time in layer),
            )
            for layer in times
        ),
        compute_watts=fmean(device.power.compute_watts for device in profile.devices),
        transmit_watts=fmean(device.power.transmit_watts for device in profile.devices),
        seconds_per_byte=fmean(1 / link.bytes_per_second for link in links) if links else 0.0,
        latency_seconds=fmean(link.latency_seconds for link in links) if links else 0.0,
    )


def choose(model: Model, profile: Profile, objective: Objective) -> tuple[Stage, ...]:
    """The stages: one for each layer that is split, one for each run of layers that are not."""
    mean = mean_of(profile)
    source: Regions = {profile.source: UNIT}
    everybody: Regions = strips(dict.fromkeys(profile.names, 1.0))
    alone = source
    if not all(layer.splittable for layer in model.layers):
        equal = dict.fromkeys(profile.names, 1 / len(profile.names))
        alone = {place_whole(model, profile, equal, objective): UNIT}
    # By place of the layer before: least cost so far, and the places of all layers so far.
    paths: list[tuple[float, list[Regions]]] = [(0.0, [source])]
    for layer in model.layers:
        places = [alone]
        if layer.splittable:
            places = [source, everybody] if alone == source else [source, alone, everybody]
        grown = []
        for place in places:
            need = Need.of_layer(model, layer, place)
            ways = [(cost + need.cost(path[-1], source, mean, objective), [*path, place]) for cost, path in paths]
            grown.append(min(ways, key=lambda way: way[0]))
        paths = grown
    answer = Need.of_answer(model, profile.source)
    _, (_, *chosen) = min(
        ((cost + answer.cost(path[-1], source, mean, objective), path) for cost, path in paths),
        key=lambda way: way[0],
    )
    stages: list[Stage] = []
    for layer, place in zip(model.layers, chosen):
        if len(place) == 1 and stages and stages[-1].regions == place:
            stages[-1] = stages[-1].model_copy(update={"last": layer.index})
        else:
            stages.append(Stage(first=layer.index, last=layer.index, regions=dict(place)))
    return tuple(stages)


@dataclass(frozen=True)
class Need:
    """What a layer takes in one place.

    Attributes:
        rows: that each device computes of layer `layer`.
        reads: (device, tensor, region), and whether the tensor is an input of the network.
    """

    layer: int
    rows: tuple[float, ...]
    reads: tuple[tuple[str, Tensor, Region, bool], ...]

    @classmethod
    def of_layer(cls, model: Model, layer: Layer, place: Regions) -> Need:
        tensors, after = model.graph.tensors, layer.index + 1
        made = {name for node in model.graph.nodes[layer.first : layer.stop] for name in node.outputs}
        alive = model.cuts[after].tensors if after < len(model.layers) else model.graph.outputs
        rows: list[float] = []
        reads: list[tuple[str, Tensor, Region, bool]] = []
        for device, rect in place.items():
            own = {name: rect.of_extent(tensors[name].rows, tensors[name].cols) for name in alive if name in made}
            wanted = {name: region for name, region in own.items() if not region.empty}
            tile, need = tile_of(model, layer.first, layer.stop, wanted)
            if layer.tensor in need:
                rows.append(need[layer.tensor].area / layer.cols)
            reads += [(device, tensors[name], need[name], name in model.graph.inputs) for name in tile.inputs]
        return cls(layer.index, tuple(rows), tuple(reads))

    @classmethod
    def of_answer(cls, model: Model, sink: str) -> Need:
        return cls(-1, (), tuple((sink, t, t.whole, t.name in model.graph.inputs) for t in model.outputs))

    def cost(self, before: Regions, source: Regions, mean: Mean, objective: Objective) -> float:
        """With what it reads where the layer before was: the busiest end of a link, then the most rows.

        Args:
            before: where that is; inputs of the network are at the `source`.
        """
        sent, received = defaultdict[str, int](int), defaultdict[str, int](int)
        for device, tensor, region, is_input in self.reads:
            for owner, rect in (source if is_input else before).items():
                piece = region.intersection(rect.of_extent(tensor.rows, tensor.cols))
                if owner != device and not piece.empty:
                    nbytes = tensor.region_nbytes(piece)
                    sent[owner] += nbytes
                    received[device] += nbytes
        most = max((*sent.values(), *received.values()), default=0)
        computing = [mean.times[self.layer].seconds(rows) for rows in self.rows]
        seconds = most * mean.seconds_per_byte + (mean.latency_seconds if most else 0.0) + max(computing, default=0.0)
        joules = sum(computing) * mean.compute_watts + sum(sent.values()) * mean.seconds_per_byte * mean.transmit_watts
        return objective.cost(seconds, joules)
