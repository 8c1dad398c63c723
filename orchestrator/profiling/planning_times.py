"""Layer times to plan a test bed with: the reference times of a network that has them, or a measurement.

    the network has reference times      these
    it has none                          measured on this machine once, and kept in the user's cache folder
    `estimate`                           the fit to all reference times, and its error

The `speed` of a test bed's device refers to the reference machine, so measured times are converted to that machine:
each is multiplied by the speed of this machine for its family of layers. `yardstick` says how that speed is measured.
The yardstick and the network are measured in turn, so that a disturbance affects both.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from coedge.core.cache_folder import user_cache_folder
from coedge.core.errors import PlanError
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.profile.layer_work import Family, layer_costs
from coedge.profile.profile import LayerTime, Profile, scaled
from coedge.profile.reference_times import ReferenceTimes, one_stage_seconds, reference_times
from coedge.profile.testbed import Testbed
from coedge.profile.testbed import profile_of as profile_from_times
from orchestrator.profiling.cache_file import read_cache, write_cache
from orchestrator.profiling.yardstick import speeds_from, yardstick
from workers.calibration.calibration_run import StepTimings
from workers.calibration.layer_times import LEAST_SWEEPS, MOST_SWEEPS, LayerMeasurement, ModelTimes, model_times
from workers.runtime.worker import fingerprint

# Approximate duration of a measurement, with the yardstick.
BUDGET_SECONDS = 10.0
# The reference machine was measured as an emulated device of this speed, on one core.
_SPEED, _THREADS = 0.3, 1
# Part of the budget for the network. The yardstick gets the rest.
_SHARE = 0.7
# Part of the file name; raised when the meaning of the content changes.
_FORMAT = 2


class MachineTimes(BaseModel):
    """Layer times of a model as measured on this machine.

    Attributes:
        fingerprint: of the hardware and software that the times depend on.
        layers, fused: as in `DeviceProfile`, at the full speed of one core.
        speeds: of this machine by family of layers; the reference machine is 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    model_hash: str
    layers: tuple[LayerTime, ...]
    fused: tuple[LayerTime, ...]
    speeds: dict[Family, Annotated[float, Field(gt=0)]]


def profile_of(
    testbed: Testbed, model: Model, times: ReferenceTimes | None = None, *, estimate: bool = False
) -> Profile:
    """Return the profile of a test bed for a model.

    A model without reference times is measured on this machine once, which takes some seconds; see `planning_times`.

    Args:
        times: layer times of the model on the reference machine; `planning_times(model)` by default.
        estimate: estimate layer times that are not known, instead of measuring. `Profile.estimate_error` has the error.

    Raises:
        ConfigError: a device has a time for a network that was not measured on the reference machine.
        InputError: the model is none.
        PlanError: the model cannot be measured on this machine.
    """
    return profile_from_times(testbed, model, times or planning_times(model, estimate, None, BUDGET_SECONDS))


def planning_times(
    model: Model, estimate: bool = False, folder: Path | None = None, budget_seconds: float = BUDGET_SECONDS
) -> ReferenceTimes:
    """Return the layer times of a model on the reference machine: known, measured or estimated.

    Args:
        estimate: do not measure.
        folder: of measured times; the user's cache folder by default.
        budget_seconds: approximate duration of a measurement.

    Raises:
        PlanError: the model cannot be measured on this machine.
    """
    Model.check(model)
    times = reference_times(model)
    if estimate or times.error is None:
        return times
    machine = machine_times(model, folder or user_cache_folder(), budget_seconds)
    costs = layer_costs(model)
    speeds = [machine.speeds[cost.family] for cost in costs]
    layers = tuple(map(scaled, machine.layers, speeds))
    fused = tuple(map(scaled, machine.fused, speeds))
    rows = [cost.rows for cost in costs]
    seconds = one_stage_seconds(layers, fused, rows)
    return replace(
        times,
        layers=layers,
        fused=fused,
        seconds=seconds,
        measured=len(layers),
        scaled=0,
        modelled=0,
        machine_speed=seconds / one_stage_seconds(machine.layers, machine.fused, rows),
    )


def machine_times(model: Model, folder: Path, budget_seconds: float = BUDGET_SECONDS) -> MachineTimes:
    """Return the layer times of a model on this machine. They are measured once and kept in the folder.

    Raises:
        PlanError: the model cannot be measured on this machine.
    """
    machine = fingerprint(_THREADS)
    path = folder / f"testbed-{model.hash}.{_FORMAT}.json"
    cached = read_cache(MachineTimes, path)
    if cached is not None and (cached.fingerprint, cached.model_hash) == (machine, model.hash):
        return cached
    try:
        times, known = measure_beside_yardstick(model, budget_seconds)
    except RuntimeError as error:
        raise PlanError(
            f"{model.name} has no reference times and cannot be measured on this machine: {error}\n"
            "    Next: --estimate, or profile_of(..., estimate=True)"
        ) from error
    measured = MachineTimes(
        fingerprint=machine,
        model_hash=model.hash,
        layers=times.layers,
        fused=times.fused,
        speeds=speeds_from(known.layers, known.fused),
    )
    write_cache(measured, path)
    return measured


def measure_beside_yardstick(model: Model, budget_seconds: float) -> tuple[ModelTimes, ModelTimes]:
    """Measure a model and the yardstick in turn."""
    known = yardstick()
    with progress(f"measuring {model.name} on this machine", 2 * MOST_SWEEPS + 2) as advance:
        start = time.monotonic()
        runs: list[LayerMeasurement] = []
        try:
            for each, share in ((known, 1 - _SHARE), (model, _SHARE)):
                runs.append(LayerMeasurement(each, _THREADS, _SPEED, share * budget_seconds))
                advance()
            timings: list[list[StepTimings]] = [[], []]
            begun = time.monotonic()
            for sweep in range(MOST_SWEEPS):
                now = time.monotonic()
                if sweep >= LEAST_SWEEPS and now - start + (now - begun) / sweep > budget_seconds:
                    break
                for taken, run in zip(timings, runs):
                    taken += run.sweeps(1)
                    advance()
        finally:
            for run in runs:
                run.close()
    return model_times(model, timings[1]), model_times(known, timings[0])
