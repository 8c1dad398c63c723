"""What a device decides, apart from doing it: several programs, many frames, one task at a time. Pure.

    events in           load(epoch, program)   unload(epoch)   came(message)   done(task)   failed(task)   cancel(frame)
    instructions out    Task: unpack, compute, send or answer this    Ended: report these spans    Failed: report this

No sockets, no threads, no clock: times are handed in, and what flows is opaque (see
`coedge.execution.dataflow_machine`). Workers and the in-process runner drive it; the simulator, which has nothing to
report and nothing late, drives its machines.

One rule: the first step that can run, of the oldest frame, whichever program that frame is of. A frame that ended,
well or not, is remembered: a late message does not begin it again.
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


class Task(NamedTuple):
    """A step of a frame that is to be done now; then `Scheduler.done`, or `Scheduler.failed`.

    A `Receive` is to be unpacked: its message is here.
    """

    epoch: int
    frame: int
    step_index: int
    program: Program

    @property
    def step(self) -> Step:
        return self.program.steps[self.step_index]


class StepSpan(NamedTuple):
    """A step that was done: which, when, in seconds, and the bytes of its message."""

    step_index: int
    start: float
    stop: float
    nbytes: int


class Ended(NamedTuple):
    """The device has nothing left to do for a frame."""

    epoch: int
    frame: int
    spans: Sequence[StepSpan]


class Failed(NamedTuple):
    """A frame cannot be finished. `step_index`: beyond the last one: of none that the program has."""

    epoch: int
    frame: int
    step_index: int
    reason: str


@dataclass(slots=True)
class _LoadedProgram:
    """A program under an epoch, and what is known of its frames."""

    machine: DataflowMachine
    ended: dict[int, None] = field(default_factory=dict)
    spans: dict[int, list[StepSpan]] = field(default_factory=dict)
    begun_by: dict[int, str] = field(default_factory=dict)  # the peer whose message began a frame under way
    begun_counts: Counter[str] = field(default_factory=Counter)

    def begin(self, frame: int, peer: str) -> bool:
        """Begin a frame that a message of a peer asks for; False: the peer has begun too many."""
        if self.begun_counts[peer] >= MAX_BEGUN_FRAMES:
            return False
        self.begun_counts[peer] += 1
        self.begun_by[frame] = peer
        self.machine.begin(frame)
        self.spans[frame] = []
        return True

    def forget(self, frame: int) -> None:
        self.machine.drop(frame)
        if frame in self.begun_by:
            self.begun_counts[self.begun_by.pop(frame)] -= 1
        self.spans.pop(frame, None)
        self.ended[frame] = None
        while len(self.ended) > REMEMBERED_FRAMES:
            self.ended.pop(next(iter(self.ended)))


class Scheduler:
    """One thread drives it; `load`, `unload`, `programs` and `waiting` may be called from others meanwhile.

    What concerns an epoch that is not loaded, or not any more, does nothing.
    """

    def __init__(self) -> None:
        self._parts: dict[int, _LoadedProgram] = {}

    @property
    def programs(self) -> dict[int, Program]:
        """By epoch."""
        return {epoch: part.machine.program for epoch, part in list(self._parts.items())}

    @property
    def idle(self) -> bool:
        """Whether no frame is under way."""
        return all(part.machine.idle for part in list(self._parts.values()))

    @property
    def waiting(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The channels that frames under way wait for, by epoch and frame."""
        return {
            (epoch, frame): tuple(receive.channel for receive in part.machine.waiting(frame))
            for epoch, part in list(self._parts.items())
            for frame in part.machine.frames
        }

    def load(self, epoch: int, program: Program) -> None:
        self._parts[epoch] = _LoadedProgram(DataflowMachine(program))

    def unload(self, epoch: int) -> None:
        self._parts.pop(epoch, None)

    def came(self, epoch: int, frame: int, channel: int) -> Task | Failed | None:
        """Take note of a message with rows.

        Returns:
            The `Receive` to be done. None: no frame waits for the message. It is stale, or came twice, or asks for
            one frame more than `MAX_BEGUN_FRAMES` of its peer.
        """
        part = self._parts.get(epoch)
        if part is None or frame in part.ended:
            return None
        machine = part.machine
        entry = machine.receive_of(channel)
        if entry is not None and frame not in machine and not part.begin(frame, entry[1].peer):
            return None
        if entry is None:
            part.forget(frame)
            reason = f"a message came on channel {channel}, which the program does not have"
            return Failed(epoch, frame, len(machine.program.steps), reason)
        return Task(epoch, frame, entry[0], machine.program) if machine.expects(frame, channel) else None

    def next(self) -> Task | None:
        """The step to run now; None: all frames wait for messages."""
        machines = {epoch: part.machine for epoch, part in list(self._parts.items())}
        ready = oldest_ready(machines)
        return Task(*ready, machines[ready.key].program) if ready else None

    def values(self, task: Task) -> dict[int, Any]:
        """The values of the patches that a step reads.

        Raises:
            KeyError: its program was unloaded.
        """
        return self._parts[task.epoch].machine.values(task.frame, task.step_index)

    def done(
        self, task: Task, made: Sequence[Any], start: float = 0.0, stop: float = 0.0, nbytes: int = 0
    ) -> Ended | None:
        """A task is done.

        Args:
            made: the values of the patches that a `Compute` wrote, or a `Receive` brought.
            start, stop: when, in seconds.
            nbytes: of its message, as packed.
        """
        part = self._parts.get(task.epoch)
        if part is None:
            return None
        machine, frame = part.machine, task.frame
        if frame not in machine:
            return None  # it was cancelled
        part.spans[frame].append(StepSpan(task.step_index, start, stop, nbytes))
        step = task.step
        if step.kind == "receive":
            machine.arrived(frame, step.channel, made)
        else:
            machine.done(frame, task.step_index, made)
        if frame in machine:
            return None
        spans = part.spans.pop(frame)
        part.forget(frame)
        return Ended(task.epoch, frame, spans)

    def failed(self, task: Task, reason: str) -> Failed | None:
        """A task cannot be done, so its frame cannot."""
        part = self._parts.get(task.epoch)
        if part is None or task.frame not in part.machine:
            return None
        part.forget(task.frame)
        return Failed(task.epoch, task.frame, task.step_index, reason)

    def cancel(self, epoch: int, frame: int) -> None:
        """Nobody wants the frame any more."""
        part = self._parts.get(epoch)
        if part is not None:
            part.forget(frame)
