"""The profile learns: predictions and measurements of the same frames side by side give a correction.

1. the time of every stage on every device       a factor for each layer on each device
2. the transit of every message                  a delay for each link
3. the latency of the frames                     one more delay for all links: every stage waits for its slowest
                                                 device, and what varies makes the slowest slower
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.correction import Correction, LinkDelay, kernel_factors
from coedge.profile.profile import Profile
from coedge.simulation.observation import link_delays, observed_stages
from coedge.simulation.simulator import simulate
from coedge.simulation.timeline import Timeline

# Steps of the search for the common delay. Latency is convex and nearly linear in it.
DELAY_STEPS = 6
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
    found = Correction(factors=factors)
    corrected = found.of(profile)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs:
        for delay in link_delays(simulate(run.programs, corrected, model), run.timelines):
            seconds[delay.sender, delay.receiver].append(delay.seconds)
    found = found.then(
        Correction(
            delays=tuple(
                LinkDelay(sender=sender, receiver=receiver, seconds=statistics.median(values))
                for (sender, receiver), values in seconds.items()
            )
        )
    )
    return found.then(_common_delay(found.of(profile), model, [run for run in runs if len(_devices(run)) > 1]))


def _common_delay(profile: Profile, model: Model, runs: Sequence[MeasuredPlan]) -> Correction:
    """Return the delay of all links with which half of the runs are predicted too short, and half too long."""
    if not runs:
        return Correction()

    def delayed(seconds: float) -> Correction:
        return Correction(
            delays=tuple(
                LinkDelay(sender=link.sender, receiver=link.receiver, seconds=seconds) for link in profile.links
            )
        )

    def error(seconds: float) -> float:
        corrected = delayed(seconds).of(profile)
        return statistics.median(predicted_seconds(run, corrected, model) / run.latency_seconds - 1 for run in runs)

    before, at_zero = 0.0, error(0.0)
    step = 1e-3 if at_zero < 0 else -1e-3
    best, seconds = (abs(at_zero), 0.0), step
    for _ in range(DELAY_STEPS):
        off = error(seconds)
        best = min(best, (abs(off), seconds))
        if abs(off) < AGREES / 10 or off == at_zero:
            break
        # The next point of the secant, at most four times as far.
        following = seconds - off * (seconds - before) / (off - at_zero)
        limit = 4 * max(abs(seconds), abs(step))
        before, at_zero, seconds = seconds, off, max(-limit, min(following, limit))
    return delayed(best[1])


def _devices(run: MeasuredPlan) -> list[str]:
    return [name for name, program in run.programs.items() if program.steps]
