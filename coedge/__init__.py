"""Joint execution of one neural-network inference on several unequal devices.

    model = coedge.capture(torch_module, example)
    with coedge.connect("configs/demo.yaml") as cluster:
        y = cluster.submit(model, x).result()

The names in this module are the public interface; everything else may move. Names load when they are first used, so
that `import coedge` is quick and a worker never loads torch or cvxpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coedge.config.cluster_config import ClusterConfig
    from coedge.config.loading import load_config
    from coedge.config.sections import DeviceConfig, LinkConfig, PowerConfig
    from coedge.core.errors import (
        Cancelled,
        CaptureError,
        ClusterError,
        CoEdgeError,
        ConfigError,
        DeviceLost,
        DynamicShape,
        FrameTimeout,
        InfeasibleError,
        InputError,
        PlanError,
        StepFailed,
    )
    from coedge.core.objective import Objective
    from coedge.core.region import UnitRect
    from coedge.execution.program import Program
    from coedge.frontend.capture import capture
    from coedge.frontend.input_normalisation import with_normalisation
    from coedge.graph.model import Model
    from coedge.plan.lowering import lower
    from coedge.plan.plan import Plan, Stage, even_plan
    from coedge.profile.profile import Profile
    from coedge.profile.testbed import load_testbed
    from coedge.simulation.simulator import simulate
    from coedge.simulation.timeline import Timeline
    from orchestrator.cluster.cluster import Cluster, connect
    from orchestrator.planner.mixture import Mixture, make_mixture
    from orchestrator.planner.planner import make_plan
    from orchestrator.profiling.planning_times import profile_of
    from orchestrator.runtime.job import Job
    from workers.runtime.in_process import run_in_process

_HOMES = {
    "capture": "coedge.frontend.capture",
    "ClusterConfig": "coedge.config.cluster_config",
    "DeviceConfig": "coedge.config.sections",
    "LinkConfig": "coedge.config.sections",
    "PowerConfig": "coedge.config.sections",
    "load_config": "coedge.config.loading",
    "Cancelled": "coedge.core.errors",
    "CaptureError": "coedge.core.errors",
    "ClusterError": "coedge.core.errors",
    "CoEdgeError": "coedge.core.errors",
    "ConfigError": "coedge.core.errors",
    "DeviceLost": "coedge.core.errors",
    "DynamicShape": "coedge.core.errors",
    "FrameTimeout": "coedge.core.errors",
    "InfeasibleError": "coedge.core.errors",
    "InputError": "coedge.core.errors",
    "PlanError": "coedge.core.errors",
    "StepFailed": "coedge.core.errors",
    "lower": "coedge.plan.lowering",
    "Model": "coedge.graph.model",
    "with_normalisation": "coedge.frontend.input_normalisation",
    "Objective": "coedge.core.objective",
    "Plan": "coedge.plan.plan",
    "Stage": "coedge.plan.plan",
    "even_plan": "coedge.plan.plan",
    "Profile": "coedge.profile.profile",
    "Program": "coedge.execution.program",
    "UnitRect": "coedge.core.region",
    "simulate": "coedge.simulation.simulator",
    "load_testbed": "coedge.profile.testbed",
    "profile_of": "orchestrator.profiling.planning_times",
    "Timeline": "coedge.simulation.timeline",
    "Cluster": "orchestrator.cluster.cluster",
    "connect": "orchestrator.cluster.cluster",
    "Job": "orchestrator.runtime.job",
    "Mixture": "orchestrator.planner.mixture",
    "make_mixture": "orchestrator.planner.mixture",
    "make_plan": "orchestrator.planner.planner",
    "run_in_process": "workers.runtime.in_process",
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
