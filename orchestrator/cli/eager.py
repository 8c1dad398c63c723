"""The module in eager torch, on a device that is emulated on this machine."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from coedge.core.errors import CaptureError
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.cli.models import FILES, load_module

if TYPE_CHECKING:
    from orchestrator.bench.side_by_side import Guest
    from orchestrator.bench.turns import FrameRun
    from orchestrator.cluster.cluster import Cluster

TORCH = "torch"


class Eager:
    """A contender: `module(x)` in this process, on one thread, at a device's emulated speed."""

    def __init__(self, module: Any, array: np.ndarray, profile: Profile, device: str, speed: float) -> None:
        import torch

        self._module, self._x = module, torch.from_numpy(array)
        self._profile, self._device, self._speed = profile, device, speed

    def run(self) -> Any:
        return self._timed()[1]

    def measure(self) -> FrameRun:
        from orchestrator.bench.contenders import alone

        return alone(self._profile, self._device, *self._timed())

    def _timed(self) -> tuple[float, Any]:
        import torch

        from workers.calibration.unsplit import timed

        before = torch.get_num_threads()
        torch.set_num_threads(1)  # as emulated devices have
        try:
            with torch.inference_mode():
                return timed(lambda: self._module(self._x), 1, self._speed)
        finally:
            torch.set_num_threads(before)


def eager_guest(cluster: Cluster, spec: str, size: int, model: Model, array: np.ndarray, profile: Profile) -> Guest:
    """The module of a model on the best single device, as far as it can be run there."""
    from orchestrator.bench.contenders import best_single
    from orchestrator.bench.side_by_side import Guest, alone_case
    from orchestrator.evaluation.divisible_load import bound_seconds

    device, _ = best_single(model, profile)
    worker = cluster.worker(device)
    case = alone_case(model, profile, TORCH, worker, None, bound_seconds(model, profile))
    speed, problem = worker.config.speed, ""
    if spec.endswith(FILES):
        problem = f"{spec} is no torch module"
    elif speed is None or worker.facts.host != platform.node():
        problem = f"{device} is not emulated on this machine, and torch is run nowhere else"
    if problem or speed is None:
        return Guest(case.model_copy(update={"problem": problem}), None)
    try:
        return Guest(case, Eager(load_module(spec, size), array, profile, device, speed))
    except CaptureError as error:
        return Guest(case.model_copy(update={"problem": str(error)}), None)
