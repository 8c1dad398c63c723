"""Count better conditions that give a more expensive plan, on small random instances.

    link        one link becomes twice as fast
    device      one more device
    deadline    a later deadline, for least energy

Every plan that was possible before is still possible, so the cost should never rise.

`python -m benchmarks.monotonicity [--json] [--quick] [--instances 100] [--first 0]`, about fifty minutes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.instances import Instance
from benchmarks.report import Report, arguments
from coedge.core.objective import Objective
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.planner.planner import make_plan

MOST_RISE = 1.01
LOOSER = (1.05, 1.4, 2.0)
# Factor on the rows of the instances of `benchmarks.exhaustive`.
TALLER = 2
QUICK = 6


def main() -> None:
    options = arguments(__doc__, instances=100, first=0)
    report = Report("monotonicity")
    monotonicity(report, QUICK if options.quick else options.instances, options.first)
    report.finish(options.json)


def monotonicity(report: Report, count: int, first: int = 0) -> None:
    rises: dict[str, list[float]] = {"link": [], "device": [], "deadline": []}
    with progress("instances", count) as advance:
        for number in range(first, first + count):
            instance = Instance.of(number)
            instance = replace(instance, rows=TALLER * instance.rows)
            for what, rise in _rises(instance):
                rises[what].append(rise)
                if rise > MOST_RISE:
                    print(f"{instance}, {what}: {rise:.3f} of the cost before", file=sys.stderr, flush=True)
            advance()
    for what, label in (
        ("link", "a link twice as fast"),
        ("device", "one more device"),
        ("deadline", "a looser deadline, energy"),
    ):
        found = rises[what]
        report.sample(f"{label}: cost behind over cost before", found)
        report.at_most(f"{label}: costs over 1 % more", sum(rise > MOST_RISE for rise in found), f"of {len(found)}", 0)
        report.note(f"{label}: the most", max(found), "x the cost before")


def _rises(instance: Instance) -> Iterator[tuple[str, float]]:
    """Return the cost of the plan under better conditions over the cost before, for each kind of condition."""
    model, profile, generator = instance.model, instance.profile, random.Random(instance.seed)
    quickest = make_plan(model, profile)
    least = quickest.predicted.latency_seconds if quickest.predicted else 0.0
    objective = instance.objective(least)
    plan = make_plan(model, profile, objective)

    links = list(profile.links)
    chosen = generator.randrange(len(links))
    links[chosen] = links[chosen].model_copy(update={"bytes_per_second": 2 * links[chosen].bytes_per_second})
    yield "link", _rise(model, plan, profile.model_copy(update={"links": tuple(links)}), objective)

    gone = generator.choice([name for name in profile.names if name != profile.source])
    fewer = make_plan(model, profile.without([gone]), objective)
    yield "device", _ratio(fewer, plan, objective)

    # From the earliest deadline on, each is compared with the best before: a plan that meets it meets later ones too.
    before: Plan | None = None
    for factor in LOOSER:
        loose = Objective(goal="energy", deadline_ms=least * factor * 1e3)
        after = make_plan(model, profile, loose)
        if before is not None:
            yield "deadline", _ratio(before, after, loose)
        before = after if before is None or _ratio(before, after, loose) < 1 else before


def _rise(model: Model, before: Plan, better: Profile, objective: Objective) -> float:
    return _ratio(before, make_plan(model, better, objective), objective)


def _ratio(before: Plan, after: Plan, objective: Objective) -> float:
    """Return the cost of the second plan over that of the first; infinite if only the first meets the constraints."""
    if not before.feasible:
        return 0.0
    if not after.feasible:
        return float("inf")
    return _cost(after, objective) / _cost(before, objective)


def _cost(plan: Plan, objective: Objective) -> float:
    assert plan.predicted is not None
    return objective.cost(plan.predicted.latency_seconds, plan.predicted.energy_joules)


if __name__ == "__main__":
    main()
