"""The dataflow machine: chooses the next step among all frames under way. Pure: it neither waits nor computes.

    events in       begin(frame)   arrived(frame, channel, arrays)   done(frame, step, arrays)   drop(frame)
    decision out    next() -> (frame, step)

One rule: *the first step whose patches are present, oldest frame first*. While frame 7 waits for a halo, frame 8
computes. A patch is released as soon as its last reader is done. Values are opaque: arrays on a worker and in
process, None in the simulator.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from coedge.execution.program import Program, Receive


class ReadyStep(NamedTuple):
    """A step that can run now. `key` names the machine among several."""

    key: int
    frame: int
    step_index: int


@dataclass(slots=True)
class _Frame:
    waits_for: list[int]
    readers: list[int]
    left: int
    values: dict[int, Any] = field(default_factory=dict)
    ready: list[int] = field(default_factory=list)
    received: set[int] = field(default_factory=set)


class DataflowMachine:
    """The state of one program over any number of frames."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._reads: list[tuple[int, ...]] = []
        self._readers_of: list[list[int]] = [[] for _ in program.patches]
        self._receives: dict[int, tuple[int, Receive]] = {}
        # Steps that read no patch and wait for no message.
        self._ready_at_once: list[int] = []
        for index, step in enumerate(program.steps):
            patches = step.reads
            self._reads.append(patches)
            for patch in patches:
                self._readers_of[patch].append(index)
            if step.kind == "receive":
                self._receives[step.channel] = index, step
            elif not patches:
                self._ready_at_once.append(index)
        self._wait_counts = [len(patches) for patches in self._reads]
        self._reader_counts = [len(readers) for readers in self._readers_of]
        self._frames: dict[int, _Frame] = {}
        self._order: list[int] = []  # frames under way, oldest first

    @property
    def idle(self) -> bool:
        return not self._frames

    @property
    def frames(self) -> tuple[int, ...]:
        return tuple(self._order)

    @property
    def oldest(self) -> int:
        """The oldest frame under way.

        Raises:
            IndexError: no frame is under way.
        """
        return self._order[0]

    def __contains__(self, frame: int) -> bool:
        return frame in self._frames

    def begin(self, frame: int) -> None:
        """Start a frame. Does nothing if the frame is under way."""
        if frame in self._frames or not self.program.steps:
            return
        self._frames[frame] = _Frame(
            list(self._wait_counts),
            list(self._reader_counts),
            len(self.program.steps),
            ready=list(self._ready_at_once),
        )
        bisect.insort(self._order, frame)

    def arrived(self, frame: int, channel: int, values: Sequence[Any]) -> bool:
        """Take the values of a message. Return False if no step waits for it (a stale, repeated or unknown message)."""
        entry = self._receives.get(channel)
        state = self._frames.get(frame)
        if entry is None or state is None or channel in state.received:
            return False
        index, receive = entry
        if len(values) != len(receive.writes):
            return False
        state.received.add(channel)
        self._put(frame, state, receive.writes, values)
        self._finish(frame, state, index)
        return True

    def next(self) -> tuple[int, int] | None:
        """Return the step to run now as (frame, step index); None if all frames wait for messages."""
        for frame in self._order:
            ready = self._frames[frame].ready
            if ready:
                return frame, heapq.heappop(ready)
        return None

    def values(self, frame: int, index: int) -> dict[int, Any]:
        """Return the values of the patches that a step reads, by patch."""
        held = self._frames[frame].values
        return {patch: held[patch] for patch in self._reads[index]}

    def done(self, frame: int, index: int, written: Sequence[Any] = ()) -> bool:
        """Record that a step has run, and return whether it was the last of its frame.

        Args:
            written: the values of the patches that a computation wrote.
        """
        state = self._frames.get(frame)
        if state is None:
            return False
        step = self.program.steps[index]
        if step.kind == "compute":
            self._put(frame, state, step.writes, written)
        for patch in self._reads[index]:
            state.readers[patch] -= 1
            if state.readers[patch] == 0:
                state.values.pop(patch, None)
        return self._finish(frame, state, index)

    def drop(self, frame: int) -> None:
        """Forget a frame that was cancelled or that failed."""
        if self._frames.pop(frame, None) is not None:
            self._order.remove(frame)

    def receive_of(self, channel: int) -> tuple[int, Receive] | None:
        """Return the step that receives messages of a channel, with its index; None if the program has none."""
        return self._receives.get(channel)

    def expects(self, frame: int, channel: int) -> bool:
        """Return whether a frame under way still waits for a message on a channel."""
        state = self._frames.get(frame)
        return state is not None and channel in self._receives and channel not in state.received

    def waiting(self, frame: int) -> list[Receive]:
        """Return the receives that a frame still waits for, by channel."""
        state = self._frames.get(frame)
        if state is None:
            return []
        return [r for channel, (_, r) in sorted(self._receives.items()) if channel not in state.received]

    def _put(self, frame: int, state: _Frame, patches: Sequence[int], values: Sequence[Any]) -> None:
        for patch, value in zip(patches, values, strict=True):
            if state.readers[patch]:
                state.values[patch] = value
            for reader in self._readers_of[patch]:
                state.waits_for[reader] -= 1
                if state.waits_for[reader] == 0:
                    heapq.heappush(state.ready, reader)

    def _finish(self, frame: int, state: _Frame, index: int) -> bool:
        state.left -= 1
        if state.left:
            return False
        self.drop(frame)
        return True


def oldest_ready(machines: Mapping[int, DataflowMachine]) -> ReadyStep | None:
    """Return the step to run now among several machines: the first ready step of the oldest frame that has one.

    Of machines whose oldest frames have the same number, the one with the smaller key goes first.
    """
    if len(machines) == 1:
        order = list(machines)
    else:
        busy = (key for key, machine in machines.items() if not machine.idle)
        order = sorted(busy, key=lambda key: (machines[key].oldest, key))
    for key in order:
        ready = machines[key].next()
        if ready is not None:
            return ReadyStep(key, *ready)
    return None
