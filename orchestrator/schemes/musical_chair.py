"""`musical_chair`: layer by layer, equal rows on all devices or the whole layer on one (Hadidi et al., 2018).

    layer        0        1        2        3        dense
    device a     rows     rows     rows     -        -
    device b     rows     rows     rows     all      all
    device c     rows     rows     rows     -        -

The paper (Musical Chair, arXiv 1802.02138) chooses between data and model parallelism for each layer, on identical
devices. Assumptions, because only summaries of its text were available:

* Shares are equal. The choice is made for the mean device and the mean link of the profile.
* Whole layers go to the source, or to the device on which other schemes place layers that cannot be split. This
  includes dense layers, which the paper splits by output features.
* The choices have the least total cost from the input at the source to the answer there: computing, and fetching what
  a layer reads (dynamic programming over the layers, exact for chains).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from coedge.core.objective import Objective
from coedge.core.region import UNIT, Region, UnitRect
from coedge.graph.graph import Tensor
from coedge.graph.layers import Layer
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage, strips
from coedge.plan.tiles import needed_regions
from coedge.profile.profile import LayerTime, Profile
from orchestrator.schemes.scheme import best_of, place_whole

Regions = Mapping[str, UnitRect]


def musical_chair(model: Model, profile: Profile, objective: Objective) -> Plan:
    goals = [objective]
    if objective.deadline_ms is not None:
        goals.append(Objective())  # the plan of least energy may miss the deadline
    drafts = (choose(model, profile, goal) for goal in goals)
    return best_of("musical_chair", model, profile, objective, drafts)


@dataclass(frozen=True)
class _MeanDevice:
    """Means over the devices and links of a profile."""

    times: tuple[LayerTime, ...]
    compute_watts: float
    transmit_watts: float
    seconds_per_byte: float
    latency_seconds: float


def mean_of(profile: Profile) -> _MeanDevice:
    times = zip(*(device.layers for device in profile.devices))
    links = [profile.link(a, b) for a, b in itertools.permutations(profile.names, 2)]
    return _MeanDevice(
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
    """Return the stages: one for each layer that is split, one for each run of layers that are not."""
    mean = mean_of(profile)
    source: Regions = {profile.source: UNIT}
    all_devices: Regions = strips(dict.fromkeys(profile.names, 1.0))
    alone = source
    if not all(layer.splittable for layer in model.layers):
        equal = dict.fromkeys(profile.names, 1 / len(profile.names))
        alone = {place_whole(model, profile, equal, objective): UNIT}
    # The cheapest partial plan for each place of the last layer. In a chain, the rest depends on nothing else.
    plans = [_PartialPlan(0.0, (), dict.fromkeys(model.graph.inputs, source))]
    for layer in model.layers:
        places = [alone]
        if layer.splittable:
            places = [source, all_devices] if alone == source else [source, alone, all_devices]
        needs = [Need.of_layer(model, layer, place) for place in places]
        plans = [
            min((plan.to(need, place, mean, objective) for plan in plans), key=lambda plan: plan.cost)
            for need, place in zip(needs, places)
        ]
    answer = Need.of_answer(model, profile.source)
    chosen = min((plan.to(answer, source, mean, objective) for plan in plans), key=lambda plan: plan.cost)
    stages: list[Stage] = []
    for layer, place in zip(model.layers, chosen.places):
        if len(place) == 1 and stages and stages[-1].regions == place:
            stages[-1] = stages[-1].model_copy(update={"last": layer.index})
        else:
            stages.append(Stage(first=layer.index, last=layer.index, regions=dict(place)))
    return tuple(stages)


@dataclass(frozen=True)
class Need:
    """Needs of a layer in one place.

    Attributes:
        layer: its index; -1 for the answer.
        rows: that each device computes of it.
        reads: (device, tensor, region).
        makes: the tensors that other layers or the client need.
    """

    layer: int
    rows: tuple[float, ...]
    reads: tuple[tuple[str, Tensor, Region], ...]
    makes: tuple[str, ...]

    @classmethod
    def of_layer(cls, model: Model, layer: Layer, place: Regions) -> Need:
        tensors, after = model.graph.tensors, layer.index + 1
        made = {name for node in model.graph.nodes[layer.first : layer.stop] for name in node.outputs}
        alive = model.cuts[after].tensors if after < len(model.layers) else model.graph.outputs
        makes = tuple(name for name in dict.fromkeys(alive) if name in made)
        rows: list[float] = []
        reads: list[tuple[str, Tensor, Region]] = []
        for device, rect in place.items():
            own = {name: rect.of_extent(tensors[name].rows, tensors[name].cols) for name in makes}
            wanted = {name: region for name, region in own.items() if not region.empty}
            need, _ = needed_regions(model, layer.first, layer.stop, wanted)
            if layer.tensor in need:
                rows.append(need[layer.tensor].area / layer.cols)
            reads += [(device, tensors[name], need[name]) for name in need if name not in made]
        return cls(layer.index, tuple(rows), tuple(reads), makes)

    @classmethod
    def of_answer(cls, model: Model, sink: str) -> Need:
        return cls(-1, (), tuple((sink, tensor, tensor.whole) for tensor in model.outputs), ())

    def cost(self, held: Mapping[str, Regions], mean: _MeanDevice, objective: Objective) -> float:
        """Return the cost: time of the busiest end of a link, then of the device with most rows.

        Args:
            held: by tensor, the regions of the devices that hold it.
        """
        sent, received = defaultdict[str, int](int), defaultdict[str, int](int)
        for device, tensor, region in self.reads:
            for owner, rect in held[tensor.name].items():
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


@dataclass(frozen=True)
class _PartialPlan:
    """Places of the first layers, their cost, and the regions of the tensors that devices hold then."""

    cost: float
    places: tuple[Regions, ...]
    held: dict[str, Regions]

    def to(self, need: Need, place: Regions, mean: _MeanDevice, objective: Objective) -> _PartialPlan:
        cost = self.cost + need.cost(self.held, mean, objective)
        return _PartialPlan(cost, (*self.places, place), {**self.held, **dict.fromkeys(need.makes, place)})
