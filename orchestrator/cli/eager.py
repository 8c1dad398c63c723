"""A baseline in eager PyTorch, on a device that is emulated on this machine."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from coedge.core.errors import CaptureError
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.cli.models import FILES, load_module

if TYPE_CHECKING:
    from orchestrator.bench.side_by_side import Baseline
    from orchestrator.bench.turns import FrameRun
    from orchestrator.cluster.cluster import Cluster

TORCH = "torch"


class EagerContender:
    """A contender that runs `module(x)` in this process, on one thread, at the emulated speed of a device."""

    def __init__(self, module: Any, array: np.ndarray, profile: Profile, device: str, speed: float) -> None:
        import torch

        self._module, self._x = module, torch.from_numpy(array)
        self._profile, self._device, self._speed = profile, device, speed

    def run(self) -> Any:
        return self._timed()[1]

    def measure(self) -> FrameRun:
        from orchestrator.bench.contenders import single_device_run

        return single_device_run(self._profile, self._device, *self._timed())

    def _timed(self) -> tuple[float, Any]:
        import torch

        from workers.calibration.unsplit import timed

        before = torch.get_num_threads()
        torch.set_num_threads(1)  # as on emulated devices
        try:
            with torch.inference_mode():
                return timed(lambda: self._module(self._x), 1, self._speed)
        finally:
            torch.set_num_threads(before)


def eager_baseline(
    cluster: Cluster, spec: str, size: int, model: Model, array: np.ndarray, profile: Profile
) -> Baseline:
    """Return eager PyTorch on the best single device as a baseline, without a contender if it cannot run there."""
    from orchestrator.bench.contenders import best_single
    from orchestrator.bench.side_by_side import Baseline, single_device_case
    from orchestrator.evaluation.divisible_load import bound_seconds

    device, _ = best_single(model, profile)
    worker = cluster.worker(device)
    case = single_device_case(model, profile, TORCH, worker, None, bound_seconds(model, profile))
    speed, problem = worker.config.speed, ""
    if spec.endswith(FILES):
        problem = f"{spec} is not a torch module"
    elif speed is None or worker.facts.host != platform.node():
        problem = f"{device} is not emulated on this machine, and torch runs only here"
    if problem or speed is None:
        return Baseline(case.model_copy(update={"problem": problem}), None)
    try:
        return Baseline(case, EagerContender(load_module(spec, size), array, profile, device, speed))
    except CaptureError as error:
        return Baseline(case.model_copy(update={"problem": str(error)}), None)
