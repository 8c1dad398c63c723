"""The Ray actor of a worker, for control. Data between devices never passes through it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.execution.program import Program
from coedge.graph.analysis import model_from_skeleton
from coedge.graph.weight_slice import WeightSlice
from coedge.profile.profile import CodecSpeed
from workers.calibration.calibration_run import StepTimings
from workers.calibration.layer_times import LayerMeasurement, convolution, measure_gflops
from workers.calibration.unsplit import UnsplitSession
from workers.emulation.paced_transport import LinkSpec
from workers.runtime.energy_meter import find_meter, measure_power
from workers.runtime.process import return_freed_memory, tune_process
from workers.runtime.spec import MeteredPower, ProbeTimes, WorkerFacts, WorkerSpec, WorkerStatus
from workers.runtime.worker import Worker
from workers.transport.codecs import measure_codecs, typical_rows
from workers.transport.transport import Endpoint

REST_SECONDS = 0.003
STOP_SECONDS = 1.5
# Longest time for the weights of a plan to come over a slow link. The client waits no longer for a load.
FETCH_SECONDS = 300.0


class WorkerActor:
    """A worker that is controlled through Ray.

    Methods run on threads of their own, beside `serve`, which ends only with the worker.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        tune_process(emulated=spec.speed is not None or spec.link is not None)
        self._worker = Worker(spec)
        self._measurement: LayerMeasurement | None = None
        self._unsplit: UnsplitSession | None = None

    def facts(self) -> WorkerFacts:
        return self._worker.facts()

    def clock(self) -> float:
        """Return this machine's monotonic clock, seconds."""
        return time.monotonic()

    def connect(self, peers: Iterable[Endpoint], links: Mapping[int, LinkSpec]) -> None:
        self._worker.connect(peers, links)

    def peer_lost(self, peer: str, ended: bool) -> None:
        self._worker.peer_lost(peer, ended)

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
        """Make a program ready.

        Args:
            keys: of the weights.
            references: of the weights in Ray's object store, which devices of one host share.
        """
        import ray

        self._worker.load(epoch, program, skeleton, dict(zip(keys, ray.get(list(references), timeout=FETCH_SECONDS))))

    def unload(self, epoch: int) -> None:
        self._worker.unload(epoch)

    def status(self) -> WorkerStatus:
        return self._worker.status()

    def probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> ProbeTimes:
        """Measure the link to a peer; see `Worker.probe`.

        Both ends rest first, as they do between the stages of a frame, so that the time to wake up is included.
        """
        time.sleep(REST_SECONDS)
        return self._worker.probe(peer, nbytes, count, timeout_seconds)

    def prepare_sweeps(
        self, skeleton: bytes, threads: int, speed: float | None, budget_seconds: float, memory_bytes: float | None
    ) -> None:
        """Build the calibration programs that `measure_sweeps` runs."""
        model = model_from_skeleton(skeleton, {})
        providers = self._worker.spec.providers
        with self._worker.building(model.weight_nbytes):
            self._measurement = LayerMeasurement(model, threads, speed, budget_seconds, memory_bytes, providers)

    def measure_sweeps(self, most_sweeps: int) -> list[StepTimings]:
        """Return times at the full speed of this machine. The caller applies an emulated speed to them.

        Raises:
            RuntimeError: `prepare_sweeps` was not called, or a step failed.
        """
        measurement = self._measurement
        if measurement is None:
            raise RuntimeError("no calibration programs are ready: call prepare_sweeps first")
        try:
            return measurement.sweeps(most_sweeps)
        finally:
            measurement.close()
            self._measurement = None
            return_freed_memory()

    def progress(self) -> float:
        """Return the progress of `measure_sweeps`, from 0 to 1."""
        measurement = self._measurement
        return 0.0 if measurement is None else measurement.done

    def measure_codecs(self, seconds: float) -> dict[str, CodecSpeed]:
        """Measure for `seconds` how fast this machine packs. The caller applies an emulated speed."""
        return measure_codecs(typical_rows(), seconds)[0]

    def measure_gflops(self, cpu_time: bool) -> float:
        return measure_gflops(self._worker.threads, cpu_time, self._worker.spec.providers)

    def measure_power(self, seconds: float) -> MeteredPower | None:
        """Measure the watts of this machine, idle and at work, for `seconds` each; None: it has no meter."""
        meter = find_meter()
        if meter is None:
            return None
        busy = convolution(self._worker.threads, self._worker.spec.providers)
        return MeteredPower(*measure_power(meter, busy, seconds), meter.source)

    def prepare_unsplit(self, proto: NDArray[np.uint8]) -> None:
        """Build the session that `run_unsplit` runs, from the bytes of an ONNX file."""
        spec = self._worker.spec
        with self._worker.building(proto.nbytes):
            self._unsplit = UnsplitSession(proto.tobytes(), self._worker.threads, spec.speed, spec.providers)

    def run_unsplit(self, arrays: Sequence[NDArray[Any]]) -> tuple[float, list[NDArray[Any]]]:
        """Run the unsplit network; see `UnsplitSession.run`.

        Raises:
            RuntimeError: `prepare_unsplit` was not called.
        """
        if self._unsplit is None:
            raise RuntimeError("no network is ready: call prepare_unsplit first")
        return self._unsplit.run(arrays)

    def forget_unsplit(self) -> None:
        self._unsplit = None
        return_freed_memory()

    def stop(self) -> None:
        """End `serve`, and wait a moment until it has closed its sockets."""
        self._worker.stop(STOP_SECONDS)
