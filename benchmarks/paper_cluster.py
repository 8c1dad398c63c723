"""The paper's devices as a cluster, emulated on this machine or in a lab, and the rates of its links."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paper_points import Value, median_value
from benchmarks.paper_trials import Trial
from coedge.config.cluster_config import ClusterConfig
from coedge.core.errors import ClusterError, CoEdgeError
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.profile.testbed import Testbed, speed_on
from orchestrator.bench.contenders import PlanContender
from orchestrator.bench.side_by_side import TOLERANCE
from orchestrator.bench.turns import Contender, take_turns
from orchestrator.cli.models import difference, load_image, photograph, unsplit
from orchestrator.cluster.cluster import Cluster

LAB_SECONDS = 30.0


def emulated(bed: Testbed, network: str) -> dict[str, Any]:
    """Return the configuration of a test bed as a cluster on this machine, with its speeds on a network and its rates.

    All devices share one machine, so their speeds should not add up to more than its cores.
    """
    devices = [
        {
            "name": device.name,
            "speed": min(round(speed_on(device, network), 3), 1.0),
            "link": {"mbps": device.link.mbps, "latency_ms": device.link.latency_ms},
            "power": device.power.model_dump(),
        }
        for device in bed.devices
    ]
    return {"devices": devices, "source": bed.source, "joules": bed.joules, "frame_timeout_seconds": 120.0}


def speeds(config: ClusterConfig, bed: Testbed, network: str) -> list[str]:
    """Return overrides that give emulated devices their speed on a network."""
    emulated_here = {device.name for device in config.devices if device.speed is not None}
    return [
        f"devices.{device.name}.speed={min(round(speed_on(device, network), 3), 1.0)}"
        for device in bed.devices
        if device.name in emulated_here
    ]


def set_rates(cluster: Cluster, config: ClusterConfig, bed: Testbed, factor: float, lab: str = "lab") -> None:
    """Multiply the rate that every device has in the test bed, and measure the links.

    Workers set the rates of emulated links. Other links are those of a lab, where `coedge lab rate` sets them.

    Raises:
        ClusterError: the links are real.
    """
    for device in bed.devices:
        given = next(one for one in config.devices if one.name == device.name)
        mbps = device.link.mbps * factor
        if given.link.mbps is not None:
            cluster.set_link(device.name, mbps, given.link.latency_ms)
        else:
            _set_in_lab(lab, device.name, mbps)
    cluster.measure_links()


def _set_in_lab(lab: str, name: str, mbps: float) -> None:
    command = [sys.executable, "-m", "coedge", "lab", "rate", "--lab", lab, name, f"{mbps:g}Mbit/s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LAB_SECONDS, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it failed"]
        raise ClusterError(
            f"the link of {name} is not emulated, and `coedge lab rate` cannot set it: {said[-1]}. "
            "Give a cluster with emulated links, or run inside of a lab"
        )


def check_devices(config: ClusterConfig, bed: Testbed) -> None:
    """Check that the cluster has all devices of the test bed.

    Raises:
        ClusterError: a device is missing.
    """
    names = {device.name for device in config.devices}
    missing = [device.name for device in bed.devices if device.name not in names]
    if missing:
        raise ClusterError(f"the figures need devices {', '.join(missing)}, which the cluster's file does not name")


def measure(
    cluster: Cluster,
    config: ClusterConfig,
    bed: Testbed,
    model: Model,
    trials: Mapping[int, Trial],
    frames: int,
    lab: str,
) -> dict[int, Value]:
    """Measure each trial of a network. Plans are made from the profile measured at its rates."""
    found: dict[int, Value] = {}
    for factor, moment in dict.fromkeys((trial.factor, trial.moment) for trial in trials.values()):
        set_rates(cluster, config, bed, factor, lab)
        here = [(i, trial) for i, trial in trials.items() if (trial.factor, trial.moment) == (factor, moment)]
        found |= _measured(cluster, model, here, frames, f"{model.name}, {factor:g} x the rates")
    return found


def _measured(
    cluster: Cluster, model: Model, trials: Sequence[tuple[int, Trial]], frames: int, what: str
) -> dict[int, Value]:
    profile, array = cluster.profile(model), load_image(photograph(), model)
    expected = unsplit(model, array)
    plans = {}
    with progress(f"planning {what}", len(trials)) as done:
        for index, trial in trials:
            plans[index] = trial.make(model, profile)
            done()
    distinct = {plan.digest: plan for plan in plans.values()}
    contenders: dict[str, Contender] = {
        digest: PlanContender(cluster, model, [array], plan, profile) for digest, plan in distinct.items()
    }
    with progress(f"running {what}", frames * len(distinct)) as done:
        outcomes = take_turns(contenders, frames, lambda output: difference(output, expected), TOLERANCE, done)
    values = {}
    for index, plan in plans.items():
        outcome = outcomes[plan.digest]
        if outcome.problem and not outcome.runs:
            raise CoEdgeError(f"{what}, {plan.scheme}: {outcome.problem}")
        joules = [run.joules for run in outcome.runs if run.joules is not None]
        problem = outcome.problem or ("" if plan.feasible else plan.reason)
        values[index] = median_value([run.seconds * 1e3 for run in outcome.runs], joules, problem)
    return values
