"""A worker that plays its part alone: what its steps take, as they run for a frame.

    client ----> [ worker: receive, compute, send, ... ] ----> nowhere
    others ----> made-up rows for the next stage, as soon as the worker has nothing else to do

The worker, its loop and its kernels are the real ones, run in the order of a frame: weights and rows are as cold as
they will be, and what the worker does around its kernels is there too. (One layer over and over, which finds all of it
in the cache, would be up to 40 % too fast.)
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.model import Model
from coedge.program import CLIENT, Compute, Program, Receive, Send
from coedge.stage_fit import StageTime
from coedge.weight_part import WeightPart
from workers.emulation import Pace
from workers.message import Kind, Message, array_to_text
from workers.spec import WorkerSpec
from workers.transport import Endpoint
from workers.worker import Worker

Array = NDArray[Any]
Event = tuple[str, float]  # what, and when

DEVICE = "device"
FRAME_SECONDS = 120.0
# An emulated device rests after every kernel, and what it rests for grows cold. Longer rests change no more.
SPEED = 0.3
LONGEST_REST_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Played:
    """One frame, in seconds of this machine at full speed.

    Attributes:
        stages: what each computation took, with the worker's own code around it.
        send_seconds: from the end of a computation until a message is ready to leave, for each that came right after.
        receive_seconds: the same from when the last message is there until the step begins that waited for it,
            beyond what lies between any two steps.
    """

    stages: tuple[StageTime, ...]
    send_seconds: tuple[float, ...]
    receive_seconds: tuple[float, ...]


class Rehearsal:
    """Plays programs of one model, each written for the device `DEVICE`. Close it after use.

    Args:
        emulated: count CPU time and rest after kernels, as an emulated device does; otherwise wall time.
    """

    def __init__(self, model: Model, threads: int, emulated: bool) -> None:
        self._model = model
        self._scale = SPEED if emulated else 1.0
        self._others = _Others()
        self._worker = Worker(
            WorkerSpec(0, DEVICE, "", False, SPEED if emulated else None, None, threads), self._others
        )
        skipped = _Skipped()
        self._worker.pace = Pace(self._worker.spec.speed, threads, skipped.clock, sleep=skipped.sleep)
        self._others.pace = self._worker.pace
        self._peers = {CLIENT}
        self._programs: list[Program] = []
        self._made_up: list[list[list[Message]]] = []
        self._frames = 0
        self._thread = threading.Thread(target=self._worker.serve, name="rehearsal", daemon=True)
        self._thread.start()

    def add(self, program: Program) -> int:
        """Makes a program ready; its number."""
        number = len(self._programs)
        self._peers |= {step.peer for step in program.steps if isinstance(step, (Send, Receive))}
        names = [DEVICE, *sorted(self._peers)]
        self._worker.connect([Endpoint(index, name, "") for index, name in enumerate(names)], {})
        parts = self._model.weight_parts(program.tiles())
        missing = self._worker.missing_weights(self._model.hash, parts.values())[1]
        self._worker.load(number, program, self._model.skeleton, made_up_weights(self._model, missing))
        self._programs.append(program)
        stages: dict[int, list[Message]] = {}
        for step in program.steps:
            if isinstance(step, Receive):
                arrays = tuple(self._rows(program, index) for index in step.patches)
                message = Message(Kind.DATA, names.index(step.peer), number, 0, step.channel, arrays)
                stages.setdefault(step.stage, []).append(message)
        self._made_up.append([stages[stage] for stage in sorted(stages)])
        return number

    def play(self, number: int) -> Played:
        """Runs one frame of a program.

        Raises:
            RuntimeError: a step failed.
        """
        self._frames += 1
        frame = [[replace(message, frame=self._frames) for message in stage] for stage in self._made_up[number]]
        steps, spans, log = self._others.play(frame)
        return self._times(self._programs[number], steps.tolist(), spans.tolist(), log)

    def close(self) -> None:
        self._worker.stop()
        self._thread.join()

    def _rows(self, program: Program, index: int) -> Array:
        """Ordinary numbers in the shape of a patch: what they are does not matter for how long they take."""
        patch = program.patches[index]
        tensor = self._model.graph.tensors[patch.tensor]
        shape, dtype = tensor.region_shape(patch.region), np.dtype(tensor.dtype)
        generator = np.random.default_rng(index)
        if dtype.kind == "f":
            return generator.standard_normal(shape, np.float32).astype(dtype, copy=False)
        return generator.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)

    def _times(self, program: Program, steps: list[int], spans: list[tuple[float, float]], log: list[Event]) -> Played:
        computes = [(program.steps[i], *span) for i, span in zip(steps, spans) if isinstance(program.steps[i], Compute)]
        events = [("begin", start) for _, start, _ in computes] + [("end", stop) for _, _, stop in computes] + log
        gaps: dict[tuple[str, str], list[float]] = {}
        order = sorted(events, key=lambda event: event[1])
        for (before, since), (after, until) in zip(order, order[1:]):
            gaps.setdefault((before, after), []).append((until - since) * self._scale)
        between = statistics.median(gaps.get(("end", "begin"), [0.0]))
        return Played(
            stages=tuple(
                StageTime(step.work, (stop - start) * self._scale + between)
                for step, start, stop in computes
                if isinstance(step, Compute)
            ),
            send_seconds=tuple(gaps.get(("end", "ready"), ())),
            receive_seconds=tuple(max(gap - between, 0.0) for gap in gaps.get(("message", "begin"), ())),
        )


def made_up_weights(model: Model, parts: Iterable[WeightPart]) -> dict[str, Array]:
    """Arrays of the right shapes for large constants, or parts of such, by key.

    Times do not depend on the values, as long as they are ordinary numbers.
    """
    noise = np.random.default_rng(0).standard_normal(65_536).astype(np.float32) * 0.02
    made: dict[str, Array] = {}
    for part in parts:
        if part.name in model.weights:
            value = part.of(model.weights[part.name])
            if value.dtype.kind == "f":
                made[part.key] = np.resize(noise, value.shape).astype(value.dtype, copy=False)
            else:
                made[part.key] = np.array(value)
    return made


class _Skipped:
    """Time in which long rests are cut short."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def clock(self) -> float:
        return time.monotonic() + self._seconds

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, LONGEST_REST_SECONDS))
        self._seconds += max(seconds - LONGEST_REST_SECONDS, 0.0)


class _Others:
    """The transport of a rehearsal: hands over made-up rows, and notes when, in the device's own time."""

    endpoint = Endpoint(0, DEVICE, "")

    def __init__(self) -> None:
        self.pace = Pace(None)
        self._stages: deque[list[Message]] = deque()
        self._now: deque[Message] = deque()
        self._log: list[Event] = []
        self._asked: queue.SimpleQueue[list[list[Message]] | None] = queue.SimpleQueue()
        self._played: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def play(self, stages: list[list[Message]]) -> tuple[Array, Array, list[Event]]:
        """Steps, their spans, and the log of a frame. For the thread that watches."""
        self._asked.put(stages)
        ending = self._played.get(timeout=FRAME_SECONDS)
        if ending.kind is Kind.ERROR:
            raise RuntimeError(f"a rehearsal failed: {array_to_text(ending.arrays[0])}")
        return ending.arrays[0], ending.arrays[1], self._log

    def connect(self, peers: Iterable[Endpoint]) -> None:
        pass

    def send(self, peer_index: int, message: Message) -> None:
        self._log.append(("ready", self.pace.now()))
        if message.kind in (Kind.TRACE, Kind.ERROR):
            self._played.put(message)

    def receive(self, timeout_seconds: float) -> Message | None:
        if not self._now and timeout_seconds > 0:
            if not self._stages:
                try:
                    asked = self._asked.get(timeout=timeout_seconds)
                except queue.Empty:
                    return None
                if asked is None:
                    return None
                self._stages, self._log = deque(asked), []
            self._now.extend(self._stages.popleft())
        if not self._now:
            return None
        here = self.pace.now()
        self._log.append(("message", here))
        return replace(self._now.popleft(), due=here)

    def wake(self) -> None:
        self._asked.put(None)

    def close(self) -> None:
        pass
