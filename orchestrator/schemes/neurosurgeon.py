"""`neurosurgeon`: one cut, the source first, then one server (Kang et al., Neurosurgeon, ASPLOS 2017).

    source   layers 0 .. cut - 1  --- what is alive at the cut -->                            output
    server                                                          layers cut ..  --- answer --^

All cuts with all servers are weighed, least latency or least energy as the objective asks; with the extreme ones:
everything on the source, everything on a server. The paper predicts layer times by regressions over layer types,
here they are measured; it counts the joules of the mobile device alone, here those of both devices count.

The weights are bounds from the profile: compute, bytes at the cut and the answer, with nothing in the way of each
other but the up-link. Candidates are simulated in the order of their bounds, until no bound is below the best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coedge.lowering import tile_of
from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Plan, Stage
from coedge.profile import Profile
from coedge.program import Work
from coedge.region import UNIT
from orchestrator.schemes.scheme import best, evaluate, on_one_device, rank

# In a stream of few frames the first answer may come late and the last one early: bounds leave them this much.
_STREAM_SLACK = 0.8
# Sums in another order differ in their last digits.
_ROUNDING = 1 - 1e-9


@dataclass(frozen=True)
class Side:
    """The layers on one side of a cut, all of them on one device.

    Attributes:
        read_nbytes: what it reads of the network's inputs, and of what the other side makes.
        answer_nbytes: of the network's outputs that it makes.
    """

    work: tuple[Work, ...]
    image_nbytes: int
    read_nbytes: int
    answer_nbytes: int
    weight_nbytes: int


@dataclass(frozen=True)
class Candidate:
    """A cut with its server, and bounds of what it costs.

    Attributes:
        interval_seconds: between the answers of a stream.
        weight_nbytes: by device.
    """

    stages: tuple[Stage, ...]
    seconds: float
    joules: float
    interval_seconds: float
    weight_nbytes: dict[str, int]

    def bound(self, profile: Profile, objective: Objective) -> tuple[bool, float]:
        """At most the `rank` of the plan."""
        seconds = self.seconds * _ROUNDING
        limits = {name: profile.by_name[name].memory_bytes for name in self.weight_nbytes}
        heavy = any(limit is not None and self.weight_nbytes[name] > limit for name, limit in limits.items())
        if heavy or not objective.meets_deadline(seconds):
            return True, seconds
        interval = self.interval_seconds * _STREAM_SLACK
        return False, objective.cost(seconds, self.joules, 1 / interval if interval > 0 else None) * _ROUNDING


def neurosurgeon(model: Model, profile: Profile, objective: Objective) -> Plan:
    """The best cut with the best server; only cuts that leave the first `keep_local` layers on the source."""
    bounded = [(found.bound(profile, objective), found.stages) for found in candidates(model, profile, objective)]
    chosen: Plan | None = None
    for bound, stages in sorted(bounded, key=lambda item: item[0]):
        if chosen is not None and rank(chosen, objective) <= bound:
            break
        plan = evaluate("neurosurgeon", model, profile, objective, stages)
        chosen = plan if chosen is None else best((chosen, plan), objective)
    assert chosen is not None, "everything on the source is always a candidate"
    return chosen


def candidates(model: Model, profile: Profile, objective: Objective) -> Iterator[Candidate]:
    """Everything on the source, then cut by cut every server."""
    count, source = len(model.layers), profile.source
    watts = profile.by_name[source].power
    whole = side(model, 0, count)
    seconds = profile.by_name[source].compute_seconds(whole.work)
    joules, weights = seconds * watts.compute_watts, {source: whole.weight_nbytes}
    yield Candidate(on_one_device(model, source), seconds, joules, seconds, weights)
    servers = [name for name in profile.names if name != source]
    for cut in range(min(objective.keep_local, count), count if servers else 0):
        head, tail = (side(model, 0, cut) if cut else None), side(model, cut, count)
        first = profile.by_name[source].compute_seconds(head.work) if head else 0.0
        for server in servers:
            there, back = profile.link(source, server), profile.link(server, source)
            power = profile.by_name[server].power
            second = profile.by_name[server].compute_seconds(tail.work)
            image, read = tail.image_nbytes / there.bytes_per_second, tail.read_nbytes / there.bytes_per_second
            answer = tail.answer_nbytes / back.bytes_per_second
            # The image leaves at once; what the source makes leaves when it is made and the image is out.
            sent = max(first, image) + read if read else image
            seconds = sent + (there.latency_seconds if image or read else 0.0) + second
            if tail.answer_nbytes:
                seconds += answer + back.latency_seconds
            joules = first * watts.compute_watts + second * power.compute_watts
            joules += (image + read) * watts.transmit_watts + answer * power.transmit_watts
            stages = on_one_device(model, server)
            weights = {server: tail.weight_nbytes}
            if head:
                stages = (
                    Stage(first=0, last=cut - 1, regions={source: UNIT}),
                    Stage(first=cut, last=count - 1, regions={server: UNIT}),
                )
                weights[source] = head.weight_nbytes
            yield Candidate(stages, seconds, joules, max(first, second, image + read, answer), weights)


def side(model: Model, first: int, stop: int) -> Side:
    """Layers [first, stop) as one stage on one device."""
    graph, layers = model.graph, model.layers
    nodes = graph.nodes[layers[first].first : layers[stop - 1].stop]
    made = {name for node in nodes for name in node.outputs if name}
    alive = model.cuts[stop].tensors if stop < len(layers) else graph.outputs
    wanted = {name: graph.tensors[name].whole for name in alive if name in made}
    tile, need = tile_of(model, nodes[0].index, nodes[-1].index + 1, wanted)
    work = (
        Work(layer.index, need[layer.tensor].area / layer.cols) for layer in layers[first:stop] if layer.tensor in need
    )
    reads = {name: graph.tensors[name].region_nbytes(need[name]) for name in tile.inputs}
    image = sum(nbytes for name, nbytes in reads.items() if name in graph.inputs)
    constants = {
        name
        for part in tile.nodes
        for name in (*graph.nodes[part.node].inputs, *graph.nodes[part.node].captured)
        if name in graph.constants
    }
    return Side(
        work=tuple(work),
        image_nbytes=image,
        read_nbytes=sum(reads.values()) - image,
        answer_nbytes=sum(graph.tensors[n].region_nbytes(graph.tensors[n].whole) for n in {*graph.outputs} & made),
        weight_nbytes=sum(graph.constants[name].nbytes for name in constants),
    )
