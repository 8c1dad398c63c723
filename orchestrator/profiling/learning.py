"""The profile learns: predictions and measurements of the same frames side by side give a correction.

1. the time of every stage on every device       a factor for each layer on each device
2. the latency of the frames                     a delay for all links: messages take longer between busy devices, and
                                                 every stage waits for its slowest device
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.correction import Correction, kernel_factors
from coedge.profile.profile import Profile
from coedge.simulation.observation import observed_stages
from coedge.simulation.simulator import simulate
from coedge.simulation.timeline import Timeline

# Step of the derivative of a latency with respect to the delay of all links.
STEP_SECONDS = 1e-4
# Standard deviation of a latency from what the corrected profile predicts, as a part of it, when the delay is right.
RESIDUAL = 0.03
# Standard deviation of that delay over clusters, as expected before anything is measured.
USUAL_DELAY_SECONDS = 3e-4
# Predictions within this part of the measured latency agree.
AGREES = 0.05


@dataclass(frozen=True)
class MeasuredPlan:
    """Measured frames of one plan.

    Attributes:
        programs: of the plan, by device.
        timelines: one per frame.
    """

    plan: Plan
    programs: Mapping[str, Program]
    timelines: Sequence[Timeline]

    @property
    def latency_seconds(self) -> float:
        """Median latency of the frames."""
        return statistics.median(timeline.latency_seconds for timeline in self.timelines)


def predicted_seconds(run: MeasuredPlan, profile: Profile, model: Model) -> float:
    """Return the latency of a plan that a profile predicts."""
    return simulate(run.programs, profile, model).latency_seconds


def agrees(run: MeasuredPlan, profile: Profile, model: Model) -> bool:
    """Return whether a profile predicts the latency of a plan as it was measured."""
    return abs(predicted_seconds(run, profile, model) / run.latency_seconds - 1) <= AGREES


def learn(profile: Profile, model: Model, runs: Sequence[MeasuredPlan]) -> Correction:
    """Return the correction with which a profile predicts some runs as they were measured.

    Args:
        profile: uncorrected.
    """
    stages = [one for run in runs for one in observed_stages(run.programs, run.timelines)]
    factors = {
        device.name: kernel_factors(device, [one for one in stages if one.device == device.name])
        for device in profile.devices
    }
    corrected = Correction(factors=factors).of(profile)
    return Correction(factors=factors, delay_seconds=_delay_seconds(corrected, model, runs))


def _delay_seconds(profile: Profile, model: Model, runs: Sequence[MeasuredPlan]) -> float:
    """Return the delay of all links that explains the latencies, as far as they can show it (ridge regression).

    A plan with few exchanges says little about it: its latency may be off for other reasons. One delay for each link
    was tried: a few messages decide it, and it made the predictions of plans that were not measured worse.
    """
    slower = Correction(delay_seconds=STEP_SECONDS).of(profile)
    explained, certain = 0.0, USUAL_DELAY_SECONDS**-2
    for run in runs:
        predicted = predicted_seconds(run, profile, model)
        exchanges = (predicted_seconds(run, slower, model) - predicted) / STEP_SECONDS
        uncertain = RESIDUAL * run.latency_seconds
        explained += exchanges * (run.latency_seconds - predicted) / uncertain**2
        certain += exchanges**2 / uncertain**2
    return explained / certain
