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
from coedge.program import CLIENT, Answer, Compute, Program, Send
from workers.emulation import Pace
from workers.kernels import Kernels
from workers.message import Kind, Message, text_to_array
from workers.paced_transport import LinkSpec, PacedTransport
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
    traces: dict[int, list[tuple[int, float, float]]] = field(default_factory=dict)


class Worker:
    def __init__(self, spec: WorkerSpec, transport: Transport | None = None) -> None:
        self.spec = spec
        emulated = spec.speed is not None
        self.threads = spec.threads or (1 if emulated else psutil.cpu_count(logical=False) or 1)
        self.pace = Pace(spec.speed, self.threads)
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
        self._echoes: dict[int, float] = {}
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
            fingerprint=fingerprint(self.threads),
            clock_seconds=time.monotonic(),
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
            weights: the constants that the program needs and this worker does not have.
        """
        with self._loading:
            kernels = self._models.get(program.model_hash)
            if kernels is None:
                if skeleton is None:
                    raise RuntimeError(f"{self.spec.name} was never given model {program.model_hash}")
                kernels = Kernels(Model.from_skeleton(skeleton, {}), self.threads)
            kernels.add_weights(weights)
            missing = kernels.missing_weights(program)
            if missing:
                raise RuntimeError(f"{self.spec.name} lacks {len(missing)} weights of its program: {missing[0]!r}, ...")
            for step in program.steps:
                if isinstance(step, Compute):
                    kernels.warm_up(step)
            self._models[program.model_hash] = kernels
            self._loaded[epoch] = _Loaded(Machine(program), kernels)

    def missing_weights(self, model_hash: str, names: Iterable[str]) -> tuple[bool, list[str]]:
        """(whether the graph of the model is missing, the weights of these that are)."""
        kernels = self._models.get(model_hash)
        return kernels is None, [n for n in names if kernels is None or n not in kernels.weight_names]

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
        return WorkerStatus(running, waiting)

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
        start = self.pace.now()
        self._running = (epoch, frame, index, start)
        try:
            written = self._perform(epoch, loaded, frame, index)
        except Exception as error:
            self._fail(epoch, loaded, frame, index, error)
            return
        finally:
            self._running = None
        loaded.traces.setdefault(frame, []).append((index, start, self.pace.now()))
        if loaded.machine.done(frame, index, written):
            self._end(epoch, loaded, frame)

    def _perform(self, epoch: int, loaded: _Loaded, frame: int, index: int) -> list[Array]:
        program, kernels = loaded.machine.program, loaded.kernels
        step, values = program.steps[index], loaded.machine.values(frame, index)
        perform = functools.partial(kernels.perform, program.patches, step, values)
        if isinstance(step, Compute):
            return self.pace.run(perform)
        if isinstance(step, Send):
            self._send(step.peer, Kind.DATA, epoch, frame, perform(), step.channel)
        elif isinstance(step, Answer):
            self._send(CLIENT, Kind.ANSWER, epoch, frame, perform())
        return []

    def _send(self, peer: str, kind: Kind, epoch: int, frame: int, arrays: Iterable[Array], channel: int = 0) -> None:
        message = Message(kind, self.spec.index, epoch, frame, channel, tuple(arrays))
        self.pace.rest()
        self._transport.send(self._index_of[peer], message)

    def _end(self, epoch: int, loaded: _Loaded, frame: int) -> None:
        spans = loaded.traces.pop(frame, [])
        self._forget(loaded, frame)
        steps = np.array([index for index, _, _ in spans], np.int32)
        times = np.array([(start, stop) for _, start, stop in spans], np.float64).reshape(-1, 2)
        self._send(CLIENT, Kind.TRACE, epoch, frame, [steps, times])

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
        if message.kind is Kind.PROBE:
            if message.sender in self._index_of.values():  # a stranger has no address to answer to
                came = np.array(message.due or self.pace.now())
                echo = Message(Kind.ECHO, self.spec.index, channel=message.channel, arrays=(came,))
                self._transport.send(message.sender, echo)
        elif message.kind is Kind.ECHO and len(message.arrays) == 1 and message.arrays[0].size == 1:
            self._echoes[message.channel] = message.arrays[0].item()
        loaded = self._loaded.get(message.epoch)
        if loaded is None:
            return  # a message of a plan that was unloaded
        if message.kind is Kind.CANCEL:
            self._forget(loaded, message.frame)
        elif message.kind is Kind.DATA and message.frame not in loaded.ended:
            loaded.machine.begin(message.frame)
            problem = self._mismatch(loaded, message)
            if problem:
                steps, receive = loaded.machine.program.steps, loaded.machine.receive_of(message.channel)
                index = steps.index(receive) if receive else len(steps)
                self._fail(message.epoch, loaded, message.frame, index, ValueError(problem))
                return
            if loaded.machine.arrived(message.frame, message.channel, message.arrays) and (
                message.frame not in loaded.machine.frames
            ):
                self._end(message.epoch, loaded, message.frame)

    def _mismatch(self, loaded: _Loaded, message: Message) -> str:
        """What is wrong with the rows in a message, if anything: they come over the network."""
        program, tensors = loaded.machine.program, loaded.kernels.model.graph.tensors
        receive = loaded.machine.receive_of(message.channel)
        if receive is None:
            return f"a message came on channel {message.channel}, which the program does not have"
        if len(message.arrays) != len(receive.patches):
            return f"{receive.peer} sent {len(message.arrays)} arrays, {len(receive.patches)} are expected"
        for index, array in zip(receive.patches, message.arrays):
            patch = program.patches[index]
            tensor = tensors[patch.tensor]
            shape = tensor.region_shape(patch.region)
            if array.shape != shape or array.dtype != np.dtype(tensor.dtype):
                return (
                    f"{receive.peer} sent {array.dtype} {list(array.shape)} for {patch.tensor!r}, "
                    f"{tensor.dtype} {list(shape)} is expected"
                )
        return ""

    def _probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> ProbeTimes:
        payload = (np.zeros(nbytes, np.uint8),) if nbytes else ()
        channels = range(self._probe_count, self._probe_count + count)
        self._probe_count = channels.stop
        start = self.pace.now()
        for channel in channels:
            message = Message(Kind.PROBE, self.spec.index, channel=channel, arrays=payload)
            self._transport.send(self._index_of[peer], message)
        while not self._echoes.keys() >= set(channels):
            left = timeout_seconds - (time.monotonic() - start)
            if left <= 0:
                raise TimeoutError(f"{peer} did not echo {count} x {nbytes} bytes within {timeout_seconds:.0f} s")
            self._receive(left)
        return ProbeTimes(self.pace.now() - start, tuple(self._echoes.pop(channel) for channel in channels))


def fingerprint(threads: int) -> str:
    """Hardware and software that kernel times depend on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
        model = names[0] if names else model
    except OSError:
        pass
    return "|".join(
        [platform.node(), model, str(psutil.cpu_count(logical=False)), str(threads), onnxruntime.__version__]
    )
