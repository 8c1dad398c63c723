"""Small networks on few devices: plans are soon simulated there, and a row more or less is much.

1  drafts   the cheapest path through every stage end, not only the cheapest of all
2  near     from many of them, of different cuts and devices, by small changes to where none helps
3  unlike   on from the best with other cuts and in another dress, all at once
4  far      changes of every kind
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coedge.objective import Objective
from coedge.plan import Stage
from orchestrator.evaluator import Evaluator, Judged
from orchestrator.search.polish import NEAR, better, polish, polish_dress
from orchestrator.search.rounding import stages_of_path
from orchestrator.search.shortest_path import prices_of, shortest_paths
from orchestrator.search.space import Space

# Paths for every price of a transfer.
PATHS = 60
# So much of the steps goes to the second part; and, for each start, at most this part of all.
NEAR_SHARE, ONE_START = 0.75, 1 / 16
# So many of the best drafts are starts whatever their cuts.
BEST = 3


def more_drafts(evaluator: Evaluator, space: Space, transfers: Sequence[float]) -> Iterator[Judged]:
    """The cheapest paths through every stage end, for each of what transfers may count, in every dress."""
    for costs in space.costs:
        for prices in prices_of(evaluator.objective, transfers):
            for path in shortest_paths(costs, prices, PATHS):
                stages = stages_of_path(path, costs)
                yield from (evaluator.judge(dress(stages)) for dress in space.dresses)


def thoroughly(evaluator: Evaluator, space: Space, drafts: Sequence[Judged], steps: int) -> None:
    """Everything that is judged stays with the evaluator.

    Args:
        drafts: best first.
        steps: of programs, how many may be simulated.
    """
    objective, limit, part = evaluator.objective, evaluator.steps + steps, int(steps * ONE_START)

    def near(start: Judged) -> Judged:
        return polish_dress(evaluator, polish(evaluator, start, (), part, NEAR), space.dresses, part)

    best, *others = _starts(drafts)
    best = near(best)
    for start in others:
        if evaluator.steps >= limit - (1 - NEAR_SHARE) * steps:
            break
        best = _better_of(near(start), best, objective)
    while evaluator.steps < limit:
        before = best
        for start in _unlike(evaluator, space, best):
            best = _better_of(near(start), best, objective)
            if best is not before:
                break
        if best is before:
            best = polish(evaluator, best, space.layouts, limit - evaluator.steps)
        if best is before:
            break


def _starts(drafts: Sequence[Judged]) -> list[Judged]:
    """The best; then the best of all cuts and device sets; then the rest."""
    kinds: dict[object, Judged] = {}
    for judged in drafts:
        kinds.setdefault(tuple((s.first, s.last, frozenset(s.regions)) for s in judged.plan.stages), judged)
    return list({id(judged): judged for judged in (*drafts[:BEST], *kinds.values(), *drafts)}.values())


def _unlike(evaluator: Evaluator, space: Space, best: Judged) -> list[Judged]:
    """The same shares with other cuts and in other dresses, best first."""
    stages = best.plan.stages
    cuts = (stages, _layer_by_layer(stages), _joined(stages))
    found = [evaluator.judge(dress(changed)) for changed in cuts for dress in space.dresses]
    others = {id(judged): judged for judged in found if judged is not best}
    return sorted(others.values(), key=lambda judged: judged.rank(evaluator.objective))


def _better_of(found: Judged, best: Judged, objective: Objective) -> Judged:
    return found if better(found, best, objective) else best


def _layer_by_layer(stages: Sequence[Stage]) -> list[Stage]:
    """Every layer a stage of its own, where it was."""
    return [
        Stage(first=layer, last=layer, regions=stage.regions)
        for stage in stages
        for layer in range(stage.first, stage.last + 1)
    ]


def _joined(stages: Sequence[Stage]) -> list[Stage]:
    """Stages that follow each other on the same layout are one."""
    joined: list[Stage] = []
    for stage in stages:
        if joined and joined[-1].regions == stage.regions:
            joined[-1] = joined[-1].model_copy(update={"last": stage.last})
        else:
            joined.append(stage)
    return joined
