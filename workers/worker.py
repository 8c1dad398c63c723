"""A worker: one device. Holds programs, fires their steps, talks to its peers.

one loop thread     receive -> machine -> kernel or send -> receive -> ...
any other thread    load, unload, status; and `in_loop`, which runs a function between two steps
"""

from __future__ import annotations

import functools
import os
import platform
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnxruntime
import psutil
from numpy.typing import NDArray

from coedge.machine import Machine
from coedge.model import Model
from coedge.program import CLIENT, RAW, Answer, Compute, Program, Receive, Send
from coedge.provider import ON_CPU, Provider
from coedge.weight_part import WeightPart
from workers.codecs import check_available
from workers.emulation import Pace
from workers.kernels import Kernels, received
from workers.message import Kind, MalformedMessage, Message, text_to_array
from workers.paced_transport import LinkSpec, PacedTransport
from workers.providers import problem_of
from workers.spec import ProbeTimes, WorkerFacts, WorkerSpec, WorkerStatus
from workers.transport import Endpoint, Transport
from workers.zmq_transport import ZmqTransport

Array = NDArray[Any]
T = TypeVar("T")

# Frames that ended are remembered, so that a late message does not begin one again.
REMEMBERED_FRAMES = 4096
IDLE_SECONDS = 1.0


@dataclass
class _Loaded:
    """A program that is ready to run, and the traces of its frames."""

    machine: Machine
    kernels: Kernels
    ended: dict[int, None] = field(default_factory=dict)
    # (step, start, stop, bytes of the message). Packing belongs to its send, unpacking to its receive.
    traces: dict[int, list[tuple[int, float, float, int]]] = field(default_factory=dict)

    def note(self, frame: int, index: int, start: float, stop: float, arrays: Iterable[Array] = ()) -> None:
        """Remembers a span of a step, and how large the arrays were that travelled."""
        nbytes = sum(array.nbytes for array in arrays)
        self.traces.setdefault(frame, []).append((index, start, stop, nbytes))


class Worker:
    def __init__(self, spec: WorkerSpec, transport: Transport | None = None) -> None:
        self.spec = spec
        emulated = spec.speed is not None
        self.threads = spec.threads or (1 if emulated else psutil.cpu_count(logical=False) or 1)
        self.pace = Pace(spec.speed, self.threads)
        self._provider_problem = problem_of(spec.providers)
        self._transport: Transport = transport or ZmqTransport(
            spec.index, spec.name, spec.host, encrypted=spec.encrypted
        )
        self._index_of: dict[str, int] = {}
        self._models: dict[str, Kernels] = {}
        self._loaded: dict[int, _Loaded] = {}
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._loading = threading.Lock()
        self._stopping = threading.Event()
        self._running: tuple[int, int, int, float] | None = None
        self._echoes: dict[int, tuple[float, float, float]] = {}  # (came to the peer, held there, was back)
        self._probe_count = 0

    # From any thread.

    def facts(self) -> WorkerFacts:
        import coedge.version

        return WorkerFacts(
            endpoint=self._transport.endpoint,
            host=platform.node(),
            pid=os.getpid(),
            version=coedge.version.VERSION,
            threads=self.threads,
            fingerprint=fingerprint(self.threads, self.spec.providers),
            clock_seconds=time.monotonic(),
            provider_problem=self._provider_problem,
        )

    def connect(self, peers: Iterable[Endpoint], links: Mapping[int, LinkSpec]) -> None:
        """Makes peers known. Where this device or a peer has an emulated link, messages are paced.

        Call it once before `serve`.
        """
        peers = list(peers)
        self._index_of = {peer.name: peer.index for peer in peers}
        if any(link.bytes_per_second or link.latency_seconds for link in links.values()):
            own = links.get(self.spec.index, LinkSpec())
            others = {index: link for index, link in links.items() if index != self.spec.index}
            self._transport = PacedTransport(self._transport, own, others, ready=self.pace.now)
        self._transport.connect(peers)

    def load(self, epoch: int, program: Program, skeleton: bytes | None, weights: Mapping[str, Array]) -> None:
        """Makes a program ready: builds its sessions.

        Args:
            skeleton: the model's graph; None where this worker has it already.
            weights: the constants that the program needs and this worker does not have, or the parts of them, by key.
        """
        with self._loading:
            kernels = self._models.get(program.model_hash)
            if kernels is None:
                if skeleton is None:
                    raise RuntimeError(f"{self.spec.name} was never given model {program.model_hash}")
                kernels = Kernels(Model.from_skeleton(skeleton, {}), self.threads, self.spec.providers)
            kernels.add_weights(weights)
            missing = kernels.missing_weights(program)
            if missing:
                raise RuntimeError(f"{self.spec.name} lacks {len(missing)} weights of its program: {missing[0]!r}, ...")
            check_available({step.codec for step in program.steps if isinstance(step, (Send, Receive))})
            for step in program.steps:
                if isinstance(step, Compute):
                    kernels.warm_up(step)
            self._models[program.model_hash] = kernels
            self._loaded[epoch] = _Loaded(Machine(program), kernels)

    def missing_weights(self, model_hash: str, parts: Iterable[WeightPart]) -> tuple[bool, list[WeightPart]]:
        """(whether the graph of the model is missing, the weights of these that are)."""
        kernels = self._models.get(model_hash)
        return kernels is None, [part for part in parts if kernels is None or kernels.lacks(part)]

    def unload(self, epoch: int) -> None:
        """Forgets a program, and the sessions that no other program uses."""
        with self._loading:
            old = self._loaded.pop(epoch, None)
            if old is not None:
                old.kernels.keep(
                    tile
                    for other in list(self._loaded.values())
                    if other.kernels is old.kernels
                    for tile in other.machine.program.tiles()
                )

    def status(self) -> WorkerStatus:
        running = self._running
        if running is not None:
            running = (*running[:3], time.monotonic() - running[3])
        waiting = {
            (epoch, frame): tuple(r.channel for r in loaded.machine.waiting(frame))
            for epoch, loaded in list(self._loaded.items())
            for frame in loaded.machine.frames
        }
        return WorkerStatus(running, waiting, sum(kernels.weight_nbytes for kernels in list(self._models.values())))

    def in_loop(self, function: Callable[[], T], timeout_seconds: float) -> T:
        """Runs a function on the loop thread, between two steps; its result."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        self._transport.wake()
        return future.result(timeout_seconds)

    def probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> ProbeTimes:
        """Sends a peer so many messages of so many bytes one behind the other; it echoes each (with an empty one)."""
        return self.in_loop(lambda: self._probe(peer, nbytes, count, timeout_seconds), timeout_seconds + 1)

    def stop(self) -> None:
        self._stopping.set()
        self._transport.wake()

    # The loop.

    def serve(self) -> None:
        """Runs until `stop`."""
        try:
            while not self._stopping.is_set():
                while self._receive(0.0):
                    pass
                self._run_calls()
                if not self._fire():
                    self._receive(IDLE_SECONDS)
        finally:
            self._transport.close()

    def _receive(self, timeout_seconds: float) -> bool:
        """Handles the next message; False: none came."""
        self.pace.now()  # what was done so far counts, waiting does not
        message = self._transport.receive(timeout_seconds)
        if message is None:
            self.pace.reach(0.0)
            return False
        self.pace.reach(message.due or time.monotonic())
        self._handle(message)
        return True

    def _run_calls(self) -> None:
        while not self._calls.empty():
            function, future = self._calls.get()
            self.pace.reach(time.monotonic())
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _fire(self) -> bool:
        """Runs the first step whose inputs are here, of the oldest frame; False: there is none."""
        busy = [
            (loaded.machine.frames[0], epoch) for epoch, loaded in list(self._loaded.items()) if not loaded.machine.idle
        ]
        for _, epoch in sorted(busy):
            loaded = self._loaded.get(epoch)
            ready = loaded.machine.next() if loaded else None
            if loaded is not None and ready is not None:
                self._step(epoch, loaded, *ready)
                return True
        return False

    def _step(self, epoch: int, loaded: _Loaded, frame: int, index: int) -> None:
        self._running = (epoch, frame, index, time.monotonic())
        try:
            written = self._perform(epoch, loaded, frame, index)
        except Exception as error:
            self._fail(epoch, loaded, frame, index, error)
            return
        finally:
            self._running = None
        if loaded.machine.done(frame, index, written):
            self._end(epoch, loaded, frame)

    def _perform(self, epoch: int, loaded: _Loaded, frame: int, index: int) -> list[Array]:
        program, kernels = loaded.machine.program, loaded.kernels
        step, values = program.steps[index], loaded.machine.values(frame, index)
        perform = functools.partial(kernels.perform, program.patches, step, values)
        start = self.pace.now()
        works = isinstance(step, Compute) or (isinstance(step, Send) and step.codec != RAW)
        made = self.pace.run(perform) if works else perform()
        if isinstance(step, Send):
            self._send(step.peer, Kind.DATA, epoch, frame, made, step.channel)
        elif isinstance(step, Answer):
            self._send(CLIENT, Kind.ANSWER, epoch, frame, made)
        loaded.note(frame, index, start, self.pace.now(), made if isinstance(step, Send) else ())
        return made if isinstance(step, Compute) else []

    def _send(self, peer: str, kind: Kind, epoch: int, frame: int, arrays: Iterable[Array], channel: int = 0) -> None:
        message = Message(kind, self.spec.index, epoch, frame, channel, tuple(arrays))
        self.pace.rest()
        self._transport.send(self._index_of[peer], message)

    def _end(self, epoch: int, loaded: _Loaded, frame: int) -> None:
        spans = loaded.traces.pop(frame, [])
        self._forget(loaded, frame)
        steps = np.array([index for index, _, _, _ in spans], np.int32)
        times = np.array([(start, stop) for _, start, stop, _ in spans], np.float64).reshape(-1, 2)
        nbytes = np.array([nbytes for _, _, _, nbytes in spans], np.int64)
        self._send(CLIENT, Kind.TRACE, epoch, frame, [steps, times, nbytes])

    def _fail(self, epoch: int, loaded: _Loaded, frame: int, index: int, error: Exception) -> None:
        self._forget(loaded, frame)
        text = "".join(traceback.format_exception_only(error)).strip()
        self._send(CLIENT, Kind.ERROR, epoch, frame, [text_to_array(text)], channel=index)

    def _forget(self, loaded: _Loaded, frame: int) -> None:
        loaded.machine.drop(frame)
        loaded.traces.pop(frame, None)
        loaded.ended[frame] = None
        while len(loaded.ended) > REMEMBERED_FRAMES:
            loaded.ended.pop(next(iter(loaded.ended)))

    def _handle(self, message: Message) -> None:
        came = self.pace.now()
        if message.kind is Kind.PROBE:
            if message.sender in self._index_of.values():  # a stranger has no address to answer to
                came = message.due or came
                times = np.array([came, self.pace.now() - came])
                echo = Message(Kind.ECHO, self.spec.index, channel=message.channel, arrays=(times,))
                self.pace.rest()
                self._transport.send(message.sender, echo)
        elif message.kind is Kind.ECHO and [array.shape for array in message.arrays] == [(2,)]:
            there, held = message.arrays[0].tolist()
            self._echoes[message.channel] = (there, held, message.due or came)
        loaded = self._loaded.get(message.epoch)
        if loaded is None:
            return  # a message of a plan that was unloaded
        if message.kind is Kind.CANCEL:
            self._forget(loaded, message.frame)
        elif message.kind is Kind.DATA and message.frame not in loaded.ended:
            self._accept(loaded, message)

    def _accept(self, loaded: _Loaded, message: Message) -> None:
        """Takes in the rows of a message. Rows that are not what the program expects fail the frame."""
        machine, epoch, frame = loaded.machine, message.epoch, message.frame
        machine.begin(frame)
        receive = machine.receive_of(message.channel)
        index = machine.step_of(message.channel) if receive else len(machine.program.steps)
        start = self.pace.now()
        self._running = (epoch, frame, index, time.monotonic())
        try:
            if receive is None:
                raise MalformedMessage(f"a message came on channel {message.channel}, which the program does not have")
            tensors = loaded.kernels.model.graph.tensors
            take = functools.partial(received, receive, machine.program.patches, tensors, message.arrays)
            rows = take() if receive.codec == RAW else self.pace.run(take)
        except Exception as error:  # whatever a peer sends, this device goes on
            self._fail(epoch, loaded, frame, index, ValueError(str(error)))
            return
        finally:
            self._running = None
        if machine.arrived(frame, message.channel, rows):
            loaded.note(frame, index, start, self.pace.now(), message.arrays)
            if frame not in machine.frames:
                self._end(epoch, loaded, frame)

    def _probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> ProbeTimes:
        payload = (np.zeros(nbytes, np.uint8),) if nbytes else ()
        channels = range(self._probe_count, self._probe_count + count)
        self._probe_count = channels.stop
        started, start = time.monotonic(), self.pace.now()
        for channel in channels:
            message = Message(Kind.PROBE, self.spec.index, channel=channel, arrays=payload)
            self.pace.rest()
            self._transport.send(self._index_of[peer], message)
        sent = self.pace.now()
        while not self._echoes.keys() >= set(channels):
            left = timeout_seconds - (time.monotonic() - started)
            if left <= 0:
                raise TimeoutError(f"{peer} did not echo {count} x {nbytes} bytes within {timeout_seconds:.0f} s")
            self._receive(left)
        echoes = [self._echoes.pop(channel) for channel in channels]
        _, held, back = echoes[-1]
        return ProbeTimes((sent - start) / count, back - sent - held, tuple(came for came, _, _ in echoes))


def fingerprint(threads: int, providers: Iterable[Provider] = ON_CPU) -> str:
    """Hardware and software that kernel times depend on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
        model = names[0] if names else model
    except OSError:
        pass
    cores = str(psutil.cpu_count(logical=False))
    return "|".join(
        [platform.node(), model, cores, str(threads), onnxruntime.__version__, *(str(p) for p in providers)]
    )
