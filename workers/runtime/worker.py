"""A worker: one device. Does what its scheduler decides: runs kernels, talks to its peers.

one loop thread     receive -> scheduler -> kernel or send -> receive -> ...
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import onnxruntime
import psutil
from numpy.typing import NDArray

from coedge.core.provider import ON_CPU, Provider
from coedge.execution.program import CLIENT, RAW, Program
from coedge.execution.scheduler import Ended, Failed, Scheduler, Task
from coedge.graph.model import Model
from coedge.graph.weight_slice import WeightSlice
from workers.emulation.paced_transport import LinkSpec, PacedTransport
from workers.emulation.processor import EmulatedProcessor, sharpen_timers
from workers.runtime.kernels import Kernels, give_back_memory
from workers.runtime.providers import problem_of
from workers.runtime.spec import ProbeTimes, WorkerFacts, WorkerSpec, WorkerStatus
from workers.transport.codecs import check_available
from workers.transport.message import MalformedMessage, Message, MessageKind, text_to_array
from workers.transport.transport import Endpoint, Transport
from workers.transport.zmq_transport import SPIN_SECONDS, ZmqTransport

Array = NDArray[Any]
T = TypeVar("T")

IDLE_SECONDS = 1.0


class Worker:
    def __init__(self, spec: WorkerSpec, transport: Transport | None = None) -> None:
        self.spec = spec
        emulated = spec.speed is not None
        self.threads = spec.threads or (1 if emulated else psutil.cpu_count(logical=False) or 1)
        self.processor = EmulatedProcessor(spec.speed, self.threads)
        self._provider_problem = problem_of(spec.providers)
        self._emulated = emulated or spec.link is not None
        # Emulated devices share cores, and the hand-over between them hides behind their links.
        spin_seconds = 0.0 if self._emulated else SPIN_SECONDS
        self._transport: Transport = transport or ZmqTransport(
            spec.index, spec.name, spec.host, encrypted=spec.encrypted, spin_seconds=spin_seconds, local=True
        )
        self._index_of: dict[str, int] = {}
        self._models: dict[str, Kernels] = {}
        self._scheduler = Scheduler()
        self._kernels: dict[int, Kernels] = {}  # by epoch
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._loading = threading.Lock()
        self._stopping = threading.Event()
        self._running: tuple[int, int, int, float] | None = None
        self._echoes: dict[int, tuple[float, float, float]] = {}  # (came to the peer, held there, was back)
        self._probe_count = 0

    # From any thread.

    def facts(self) -> WorkerFacts:
        import coedge.core.version

        return WorkerFacts(
            endpoint=self._transport.endpoint,
            host=platform.node(),
            pid=os.getpid(),
            version=coedge.core.version.VERSION,
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
            self._transport = PacedTransport(self._transport, own, others, ready=self.processor.now)
        self._transport.connect(peers)

    def set_link(self, index: int, link: LinkSpec) -> None:
        """Gives this device, or a peer, another emulated link; from now on.

        Raises:
            RuntimeError: links are not emulated here.
        """
        if not isinstance(self._transport, PacedTransport):
            raise RuntimeError(f"{self.spec.name} has a real link, with nothing to set")
        self._transport.set_link(index, link)

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
            check_available({step.codec for step in program.steps})
            for step in program.computes:
                kernels.warm_up(step)
            give_back_memory()
            self._models[program.model_hash] = kernels
            self._kernels[epoch] = kernels
            self._scheduler.load(epoch, program)

    def missing_weights(self, model_hash: str, parts: Iterable[WeightSlice]) -> tuple[bool, list[WeightSlice]]:
        """(whether the graph of the model is missing, the weights of these that are)."""
        kernels = self._models.get(model_hash)
        return kernels is None, [part for part in parts if kernels is None or kernels.lacks(part)]

    def unload(self, epoch: int) -> None:
        """Forgets a program, and the sessions that no other program uses."""
        with self._loading:
            self._scheduler.unload(epoch)
            old = self._kernels.pop(epoch, None)
            if old is not None:
                others = self._scheduler.programs
                old.keep(
                    tile for other, kernels in self._kernels.items() if kernels is old for tile in others[other].tiles()
                )
                give_back_memory()

    def status(self) -> WorkerStatus:
        running = self._running
        if running is not None:
            running = (*running[:3], time.monotonic() - running[3])
        return WorkerStatus(
            running, self._scheduler.waiting, sum(kernels.weight_nbytes for kernels in list(self._models.values()))
        )

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
        if self._emulated:
            sharpen_timers()
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
        self.processor.now()  # what was done so far counts, waiting does not
        message = self._transport.receive(timeout_seconds)
        if message is None:
            self.processor.reach(0.0)
            return False
        self.processor.reach(message.due or time.monotonic())
        self._handle(message)
        return True

    def _run_calls(self) -> None:
        while not self._calls.empty():
            function, future = self._calls.get()
            self.processor.reach(time.monotonic())
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _fire(self) -> bool:
        """Does what comes next; False: there is nothing to do."""
        task = self._scheduler.next()
        if task is None:
            return False
        self._do(task)
        return True

    def _do(self, task: Task, arrays: Sequence[Array] = ()) -> None:
        """Does a task; `arrays` came in its message."""
        self._running = (task.epoch, task.frame, task.step_index, time.monotonic())
        start = self.processor.now()
        outcome: Ended | Failed | None
        try:
            made = self._perform(task, arrays)
        except MalformedMessage as error:
            outcome = self._scheduler.failed(task, str(error))
        except Exception as error:  # whatever a peer sends and a kernel thinks of it, this device goes on
            outcome = self._scheduler.failed(task, "".join(traceback.format_exception_only(error)).strip())
        else:
            sent = made if task.step.kind == "send" else arrays
            nbytes = sum(array.nbytes for array in sent)
            outcome = self._scheduler.done(task, made, start, self.processor.now(), nbytes)
        finally:
            self._running = None
        self._report(outcome)

    def _perform(self, task: Task, arrays: Sequence[Array]) -> list[Array]:
        step, kernels = task.step, self._kernels[task.epoch]
        if step.kind == "receive":
            perform = functools.partial(kernels.unpack, step, task.program.patches, arrays)
        else:
            perform = functools.partial(kernels.perform, task.program.patches, step, self._scheduler.values(task))
        works = step.kind == "compute" or step.codec != RAW
        made = self.processor.run(perform) if works else perform()
        if step.kind == "send":
            self._send(step.peer, MessageKind.DATA, task.epoch, task.frame, made, step.channel)
        elif step.kind == "answer":
            self._send(CLIENT, MessageKind.ANSWER, task.epoch, task.frame, made)
        return made

    def _report(self, outcome: Ended | Failed | None) -> None:
        """Tells the client that a frame is done with here."""
        if isinstance(outcome, Ended):
            spans = outcome.spans
            steps = np.array([ran.step_index for ran in spans], np.int32)
            times = np.array([(ran.start, ran.stop) for ran in spans], np.float64).reshape(-1, 2)
            nbytes = np.array([ran.nbytes for ran in spans], np.int64)
            self._send(CLIENT, MessageKind.TRACE, outcome.epoch, outcome.frame, [steps, times, nbytes])
        elif isinstance(outcome, Failed):
            text = text_to_array(outcome.reason)
            self._send(CLIENT, MessageKind.ERROR, outcome.epoch, outcome.frame, [text], channel=outcome.step_index)

    def _send(
        self, peer: str, kind: MessageKind, epoch: int, frame: int, arrays: Iterable[Array], channel: int = 0
    ) -> None:
        message = Message(kind, self.spec.index, epoch, frame, channel, tuple(arrays))
        self.processor.rest()
        self._transport.send(self._index_of[peer], message)

    def _handle(self, message: Message) -> None:
        came = self.processor.now()
        if message.kind is MessageKind.PROBE:
            if message.sender in self._index_of.values():  # a stranger has no address to answer to
                came = message.due or came
                times = np.array([came, self.processor.now() - came])
                echo = Message(MessageKind.ECHO, self.spec.index, channel=message.channel, arrays=(times,))
                self.processor.rest()
                self._transport.send(message.sender, echo)
        elif message.kind is MessageKind.ECHO and [array.shape for array in message.arrays] == [(2,)]:
            there, held = message.arrays[0].tolist()
            self._echoes[message.channel] = (there, held, message.due or came)
        elif message.kind is MessageKind.CANCEL:
            self._scheduler.cancel(message.epoch, message.frame)
        elif message.kind is MessageKind.DATA:
            task = self._scheduler.came(message.epoch, message.frame, message.channel)
            if isinstance(task, Task):
                self._do(task, message.arrays)
            else:
                self._report(task)

    def _probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> ProbeTimes:
        payload = (np.zeros(nbytes, np.uint8),) if nbytes else ()
        channels = range(self._probe_count, self._probe_count + count)
        self._probe_count = channels.stop
        started, start = time.monotonic(), self.processor.now()
        for channel in channels:
            message = Message(MessageKind.PROBE, self.spec.index, channel=channel, arrays=payload)
            self.processor.rest()
            self._transport.send(self._index_of[peer], message)
        sent = self.processor.now()
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
