"""Who takes part in a comparison: plans, and the whole network on one device."""

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


class Planned:
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
            return FrameRun(job.latency_seconds, output)  # somebody did not tell: what it did is not known
        sent = {f"{sender}>{receiver}": nbytes for (sender, receiver), nbytes in timeline.sent_nbytes().items()}
        return FrameRun(job.latency_seconds, output, timeline.energy_joules(self._profile), sent, timeline)


class OneSession:
    """The network as its author exported it, in one ONNX Runtime session on one device, which has the input.

    The device's emulated speed applies, as to the kernels of a plan; no link does.
    """

    def __init__(self, worker: RemoteWorker, model: Model, arrays: Sequence[Array], profile: Profile) -> None:
        import ray

        self._worker, self._arrays, self._profile = worker, list(arrays), profile
        proto = ray.put(np.frombuffer(model.reference, np.uint8))
        self._ask(worker.actor.prepare_unsplit.remote(proto), PREPARE_SECONDS, f"prepare all of {model.name}")

    def run(self) -> list[Array]:
        return self._run()[1]

    def measure(self) -> FrameRun:
        seconds, outputs = self._run()
        return alone(self._profile, self._worker.name, seconds, outputs)

    def close(self) -> None:
        """Lets the device forget the network, if it is still there."""
        with contextlib.suppress(ClusterError):
            self._ask(self._worker.actor.forget_unsplit.remote(), PREPARE_SECONDS, "let go of a network")

    def _run(self) -> tuple[float, list[Array]]:
        found: tuple[float, list[Array]] = self._ask(
            self._worker.actor.run_unsplit.remote(self._arrays), RUN_SECONDS, "run the whole network"
        )
        return found

    def _ask(self, reference: Any, seconds: float, what: str) -> Any:
        return ray_control.gather({self._worker.name: reference}, seconds, what)[self._worker.name]


def alone(profile: Profile, device: str, seconds: float, output: Any) -> FrameRun:
    """A frame that one device computed for so long, and nothing else happened."""
    span = Span(device, 0, "compute", "the whole network", 0.0, seconds, stage=0)
    timeline = Timeline((span,), {0: (0.0, seconds)}, True)
    return FrameRun(seconds, output, timeline.energy_joules(profile), {}, timeline)


def best_single(model: Model, profile: Profile) -> tuple[str, float]:
    """The device that is predicted to run the whole network fastest, were the input there; and its seconds."""
    work = [Work(layer.index, layer.rows) for layer in model.layers]
    seconds = {device.name: device.compute_seconds(work) for device in profile.devices}
    name = min(seconds, key=lambda name: seconds[name])
    return name, seconds[name]
