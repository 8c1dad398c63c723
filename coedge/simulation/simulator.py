"""Runs programs in virtual time, on the same dataflow machine as the workers.

    device a     [ compute ]                                    one step at a time, oldest frame first
    up-link a               :wait:[== send ==]                  n / rate of the link
    medium                        [===]                         n / rate of the medium, then free for others
    latency                       >....                         occupies nothing
    down-link b                        [== receive ==]          n / rate of the link: the message streams through
    device b                                          [ compute ]

device      Kernels take the time that the profile predicts. Where a channel has a codec, the device packs a message
            before it leaves and unpacks it after it arrived. Unpacking goes before kernels.
up-link     One message at a time per sender, in the order in which they were sent. The first in line also waits
            for its media. It holds the up-link until the slowest of link and media would have carried it.
medium      One message at a time, first come, first served.
down-link   One message at a time per receiver, in the order in which they begin to arrive.

Events at the same time keep the order in which they were caused, so the same input gives the same timeline.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from coedge.core.errors import PlanError
from coedge.execution.dataflow_machine import DataflowMachine, oldest_ready
from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.plan.frame_assignment import assign_frames
from coedge.profile.profile import Profile
from coedge.simulation.span import Span, SpanKind
from coedge.simulation.timed_step import MediumQueue, TimedStep, timed_step
from coedge.simulation.timeline import Timeline


@dataclass(slots=True)
class _ProgramRun:
    """The program of a device for one of the program sets, while it runs."""

    machine: DataflowMachine
    steps: list[TimedStep]
    receives: dict[int, TimedStep]  # by channel


@dataclass(slots=True)
class _SimulatedDevice:
    """A device with its links.

    Attributes:
        runs, machines: its program and the program's machine, by program set.
        inbox: messages that wait to be unpacked, as (step, frame).
        outbox: messages that wait for the up-link.
        up_free_at, down_free_at: when its links can take the next message, seconds.
        last_send, last_receive: indices of the last spans on its links.
    """

    name: str
    runs: dict[int, _ProgramRun] = field(default_factory=dict)
    machines: dict[int, DataflowMachine] = field(default_factory=dict)
    busy: bool = False
    inbox: deque[tuple[TimedStep, int]] = field(default_factory=deque)
    outbox: deque[tuple[TimedStep, int]] = field(default_factory=deque)
    up_free_at: float = 0.0
    last_send: int = -1
    down_free_at: float = 0.0
    last_receive: int = -1

    def next(self) -> tuple[_ProgramRun, int, int] | None:
        """Return the step to run now as (run, frame, step index). A worker chooses it in the same way."""
        ready = oldest_ready(self.machines)
        return (self.runs[ready.key], ready.frame, ready.step_index) if ready else None


class _Run:
    """One simulation: events in virtual time.

    `cause` is the index of the span that ended now and thereby lets the event happen.

    Attributes:
        set_of: per frame, the program set that it belongs to.
        begun: how many frames have begun.
        answered_in_order: how many frames from the first on are answered.
    """

    def __init__(
        self, program_sets: Sequence[Mapping[str, Program]], profile: Profile, model: Model, set_of: Sequence[int]
    ) -> None:
        self.set_of, self.begun, self.answered_in_order = set_of, 0, 0
        self.spans: list[Span] = []
        self.answered: dict[int, tuple[float, float]] = {}
        self._asked: dict[int, float] = {}
        self._client_seconds = profile.client_seconds
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.devices = {name: _SimulatedDevice(name) for programs in program_sets for name in programs}
        self._inputs: dict[int, list[tuple[_SimulatedDevice, int]]] = defaultdict(list)
        media = {medium.name: MediumQueue() for medium in profile.media}
        for index, programs in enumerate(program_sets):
            for name, program in programs.items():
                device = self.devices[name]
                steps = [timed_step(program, step, profile, model, media) for step in program.steps]
                receives = {step.channel: step for step in steps if step.kind == "receive"}
                machine = device.machines[index] = DataflowMachine(program)
                device.runs[index] = _ProgramRun(machine, steps, receives)
                self._inputs[index] += [(device, channel) for channel in program.input_channels]
            _size_receives(self.devices, index)

    def run(self, in_flight: int) -> None:
        """Run all frames, at most `in_flight` at a time."""
        for _ in range(in_flight):
            self._ask(0.0, -1)
        while self._events:
            time, _, happen, details = heapq.heappop(self._events)
            happen(time, *details)

    def _at(self, time: float, happen: Callable[..., None], *details: Any) -> None:
        """Schedule an event."""
        self._count += 1
        heapq.heappush(self._events, (time, self._count, happen, details))

    def _ask(self, now: float, cause: int) -> None:
        """Begin the next frame, if there is one."""
        frame = self.begun
        if frame < len(self.set_of):
            self.begun += 1
            self._asked[frame] = now
            for device, channel in self._inputs[self.set_of[frame]]:
                self._at(now + self._client_seconds, self._deliver, device, frame, channel, cause)

    def _deliver(self, now: float, device: _SimulatedDevice, frame: int, channel: int, cause: int) -> None:
        """Handle a message that has passed the down-link."""
        run = device.runs[self.set_of[frame]]
        run.machine.begin(frame)
        step = run.receives[channel]
        if step.busy_seconds > 0:
            device.inbox.append((step, frame))
        else:
            run.machine.arrived(frame, channel, step.values)
        self._fire(now, device, cause)

    def _unpacked(self, now: float, device: _SimulatedDevice, step: TimedStep, frame: int, span: int) -> None:
        """Handle the end of unpacking a message."""
        device.busy = False
        device.runs[self.set_of[frame]].machine.arrived(frame, step.channel, step.values)
        self._fire(now, device, span)

    def _fire(self, now: float, device: _SimulatedDevice, cause: int) -> None:
        """Start what the device can do now: unpacking first, then its next steps."""
        if device.inbox and not device.busy:
            step, frame = device.inbox.popleft()
            device.busy = True
            self._at(now + step.busy_seconds, self._unpacked, device, step, frame, len(self.spans))
            self._span(device, frame, step, now, now + step.busy_seconds, cause, "compute")
        while not device.busy and (ready := device.next()) is not None:
            run, frame, index = ready
            step = run.steps[index]
            if step.kind == "compute" or step.busy_seconds > 0:
                stop = now + step.busy_seconds
                device.busy = True
                self._at(stop, self._done, device, run, frame, index, len(self.spans))
                self._span(device, frame, step, now, stop, cause, "compute")
            else:
                self._finish(now, device, run, frame, index, cause)

    def _done(self, now: float, device: _SimulatedDevice, run: _ProgramRun, frame: int, index: int, span: int) -> None:
        """Handle the end of a step that occupied the device."""
        device.busy = False
        self._finish(now, device, run, frame, index, span)
        self._fire(now, device, span)

    def _finish(
        self, now: float, device: _SimulatedDevice, run: _ProgramRun, frame: int, index: int, cause: int
    ) -> None:
        """Let the results of a step go where they are needed."""
        step = run.steps[index]
        run.machine.done(frame, index, step.values)
        if step.kind == "send":
            if device.outbox or device.up_free_at > now:
                device.outbox.append((step, frame))
                if len(device.outbox) == 1:
                    self._at(device.up_free_at, self._leave, device)
            else:
                self._send(now, device, step, frame, cause)
        elif step.kind == "answer":
            self.answered[frame] = (self._asked[frame], now)
            self._span(device, frame, step, now, now, cause)
            # Answers leave in the order of their frames. Each makes room for a new frame.
            while self.answered_in_order in self.answered:
                self.answered_in_order += 1
                self._ask(now, len(self.spans) - 1)

    def _leave(self, now: float, device: _SimulatedDevice) -> None:
        """Send the next message in line, now that the up-link is free."""
        step, frame = device.outbox.popleft()
        self._send(now, device, step, frame, device.last_send)
        if device.outbox:
            self._at(device.up_free_at, self._leave, device)

    def _send(self, now: float, device: _SimulatedDevice, step: TimedStep, frame: int, cause: int) -> None:
        """Put a message on the up-link and on its media."""
        start, seconds = now, step.wire_seconds
        for medium, medium_seconds in step.media:
            seconds = max(seconds, medium_seconds)
            if medium.free_at > start:
                start, cause = medium.free_at, medium.last_send
        index = len(self.spans)
        for medium, medium_seconds in step.media:
            medium.free_at, medium.last_send = start + medium_seconds, index
        device.up_free_at, device.last_send = start + seconds, index
        self._span(device, frame, step, start, device.up_free_at, cause)
        # A message that comes in more slowly than the down-link could take it occupies the down-link only as long
        # as its bytes need there, at the end.
        begins = start + (seconds - step.wire_seconds) + step.latency_seconds
        self._at(begins, self._arrive, self.devices[step.peer], frame, step.channel, index)

    def _arrive(self, now: float, device: _SimulatedDevice, frame: int, channel: int, cause: int) -> None:
        """Put a message that begins to arrive on the down-link."""
        step = device.runs[self.set_of[frame]].receives[channel]
        start = now
        if device.down_free_at > now:
            start, cause = device.down_free_at, device.last_receive
        device.down_free_at, device.last_receive = start + step.wire_seconds, len(self.spans)
        self._at(device.down_free_at, self._deliver, device, frame, channel, len(self.spans))
        self._span(device, frame, step, start, device.down_free_at, cause)

    def _span(
        self,
        device: _SimulatedDevice,
        frame: int,
        step: TimedStep,
        start: float,
        stop: float,
        cause: int,
        kind: SpanKind | None = None,
    ) -> None:
        self.spans.append(
            Span(
                device.name, frame, kind or step.kind, step.label, start, stop,
                step.stage, step.peer, step.nbytes, step.channel, cause,
            )
        )  # fmt: skip


def simulate(
    programs: Mapping[str, Program], profile: Profile, model: Model, frames: int = 1, in_flight: int = 1
) -> Timeline:
    """Return the predicted timeline of some programs. Equal arguments give equal timelines.

    Args:
        frames: number of frames.
        in_flight: number of frames that may be under way. The next frame begins as soon as fewer are. As in a
            cluster, answers leave in the order of the frames; a frame that is answered out of order counts as
            under way until its turn.

    Raises:
        PlanError: the profile lacks a device or a link, the programs do not end, or an argument is something else.
        InputError: the model is none.
    """
    Model.check(model)
    for name, value, kind in (("programs", programs, Mapping), ("profile", profile, Profile)):
        if not isinstance(value, kind):
            raise PlanError(f"{name} of a simulation: a {type(value).__name__} was given, not a {kind.__name__}")
    for name, count in (("frames", frames), ("in_flight", in_flight)):
        if not isinstance(count, Integral) or count < 0:
            raise PlanError(f"{name} is {count!r:.100}; give a whole number")
    return simulate_mixture([(programs, 1.0)], profile, model, frames, in_flight)


def simulate_mixture(
    weighted_programs: Sequence[tuple[Mapping[str, Program], float]],
    profile: Profile,
    model: Model,
    frames: int,
    in_flight: int,
) -> Timeline:
    """Return the predicted timeline of a stream whose frames are assigned to several plans by weight.

    Args:
        weighted_programs: the programs of each plan, and the plan's weight (see `coedge.plan.frame_assignment`).
        frames: number of frames.
        in_flight: number of frames of all plans together that may be under way.

    Raises:
        PlanError: as in `simulate`, or a weight is negative, or all weights are zero.
    """
    if in_flight < 1:
        raise PlanError(f"in_flight is {in_flight}; at least 1 frame must be in flight")
    set_of = assign_frames([weight for _, weight in weighted_programs], frames)
    run = _Run([programs for programs, _ in weighted_programs], profile, model, set_of)
    run.run(in_flight)
    if len(run.answered) < frames:
        stuck = [d.name for d in run.devices.values() if any(not machine.idle for machine in d.machines.values())]
        raise PlanError(f"the programs do not end: {', '.join(stuck)} wait for messages that no device sends")
    return Timeline(tuple(run.spans), run.answered, measured=False)


def credits_of(devices: int) -> int:
    """Return how many frames of a stream may be under way in a cluster of `devices` devices."""
    return 2 * devices + 2


def _size_receives(devices: Mapping[str, _SimulatedDevice], index: int) -> None:
    """Copy the size of every message of a program set to its receiving end."""
    for device in devices.values():
        for step in device.runs[index].steps if index in device.runs else ():
            if step.kind != "send":
                continue
            peer = devices.get(step.peer)
            receive = peer.runs[index].receives.get(step.channel) if peer and index in peer.runs else None
            if receive is None:
                raise PlanError(f"{device.name} sends to {step.peer} on channel {step.channel}, where no step receives")
            receive.nbytes, receive.wire_seconds = step.nbytes, step.wire_seconds
