"""`auto`: a search through the whole plan space. The named schemes' plans are candidates too.

1  drafts             shortest paths over (cut, layout) under several prices
2  boundaries         the convex programme on the best drafts, rounded to rows
3  transfer options   halo first, and codecs where they pay
4  local search       small changes, evaluated by simulation
5  forced inclusion   the best plan with each device that it does not use
6  used devices       a search with the devices of the best plan only
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluation, Evaluator, distinct
from orchestrator.search.draft import as_draft, as_stages, with_options_of
from orchestrator.search.forced_inclusion import PARTS, ROW_CHANGES, ForcedInclusion, unused
from orchestrator.search.layout import nearest_devices
from orchestrator.search.linear_programme import FULL, BoundaryProblem
from orchestrator.search.local_search import better, improve_transfer_options, local_search
from orchestrator.search.multistart import more_drafts, multistart
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.rounding import fair, nearest, stages_of_path
from orchestrator.search.shortest_path import TRANSFERS, Path, Prices, pareto_paths, prices_of, shortest_path
from orchestrator.search.space import SearchSpace, is_small
from orchestrator.search.stage_costs import StageCosts

# Number of drafts that the convex programme refines, and solves for each of them.
REFINED, ROUNDS = 3, 2
# With more devices than this, the better half is planned for first.
MANY = 10
# Number of unused devices, of different kinds, whose inclusion is tried.
INCLUDED = 4
# Plans with more strips than this have two drafts refined; with still more, one draft once.
LARGISH, LARGE = 60, 300
# Forced inclusion goes on if the cost is at most this factor above the best.
HOPELESS = 1.2
# Parts of the deadline for which the local search looks too.
TIGHTER = (1.0, 0.8, 0.6, 0.4)
# Labels per node of the Pareto search, and the limit on its work.
FRONT, FRONT_EDGES = 12, 6_000_000
# Rounds in which constants on full devices get more expensive.
MEMORY_ROUNDS = 8
# Weights of a joule between least latency and least energy; 1 is the time in which the fastest device uses a joule.
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)


def search(model: Model, profile: Profile, objective: Objective, known: Iterable[Plan] = ()) -> Plan:
    """Return the best plan found.

    Args:
        known: plans of named schemes, which are candidates too.
    """
    evaluator = explored(model, profile, objective, known)
    return evaluator.plan(evaluator.best(), "auto")


def explored(model: Model, profile: Profile, objective: Objective, known: Iterable[Plan] = ()) -> Evaluator:
    """Return the evaluator with all evaluations of a search."""
    evaluator = Evaluator(model, profile, objective)
    named = [evaluator.evaluate(plan.stages, plan.scheme, plan.reason if plan.feasible else "") for plan in known]
    if len(profile.names) > MANY:
        # The plan for the better half is a candidate, so that more devices hardly ever give a worse plan.
        half = set(nearest_devices(evaluator.table, len(profile.names) // 2))
        fewer = search(model, profile.without(set(profile.names) - half), objective)
        named.append(evaluator.evaluate(fewer.stages))
    space = SearchSpace.of(evaluator.table, objective)
    if objective.energy_weight or objective.goal == "energy" or objective.deadline_seconds is not None:
        named += [evaluator.evaluate(stages) for stages in _front(space)]
    if objective.goal == "energy" or objective.deadline_seconds is not None:
        # These goals do not depend on the deadline, so that a looser deadline hardly ever gives a worse plan.
        goals = weighted(space.costs[0], objective)
        for goal in goals:
            _explore(evaluator.aiming_at(goal), space, named, space.steps // len(goals))
        _meet_deadline(evaluator, space)
    else:
        _explore(evaluator, space, named, space.steps)
    _include_unused(evaluator, space)
    _search_used(evaluator)
    return evaluator


def _explore(evaluator: Evaluator, space: SearchSpace, known: Sequence[Evaluation], steps: int) -> None:
    """Search for one objective, phases 1 to 4. All evaluations stay with the evaluator."""
    objective = evaluator.objective
    candidates = list(known)
    for number, costs in enumerate(space.costs):
        paths = drafts(costs, objective, TRANSFERS[: len(TRANSFERS) - number])
        candidates += [evaluator.evaluate(stages_of_path(path, costs)) for path in paths]
    if space.is_small:
        candidates += more_drafts(evaluator, space, steps)
    best_drafts = distinct(candidates, objective)
    best_drafts = best_drafts[: _refined_drafts(_strips(best_drafts[0]))]
    refined = [refine(evaluator, space.receptive_fields, evaluated) for evaluated in best_drafts]
    with_options = [
        evaluator.evaluate(options(evaluated.plan.stages)) for evaluated in refined for options in space.option_sets[1:]
    ]
    starts = distinct([*candidates, *refined, *with_options], objective)
    if space.is_small:
        multistart(evaluator, space, starts, steps)
        return
    starts = starts[:REFINED]
    # The best start gets half of the steps, and so on; steps that it leaves go to the next.
    limit = evaluator.steps + steps
    for index, evaluated in enumerate(starts):
        left = limit - evaluator.steps
        local_search(evaluator, evaluated, space.layouts, left if index == len(starts) - 1 else left // 2)
    improve_transfer_options(evaluator, evaluator.best(), space.option_sets, steps // 4)


def _include_unused(evaluator: Evaluator, space: SearchSpace) -> None:
    """Add unused devices to many stages of the best plan at once, which no small change does."""
    objective, table, best = evaluator.objective, evaluator.table, evaluator.best()
    stages = best.plan.stages
    options = [options for options in space.option_sets if options.matches(stages)]
    changes = min(space.steps // 8 // max(sum(len(stage.regions) for stage in stages), 1), ROW_CHANGES)
    inclusion = ForcedInclusion(
        best.plan, evaluator.model, objective, lambda evaluated, _: evaluated.rank(objective), space.receptive_fields
    )
    for name, *_ in unused(best.plan, evaluator.profile)[:INCLUDED]:
        variants = [
            evaluator.evaluate(variant)
            for part in PARTS
            for variant in inclusion.structures(table, name, part, options)
        ]
        start = min(variants, key=lambda evaluated: evaluated.rank(objective), default=None)
        if start is None or _is_hopeless(start, best, objective):
            continue
        refined = inclusion.refined(evaluator, start, name, changes)
        if better(refined, best, objective):
            local_search(evaluator, refined, space.layouts, space.steps // 4)


def _search_used(evaluator: Evaluator) -> None:
    """Search again with the devices of the best plan only, if that makes the problem small.

    More devices then hardly ever give a worse plan.
    """
    profile = evaluator.profile
    used = {profile.source, *evaluator.best().plan.used_devices}
    if len(used) < len(profile.names) and is_small(evaluator.model, len(used)):
        fewer = search(evaluator.model, profile.without(set(profile.names) - used), evaluator.objective)
        evaluator.evaluate(fewer.stages)


def _is_hopeless(candidate: Evaluation, best: Evaluation, objective: Objective) -> bool:
    (excess, cost), (best_excess, best_cost) = candidate.rank(objective), best.rank(objective)
    return excess > HOPELESS * best_excess or cost > HOPELESS * best_cost


def _front(space: SearchSpace) -> Iterator[tuple[Stage, ...]]:
    """Yield drafts from least latency to least energy, also those that no price of a joule leads to."""
    for costs in space.costs:
        width = min(FRONT, FRONT_EDGES // (costs.count * len(costs.layouts)) ** 2)
        for transfer in TRANSFERS[:2] if width > 1 else ():
            for path in pareto_paths(costs, width, transfer):
                yield stages_of_path(path, costs)


def _meet_deadline(evaluator: Evaluator, space: SearchSpace) -> None:
    """Run the local search under the deadline, from the best plan for it and for tighter deadlines."""
    objective = evaluator.objective
    if objective.deadline_ms is None:
        return
    for part in TIGHTER:
        tighter = objective.model_copy(update={"deadline_ms": objective.deadline_ms * part})
        start = evaluator.best(tighter)
        local_search(evaluator, start, space.layouts, space.steps // len(TIGHTER))


def weighted(costs: StageCosts, objective: Objective) -> list[Objective]:
    """Return goals without a deadline, from least latency to the objective's own cost."""
    free = objective.model_copy(update={"deadline_ms": None, "goal": "latency"})
    if objective.goal == "energy":
        joule = _seconds_per_joule(costs)
        weights = [0.0, *(joule * factor for factor in WEIGHTS)]
        last = [objective.model_copy(update={"deadline_ms": None})]
    else:
        weights = [objective.energy_weight * factor for factor in (0.0, 0.3, 1.0)]
        last = []
    return [*(free.model_copy(update={"energy_weight": weight}) for weight in dict.fromkeys(weights)), *last]


def drafts(costs: StageCosts, objective: Objective, transfers: Sequence[float] = TRANSFERS) -> list[Path]:
    """Return the shortest paths for each price of a transfer."""
    paths = [path for prices in prices_of(objective, transfers) for path in _within_memory(costs, prices)]
    return list(dict.fromkeys(paths))


def _within_memory(costs: StageCosts, prices: Prices) -> list[Path]:
    """Return the shortest path. If its constants do not fit, add paths with a rising price on full devices' memory."""
    limits = np.array([d.memory_bytes or np.inf for d in costs.table.profile.devices])
    price, paths = np.zeros(len(limits)), list[Path]()
    # At first, all constants together cost about as much as the whole computation.
    step = float(costs.busy[0, costs.count].max()) / max(costs.model.weight_nbytes, 1)
    for _ in range(MEMORY_ROUNDS):
        path = shortest_path(costs, replace(prices, memory=price if price.any() else None))
        if path is None:
            break
        paths.append(path)
        full = costs.held_nbytes(path) > FULL * limits
        if not full.any():
            break
        price = np.where(full, np.maximum(2 * price, step), price)
    return paths


def refine(evaluator: Evaluator, receptive_fields: ReceptiveFields, evaluated: Evaluation) -> Evaluation:
    """Solve the convex programme on the plan's cuts and devices, again as long as it helps."""
    best, table = evaluated, evaluator.table
    for _ in range(1 if _strips(evaluated) > LARGE else ROUNDS):
        draft = as_draft(best.plan.stages)
        if draft is None or all(len(stage.layout.devices) == 1 for stage in draft):
            break
        boundaries = BoundaryProblem(table, receptive_fields, draft).solve(table, evaluator.objective)
        if boundaries is None:
            break
        rounded = (nearest(table.model, boundaries.stages), fair(table, receptive_fields, boundaries.stages))
        candidates = [evaluator.evaluate(with_options_of(as_stages(stages), best.plan.stages)) for stages in rounded]
        candidate = min(candidates, key=lambda evaluated: evaluated.rank(evaluator.objective))
        if not better(candidate, best, evaluator.objective):
            break
        best = candidate
    return best


def _refined_drafts(strips: int) -> int:
    """Return the number of drafts that the convex programme refines, for plans with this number of strips."""
    return 1 if strips > LARGE else 2 if strips > LARGISH else REFINED


def _strips(evaluated: Evaluation) -> int:
    """Return the number of strips, which the time of the convex programme grows with."""
    return sum(len(stage.regions) for stage in evaluated.plan.stages)


def _seconds_per_joule(costs: StageCosts) -> float:
    """Return the time in which the fastest device uses a joule: there, seconds and joules count the same."""
    table = costs.table
    watts = min(zip(table.whole_seconds(), table.compute_watts))[1]
    return 1 / max(float(watts), 1e-9)
