"""A calibration run: a worker runs programs alone and reports how long its steps take, as in a frame.

    client ----> [ worker: receive, compute, send, ... ] ----> discarded
    peers  ----> made-up rows of the next stage, as soon as the worker has nothing else to do

The worker, its loop and its kernels are the real ones, and steps run in the order of a frame. Weights and rows are as
cold in the caches as in a frame, and the worker's own code around the kernels counts too. (Times of one layer that
runs over and over, with everything in the caches, are up to 40 % too short.)
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
from workers.transport.message import Message, MessageKind, array_to_text, text_to_array
from workers.transport.transport import Endpoint, Transport
from workers.transport.zmq_transport import ZmqTransport

Array = NDArray[Any]

DEVICE = "device"
FRAME_SECONDS, MESSAGE_SECONDS = 120.0, 10.0
# An emulated device rests after every kernel, the longer the slower it is, and its caches grow cold meanwhile.
LONGEST_REST_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class StepTimings:
    """Times of the steps of one frame, each with the worker's own code before it, in seconds at full speed."""

    stages: tuple[StageTime, ...]
    send_seconds: tuple[float, ...]
    receive_seconds: tuple[float, ...]


class CalibrationRun:
    """Runs programs of one model that were made for the device `DEVICE`. Close it after use.

    Args:
        speed: of an emulated device: CPU time counts, and the device rests after kernels. None: wall time counts.
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
        clock = _ShortRests()
        processor = EmulatedProcessor(speed, threads, clock.now, sleep=clock.sleep)
        self._peers = _MadeUpPeers(processor, encrypted, paced=speed is not None)
        spec = WorkerSpec(0, DEVICE, "", False, speed, None, threads, providers)
        self._worker = Worker(spec, self._peers, processor)
        self._names = [DEVICE, CLIENT]  # by index on the wire
        self._programs: list[Program] = []
        self._made_up: list[list[list[Message]]] = []
        self._frames = 0
        self._thread = threading.Thread(target=self._serve, name="calibration-run", daemon=True)
        self._thread.start()

    def add(self, program: Program) -> int:
        """Make a program ready and return its number."""
        number = len(self._programs)
        self._names += sorted({step.peer for step in program.steps if step.peer} - set(self._names))
        self._worker.connect([Endpoint(index, name, "") for index, name in enumerate(self._names)], {})
        parts = self._model.weight_slices(program.tiles())
        missing = self._worker.missing_weights(self._model.hash, parts.values())[1]
        self._worker.load(number, program, self._model.skeleton, made_up_weights(self._model, missing))
        self._programs.append(program)
        stages: dict[int, list[Message]] = {}
        for step in program.receives:
            arrays = tuple(self._rows(program, index) for index in step.writes)
            message = Message(MessageKind.DATA, self._names.index(step.peer), number, 0, step.channel, arrays)
            stages.setdefault(step.stage, []).append(message)
        self._made_up.append([stages[stage] for stage in sorted(stages)])
        return number

    def run(self, number: int) -> StepTimings:
        """Run one frame of a program.

        Raises:
            RuntimeError: a step failed, or the worker ended.
        """
        self._frames += 1
        frame = [[replace(message, frame=self._frames) for message in stage] for stage in self._made_up[number]]
        steps, spans = self._peers.run(frame)
        return self._times(self._programs[number], steps.tolist(), [(start, stop) for start, stop in spans.tolist()])

    def close(self) -> None:
        self._worker.stop()
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._worker.serve()
        except BaseException as error:  # a thread has no caller: `run` reports it
            self._peers.report(f"{type(error).__name__}: {error}")

    def _rows(self, program: Program, index: int) -> Array:
        """Return ordinary numbers in the shape of a patch. The time of a step does not depend on the values."""
        patch = program.patches[index]
        tensor = self._model.graph.tensors[patch.tensor]
        shape, dtype = tensor.region_shape(patch.region), np.dtype(tensor.dtype)
        generator = np.random.default_rng(index)
        if dtype.kind == "f":
            return generator.standard_normal(shape, np.float32).astype(dtype, copy=False)
        return generator.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)

    def _times(self, program: Program, steps: list[int], spans: list[tuple[float, float]]) -> StepTimings:
        """Return the time of each step and of the worker's own code before it. (Waiting takes no device time.)"""
        timed: dict[str, list[tuple[Step, float, float]]] = {"compute": [], "send": [], "receive": [], "answer": []}
        order = sorted(zip(spans, steps))
        for ((_, before), _), ((start, stop), index) in zip(order, order[1:]):
            step = program.steps[index]
            timed[step.kind].append((step, (start - before) * self._scale, (stop - start) * self._scale))
        gap = median(before for _, before, _ in timed["compute"])
        return StepTimings(
            stages=tuple(
                StageTime(step.work, own + gap) for step, _, own in timed["compute"] if step.kind == "compute"
            ),
            send_seconds=tuple(before + own for _, before, own in timed["send"]),
            receive_seconds=tuple(before + own for _, before, own in timed["receive"]),
        )


def median(values: Iterable[float]) -> float:
    """Return the median; 0 if there are no values."""
    known = list(values)
    return statistics.median(known) if known else 0.0


def made_up_weights(model: Model, parts: Iterable[WeightSlice]) -> dict[str, Array]:
    """Return arrays in the shapes of large constants, or of parts of them, by key.

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


class _ShortRests:
    """A clock for which long rests are shortened and still count in full."""

    def __init__(self) -> None:
        self._skipped_seconds = 0.0

    def now(self) -> float:
        return time.monotonic() + self._skipped_seconds

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, LONGEST_REST_SECONDS))
        self._skipped_seconds += max(seconds - LONGEST_REST_SECONDS, 0.0)


class _MadeUpPeers:
    """The transport of a calibration run: real sockets, whose other end sends made-up rows and discards what comes.

    A message is due when it is received, because the device's own time does not advance in here.

    Args:
        processor: of the worker.
        paced: send as a device with an emulated link does, with a link that takes no time.
    """

    def __init__(self, processor: EmulatedProcessor, encrypted: bool, paced: bool) -> None:
        self._processor = processor
        self._inner, self._other = (ZmqTransport(i, n, encrypted=encrypted) for i, n in enumerate((DEVICE, "peers")))
        self._sender: Transport = self._inner
        if paced:
            links = {self._other.endpoint.index: LinkSpec()}
            self._sender = PacedTransport(self._inner, LinkSpec(), links, ready=processor.now)
        self._sender.connect([self._other.endpoint])
        self._other.connect([self._inner.endpoint])
        self.endpoint = self._inner.endpoint
        self._stages: deque[list[Message]] = deque()
        self._coming: deque[int] = deque()  # senders of the messages under way: one transport sends for all
        self._frames: queue.SimpleQueue[list[list[Message]] | None] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def run(self, stages: list[list[Message]]) -> tuple[Array, Array]:
        """Send the rows of a frame stage by stage; return its steps and their spans. For the calling thread.

        Raises:
            RuntimeError: a step failed, or the worker ended.
        """
        self._frames.put(stages)
        report = self._reports.get(timeout=FRAME_SECONDS)
        if report.kind is MessageKind.ERROR:
            raise RuntimeError(f"a calibration run failed: {array_to_text(report.arrays[0])}")
        return report.arrays[0], report.arrays[1]

    def report(self, reason: str) -> None:
        """Make `run` fail with a reason."""
        self._reports.put(Message(MessageKind.ERROR, self.endpoint.index, arrays=(text_to_array(reason),)))

    def connect(self, peers: Iterable[Endpoint]) -> None:
        pass

    def disconnect(self, peer_index: int) -> None:
        """Made-up peers stay."""

    def send(self, peer_index: int, message: Message) -> None:
        if message.kind in (MessageKind.TRACE, MessageKind.ERROR):
            self._reports.put(message)
        else:
            self._sender.send(self._other.endpoint.index, message)

    def receive(self, timeout_seconds: float) -> Message | None:
        if not self._coming and timeout_seconds > 0 and not self._send_next_stage(timeout_seconds):
            return None
        message = self._inner.receive(MESSAGE_SECONDS if self._coming else 0.0)
        if message is None:
            return None
        return replace(message, sender=self._coming.popleft(), due=self._processor.now())

    def _send_next_stage(self, timeout_seconds: float) -> bool:
        """Send the rows of the next stage, or of the first stage of the next frame; False: none comes in time."""
        while self._other.receive(0.0) is not None:
            pass
        if not self._stages:
            try:
                frame = self._frames.get(timeout=timeout_seconds)
            except queue.Empty:
                return False
            if frame is None:
                return False
            self._stages = deque(frame)
        for message in self._stages.popleft():
            self._other.send(self._inner.endpoint.index, replace(message, sender=self._other.endpoint.index))
            self._coming.append(message.sender)
        return True

    def wake(self) -> None:
        self._frames.put(None)

    def close(self) -> None:
        self._inner.close()
        self._other.close()
