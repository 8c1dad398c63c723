"""The Ray face of a worker: control only. What flows between devices never passes through here."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coedge.model import Model
from coedge.profile import LayerTime
from coedge.program import Program
from coedge.weight_part import WeightPart
from workers.layer_times import measure_gflops, measure_layers
from workers.paced_transport import LinkSpec
from workers.spec import WorkerFacts, WorkerSpec, WorkerStatus
from workers.transport import Endpoint
from workers.worker import Worker

REST_SECONDS = 0.003


class WorkerActor:
    """Methods run on threads of their own, beside `serve`, which ends only with the worker."""

    def __init__(self, spec: WorkerSpec) -> None:
        _tune_process(emulated=spec.speed is not None or spec.link is not None)
        self._worker = Worker(spec)

    def facts(self) -> WorkerFacts:
        return self._worker.facts()

    def connect(self, peers: Iterable[Endpoint], links: Mapping[int, LinkSpec]) -> None:
        self._worker.connect(peers, links)

    def serve(self) -> None:
        self._worker.serve()

    def missing_weights(self, model_hash: str, parts: Sequence[WeightPart]) -> tuple[bool, list[WeightPart]]:
        return self._worker.missing_weights(model_hash, parts)

    def load(
        self,
        epoch: int,
        program: Program,
        skeleton: bytes | None,
        keys: Sequence[str],
        references: Sequence[Any],
    ) -> None:
        """`references` are of the weights `keys` in Ray's object store, where devices of one host share them."""
        import ray

        self._worker.load(epoch, program, skeleton, dict(zip(keys, ray.get(list(references)))))

    def unload(self, epoch: int) -> None:
        self._worker.unload(epoch)

    def status(self) -> WorkerStatus:
        return self._worker.status()

    def probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> list[float]:
        """Times of echoes. Before each, both ends rest as they do between the stages of a frame: waking up counts."""
        times = []
        for _ in range(count):
            time.sleep(REST_SECONDS)
            times.append(self._worker.probe(peer, nbytes, timeout_seconds))
        return times

    def measure_layers(
        self, skeleton: bytes, threads: int, cpu_time: bool, budget_seconds: float, memory_bytes: float | None
    ) -> tuple[list[LayerTime], list[LayerTime]]:
        """Times at the full speed of this machine; an emulated speed is applied to them by the caller."""
        try:
            return measure_layers(Model.from_skeleton(skeleton, {}), threads, cpu_time, budget_seconds, memory_bytes)
        finally:
            _return_memory()

    def measure_gflops(self, cpu_time: bool) -> float:
        return measure_gflops(self._worker.threads, cpu_time)

    def stop(self) -> None:
        self._worker.stop()


def _return_memory() -> None:
    """Gives the system back what was freed: sessions of a measurement take more than those of a plan ever will."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _tune_process(emulated: bool) -> None:
    """Keeps large freed blocks in the process: rows come and go at every frame, and fresh pages cost time."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 32 * 1024 * 1024)
        libc.mallopt(trim_threshold, 128 * 1024 * 1024)
    if emulated:
        # The threads that pace messages must not wait 5 ms for a busy one to let go of the interpreter.
        sys.setswitchinterval(0.0005)
