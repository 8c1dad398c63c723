"""Contenders of a comparison: plans, and the whole network on one device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import ClusterError
from coedge.execution.program import Work
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.span import Span
from coedge.simulation.timeline import Timeline
from orchestrator.bench.turns import FrameRun
from orchestrator.control import ray_control
from orchestrator.control.worker_group import RemoteWorker

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster

PREPARE_SECONDS, RUN_SECONDS = 300.0, 120.0

Array = NDArray[Any]


class PlanContender:
    """A plan on the cluster."""

    def __init__(self, cluster: Cluster, model: Model, arrays: Sequence[Array], plan: Plan, profile: Profile) -> None:
        self._cluster, self._model, self._arrays = cluster, model, tuple(arrays)
        self._plan, self._profile = plan, profile

    def run(self) -> Any:
        return self._cluster.submit(self._model, self._arrays, plan=self._plan).result()

    def measure(self) -> FrameRun:
        job = self._cluster.submit(self._model, self._arrays, plan=self._plan)
        output, timeline = job.result(), job.timeline
        if set(timeline.devices) != set(job.loaded.devices):
            return FrameRun(job.latency_seconds, output)  # a device did not report its steps
        sent = {f"{sender}>{receiver}": nbytes for (sender, receiver), nbytes in timeline.sent_nbytes().items()}
        return FrameRun(job.latency_seconds, output, timeline.energy_joules(self._profile), sent, timeline)


class UnsplitContender:
    """The network as exported, in one ONNX Runtime session on one device, which has the input.

    The device's emulated speed applies as it does to the kernels of a plan. No link is used.
    """

    def __init__(self, worker: RemoteWorker, model: Model, arrays: Sequence[Array], profile: Profile) -> None:
        import ray

        self._worker, self._arrays, self._profile = worker, list(arrays), profile
        proto = ray.put(np.frombuffer(model.reference, np.uint8))
        self._call(worker.actor.prepare_unsplit.remote(proto), PREPARE_SECONDS, f"prepare all of {model.name}")

    def run(self) -> list[Array]:
        return self._run()[1]

    def measure(self) -> FrameRun:
        seconds, outputs = self._run()
        return single_device_run(self._profile, self._worker.name, seconds, outputs)

    def close(self) -> None:
        """Unload the network from the device, if the device is still there."""
        with contextlib.suppress(ClusterError):
            self._call(self._worker.actor.forget_unsplit.remote(), PREPARE_SECONDS, "unload a network")

    def _run(self) -> tuple[float, list[Array]]:
        result: tuple[float, list[Array]] = self._call(
            self._worker.actor.run_unsplit.remote(self._arrays), RUN_SECONDS, "run the whole network"
        )
        return result

    def _call(self, reference: Any, seconds: float, action: str) -> Any:
        return ray_control.gather({self._worker.name: reference}, seconds, action)[self._worker.name]


def single_device_run(profile: Profile, device: str, seconds: float, output: Any) -> FrameRun:
    """Return the frame of a device that computed the whole network by itself."""
    span = Span(device, 0, "compute", "the whole network", 0.0, seconds, stage=0)
    timeline = Timeline((span,), {0: (0.0, seconds)}, True)
    return FrameRun(seconds, output, timeline.energy_joules(profile), {}, timeline)


def best_single(model: Model, profile: Profile) -> tuple[str, float]:
    """Return the device with the least predicted time for the whole network, without transfers, and that time."""
    work = [Work(layer.index, layer.rows) for layer in model.layers]
    seconds = {device.name: device.compute_seconds(work) for device in profile.devices}
    name = min(seconds, key=lambda name: seconds[name])
    return name, seconds[name]
