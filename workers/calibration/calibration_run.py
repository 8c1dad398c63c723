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

from coedge.core.provider import ON_CPU, Provider
from coedge.execution.program import CLIENT, Program, Step
from coedge.graph.model import Model
from coedge.graph.weight_slice import WeightSlice
from coedge.profile.stage_fit import StageTime
from workers.emulation.paced_transport import LinkSpec, PacedTransport
from workers.emulation.processor import EmulatedProcessor
from workers.runtime.spec import WorkerSpec
from workers.runtime.worker import Worker
from workers.transport.message import Message, MessageKind, array_to_text
from workers.transport.transport import Endpoint, Transport
from workers.transport.zmq_transport import ZmqTransport

Array = NDArray[Any]

DEVICE = "device"
FRAME_SECONDS, SOON_SECONDS = 120.0, 10.0
# An emulated device rests after every kernel, the longer the slower it is, and what it rests for grows cold.
LONGEST_REST_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class StepTimings:
    """What the steps of one frame took, each with the worker's own code before it, in seconds at full speed."""

    stages: tuple[StageTime, ...]
    send_seconds: tuple[float, ...]
    receive_seconds: tuple[float, ...]


class CalibrationRun:
    """Plays programs of one model, each written for the device `DEVICE`. Close it after use.

    Args:
        speed: count CPU time and rest after kernels, as a device of this speed does. None: wall time.
    """

    def __init__(
        self,
        model: Model,
        threads: int,
        speed: float | None,
        encrypted: bool = True,
        providers: tuple[Provider, ...] = ON_CPU,
    ) -> None:
        self._model = model
        self._scale = speed or 1.0
        self._others = _Others(encrypted, paced=speed is not None)
        self._worker = Worker(WorkerSpec(0, DEVICE, "", False, speed, None, threads, providers), self._others)
        skipped = _Skipped()
        self._worker.processor = EmulatedProcessor(self._worker.spec.speed, threads, skipped.clock, sleep=skipped.sleep)
        self._others.processor = self._worker.processor
        self._peers = {CLIENT}
        self._programs: list[Program] = []
        self._made_up: list[list[list[Message]]] = []
        self._frames = 0
        self._thread = threading.Thread(target=self._worker.serve, name="rehearsal", daemon=True)
        self._thread.start()

    def add(self, program: Program) -> int:
        """Makes a program ready; its number."""
        number = len(self._programs)
        self._peers |= {step.peer for step in program.steps if step.peer}
        names = [DEVICE, *sorted(self._peers)]
        self._worker.connect([Endpoint(index, name, "") for index, name in enumerate(names)], {})
        parts = self._model.weight_slices(program.tiles())
        missing = self._worker.missing_weights(self._model.hash, parts.values())[1]
        self._worker.load(number, program, self._model.skeleton, made_up_weights(self._model, missing))
        self._programs.append(program)
        stages: dict[int, list[Message]] = {}
        for step in program.receives:
            arrays = tuple(self._rows(program, index) for index in step.writes)
            message = Message(MessageKind.DATA, names.index(step.peer), number, 0, step.channel, arrays)
            stages.setdefault(step.stage, []).append(message)
        self._made_up.append([stages[stage] for stage in sorted(stages)])
        return number

    def run(self, number: int) -> StepTimings:
        """Runs one frame of a program.

        Raises:
            RuntimeError: a step failed.
        """
        self._frames += 1
        frame = [[replace(message, frame=self._frames) for message in stage] for stage in self._made_up[number]]
        steps, spans = self._others.run(frame)
        return self._times(self._programs[number], steps.tolist(), [(start, stop) for start, stop in spans.tolist()])

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

    def _times(self, program: Program, steps: list[int], spans: list[tuple[float, float]]) -> StepTimings:
        """Each step with the worker's own code before it. (Where the device waits, its time stands still.)"""
        found: dict[str, list[tuple[Step, float, float]]] = {"compute": [], "send": [], "receive": [], "answer": []}
        order = sorted(zip(spans, steps))
        for ((_, before), _), ((start, stop), index) in zip(order, order[1:]):
            step = program.steps[index]
            found[step.kind].append((step, (start - before) * self._scale, (stop - start) * self._scale))
        gap = median(own for _, own, _ in found["compute"])
        return StepTimings(
            stages=tuple(
                StageTime(step.work, own + gap) for step, _, own in found["compute"] if step.kind == "compute"
            ),
            send_seconds=tuple(before + own for _, before, own in found["send"]),
            receive_seconds=tuple(before + own for _, before, own in found["receive"]),
        )


def median(values: Iterable[float]) -> float:
    """Zero, where there are none."""
    known = list(values)
    return statistics.median(known) if known else 0.0


def made_up_weights(model: Model, parts: Iterable[WeightSlice]) -> dict[str, Array]:
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
    """The transport of a rehearsal: real sockets, at whose other end somebody sends made-up rows and reads nothing.

    A message is due when it is received: the device's own time stands still in here.

    Args:
        paced: send as a device with an emulated link does, one that takes no time.
    """

    def __init__(self, encrypted: bool, paced: bool) -> None:
        self._inner, self._other = (ZmqTransport(i, n, encrypted=encrypted) for i, n in enumerate((DEVICE, "others")))
        self._sender: Transport = self._inner
        if paced:
            links = {self._other.endpoint.index: LinkSpec()}
            self._sender = PacedTransport(self._inner, LinkSpec(), links, ready=lambda: self.processor.now())
        self._sender.connect([self._other.endpoint])
        self._other.connect([self._inner.endpoint])
        self.endpoint = self._inner.endpoint
        self.processor = EmulatedProcessor(None)
        self._stages: deque[list[Message]] = deque()
        self._coming = 0
        self._asked: queue.SimpleQueue[list[list[Message]] | None] = queue.SimpleQueue()
        self._played: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def run(self, stages: list[list[Message]]) -> tuple[Array, Array]:
        """The steps of a frame, and their spans. For the thread that watches."""
        self._asked.put(stages)
        ending = self._played.get(timeout=FRAME_SECONDS)
        if ending.kind is MessageKind.ERROR:
            raise RuntimeError(f"a rehearsal failed: {array_to_text(ending.arrays[0])}")
        return ending.arrays[0], ending.arrays[1]

    def connect(self, peers: Iterable[Endpoint]) -> None:
        pass

    def send(self, peer_index: int, message: Message) -> None:
        if message.kind in (MessageKind.TRACE, MessageKind.ERROR):
            self._played.put(message)
        else:
            self._sender.send(self._other.endpoint.index, message)

    def receive(self, timeout_seconds: float) -> Message | None:
        if not self._coming and timeout_seconds > 0 and not self._next_stage(timeout_seconds):
            return None
        message = self._inner.receive(SOON_SECONDS if self._coming else 0.0)
        if message is None:
            return None
        self._coming -= 1
        return replace(message, due=self.processor.now())

    def _next_stage(self, timeout_seconds: float) -> bool:
        """Nothing is left to do: sends the rows of the next stage, or of a frame that is asked for."""
        while self._other.receive(0.0) is not None:
            pass
        if not self._stages:
            try:
                asked = self._asked.get(timeout=timeout_seconds)
            except queue.Empty:
                return False
            if asked is None:
                return False
            self._stages = deque(asked)
        messages = self._stages.popleft()
        for message in messages:
            self._other.send(self._inner.endpoint.index, message)
        self._coming = len(messages)
        return True

    def wake(self) -> None:
        self._asked.put(None)

    def close(self) -> None:
        self._inner.close()
        self._other.close()
