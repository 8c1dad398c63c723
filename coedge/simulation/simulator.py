"""Runs programs in virtual time, on the same dataflow machine as the workers.

    device a     [ compute ]                                    one step at a time, oldest frame first
    up-link a               :wait:[== send ==]                  n / rate of the link
    medium                        [===]                         n / rate of the medium, then free for others
    latency                       >....                         occupies nothing
    down-link b                        [== receive ==]          n / rate of the link: the message streams through
    device b                                          [ compute ]

device      kernels as long as the profile says; packing before a message leaves, where its channel has a codec,
            and unpacking before its rows are there, which goes before kernels
up-link     one message at a time per sender, in the order in which they were sent. The first in line also waits
            for its media, and holds the up-link until the slowest of them all would have carried it
medium      one message at a time, first come first served
down-link   one message at a time per receiver, in the order in which they begin to come to it

Ties in time keep the order in which their causes came about: the same input gives the same timeline.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coedge.core.errors import PlanError
from coedge.execution.dataflow_machine import DataflowMachine, oldest_ready
from coedge.execution.program import CLIENT, Program, Step
from coedge.graph.model import Model
from coedge.plan.codec import packed_nbytes
from coedge.plan.frame_assignment import assign_frames
from coedge.profile.profile import Profile
from coedge.simulation.span import Span, SpanKind
from coedge.simulation.step_costs import packing_seconds
from coedge.simulation.timeline import Timeline


@dataclass(slots=True)
class _MediumQueue:
    free: float = 0.0
    last_send: int = -1


@dataclass(slots=True)
class _Action:
    """A step, with all that is the same in every frame.

    Attributes:
        busy_seconds: how long it occupies its device.
        wire_seconds: how long a message occupies its up-link at least, and its down-link.
    """

    kind: SpanKind
    label: str
    busy_seconds: float = 0.0
    values: tuple[None, ...] = ()
    stage: int = -1
    peer: str = ""
    channel: int = -1
    nbytes: int = 0
    wire_seconds: float = 0.0
    latency_seconds: float = 0.0
    media: tuple[tuple[_MediumQueue, float], ...] = ()


@dataclass(slots=True)
class _ProgramRun:
    """What a device does for one of the program sets."""

    machine: DataflowMachine
    actions: list[_Action]
    receives: dict[int, _Action]


@dataclass(slots=True)
class _SimulatedDevice:
    name: str
    parts: dict[int, _ProgramRun] = field(default_factory=dict)
    machines: dict[int, DataflowMachine] = field(default_factory=dict)
    busy: bool = False
    inbox: deque[tuple[_Action, int]] = field(default_factory=deque)  # to be unpacked
    outbox: deque[tuple[_Action, int]] = field(default_factory=deque)
    up_free: float = 0.0
    last_send: int = -1
    down_free: float = 0.0
    last_receive: int = -1

    def next(self) -> tuple[_ProgramRun, int, int] | None:
        """Return the step to run now, as a worker chooses it."""
        ready = oldest_ready(self.machines)
        return (self.parts[ready.key], ready.frame, ready.step_index) if ready else None


class _Run:
    """One simulation. `cause` is everywhere the span that ended now, so that this may begin."""

    def __init__(
        self, parts: Sequence[Mapping[str, Program]], profile: Profile, model: Model, part_of: Sequence[int]
    ) -> None:
        self.part_of, self.begun, self.left = part_of, 0, 0
        self.spans: list[Span] = []
        self.answered: dict[int, tuple[float, float]] = {}
        self._asked: dict[int, float] = {}
        self._client_seconds = profile.client_seconds
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.devices = {name: _SimulatedDevice(name) for programs in parts for name in programs}
        self._inputs: dict[int, list[tuple[_SimulatedDevice, int]]] = defaultdict(list)
        media = {medium.name: _MediumQueue() for medium in profile.media}
        for index, programs in enumerate(parts):
            for name, program in programs.items():
                device = self.devices[name]
                actions = [_action(program, step, profile, model, media) for step in program.steps]
                receives = {action.channel: action for action in actions if action.kind == "receive"}
                machine = device.machines[index] = DataflowMachine(program)
                device.parts[index] = _ProgramRun(machine, actions, receives)
                self._inputs[index] += [(device, a.channel) for a in receives.values() if a.peer == CLIENT]
            _join(self.devices, index)

    def run(self, in_flight: int) -> None:
        for _ in range(in_flight):
            self._ask(0.0, -1)
        while self._events:
            time, _, happen, details = heapq.heappop(self._events)
            happen(time, *details)

    def _at(self, time: float, happen: Callable[..., None], *details: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, happen, details))

    def _ask(self, now: float, cause: int) -> None:
        """Begins the next frame, if there is one left."""
        frame = self.begun
        if frame < len(self.part_of):
            self.begun += 1
            self._asked[frame] = now
            for device, channel in self._inputs[self.part_of[frame]]:
                self._at(now + self._client_seconds, self._deliver, device, frame, channel, cause)

    def _deliver(self, now: float, device: _SimulatedDevice, frame: int, channel: int, cause: int) -> None:
        """A message is through the down-link."""
        part = device.parts[self.part_of[frame]]
        part.machine.begin(frame)
        action = part.receives[channel]
        if action.busy_seconds > 0:
            device.inbox.append((action, frame))
        else:
            part.machine.arrived(frame, channel, action.values)
        self._fire(now, device, cause)

    def _unpacked(self, now: float, device: _SimulatedDevice, action: _Action, frame: int, span: int) -> None:
        device.busy = False
        device.parts[self.part_of[frame]].machine.arrived(frame, action.channel, action.values)
        self._fire(now, device, span)

    def _fire(self, now: float, device: _SimulatedDevice, cause: int) -> None:
        if device.inbox and not device.busy:
            action, frame = device.inbox.popleft()
            device.busy = True
            self._at(now + action.busy_seconds, self._unpacked, device, action, frame, len(self.spans))
            self._span(device, frame, action, now, now + action.busy_seconds, cause, "compute")
        while not device.busy and (ready := device.next()) is not None:
            part, frame, index = ready
            action = part.actions[index]
            if action.kind == "compute" or action.busy_seconds > 0:
                stop = now + action.busy_seconds
                device.busy = True
                self._at(stop, self._done, device, part, frame, index, len(self.spans))
                self._span(device, frame, action, now, stop, cause, "compute")
            else:
                self._finish(now, device, part, frame, index, cause)

    def _done(self, now: float, device: _SimulatedDevice, part: _ProgramRun, frame: int, index: int, span: int) -> None:
        """The device is free again."""
        device.busy = False
        self._finish(now, device, part, frame, index, span)
        self._fire(now, device, span)

    def _finish(
        self, now: float, device: _SimulatedDevice, part: _ProgramRun, frame: int, index: int, cause: int
    ) -> None:
        action = part.actions[index]
        part.machine.done(frame, index, action.values)
        if action.kind == "send":
            if device.outbox or device.up_free > now:
                device.outbox.append((action, frame))
                if len(device.outbox) == 1:
                    self._at(device.up_free, self._leave, device)
            else:
                self._send(now, device, action, frame, cause)
        elif action.kind == "answer":
            self.answered[frame] = (self._asked[frame], now)
            self._span(device, frame, action, now, now, cause)
            while self.left in self.answered:  # answers leave in order, and make room for as many frames
                self.left += 1
                self._ask(now, len(self.spans) - 1)

    def _leave(self, now: float, device: _SimulatedDevice) -> None:
        """The up-link is free for the next message in line."""
        action, frame = device.outbox.popleft()
        self._send(now, device, action, frame, device.last_send)
        if device.outbox:
            self._at(device.up_free, self._leave, device)

    def _send(self, now: float, device: _SimulatedDevice, action: _Action, frame: int, cause: int) -> None:
        start, seconds = now, action.wire_seconds
        for medium, medium_seconds in action.media:
            seconds = max(seconds, medium_seconds)
            if medium.free > start:
                start, cause = medium.free, medium.last_send
        index = len(self.spans)
        for medium, medium_seconds in action.media:
            medium.free, medium.last_send = start + medium_seconds, index
        device.up_free, device.last_send = start + seconds, index
        self._span(device, frame, action, start, device.up_free, cause)
        # So that what comes slower than the down-link could take it does not hold it.
        begins = start + (seconds - action.wire_seconds) + action.latency_seconds
        self._at(begins, self._arrive, self.devices[action.peer], frame, action.channel, index)

    def _arrive(self, now: float, device: _SimulatedDevice, frame: int, channel: int, cause: int) -> None:
        """A message begins to come to its down-link."""
        action = device.parts[self.part_of[frame]].receives[channel]
        start = now
        if device.down_free > now:
            start, cause = device.down_free, device.last_receive
        device.down_free, device.last_receive = start + action.wire_seconds, len(self.spans)
        self._at(device.down_free, self._deliver, device, frame, channel, len(self.spans))
        self._span(device, frame, action, start, device.down_free, cause)

    def _span(
        self,
        device: _SimulatedDevice,
        frame: int,
        action: _Action,
        start: float,
        stop: float,
        cause: int,
        kind: SpanKind | None = None,
    ) -> None:
        self.spans.append(
            Span(
                device.name, frame, kind or action.kind, action.label, start, stop,
                action.stage, action.peer, action.nbytes, action.channel, cause,
            )
        )  # fmt: skip


def simulate(
    programs: Mapping[str, Program], profile: Profile, model: Model, frames: int = 1, in_flight: int = 1
) -> Timeline:
    """The timeline that these programs are predicted to have. Deterministic.

    Args:
        frames: how many; the next begins as soon as fewer than `in_flight` are under way. Answers leave in the
            order of the frames, as from a cluster: one that is ahead of its turn is under way until then.

    Raises:
        PlanError: the profile lacks a device or a link, or the programs do not end.
    """
    return simulate_mixture([(programs, 1.0)], profile, model, frames, in_flight)


def simulate_mixture(
    parts: Sequence[tuple[Mapping[str, Program], float]],
    profile: Profile,
    model: Model,
    frames: int,
    in_flight: int,
) -> Timeline:
    """The predicted timeline of a stream whose frames are dealt to several program sets by weight.

    Args:
        parts: the programs of a plan, and its weight (see `coedge.plan.frame_assignment`).
        in_flight: how many frames may be under way, of all parts together.

    Raises:
        PlanError: as `simulate`, or the weights are no shares.
    """
    if in_flight < 1:
        raise PlanError(f"with {in_flight} frames in flight nothing runs; at least 1 is needed")
    run = _Run(
        [programs for programs, _ in parts], profile, model, assign_frames([weight for _, weight in parts], frames)
    )
    run.run(in_flight)
    if len(run.answered) < frames:
        stuck = [d.name for d in run.devices.values() if any(not p.machine.idle for p in d.parts.values())]
        raise PlanError(f"the programs do not end: {', '.join(stuck)} wait for messages that nobody sends")
    return Timeline(tuple(run.spans), run.answered, measured=False)


def credits_of(devices: int) -> int:
    """How many frames of a stream a cluster of so many devices has under way."""
    return 2 * devices + 2


def _action(program: Program, step: Step, profile: Profile, model: Model, media: Mapping[str, _MediumQueue]) -> _Action:
    label = step.label(model.layers)
    if step.kind == "answer":
        return _Action("answer", label)
    device = profile.by_name.get(program.device)
    if device is None:
        raise PlanError(f"the profile has no device {program.device!r}; measure the cluster again")
    if step.kind == "receive":  # what it carries on the wire is known at the other end, see `_join`
        seconds = device.receive_seconds + packing_seconds(program, step, model, device)
        return _Action("receive", label, seconds, (None,) * len(step.writes), step.stage, step.peer, step.channel)
    if step.kind == "compute":
        return _Action("compute", label, device.compute_seconds(step.work), (None,) * len(step.writes), step.stage)
    seconds = device.send_seconds + packing_seconds(program, step, model, device)
    nbytes = packed_nbytes(program, step, model, profile.codec_ratios)
    link = profile.link(program.device, step.peer)
    return _Action(
        "send", label, seconds, (), step.stage, step.peer, step.channel, nbytes,
        nbytes / link.bytes_per_second, link.latency_seconds,
        tuple((media[m.name], nbytes / m.bytes_per_second) for m in profile.media_between(link.sender, link.receiver)),
    )  # fmt: skip


def _join(devices: Mapping[str, _SimulatedDevice], index: int) -> None:
    """Tells the receiving end of every message how large it is."""
    for device in devices.values():
        for action in device.parts[index].actions if index in device.parts else ():
            if action.kind != "send":
                continue
            peer = devices.get(action.peer)
            receive = peer.parts[index].receives.get(action.channel) if peer and index in peer.parts else None
            if receive is None:
                raise PlanError(
                    f"{device.name} sends to {action.peer} on channel {action.channel}, where nobody receives"
                )
            receive.nbytes, receive.wire_seconds = action.nbytes, action.wire_seconds
