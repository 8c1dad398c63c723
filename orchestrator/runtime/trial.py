"""Plans tried out on the devices: where predictions differ by less than they err, running decides."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from coedge.core.objective import Objective
from coedge.core.progress import progress
from coedge.plan.plan import Plan

# Tried are so many plans that are predicted to cost up to so many times the best.
MOST, MARGIN = 4, 1.25
# What a frame came to, the less the better: 0 in time, else its seconds; and its cost.
Rank = tuple[float, float]


def worth_trying(best: Plan, others: Sequence[Plan], objective: Objective) -> list[Plan]:
    """The best plan and those near it that do something else, the nearest first."""

    def cost(plan: Plan) -> float:
        predicted = plan.predicted
        if not plan.feasible or predicted is None:
            return float("inf")
        return objective.cost(predicted.latency_seconds, predicted.energy_joules, predicted.throughput_fps)

    near = {plan.digest: plan for plan in sorted(others, key=cost) if cost(plan) <= MARGIN * cost(best)}
    near.pop(best.digest, None)
    return [best, *near.values()][:MOST]


def least_cost(plans: Sequence[Plan], rank_of_frame: Callable[[Plan], Rank], frames: int) -> Plan:
    """The plan with the least median rank (the lower of two in the middle); of equal ones the first.

    Plans take turns, so that what disturbs the devices disturbs all. Before every frame that counts stands one that
    does not: it makes buffers, and finds the caches full of another plan's weights.

    Args:
        rank_of_frame: runs one frame of a plan.
        frames: of each plan, that count.
    """
    ranks: dict[str, list[Rank]] = {plan.digest: [] for plan in plans}
    with progress("trying plans", frames * len(plans)) as done:
        for _ in range(frames):
            for plan in plans:
                rank_of_frame(plan)
                ranks[plan.digest].append(rank_of_frame(plan))
                done()
    return min(plans, key=lambda plan: statistics.median_low(ranks[plan.digest]))
