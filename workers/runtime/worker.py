"""A worker: the process of one device. It ties transport, models and loop together.

one loop thread     `serve`: see `workers.runtime.work_loop`
any other thread    load, unload, status, probe, stop
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import onnxruntime
import psutil
from numpy.typing import NDArray

from coedge.core.provider import ON_CPU, Provider
from coedge.core.version import VERSION
from coedge.execution.program import Program
from coedge.graph.weight_slice import WeightSlice
from workers.emulation.paced_transport import LinkSpec
from workers.emulation.processor import EmulatedProcessor, sharpen_timers
from workers.runtime.messenger import Messenger
from workers.runtime.model_store import ModelStore
from workers.runtime.providers import problem_of
from workers.runtime.spec import ProbeTimes, WorkerFacts, WorkerSpec, WorkerStatus
from workers.runtime.work_loop import WorkLoop
from workers.transport.transport import Endpoint, Transport
from workers.transport.zmq_transport import SPIN_SECONDS, ZmqTransport

Array = NDArray[Any]

# ONNX Runtime reads the weights of a session at least as fast. No other thread runs meanwhile.
BUILT_BYTES_PER_SECOND = 50e6


class Worker:
    """One device of a cluster.

    Args:
        transport: by default, ZeroMQ as the spec says.
        processor: the device's time; by default, at the speed of the spec.

    Attributes:
        threads: per kernel.
    """

    def __init__(
        self, spec: WorkerSpec, transport: Transport | None = None, processor: EmulatedProcessor | None = None
    ) -> None:
        self.spec = spec
        self.threads = spec.threads or (1 if spec.speed is not None else psutil.cpu_count(logical=False) or 1)
        self._provider_problem = problem_of(spec.providers)
        self._emulated = spec.speed is not None or spec.link is not None
        # Emulated devices share cores, and their links hide the time of the hand-over.
        spin_seconds = 0.0 if self._emulated else SPIN_SECONDS
        transport = transport or ZmqTransport(
            spec.index, spec.name, spec.host, encrypted=spec.encrypted, spin_seconds=spin_seconds, local=True
        )
        processor = processor or EmulatedProcessor(spec.speed, self.threads)
        self._messenger = Messenger(spec.index, transport, processor, spec.detect_seconds)
        self._store = ModelStore(spec.name, self.threads, spec.providers)
        self._loop = WorkLoop(spec.name, self._messenger, processor, self._store)
        self._serving, self._ended = threading.Event(), threading.Event()

    def facts(self) -> WorkerFacts:
        return WorkerFacts(
            endpoint=self._messenger.endpoint,
            host=platform.node(),
            pid=os.getpid(),
            version=VERSION,
            threads=self.threads,
            fingerprint=fingerprint(self.threads, self.spec.providers),
            clock_seconds=time.monotonic(),
            provider_problem=self._provider_problem,
        )

    def connect(self, peers: Iterable[Endpoint], links: Mapping[int, LinkSpec]) -> None:
        """Add peers; see `Messenger.connect`. Call it before `serve`, and later for peers that were started again."""
        self._messenger.connect(peers, links)

    def peer_lost(self, peer: str, ended: bool) -> None:
        """Stop waiting for a peer.

        Args:
            ended: its process has ended. False: it may be heard again.
        """
        self._loop.give_up(peer)
        if ended:
            self._messenger.disconnect(peer)

    def set_link(self, index: int, link: LinkSpec) -> None:
        """Change the emulated link of this device or of a peer.

        Raises:
            RuntimeError: links are not emulated.
        """
        self._messenger.set_link(index, link)

    def load(self, epoch: int, program: Program, skeleton: bytes | None, weights: Mapping[str, Array]) -> None:
        """Make a program ready; see `ModelStore.load`."""
        with self.building(self._store.weight_nbytes_of(program.model_hash) + sum(w.nbytes for w in weights.values())):
            self._store.load(epoch, program, skeleton, weights)
        self._loop.load(epoch, program)

    def building(self, nbytes: int) -> contextlib.AbstractContextManager[None]:
        """Tell the client that this device builds sessions with so many bytes of weights, until the context ends."""
        return self._messenger.silent_for(nbytes / BUILT_BYTES_PER_SECOND)

    def missing_weights(self, model_hash: str, parts: Iterable[WeightSlice]) -> tuple[bool, list[WeightSlice]]:
        """Return whether the graph of the model is missing, and which of these weights are."""
        return self._store.missing_weights(model_hash, parts)

    def unload(self, epoch: int) -> None:
        """Forget a program, and the sessions that no other program uses."""
        self._loop.unload(epoch)
        self._store.unload(epoch)

    def status(self) -> WorkerStatus:
        running = self._loop.running
        if running is not None:
            running = (*running[:3], time.monotonic() - running[3])
        return WorkerStatus(running, self._loop.waiting, self._store.weight_nbytes, self._store.epochs)

    def probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> ProbeTimes:
        """Measure the link to a peer by `count` messages of `nbytes` bytes; see `EchoProber.probe`."""
        return self._loop.probe(peer, nbytes, count, timeout_seconds)

    def serve(self) -> None:
        """Work until `stop`, then close the transport.

        Raises:
            ClusterError: the client cannot be reached, or the transport is broken.
        """
        self._serving.set()
        if self._emulated:
            sharpen_timers()
        self._messenger.beat()
        try:
            self._loop.run()
        finally:
            self._messenger.close()
            self._ended.set()

    def stop(self, timeout_seconds: float = 0.0) -> None:
        """Make `serve` end, and wait for its end. A worker that does not serve closes its transport at once."""
        self._loop.stop()
        if self._serving.is_set():
            self._ended.wait(timeout_seconds)
        else:
            self._messenger.close()


def fingerprint(threads: int, providers: Iterable[Provider] = ON_CPU) -> str:
    """Return the hardware and software that kernel times depend on, as one string."""
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
