"""`auto`: the whole plan space. Never predicted worse than any named scheme, for they are among its candidates.

1  drafts      shortest paths over (cut, layout), under several prices; the named schemes
2  boundaries  the convex core on the best drafts, rounded to rows
3  dress       borders first, and codecs where they pay
4  polish      small changes, judged by simulation
5  joining     the best plan with each device that it leaves out
6  alone       the devices that the best plan uses, and no others
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
from orchestrator.search.draft import as_draft, as_stages
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

# How many drafts go through the convex core, and how often each.
REFINED, ROUNDS = 3, 2
# Of more devices, the better half is planned for first.
MANY = 10
# So many devices that are left out, of different kinds, are tried once more.
JOINING = 4
# Of plans with more strips fewer go through the convex core; with still more, only the best, once.
LARGISH, LARGE = 60, 300
# With one device more, plans that cost more than so many times the best are given up.
HOPELESS = 1.2
# Plans for so much of the deadline are looked at too.
TIGHTER = (1.0, 0.8, 0.6, 0.4)
# How many paths of the front of seconds and joules are kept at every cut and layout, and what that may take.
FRONT, FRONT_EDGES = 12, 6_000_000
# How often bytes on full devices get dearer.
MEMORY_ROUNDS = 8
# What a joule is worth, against what it takes the fastest device to use one: between least latency and least joules.
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)


def search(model: Model, profile: Profile, objective: Objective, known: Iterable[Plan] = ()) -> Plan:
    """The best plan found.

    Args:
        known: plans of named schemes: candidates too.
    """
    evaluator = explored(model, profile, objective, known)
    return evaluator.plan(evaluator.best(), "auto")


def explored(model: Model, profile: Profile, objective: Objective, known: Iterable[Plan] = ()) -> Evaluator:
    """An evaluator that has judged everything that the search looks at."""
    evaluator = Evaluator(model, profile, objective)
    named = [evaluator.evaluate(plan.stages, plan.scheme, plan.reason if plan.feasible else "") for plan in known]
    if len(profile.names) > MANY:
        # A plan for the better half is one for all: more devices then hardly ever make a worse one.
        half = set(nearest_devices(model, profile, len(profile.names) // 2))
        fewer = search(model, profile.without(set(profile.names) - half), objective)
        named.append(evaluator.evaluate(fewer.stages))
    space = SearchSpace.of(model, profile, objective)
    if objective.energy_weight or objective.goal == "energy" or objective.deadline_seconds is not None:
        named += [evaluator.evaluate(stages) for stages in _front(space)]
    if objective.goal == "energy" or objective.deadline_seconds is not None:
        # What is looked at hardly depends on the deadline, so that a looser one does not give a worse plan.
        wishes = weighted(space.costs[0], objective)
        for wish in wishes:
            _explore(evaluator.aiming_at(wish), space, named, space.steps // len(wishes))
        _meet_deadline(evaluator, space)
    else:
        _explore(evaluator, space, named, space.steps)
    _try_others(evaluator, space)
    _try_alone(evaluator)
    return evaluator


def _explore(evaluator: Evaluator, space: SearchSpace, known: Sequence[Evaluation], steps: int) -> None:
    """Drafts, boundaries, dress and polish for one objective; everything that is judged stays with the evaluator."""
    objective = evaluator.objective
    found = list(known)
    for number, costs in enumerate(space.costs):
        paths = drafts(costs, objective, TRANSFERS[: len(TRANSFERS) - number])
        found += [evaluator.evaluate(stages_of_path(path, costs)) for path in paths]
    if space.is_small:
        found += more_drafts(evaluator, space, steps)
    drawn = distinct(found, objective)
    drawn = drawn[: 1 if _strips(drawn[0]) > LARGE else 2 if _strips(drawn[0]) > LARGISH else REFINED]
    refined = [refine(evaluator, space.receptive_fields, evaluated) for evaluated in drawn]
    with_options = [
        evaluator.evaluate(options(evaluated.plan.stages)) for evaluated in refined for options in space.option_sets[1:]
    ]
    starts = distinct([*found, *refined, *with_options], objective)
    if space.is_small:
        multistart(evaluator, space, starts, steps)
        return
    starts = starts[:REFINED]
    # Half of the steps from the best, and so on: what one does not need is left for the next.
    limit = evaluator.steps + steps
    for index, evaluated in enumerate(starts):
        left = limit - evaluator.steps
        local_search(evaluator, evaluated, space.layouts, left if index == len(starts) - 1 else left // 2)
    improve_transfer_options(evaluator, evaluator.best(), space.option_sets, steps // 4)


def _try_others(evaluator: Evaluator, space: SearchSpace) -> None:
    """Devices that the best plan leaves out join many of its stages at once, which no small change does."""
    objective, profile, best = evaluator.objective, evaluator.profile, evaluator.best()
    stages = best.plan.stages
    worn = [options for options in space.option_sets if options.matches(stages)]
    changes = min(space.steps // 8 // max(sum(len(stage.regions) for stage in stages), 1), ROW_CHANGES)
    joining = ForcedInclusion(
        best.plan, evaluator.model, objective, lambda evaluated, _: evaluated.rank(objective), space.receptive_fields
    )
    for name, *_ in unused(best.plan, profile)[:JOINING]:
        found = [
            evaluator.evaluate(joined) for part in PARTS for joined in joining.structures(profile, name, part, worn)
        ]
        nearest = min(found, key=lambda evaluated: evaluated.rank(objective), default=None)
        if nearest is None or _is_hopeless(nearest, best, objective):
            continue
        joined = joining.refined(evaluator, nearest, name, changes)
        if better(joined, best, objective):
            local_search(evaluator, joined, space.layouts, space.steps // 4)


def _try_alone(evaluator: Evaluator) -> None:
    """The devices that the best plan uses are planned for alone, where so few of them are soon planned for thoroughly:
    more devices then hardly ever make a worse plan."""
    profile = evaluator.profile
    used = {profile.source, *evaluator.best().plan.used_devices}
    if len(used) < len(profile.names) and is_small(evaluator.model, len(used)):
        fewer = search(evaluator.model, profile.without(set(profile.names) - used), evaluator.objective)
        evaluator.evaluate(fewer.stages)


def _is_hopeless(found: Evaluation, best: Evaluation, objective: Objective) -> bool:
    (excess, cost), (best_excess, best_cost) = found.rank(objective), best.rank(objective)
    return excess > HOPELESS * best_excess or cost > HOPELESS * best_cost


def _front(space: SearchSpace) -> Iterator[tuple[Stage, ...]]:
    """Drafts from the quickest to the least joules, those that no price of a joule leads to among them."""
    for costs in space.costs:
        width = min(FRONT, FRONT_EDGES // (costs.count * len(costs.layouts)) ** 2)
        for transfer in TRANSFERS[:2] if width > 1 else ():
            for path in pareto_paths(costs, width, transfer):
                yield stages_of_path(path, costs)


def _meet_deadline(evaluator: Evaluator, space: SearchSpace) -> None:
    """Polish under the deadline itself, from the best that meet it and from the best that meet tighter ones."""
    objective = evaluator.objective
    if objective.deadline_ms is None:
        return
    for part in TIGHTER:
        tighter = objective.model_copy(update={"deadline_ms": objective.deadline_ms * part})
        start = evaluator.best(tighter)
        local_search(evaluator, start, space.layouts, space.steps // len(TIGHTER))


def weighted(costs: StageCosts, objective: Objective) -> list[Objective]:
    """Goals without a deadline, from least latency to least cost, that a deadline chooses between."""
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
    """Shortest paths under the prices that the objective may mean."""
    paths = [path for prices in prices_of(objective, transfers) for path in _within_memory(costs, prices)]
    return list(dict.fromkeys(paths))


def _within_memory(costs: StageCosts, prices: Prices) -> list[Path]:
    """The shortest path; where weights do not fit, others on which bytes cost more and more on full devices."""
    limits = np.array([d.memory_bytes or np.inf for d in costs.profile.devices])
    price, paths = np.zeros(len(limits)), list[Path]()
    # So that all weights together cost about as much as all the work, at first.
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


def refine(
    evaluator: Evaluator, receptive_fields: ReceptiveFields, evaluated: Evaluation, profile: Profile | None = None
) -> Evaluation:
    """The convex core on the plan's cuts and device sets, again while it helps.

    Args:
        profile: what the core reckons with; that of the evaluator by default.
    """
    best, profile = evaluated, profile or evaluator.profile
    for _ in range(1 if _strips(evaluated) > LARGE else ROUNDS):
        draft = as_draft(best.plan.stages)
        if draft is None or all(len(stage.layout.devices) == 1 for stage in draft):
            break
        solved = BoundaryProblem(evaluator.model, profile, receptive_fields, draft).solve(profile, evaluator.objective)
        if solved is None:
            break
        rounded = (
            nearest(evaluator.model, solved.stages),
            fair(evaluator.model, evaluator.profile, receptive_fields, solved.stages),
        )
        found = min(
            (evaluator.evaluate(_as_before(as_stages(stages), best.plan.stages)) for stages in rounded),
            key=lambda j: j.rank(evaluator.objective),
        )
        if not better(found, best, evaluator.objective):
            break
        best = found
    return best


def _strips(evaluated: Evaluation) -> int:
    """What the convex core's time grows with."""
    return sum(len(stage.regions) for stage in evaluated.plan.stages)


def _as_before(stages: Sequence[Stage], before: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, dressed as those that they replace one by one."""
    return tuple(
        stage.model_copy(update={"codecs": old.codecs, "halo_first": old.halo_first})
        for stage, old in zip(stages, before)
    )


def _seconds_per_joule(costs: StageCosts) -> float:
    """What a joule is worth where both count about the same: on the fastest device alone."""
    alone = [
        (sum(d.layer_time(x.index, False).seconds(x.rows) for x in costs.model.layers), d.power.compute_watts)
        for d in costs.profile.devices
    ]
    return 1 / max(min(alone)[1], 1e-9)
