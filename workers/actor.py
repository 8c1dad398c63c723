"""The Ray face of a worker: control only. What flows between devices never passes through here."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.graph.weight_slice import WeightSlice
from coedge.profile.profile import CodecSpeed
from workers.calibration.calibration_run import StepTimings
from workers.calibration.layer_times import LayerMeasurement, convolution, measure_gflops
from workers.calibration.unsplit import UnsplitSession
from workers.emulation.paced_transport import LinkSpec
from workers.runtime.energy_meter import find_meter, measure_power
from workers.runtime.spec import MeteredPower, ProbeTimes, WorkerFacts, WorkerSpec, WorkerStatus
from workers.runtime.worker import Worker
from workers.transport.codecs import measure_codecs, typical_rows
from workers.transport.transport import Endpoint

REST_SECONDS = 0.003


class WorkerActor:
    """Methods run on threads of their own, beside `serve`, which ends only with the worker."""

    def __init__(self, spec: WorkerSpec) -> None:
        _tune_process(emulated=spec.speed is not None or spec.link is not None)
        self._worker = Worker(spec)
        self._play: LayerMeasurement | None = None
        self._whole: UnsplitSession | None = None

    def facts(self) -> WorkerFacts:
        return self._worker.facts()

    def clock(self) -> float:
        """Return this machine's monotonic clock, seconds."""
        return time.monotonic()

    def connect(self, peers: Iterable[Endpoint], links: Mapping[int, LinkSpec]) -> None:
        self._worker.connect(peers, links)

    def set_link(self, index: int, link: LinkSpec) -> None:
        self._worker.set_link(index, link)

    def serve(self) -> None:
        self._worker.serve()

    def missing_weights(self, model_hash: str, parts: Sequence[WeightSlice]) -> tuple[bool, list[WeightSlice]]:
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

    def probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> ProbeTimes:
        """As `Worker.probe`. Before it, both ends rest as they do between the stages of a frame: waking up counts."""
        time.sleep(REST_SECONDS)
        return self._worker.probe(peer, nbytes, count, timeout_seconds)

    def prepare_sweeps(
        self, skeleton: bytes, threads: int, speed: float | None, budget_seconds: float, memory_bytes: float | None
    ) -> None:
        """Makes ready what `measure_sweeps` plays."""
        model = Model.from_skeleton(skeleton, {})
        self._play = LayerMeasurement(model, threads, speed, budget_seconds, memory_bytes, self._worker.spec.providers)

    def measure_sweeps(self, most_sweeps: int) -> list[StepTimings]:
        """Times at the full speed of this machine; an emulated speed is applied to them by the caller."""
        play = self._play
        if play is None:
            raise RuntimeError("there is nothing to play: prepare_sweeps comes first")
        try:
            return play.sweeps(most_sweeps)
        finally:
            play.close()
            self._play = None
            _return_memory()

    def progress(self) -> float:
        """How far `measure_sweeps` is, from 0 to 1."""
        play = self._play
        return 0.0 if play is None else play.done

    def measure_codecs(self, seconds: float) -> dict[str, CodecSpeed]:
        """How fast this machine packs, measured for so many seconds; an emulated speed is applied by the caller."""
        return measure_codecs(typical_rows(), seconds)[0]

    def measure_gflops(self, cpu_time: bool) -> float:
        return measure_gflops(self._worker.threads, cpu_time, self._worker.spec.providers)

    def measure_power(self, seconds: float) -> MeteredPower | None:
        """Watts of this machine, idle and at work, over so many seconds each; None: it has no meter."""
        meter = find_meter()
        if meter is None:
            return None
        busy = convolution(self._worker.threads, self._worker.spec.providers)
        return MeteredPower(*measure_power(meter, busy, seconds), meter.source)

    def prepare_unsplit(self, proto: NDArray[np.uint8]) -> None:
        """Makes ready what `run_unsplit` runs: a network in one session, as a file of ONNX has it."""
        spec = self._worker.spec
        self._whole = UnsplitSession(proto.tobytes(), self._worker.threads, spec.speed, spec.providers)

    def run_unsplit(self, arrays: Sequence[NDArray[Any]]) -> tuple[float, list[NDArray[Any]]]:
        """As `UnsplitSession.run`."""
        if self._whole is None:
            raise RuntimeError("there is no network to run: prepare_unsplit comes first")
        return self._whole.run(arrays)

    def forget_unsplit(self) -> None:
        self._whole = None
        _return_memory()

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
        # A thread that holds messages must not wait 5 ms for a busy one to let go of the interpreter.
        sys.setswitchinterval(0.0005)
