"""Runs programs in virtual time, on the same dataflow machine as the workers.

kernels     one at a time per device, as long as the profile says
up-link     one message at a time per sender, n / rate
latency     then passes; it occupies nothing
down-link   one message at a time per receiver (`max` with the up-link: a transfer streams through both)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from coedge.machine import Machine
from coedge.model import Model
from coedge.plan import Plan, Prediction
from coedge.profile import Profile
from coedge.program import CLIENT, Answer, Compute, Program, Receive, Send, Step
from coedge.timeline import Span, SpanKind, Timeline


@dataclass
class _Device:
    machine: Machine
    busy: bool = False
    up_free: float = 0.0
    down_free: float = 0.0


@dataclass
class _Run:
    programs: Mapping[str, Program]
    profile: Profile
    model: Model
    devices: dict[str, _Device]
    spans: list[Span] = field(default_factory=list)
    asked: dict[int, float] = field(default_factory=dict)
    answered: dict[int, tuple[float, float]] = field(default_factory=dict)
    events: list[tuple[float, int, str, int, int, int]] = field(default_factory=list)
    count: int = 0

    def at(self, time: float, device: str, frame: int, channel: int, step: int) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, device, frame, channel, step))

    def begin(self, frame: int, time: float) -> None:
        self.asked[frame] = time
        for name, device in self.devices.items():
            device.machine.begin(frame)
            for step in device.machine.program.steps:
                if isinstance(step, Receive) and step.peer == CLIENT:
                    self.at(time, name, frame, step.channel, -1)

    def pump(self, name: str, time: float) -> None:
        device = self.devices[name]
        while not device.busy and (ready := device.machine.next()) is not None:
            frame, index = ready
            step = device.machine.program.steps[index]
            if isinstance(step, Compute):
                seconds = self.profile.by_name[name].compute_seconds(step.work)
                self._span(name, frame, "compute", step, time, time + seconds)
                device.busy = True
                self.at(time + seconds, name, frame, -1, index)
                return
            if isinstance(step, Send):
                self._send(name, frame, step, time)
            elif isinstance(step, Answer):
                self.answered[frame] = (self.asked[frame], time)
                self._span(name, frame, "answer", step, time, time)
            device.machine.done(frame, index)

    def _send(self, name: str, frame: int, step: Send, time: float) -> None:
        device, target = self.devices[name], self.devices[step.peer]
        link = self.profile.link(name, step.peer)
        nbytes = send_nbytes(self.programs[name], step, self.model)
        wire = nbytes / link.bytes_per_second
        start = max(time, device.up_free)
        device.up_free = start + wire
        arrived = device.up_free + link.latency_seconds
        target.down_free = max(target.down_free, arrived - wire) + wire
        self._span(name, frame, "send", step, start, device.up_free, nbytes)
        self.at(max(arrived, target.down_free), step.peer, frame, step.channel, -1)

    def _span(
        self, name: str, frame: int, kind: SpanKind, step: Step, start: float, stop: float, nbytes: int = 0
    ) -> None:
        stage = step.stage if isinstance(step, (Compute, Send)) else -1
        peer = step.peer if isinstance(step, Send) else ""
        label = step_label(step, self.model)
        self.spans.append(Span(name, frame, kind, label, start, stop, stage, peer, nbytes))


def simulate(
    programs: Mapping[str, Program], profile: Profile, model: Model, frames: int = 1, in_flight: int = 1
) -> Timeline:
    """The timeline that these programs are predicted to have. Deterministic.

    Args:
        frames: how many; the next begins as soon as fewer than `in_flight` are under way.
    """
    run = _Run(programs, profile, model, {name: _Device(Machine(p)) for name, p in programs.items()})
    begun = 0
    while begun < min(frames, in_flight):
        run.begin(begun, 0.0)
        begun += 1
    while run.events:
        time, _, name, frame, channel, index = heapq.heappop(run.events)
        device = run.devices[name]
        if channel >= 0:
            receive = next(s for s in device.machine.program.steps if isinstance(s, Receive) and s.channel == channel)
            device.machine.arrived(frame, channel, (None,) * len(receive.patches))
        else:
            device.busy = False
            step = device.machine.program.steps[index]
            assert isinstance(step, Compute)
            device.machine.done(frame, index, (None,) * len(step.writes))
        before = len(run.answered)
        run.pump(name, time)
        while before < len(run.answered) and begun < frames:
            run.begin(begun, time)
            begun += 1
            before += 1
    return Timeline(tuple(run.spans), dict(run.answered), measured=False)


def predict(
    plan: Plan, programs: Mapping[str, Program], profile: Profile, model: Model, stream: bool = True
) -> Prediction:
    """Latency and joules of one frame, and the rate of a stream of them (without `stream`: of single frames)."""
    one = simulate(programs, profile, model)
    several = simulate(programs, profile, model, frames=6, in_flight=3) if stream else one
    return Prediction(
        latency_seconds=one.latency_seconds,
        energy_joules=one.energy_joules(profile),
        throughput_fps=several.throughput_fps,
    )


def send_nbytes(program: Program, step: Send, model: Model) -> int:
    """Bytes of the rows in a message, without its header."""
    tensors = model.graph.tensors
    return sum(tensors[program.patches[p.patch].tensor].region_nbytes(p.region) for p in step.parts)


def step_label(step: Step, model: Model) -> str:
    """What a step is, for people: the layers that it computes, or whom it sends to."""
    if isinstance(step, Compute):
        names = [model.layers[w.layer].name for w in step.work] or ["(no rows)"]
        return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
    if isinstance(step, Send):
        return f"to {step.peer}"
    if isinstance(step, Receive):
        return f"from {step.peer}"
    return "answer"
