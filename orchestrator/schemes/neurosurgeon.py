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

from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.execution.program import Work
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage
from coedge.plan.tiles import needed_regions
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.schemes.scheme import on_one_device

# The rate of a stream is measured over some rounds of frames, and may come out a little above what it can be.
_STREAM_SLACK = 0.95
# Sums in another order differ in their last digits.
_ROUNDING = 1 - 1e-9


@dataclass(frozen=True)
class Side:
    """The layers on one side of a cut, all of them on one device.

    Attributes:
        image_nbytes: what it reads of the network's inputs.
        read_nbytes: what it reads of what the other side makes.
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

    def bound(self, profile: Profile, objective: Objective) -> tuple[float, float]:
        """At most the rank of the plan when it is judged: what it exceeds, then its cost, or its time."""
        excess = 0.0
        for name, nbytes in self.weight_nbytes.items():
            limit = profile.by_name[name].memory_bytes
            excess += nbytes / limit if limit is not None and nbytes > limit else 0.0
        seconds = self.seconds * _ROUNDING
        if objective.deadline_seconds is not None and seconds > objective.deadline_seconds:
            excess += seconds / objective.deadline_seconds
        if excess:
            return excess * _ROUNDING, seconds
        interval = self.interval_seconds * _STREAM_SLACK
        return 0.0, objective.cost(seconds, self.joules, 1 / interval if interval > 0 else None) * _ROUNDING


def neurosurgeon(model: Model, profile: Profile, objective: Objective) -> Plan:
    """The best cut with the best server; only cuts that leave the first `keep_local` layers on the source."""
    evaluator = Evaluator(model, profile, objective)
    bounded = [(found.bound(profile, objective), found.stages) for found in candidates(model, profile, objective)]
    chosen: Evaluation | None = None
    for bound, stages in sorted(bounded, key=lambda item: item[0]):
        if chosen is not None and chosen.rank(objective) <= bound:
            break
        evaluated = evaluator.evaluate(stages, "neurosurgeon")
        if chosen is None or evaluated.rank(objective) < chosen.rank(objective):
            chosen = evaluated
    assert chosen is not None, "everything on the source is always a candidate"
    return evaluator.plan(chosen)


def candidates(model: Model, profile: Profile, objective: Objective) -> Iterator[Candidate]:
    """Everything on the source, then cut by cut every server."""
    count, source = len(model.layers), profile.source
    devices = profile.by_name
    whole = side(model, 0, count)
    seconds = devices[source].compute_seconds(whole.work)
    joules = seconds * devices[source].power.compute_watts + _idle_joules(profile, seconds, source)
    yield Candidate(on_one_device(model, source), seconds, joules, seconds, {source: whole.weight_nbytes})
    servers = [name for name in profile.names if name != source]
    for cut in range(min(objective.keep_local, count), count if servers else 0):
        head, tail = (side(model, 0, cut) if cut else None), side(model, cut, count)
        first = devices[source].compute_seconds(head.work) if head else 0.0
        for server in servers:
            second = devices[server].compute_seconds(tail.work)
            image = _Transfer(profile, source, server, tail.image_nbytes)
            read = _Transfer(profile, source, server, tail.read_nbytes)
            answer = _Transfer(profile, server, source, tail.answer_nbytes)
            # The image leaves at once; what the source makes leaves when it is made and the image is out.
            arrived = image.seconds + image.latency_seconds
            if tail.read_nbytes:
                arrived = max(first, image.seconds) + read.seconds + read.latency_seconds
            seconds = arrived + second + answer.seconds + answer.latency_seconds
            joules = first * devices[source].power.compute_watts + second * devices[server].power.compute_watts
            joules += image.joules + read.joules + answer.joules + _idle_joules(profile, seconds, source, server)
            contending_devices = sum(transfer.medium_seconds for transfer in (image, read, answer))
            interval = max(first, second, image.seconds + read.seconds, answer.seconds, contending_devices)
            stages, weights = on_one_device(model, server), {server: tail.weight_nbytes}
            if head:
                stages = (
                    Stage(first=0, last=cut - 1, regions={source: UNIT}),
                    Stage(first=cut, last=count - 1, regions={server: UNIT}),
                )
                weights[source] = head.weight_nbytes
            yield Candidate(stages, seconds, joules, interval, weights)


class _Transfer:
    """So many bytes from one device to another, with nothing else on the way.

    Attributes:
        seconds: that the up-link is taken, be it for the link's rate or for a shared medium's.
        medium_seconds: that the slowest shared medium is taken.
    """

    def __init__(self, profile: Profile, sender: str, receiver: str, nbytes: int) -> None:
        link = profile.link(sender, receiver)
        wire = nbytes / link.bytes_per_second
        media = [nbytes / medium.bytes_per_second for medium in profile.media_between(sender, receiver)]
        self.medium_seconds = max(media, default=0.0)
        self.seconds = max(wire, self.medium_seconds)
        self.latency_seconds = link.latency_seconds if nbytes else 0.0
        sending, receiving = profile.by_name[sender].power, profile.by_name[receiver].power
        self.joules = wire * (sending.transmit_watts + receiving.receive_watts)


def _idle_joules(profile: Profile, seconds: float, *names: str) -> float:
    if profile.joules != "total":
        return 0.0
    return seconds * sum(profile.by_name[name].power.idle_watts for name in names)


def side(model: Model, first: int, stop: int) -> Side:
    """Layers [first, stop) as one stage on one device."""
    graph, layers = model.graph, model.layers
    nodes = graph.nodes[layers[first].first : layers[stop - 1].stop]
    made = {name for node in nodes for name in node.outputs if name}
    alive = model.cuts[stop].tensors if stop < len(layers) else graph.outputs
    wanted = {name: graph.tensors[name].whole for name in alive if name in made}
    need, parts = needed_regions(model, nodes[0].index, nodes[-1].index + 1, wanted)
    work = (
        Work(layer.index, need[layer.tensor].area / layer.cols) for layer in layers[first:stop] if layer.tensor in need
    )
    reads = {name: graph.tensors[name].region_nbytes(region) for name, region in need.items() if name not in made}
    image = sum(nbytes for name, nbytes in reads.items() if name in graph.inputs)
    constants = {
        name
        for node in (field.rule.index for field in parts)
        for name in (*graph.nodes[node].inputs, *graph.nodes[node].captured)
        if name in graph.constants
    }
    return Side(
        work=tuple(work),
        image_nbytes=image,
        read_nbytes=sum(reads.values()) - image,
        answer_nbytes=sum(graph.tensors[n].region_nbytes(graph.tensors[n].whole) for n in {*graph.outputs} & made),
        weight_nbytes=sum(graph.constants[name].nbytes for name in constants),
    )
