"""`auto` compared with the best of all plans of strips on whole rows, on small random instances.

An instance has 2 to 4 devices, 2 to 8 layers of 2 to 6 rows and one of six objectives: latency, latency and energy, or
energy, each without a deadline and with one of 1.05 to 1.6 times the least possible latency.

`python -m benchmarks.exhaustive [--json] [--quick] [--instances 300] [--first 0] [--jobs 1]`, about ten minutes.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.branch_and_bound import Best, best_by_bound
from benchmarks.instances import KINDS, Instance
from benchmarks.report import Report, arguments
from coedge.core.objective import Objective
from coedge.core.progress import progress
from coedge.plan.plan import Plan
from orchestrator.evaluation.evaluator import Evaluator
from orchestrator.planner.planner import make_plan

WITHIN = 1.03
# Maximum number of partial plans to extend; if they are not enough, the lower bound stands for the best cost.
MOST = 60_000
QUICK = 12


@dataclass(frozen=True)
class Outcome:
    """The result of an instance.

    Attributes:
        ratio: cost of the plan of `auto` over that of the best plan; infinite if only the best meets the deadline.
        decided: whether the search for the best plan was completed; if not, `ratio` is relative to its lower bound.
    """

    instance: Instance
    ratio: float
    decided: bool
    auto_seconds: float
    search_seconds: float


def main() -> None:
    options = arguments(__doc__, instances=300, first=0, jobs=1)
    report = Report("exhaustive")
    count = QUICK if options.quick else options.instances
    instances = [Instance.of(options.first + number) for number in range(count)]
    outcomes = []
    with progress("instances", count) as advance:
        for outcome in _compared(instances, options.jobs):
            outcomes.append(outcome)
            advance()
            if outcome.ratio > WITHIN:
                print(f"{outcome.instance}: {outcome.ratio:.3f} of the {_best(outcome)}", file=sys.stderr, flush=True)
    _rows(report, outcomes)
    report.finish(options.json)


def _best(outcome: Outcome) -> str:
    return "best" if outcome.decided else "bound"


def _compared(instances: list[Instance], jobs: int) -> Iterable[Outcome]:
    if jobs == 1:
        yield from map(compare, instances)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(compare, instances)


def compare(instance: Instance) -> Outcome:
    start = time.perf_counter()
    objective, best = best_plan(instance)
    middle = time.perf_counter()
    plan = make_plan(instance.model, instance.profile, objective)
    stop = time.perf_counter()
    ratio = cost_of(plan, objective) / best.bound if plan.feasible else float("inf")
    return Outcome(instance, ratio, _decided(best, objective), stop - middle, middle - start)


def best_plan(instance: Instance) -> tuple[Objective, Best]:
    """Return the objective of the instance and the best of all plans for it."""
    evaluator = Evaluator(instance.model, instance.profile, Objective())
    if instance.kind[1]:
        quickest = best_by_bound(evaluator, instance.rows, MOST)
        # If the search was not completed, the plan of `auto` may have a lower latency.
        seconds = [evaluated.latency_seconds for evaluated in (quickest.evaluated,) if evaluated is not None]
        if not seconds:
            plan = make_plan(instance.model, instance.profile)
            assert plan.predicted is not None
            seconds = [plan.predicted.latency_seconds]
        objective = instance.objective(seconds[0])
    else:
        objective = instance.objective(0.0)
    return objective, best_by_bound(evaluator.aiming_at(objective), instance.rows, MOST)


def cost_of(plan: Plan, objective: Objective) -> float:
    assert plan.predicted is not None
    return objective.cost(plan.predicted.latency_seconds, plan.predicted.energy_joules)


def _decided(best: Best, objective: Objective) -> bool:
    if best.evaluated is None:
        return False
    return objective.cost(best.evaluated.latency_seconds, best.evaluated.energy_joules) <= best.bound


def _rows(report: Report, outcomes: list[Outcome]) -> None:
    for kind in KINDS:
        found = [outcome for outcome in outcomes if outcome.instance.kind == kind]
        if found:
            goal = f"{kind[0]}{', deadline' if kind[1] else ''}"
            missed = sum(outcome.ratio > WITHIN for outcome in found)
            report.note(f"{goal}: further off than 3 %", missed, f"of {len(found)}")
            report.note(f"{goal}: the worst", max(outcome.ratio for outcome in found), "x the best")
    within = sum(outcome.ratio <= WITHIN for outcome in outcomes)
    report.at_least("within 3 % of the best of all plans", within, f"of {len(outcomes)}", len(outcomes))
    report.note("better than all of them", sum(o.ratio < 1 - 1e-6 for o in outcomes), f"of {len(outcomes)}")
    report.note("compared with a bound alone", sum(not o.decided for o in outcomes), f"of {len(outcomes)}")
    report.sample("cost of auto over that of the best", [outcome.ratio for outcome in outcomes])
    seconds = report.sample("auto, s", [outcome.auto_seconds for outcome in outcomes])
    report.note("auto: median", seconds * 1e3, "ms")
    report.sample("search of all plans, s", [outcome.search_seconds for outcome in outcomes])
    report.note("search of all plans: mean", statistics.mean(o.search_seconds for o in outcomes) * 1e3, "ms")


if __name__ == "__main__":
    main()
