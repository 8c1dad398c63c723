"""`auto`: the whole plan space. Never predicted worse than any named scheme, for they are among its candidates.

1  drafts      shortest paths over (cut, layout), under several prices; the named schemes
2  boundaries  the convex core on the best drafts, rounded to rows
3  polish      small changes, judged by simulation
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Plan, Stage
from coedge.profile import Profile
from orchestrator.evaluator import Evaluator, Judged
from orchestrator.search.boundaries import Programme
from orchestrator.search.costs import Costs
from orchestrator.search.flow import DraftStage
from orchestrator.search.layout import candidates, layout_of
from orchestrator.search.polish import better, polish
from orchestrator.search.reach import Reach
from orchestrator.search.rounding import fair, nearest
from orchestrator.search.shortest_path import Path, Prices, shortest_path

# How many drafts go through the convex core, how often each, and how many program steps polishing may simulate.
REFINED, ROUNDS, POLISH_STEPS = 3, 2, 20_000
# What a transfer counts: from all of it (a barrier after every stage) down to what does not hide.
TRANSFERS = (1.0, 0.5, 2.0)


def search(model: Model, profile: Profile, objective: Objective, known: Iterable[Plan] = ()) -> Plan:
    """The best plan found.

    Args:
        known: plans of named schemes, to begin with.
    """
    evaluator = Evaluator(model, profile, objective)
    reach = Reach(model)
    found = [evaluator.judge(plan.stages, plan.scheme, plan.reason if plan.feasible else "") for plan in known]
    layouts = candidates(model, profile)
    costs = Costs(model, profile, reach, layouts, objective.keep_local)
    for path in drafts(costs, objective):
        found.append(evaluator.judge(stages_of_path(path, costs)))
    best = min(found, key=lambda judged: judged.rank(objective))
    for judged in _distinct(found, objective)[:REFINED]:
        refined = refine(evaluator, reach, judged)
        if better(refined, best, objective):
            best = refined
    best = polish(evaluator, best, POLISH_STEPS)
    return best.plan.model_copy(update={"scheme": "auto"})


def drafts(costs: Costs, objective: Objective) -> list[Path]:
    """Shortest paths under the prices that the objective may mean."""
    energy_scale = _seconds_per_joule(costs)
    if objective.goal == "energy":
        joules = [energy_scale * factor for factor in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)]
    else:
        joules = [objective.energy_weight]
    paths = [
        shortest_path(costs, Prices(joule=joule, transfer=transfer))
        for joule in joules
        for transfer in (TRANSFERS if len(joules) == 1 else TRANSFERS[:1])
    ]
    return list(dict.fromkeys(path for path in paths if path is not None))


def stages_of_path(path: Path, costs: Costs) -> tuple[Stage, ...]:
    stages = tuple(DraftStage(first, stop, costs.layouts[layout]) for first, stop, layout in path)
    return as_stages(nearest(costs.model, stages))


def as_stages(stages: Sequence[DraftStage]) -> tuple[Stage, ...]:
    return tuple(stage.layout.stage(stage.first, stage.stop - 1) for stage in stages)


def as_draft(stages: Sequence[Stage]) -> tuple[DraftStage, ...] | None:
    """None where a stage is a grid."""
    made = []
    for stage in stages:
        layout = layout_of(stage)
        if layout is None:
            return None
        made.append(DraftStage(stage.first, stage.last + 1, layout))
    return tuple(made)


def refine(evaluator: Evaluator, reach: Reach, judged: Judged) -> Judged:
    """The convex core on the plan's cuts and device sets, again while it helps."""
    best = judged
    for _ in range(ROUNDS):
        draft = as_draft(best.plan.stages)
        if draft is None or all(len(stage.layout.devices) == 1 for stage in draft):
            break
        solved = Programme(evaluator.model, evaluator.profile, reach, draft).solve(
            evaluator.profile, evaluator.objective
        )
        if solved is None:
            break
        rounded = (
            nearest(evaluator.model, solved.stages),
            fair(evaluator.model, evaluator.profile, reach, solved.stages),
        )
        found = min(
            (evaluator.judge(as_stages(stages)) for stages in rounded), key=lambda j: j.rank(evaluator.objective)
        )
        if not better(found, best, evaluator.objective):
            break
        best = found
    return best


def _distinct(found: Sequence[Judged], objective: Objective) -> list[Judged]:
    """Best first, those that do the same once."""
    ranked = sorted(found, key=lambda judged: judged.rank(objective))
    return list({judged.plan.digest: judged for judged in ranked}.values())


def _seconds_per_joule(costs: Costs) -> float:
    """What a joule is worth where both count about the same: on the fastest device alone."""
    alone = [
        (sum(d.layer_time(x.index, False).seconds(x.rows) for x in costs.model.layers), d.power.compute_watts)
        for d in costs.profile.devices
    ]
    return 1 / max(min(alone)[1], 1e-9)
