"""A draft plan as arithmetic: every computation and every transfer as a linear function of where strips meet.

    x            inner edges of all stages, of the unit square
    rows         what of one tensor goes from one strip to another:  max(0, G x + r0)
    compute      base + slope (x_below - x_above)                      seconds
    transfer     latency + (bytes of its rows) / rate                  seconds

Between two strips the rows are min(own end, needed end) - max(own start, needed start). Which of the two counts is
taken from the draft at hand: any choice bounds the rows from above and is linear, and this one is exact there.
Pairs that exchange nothing at the draft are kept from doing so (`apart`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.search.draft import DraftStage
from orchestrator.search.receptive_field import ReceptiveFields, StageInput

SOURCE = -1


@dataclass(frozen=True, slots=True)
class AffineExpression:
    """constant + sum of coefficient x edge."""

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
    """One strip of one stage. `share` is its height; seconds are `base + slope * share`.

    Attributes:
        previous: the computation that its device does before.
        held_nbytes, shared_nbytes: of the stage's constants, all of which it holds; of which it holds its share.
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
    """What one computation sends to another, as one message.

    Attributes:
        producer, consumer: indices of the computations; SOURCE where the input is, and the number of computations
            where the answer is put together.
        rows: (bytes per row, rows) of every tensor.
        nbytes: what does not depend on the edges.
    """

    producer: int
    consumer: int
    sender: str
    receiver: str
    rows: list[tuple[float, AffineExpression]] = field(default_factory=list)
    nbytes: float = 0.0


@dataclass
class Flow:
    """All of a draft.

    Attributes:
        edges: the values of the variables at the draft.
        apart: expressions that are to stay at or below 0.
        last_at_sink: the last computation where the answer is put together, if there is one.
    """

    edges: list[float]
    computes: list[StripCompute]
    channels: list[Channel]
    apart: list[AffineExpression]
    last_at_sink: list[int]

    def bytes_at(self, channel: Channel, edges: Sequence[float]) -> float:
        return channel.nbytes + sum(max(0.0, rows.at(edges)) * weight for weight, rows in channel.rows)


def make_flow(model: Model, profile: Profile, receptive_fields: ReceptiveFields, stages: Sequence[DraftStage]) -> Flow:
    return _Maker(model, profile, receptive_fields, stages).run()


def message_seconds(profile: Profile, sender: str, receiver: str) -> float:
    """What a message takes besides its bytes: the latency of the link, and the time of both ends."""
    devices = profile.by_name
    handling = devices[sender].send_seconds + devices[receiver].receive_seconds
    return profile.link(sender, receiver).latency_seconds + handling


class _Maker:
    def __init__(
        self, model: Model, profile: Profile, receptive_fields: ReceptiveFields, stages: Sequence[DraftStage]
    ) -> None:
        self.model, self.profile, self.receptive_fields, self.stages = model, profile, receptive_fields, stages
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
                base, slope = self._seconds(stage, position)
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
        self.flow.last_at_sink = [latest[name] for name in (self.profile.source,) if name in latest]
        return self.flow

    def _edge(self, value: float) -> AffineExpression:
        if value <= 0.0 or value >= 1.0:
            return AffineExpression(min(max(value, 0.0), 1.0))
        self.flow.edges.append(value)
        return AffineExpression(0.0, ((len(self.flow.edges) - 1, 1.0),))

    def _seconds(self, stage: DraftStage, position: int) -> tuple[float, float]:
        """Seconds as base + slope * share."""
        layout, end = stage.layout, self.receptive_fields.end(stage.stop)
        device = self.profile.by_name[layout.devices[position]]
        alone = len(layout.devices) == 1
        base = slope = 0.0
        share = layout.shares[position]
        for index in range(stage.first, stage.stop):
            if not end.needed[index]:
                continue
            time, height = device.layer_time(index, index == stage.stop - 1), self.model.layers[index].rows
            base += time.fixed_seconds
            if alone or end.whole[index]:
                base += time.seconds_per_row * height
                continue
            halo = (end.above[index] if position else 0.0) + (
                end.below[index] if position < len(layout.devices) - 1 else 0.0
            )
            # A strip so high that its halo passes the border computes no more than there is.
            halo = min(halo, height * (1 - share))
            base += time.seconds_per_row * halo
            slope += time.seconds_per_row * height
        return base, slope

    def _fetch(self, index: int, stage: DraftStage) -> None:
        channels: dict[tuple[int, int], Channel] = {}
        for item in self.receptive_fields.inputs(stage.first, stage.stop):
            for position, receiver in enumerate(stage.layout.devices):
                start, stop = self._needed(index, position, item)
                consumer = self.compute_at[index, receiver]
                self._from_owners(channels, item, start, stop, receiver, consumer)
        self.flow.channels += channels.values()

    def _answer(self) -> None:
        channels: dict[tuple[int, int], Channel] = {}
        for name in self.model.graph.outputs:
            tensor = self.model.graph.tensors[name]
            item = StageInput(
                name,
                self.receptive_fields.layer_of[name],
                tensor.rows,
                tensor.region_nbytes(tensor.whole),
                0,
                0,
                True,
                False,
            )
            everything = AffineExpression(0.0), AffineExpression(float(item.rows))
            self._from_owners(channels, item, *everything, self.profile.source, len(self.flow.computes))
        self.flow.channels += channels.values()

    def _needed(self, index: int, position: int, item: StageInput) -> tuple[AffineExpression, AffineExpression]:
        """First and last row of a tensor that a strip reads."""
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
        if item.layer < 0:
            owners = [(SOURCE, self.profile.source, AffineExpression(0.0), AffineExpression(float(item.rows)))]
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
            found = rows.at(now)
            # Half a row is no row: what lies between edges that meet after rounding does not travel.
            if found > 0.5:
                self._channel(channels, producer, consumer, sender, receiver).rows.append((item.row_nbytes, rows))
            elif found > -item.rows / 4 and rows.terms:
                self.flow.apart.append(rows + AffineExpression(-max(found, 0.0)))

    def _channel(
        self, channels: dict[tuple[int, int], Channel], producer: int, consumer: int, sender: str, receiver: str
    ) -> Channel:
        return channels.setdefault((producer, consumer), Channel(producer, consumer, sender, receiver))
