"""One neural-network inference, run together by the unequal devices that you already have.

    model = coedge.capture(torch_module, example)
    with coedge.connect("configs/demo.yaml") as cluster:
        y = cluster.submit(model, x).result()

What is named here is the public interface; everything else may move. Names load when first used, so that
`import coedge` is quick and a worker never loads torch or cvxpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coedge.capturing import capture
    from coedge.config import ClusterConfig, DeviceConfig, LinkConfig, PowerConfig, load_config
    from coedge.errors import (
        Cancelled,
        CaptureError,
        ClusterError,
        CoEdgeError,
        ConfigError,
        DeviceLost,
        FrameTimeout,
        InfeasibleError,
        InputError,
        PlanError,
        StepFailed,
    )
    from coedge.lowering import lower
    from coedge.model import Model
    from coedge.normalise import with_normalisation
    from coedge.objective import Objective
    from coedge.plan import Plan, Stage, even_plan
    from coedge.profile import Profile
    from coedge.program import Program
    from coedge.region import UnitRect
    from coedge.simulator import simulate
    from coedge.testbed import load_testbed, profile_of
    from coedge.timeline import Timeline
    from orchestrator.cluster import Cluster, connect
    from orchestrator.job import Job
    from orchestrator.mixture import Mixture, make_mixture
    from orchestrator.planner import make_plan
    from workers.in_process import run_in_process

_HOMES = {
    "capture": "coedge.capturing",
    "ClusterConfig": "coedge.config",
    "DeviceConfig": "coedge.config",
    "LinkConfig": "coedge.config",
    "PowerConfig": "coedge.config",
    "load_config": "coedge.config",
    "Cancelled": "coedge.errors",
    "CaptureError": "coedge.errors",
    "ClusterError": "coedge.errors",
    "CoEdgeError": "coedge.errors",
    "ConfigError": "coedge.errors",
    "DeviceLost": "coedge.errors",
    "FrameTimeout": "coedge.errors",
    "InfeasibleError": "coedge.errors",
    "InputError": "coedge.errors",
    "PlanError": "coedge.errors",
    "StepFailed": "coedge.errors",
    "lower": "coedge.lowering",
    "Model": "coedge.model",
    "with_normalisation": "coedge.normalise",
    "Objective": "coedge.objective",
    "Plan": "coedge.plan",
    "Stage": "coedge.plan",
    "even_plan": "coedge.plan",
    "Profile": "coedge.profile",
    "Program": "coedge.program",
    "UnitRect": "coedge.region",
    "simulate": "coedge.simulator",
    "load_testbed": "coedge.testbed",
    "profile_of": "coedge.testbed",
    "Timeline": "coedge.timeline",
    "Cluster": "orchestrator.cluster",
    "connect": "orchestrator.cluster",
    "Job": "orchestrator.job",
    "Mixture": "orchestrator.mixture",
    "make_mixture": "orchestrator.mixture",
    "make_plan": "orchestrator.planner",
    "run_in_process": "workers.in_process",
}

__all__ = [*sorted(_HOMES), "zoo"]


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return importlib.import_module("coedge.zoo")
    if name not in _HOMES:
        raise AttributeError(f"module 'coedge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
