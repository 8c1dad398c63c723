"""The decisions of a device: several programs, many frames, one task at a time. Pure.

    events in           load(epoch, program)   unload(epoch)   came(message)   done(task)   failed(task)   cancel(frame)
    instructions out    Task: unpack, compute, send or answer    Ended: report these spans    Failed: report this error

The scheduler has no sockets, threads or clock. Times are passed in, and values are opaque (see
`coedge.execution.dataflow_machine`). Workers and the in-process runner drive a scheduler. The simulator drives
dataflow machines directly, because it has neither reports nor late messages.

One rule: the first ready step of the oldest frame, whichever program that frame belongs to. Frames that ended or
failed are remembered, so that a late message does not start them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from coedge.execution.dataflow_machine import DataflowMachine, oldest_ready
from coedge.execution.program import Program, Step

REMEMBERED_FRAMES = 4096
# Frames of one program that the messages of one peer may begin before others end. The credits of a plan are far fewer.
MAX_BEGUN_FRAMES = 256
# Bytes of the messages of these frames. Messages have the sizes that the program states, so the credits of a plan for
# `FEW_BEGUN_FRAMES / 2` devices are granted whatever their size.
MAX_BEGUN_NBYTES = 1 << 30
FEW_BEGUN_FRAMES = 32


class Task(NamedTuple):
    """A step of a frame to run now. The caller then calls `Scheduler.done` or `Scheduler.failed`.

    For a `Receive`, the message has arrived and is to be unpacked.
    """

    epoch: int
    frame: int
    step_index: int
    program: Program

    @property
    def step(self) -> Step:
        return self.program.steps[self.step_index]


class StepSpan(NamedTuple):
    """A step that ran: its index, start and stop in seconds, and the bytes of its message."""

    step_index: int
    start: float
    stop: float
    nbytes: int


class Ended(NamedTuple):
    """The end of a frame on this device, with the spans of its steps."""

    epoch: int
    frame: int
    spans: Sequence[StepSpan]


class Failed(NamedTuple):
    """The failure of a frame.

    Attributes:
        step_index: the step that failed; the number of steps if no step of the program was the cause.
    """

    epoch: int
    frame: int
    step_index: int
    reason: str


@dataclass(slots=True)
class _LoadedProgram:
    """A program under an epoch, with the state of its frames.

    Attributes:
        ended: frames that ended, failed or were cancelled, oldest first. The keys are an ordered set.
        spans: the steps that ran so far, by frame under way.
    """

    machine: DataflowMachine
    ended: dict[int, None] = field(default_factory=dict)
    spans: dict[int, list[StepSpan]] = field(default_factory=dict)
    begun_by: dict[int, str] = field(default_factory=dict)  # the peer whose message began a frame under way
    begun_counts: Counter[str] = field(default_factory=Counter)
    begun_nbytes: Counter[str] = field(default_factory=Counter)
    received: Counter[int] = field(default_factory=Counter)  # bytes of the messages of a frame under way

    def begin(self, frame: int, peer: str) -> bool:
        """Begin a frame on the message of a peer. Return False if the peer has begun too many frames or bytes."""
        count = self.begun_counts[peer]
        if count >= MAX_BEGUN_FRAMES or (count >= FEW_BEGUN_FRAMES and self.begun_nbytes[peer] >= MAX_BEGUN_NBYTES):
            return False
        self.begun_counts[peer] += 1
        self.begun_by[frame] = peer
        self.machine.begin(frame)
        self.spans[frame] = []
        return True

    def count(self, frame: int, nbytes: int) -> None:
        """Count the bytes of a message of a frame under way."""
        self.received[frame] += nbytes
        self.begun_nbytes[self.begun_by[frame]] += nbytes

    def forget(self, frame: int) -> None:
        self.machine.drop(frame)
        if frame in self.begun_by:
            peer = self.begun_by.pop(frame)
            self.begun_counts[peer] -= 1
            self.begun_nbytes[peer] -= self.received.pop(frame, 0)
        self.spans.pop(frame, None)
        self.ended[frame] = None
        while len(self.ended) > REMEMBERED_FRAMES:
            self.ended.pop(next(iter(self.ended)))


class Scheduler:
    """The scheduler of one device.

    One thread drives it. Other threads may call `load`, `unload`, `programs` and `waiting` at the same time. Calls
    for an epoch that is not loaded do nothing.

    Attributes:
        refused: number of messages that would have begun a frame, of peers that had begun too many.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._loaded: dict[int, _LoadedProgram] = {}

    @property
    def programs(self) -> dict[int, Program]:
        """The loaded programs, by epoch."""
        return {epoch: loaded.machine.program for epoch, loaded in list(self._loaded.items())}

    @property
    def idle(self) -> bool:
        """True if no frame is under way."""
        return all(loaded.machine.idle for loaded in list(self._loaded.values()))

    @property
    def waiting(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The channels that frames under way wait for, by epoch and frame."""
        return {
            (epoch, frame): tuple(receive.channel for receive in loaded.machine.waiting(frame))
            for epoch, loaded in list(self._loaded.items())
            for frame in loaded.machine.frames
        }

    def load(self, epoch: int, program: Program) -> None:
        self._loaded[epoch] = _LoadedProgram(DataflowMachine(program))

    def unload(self, epoch: int) -> None:
        self._loaded.pop(epoch, None)

    def came(self, epoch: int, frame: int, channel: int) -> Task | Failed | None:
        """Take note of a message with rows.

        Returns:
            The `Receive` to be done; a failure if the program has no such channel; None if no frame waits for the
            message. Then it is stale or repeated, or it would begin a frame although its peer has begun too many (see
            `refused`).
        """
        loaded = self._loaded.get(epoch)
        if loaded is None or frame in loaded.ended:
            return None
        machine = loaded.machine
        entry = machine.receive_of(channel)
        if entry is not None and frame not in machine and not loaded.begin(frame, entry[1].peer):
            self.refused += 1
            return None
        if entry is None:
            loaded.forget(frame)
            reason = f"a message came on channel {channel}, which the program does not have"
            return Failed(epoch, frame, len(machine.program.steps), reason)
        return Task(epoch, frame, entry[0], machine.program) if machine.expects(frame, channel) else None

    def next(self) -> Task | None:
        """Return the step to run now; None if all frames wait for messages."""
        machines = {epoch: loaded.machine for epoch, loaded in list(self._loaded.items())}
        ready = oldest_ready(machines)
        return Task(*ready, machines[ready.key].program) if ready else None

    def values(self, task: Task) -> dict[int, Any]:
        """Return the values of the patches that a step reads, by patch.

        Raises:
            KeyError: the task's program was unloaded.
        """
        return self._loaded[task.epoch].machine.values(task.frame, task.step_index)

    def done(
        self, task: Task, made: Sequence[Any], start: float = 0.0, stop: float = 0.0, nbytes: int = 0
    ) -> Ended | None:
        """Record that a task is done. Return the end of its frame if this was the last step, otherwise None.

        Args:
            made: the values of the patches that a `Compute` wrote or a `Receive` brought.
            start, stop: times of the task, seconds.
            nbytes: bytes of its message as packed.
        """
        loaded = self._loaded.get(task.epoch)
        if loaded is None:
            return None
        machine, frame = loaded.machine, task.frame
        if frame not in machine:
            return None  # it was cancelled
        loaded.spans[frame].append(StepSpan(task.step_index, start, stop, nbytes))
        step = task.step
        if step.kind == "receive":
            loaded.count(frame, nbytes)
            machine.arrived(frame, step.channel, made)
        else:
            machine.done(frame, task.step_index, made)
        if frame in machine:
            return None
        spans = loaded.spans.pop(frame)
        loaded.forget(frame)
        return Ended(task.epoch, frame, spans)

    def failed(self, task: Task, reason: str) -> Failed | None:
        """Fail the frame of a task. Return None if the frame is no longer under way."""
        loaded = self._loaded.get(task.epoch)
        if loaded is None or task.frame not in loaded.machine:
            return None
        loaded.forget(task.frame)
        return Failed(task.epoch, task.frame, task.step_index, reason)

    def cancel(self, epoch: int, frame: int) -> None:
        """Drop a frame whose result is no longer wanted."""
        loaded = self._loaded.get(epoch)
        if loaded is not None:
            loaded.forget(frame)
