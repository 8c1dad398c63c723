"""Trials of plans on the devices: frames show which plan is best, and how far the predictions are off."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from coedge.core.objective import Objective
from coedge.core.progress import progress
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline
from orchestrator.profiling.learning import MeasuredPlan
from orchestrator.runtime.job import Job

# At most this many plans are tried, those predicted to cost up to MARGIN times the best.
MOST, MARGIN = 4, 1.25
# Measured cost of a frame, the lower the better: (0 if it met the deadline, else its seconds; its cost).
Rank = tuple[float, float]


def worth_trying(best: Plan, others: Sequence[Plan], objective: Objective) -> list[Plan]:
    """Return the best plan and different plans with nearly its predicted cost, in order of predicted cost."""

    def cost(plan: Plan) -> float:
        predicted = plan.predicted
        if not plan.feasible or predicted is None:
            return float("inf")
        return objective.cost(predicted.latency_seconds, predicted.energy_joules, predicted.throughput_fps)

    near = {plan.digest: plan for plan in sorted(others, key=cost) if cost(plan) <= MARGIN * cost(best)}
    near.pop(best.digest, None)
    return [best, *near.values()][:MOST]


def run_in_turns(plans: Sequence[Plan], run_frame: Callable[[Plan], Job], frames: int) -> list[MeasuredPlan]:
    """Run frames of several plans and return them by plan, in the order of the plans.

    Plans take turns, so that disturbances of the devices affect all of them. A frame that does not count precedes
    every frame that does: it allocates buffers and replaces another plan's weights in the caches.

    Args:
        run_frame: starts one frame of a plan.
        frames: number of frames of each plan that count.

    Raises:
        CoEdgeError: a frame failed; see `Job.result`.
    """
    jobs: list[list[Job]] = [[] for _ in plans]
    with progress("trying plans", frames * len(plans)) as done:
        for _ in range(frames):
            for plan, taken in zip(plans, jobs):
                run_frame(plan).result()
                job = run_frame(plan)
                job.result()
                taken.append(job)
                done()
    return [
        MeasuredPlan(plan, taken[0].loaded.programs, [job.timeline for job in taken])
        for plan, taken in zip(plans, jobs)
    ]


def rank(timeline: Timeline, profile: Profile, objective: Objective) -> Rank:
    """Return the rank of a measured frame."""
    seconds = timeline.latency_seconds
    late = 0.0 if objective.meets_deadline(seconds) else seconds
    return late, objective.cost(seconds, timeline.energy_joules(profile))


def measured_best(runs: Sequence[MeasuredPlan], profile: Profile, objective: Objective) -> MeasuredPlan:
    """Return the run with the least median rank; the lower median of an even count, the first of equal runs."""
    return min(
        runs, key=lambda run: statistics.median_low(rank(timeline, profile, objective) for timeline in run.timelines)
    )
