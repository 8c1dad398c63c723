"""A draft as arithmetic: every computation and every transfer is an affine function of the inner edges.

    x            inner edges of all stages, in the unit square
    rows         rows of one tensor that one strip sends to another:  max(0, G x + r0)
    compute      base + slope (x_below - x_above)                      seconds
    transfer     latency + (bytes of its rows) / rate                  seconds

The rows between two strips are min(own end, needed end) - max(own start, needed start). The side of each minimum and
maximum is taken from the draft. Any choice is affine and bounds the rows from above; this one is exact at the draft.
Pairs of strips that exchange nothing in the draft must not start to exchange rows (`apart`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.evaluation.cost_table import CostTable
from orchestrator.search.draft import DraftStage
from orchestrator.search.receptive_field import ReceptiveFields, StageInput
from orchestrator.search.strip_cost import strip_seconds

# The producer of the network's input.
SOURCE = -1


@dataclass(frozen=True, slots=True)
class AffineExpression:
    """`constant` plus the sum of coefficient times edge over `terms`, which are (edge, coefficient)."""

    constant: float
    terms: tuple[tuple[int, float], ...] = ()

    def __add__(self, other: AffineExpression) -> AffineExpression:
        return AffineExpression(self.constant + other.constant, self.terms + other.terms)

    def times(self, factor: float) -> AffineExpression:
        return AffineExpression(self.constant * factor, tuple((index, value * factor) for index, value in self.terms))

    def at(self, edges: Sequence[float]) -> float:
        return self.constant + sum(value * edges[index] for index, value in self.terms)


@dataclass(slots=True)
class StripCompute:
    """Computation of one strip of one stage: `base + slope * share` seconds.

    Attributes:
        share: height of the strip in the unit square.
        previous: index of the computation that the same device does before; None for its first.
        held_nbytes: bytes of constants that the device holds whatever its share.
        shared_nbytes: bytes of constants of which the device holds its share.
    """

    stage: int
    device: str
    share: AffineExpression
    base: float
    slope: float
    previous: int | None
    held_nbytes: float
    shared_nbytes: float


@dataclass(slots=True)
class Channel:
    """One message from one computation to another.

    Attributes:
        producer, consumer: indices of the computations. The producer of the input is SOURCE; the consumer of the
            answer is the number of computations.
        rows: (bytes per row, rows) of every tensor.
        nbytes: bytes that do not depend on the edges.
    """

    producer: int
    consumer: int
    sender: str
    receiver: str
    rows: list[tuple[float, AffineExpression]] = field(default_factory=list)
    nbytes: float = 0.0


@dataclass
class Flow:
    """All computations and messages of a draft.

    Attributes:
        edges: the inner edges of the draft.
        apart: expressions that must stay at or below 0.
        last_at_sink: index of the last computation on the device that assembles the answer, if it has one.
    """

    edges: list[float]
    computes: list[StripCompute]
    channels: list[Channel]
    apart: list[AffineExpression]
    last_at_sink: list[int]

    def bytes_at(self, channel: Channel, edges: Sequence[float]) -> float:
        """Return the size of a message if the inner edges were these."""
        return channel.nbytes + sum(max(0.0, rows.at(edges)) * weight for weight, rows in channel.rows)


def make_flow(table: CostTable, receptive_fields: ReceptiveFields, stages: Sequence[DraftStage]) -> Flow:
    return _FlowBuilder(table, receptive_fields, stages).run()


class _FlowBuilder:
    """The flow of a draft while it is built.

    Attributes:
        compute_at: index of the computation of a device in a stage.
        edge_at: for each stage, its edges from the top down.
        stage_of_layer: index of the stage that computes a layer.
    """

    def __init__(self, table: CostTable, receptive_fields: ReceptiveFields, stages: Sequence[DraftStage]) -> None:
        self.table, self.model = table, table.model
        self.receptive_fields, self.stages = receptive_fields, stages
        self.source = table.profile.source
        self.flow = Flow([], [], [], [], [])
        self.compute_at: dict[tuple[int, str], int] = {}
        self.edge_at: list[list[AffineExpression]] = []
        self.stage_of_layer: dict[int, int] = {}

    def run(self) -> Flow:
        latest: dict[str, int] = {}
        for index, stage in enumerate(self.stages):
            self.stage_of_layer.update(dict.fromkeys(range(stage.first, stage.stop), index))
            self.edge_at.append([self._edge(value) for value in stage.layout.edges])
            for position, device in enumerate(stage.layout.devices):
                base, slope = strip_seconds(self.table, self.receptive_fields, stage, position)
                share = self.edge_at[index][position + 1] + self.edge_at[index][position].times(-1)
                self.compute_at[index, device] = len(self.flow.computes)
                held, shared = self.receptive_fields.weights(stage.first, stage.stop)
                self.flow.computes.append(
                    StripCompute(index, device, share, base, slope, latest.get(device), held, shared)
                )
                latest[device] = len(self.flow.computes) - 1
        for index, stage in enumerate(self.stages):
            self._fetch(index, stage)
        self._answer()
        self.flow.last_at_sink = [latest[name] for name in (self.source,) if name in latest]
        return self.flow

    def _edge(self, value: float) -> AffineExpression:
        """Return an edge as an expression; an inner edge becomes a new variable."""
        if value <= 0.0 or value >= 1.0:
            return AffineExpression(min(max(value, 0.0), 1.0))
        self.flow.edges.append(value)
        return AffineExpression(0.0, ((len(self.flow.edges) - 1, 1.0),))

    def _fetch(self, index: int, stage: DraftStage) -> None:
        """Add the messages that bring the inputs of a stage."""
        channels: dict[tuple[int, int], Channel] = {}
        for item in self.receptive_fields.inputs(stage.first, stage.stop):
            for position, receiver in enumerate(stage.layout.devices):
                start, stop = self._needed(index, position, item)
                consumer = self.compute_at[index, receiver]
                self._from_owners(channels, item, start, stop, receiver, consumer)
        self.flow.channels += channels.values()

    def _answer(self) -> None:
        """Add the messages that bring the network's outputs back to the source."""
        channels: dict[tuple[int, int], Channel] = {}
        for name in self.model.graph.outputs:
            tensor, layer = self.model.graph.tensors[name], self.receptive_fields.layer_of[name]
            nbytes = tensor.region_nbytes(tensor.whole)
            item = StageInput(name, layer, tensor.rows, nbytes, above=0, below=0, whole=True, partial=False)
            everything = AffineExpression(0.0), AffineExpression(float(item.rows))
            self._from_owners(channels, item, *everything, self.source, len(self.flow.computes))
        self.flow.channels += channels.values()

    def _needed(self, index: int, position: int, item: StageInput) -> tuple[AffineExpression, AffineExpression]:
        """Return the first row of a tensor that a strip reads, and the row after the last."""
        edges, layout = self.edge_at[index], self.stages[index].layout
        if item.whole or len(layout.devices) == 1:
            return AffineExpression(0.0), AffineExpression(float(item.rows))
        start, stop = edges[position].times(item.rows), edges[position + 1].times(item.rows)
        if position:
            start = start + AffineExpression(-item.above)
        if position < len(layout.devices) - 1:
            stop = stop + AffineExpression(item.below)
        if start.at(self.flow.edges) <= 0.0:
            start = AffineExpression(0.0)
        if stop.at(self.flow.edges) >= item.rows:
            stop = AffineExpression(float(item.rows))
        return start, stop

    def _from_owners(
        self,
        channels: dict[tuple[int, int], Channel],
        item: StageInput,
        start: AffineExpression,
        stop: AffineExpression,
        receiver: str,
        consumer: int,
    ) -> None:
        """Add to `channels` the rows [start, stop) of a tensor that the receiver does not own."""
        if item.layer < 0:
            owners = [(SOURCE, self.source, AffineExpression(0.0), AffineExpression(float(item.rows)))]
        else:
            made = self.stage_of_layer[item.layer]
            edges, devices = self.edge_at[made], self.stages[made].layout.devices
            owners = [
                (self.compute_at[made, name], name, edges[p].times(item.rows), edges[p + 1].times(item.rows))
                for p, name in enumerate(devices)
            ]
        now = self.flow.edges
        for producer, sender, first, last in owners:
            if sender == receiver:
                continue
            if item.partial:
                self._channel(channels, producer, consumer, sender, receiver).nbytes += item.nbytes
                continue
            upper = last if last.at(now) <= stop.at(now) else stop
            lower = first if first.at(now) >= start.at(now) else start
            rows = upper + lower.times(-1)
            count = rows.at(now)
            # Edges less than half a row apart meet after rounding: nothing is sent between them.
            if count > 0.5:
                self._channel(channels, producer, consumer, sender, receiver).rows.append((item.row_nbytes, rows))
            elif count > -item.rows / 4 and rows.terms:
                self.flow.apart.append(rows + AffineExpression(-max(count, 0.0)))

    def _channel(
        self, channels: dict[tuple[int, int], Channel], producer: int, consumer: int, sender: str, receiver: str
    ) -> Channel:
        return channels.setdefault((producer, consumer), Channel(producer, consumer, sender, receiver))
