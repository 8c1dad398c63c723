"""`neurosurgeon`: one cut, the source first, then one server (Kang et al., Neurosurgeon, ASPLOS 2017).

    source   layers 0 .. cut - 1  --- tensors alive at the cut -->                            output
    server                                                          layers cut ..  --- answer --^

All cuts with all servers are candidates, for least latency or least energy as the objective asks, and so are
everything on the source and everything on a server. The paper predicts layer times by regressions over layer types;
here they are measured. It counts the joules of the mobile device; here those of both devices count.

Each candidate has lower bounds from the profile: compute, bytes at the cut and the answer, without queues except for
the up-link. Candidates are simulated in the order of their bounds, until no bound is below the best cost.
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
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.schemes.scheme import on_one_device

# The simulated rate of a stream is an average over a few frames and may lie slightly above the true rate.
_STREAM_SLACK = 0.95
# Tolerance for rounding errors of sums in another order.
_ROUNDING = 1 - 1e-9


@dataclass(frozen=True)
class Side:
    """Layers on one side of a cut, all on one device.

    Attributes:
        image_nbytes: bytes that it reads of the network's inputs.
        read_nbytes: bytes that it reads of the other side's results.
        answer_nbytes: bytes of the network's outputs that it makes.
        weight_nbytes: bytes of the constants that it reads.
    """

    work: tuple[Work, ...]
    image_nbytes: int
    read_nbytes: int
    answer_nbytes: int
    weight_nbytes: int


@dataclass(frozen=True)
class Candidate:
    """A cut with its server, and lower bounds of its costs.

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
        """Return a lower bound of the rank of the plan's evaluation."""
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
    """Return the best cut with the best server; the first `keep_local` layers stay on the source."""
    evaluator = Evaluator(model, profile, objective)
    cuts = candidates(model, profile, objective)
    bounded = [(candidate.bound(profile, objective), candidate.stages) for candidate in cuts]
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
    """Yield everything on the source, then every server for every cut."""
    count, source, table = len(model.layers), profile.source, CostTable.of(model, profile)
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
            image = _Transfer(table, source, server, tail.image_nbytes)
            read = _Transfer(table, source, server, tail.read_nbytes)
            answer = _Transfer(table, server, source, tail.answer_nbytes)
            # The image is sent at once; results of the source are sent when they and the image are ready.
            arrived = image.seconds + image.latency_seconds
            if tail.read_nbytes:
                arrived = max(first, image.seconds) + read.seconds + read.latency_seconds
            seconds = arrived + second + answer.seconds + answer.latency_seconds
            joules = first * devices[source].power.compute_watts + second * devices[server].power.compute_watts
            joules += image.joules + read.joules + answer.joules + _idle_joules(profile, seconds, source, server)
            on_medium = sum(transfer.medium_seconds for transfer in (image, read, answer))
            interval = max(first, second, image.seconds + read.seconds, answer.seconds, on_medium)
            stages, weights = on_one_device(model, server), {server: tail.weight_nbytes}
            if head:
                stages = (
                    Stage(first=0, last=cut - 1, regions={source: UNIT}),
                    Stage(first=cut, last=count - 1, regions={server: UNIT}),
                )
                weights[source] = head.weight_nbytes
            yield Candidate(stages, seconds, joules, interval, weights)


class _Transfer:
    """A transfer without contention.

    Attributes:
        seconds: that the up-link is busy, at the rate of the link or of a slower shared medium.
        medium_seconds: that the slowest shared medium is busy.
    """

    def __init__(self, table: CostTable, sender: str, receiver: str, nbytes: int) -> None:
        pair = table.position[sender], table.position[receiver]
        self.medium_seconds = nbytes * float(table.medium_seconds[pair])
        self.seconds = nbytes * float(table.seconds_per_byte[pair])
        self.latency_seconds = float(table.latency[pair]) if nbytes else 0.0
        self.joules = nbytes * float(table.link_seconds[pair] * table.transfer_watts[pair])


def _idle_joules(profile: Profile, seconds: float, *names: str) -> float:
    if profile.joules != "total":
        return 0.0
    return seconds * sum(profile.by_name[name].power.idle_watts for name in names)


def side(model: Model, first: int, stop: int) -> Side:
    """Return what layers [first, stop) take as one stage on one device."""
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
