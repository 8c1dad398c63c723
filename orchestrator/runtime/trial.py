"""Trials of plans on the devices: where predictions differ by less than their error, measurements decide."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from coedge.core.objective import Objective
from coedge.core.progress import progress
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
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


def least_cost(plans: Sequence[Plan], rank_of_frame: Callable[[Plan], Rank], frames: int) -> Plan:
    """Return the plan with the least median rank; the lower median of an even count, the first of equal plans.

    Plans take turns, so that disturbances of the devices affect all of them. A frame that does not count precedes
    every frame that does: it allocates buffers and replaces another plan's weights in the caches.

    Args:
        rank_of_frame: runs one frame of a plan.
        frames: number of frames of each plan that count.
    """
    ranks: dict[str, list[Rank]] = {plan.digest: [] for plan in plans}
    with progress("trying plans", frames * len(plans)) as done:
        for _ in range(frames):
            for plan in plans:
                rank_of_frame(plan)
                ranks[plan.digest].append(rank_of_frame(plan))
                done()
    return min(plans, key=lambda plan: statistics.median_low(ranks[plan.digest]))


def measured_rank(job: Job, profile: Profile, objective: Objective) -> Rank:
    """Wait for a frame and return its rank. Raises the errors of `Job.result`."""
    job.result()
    seconds = job.latency_seconds
    late = 0.0 if objective.meets_deadline(seconds) else seconds
    return late, objective.cost(seconds, job.timeline.energy_joules(profile))
