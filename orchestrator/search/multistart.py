"""Small networks on few devices: plans are soon simulated there, and a row more or less is much.

1  drafts   the cheapest path through every stage end, not only the cheapest of all; and paths with a clock for every
            device, on strips in every order
2  near     from many of them, of different cuts and devices, by small changes to where none helps
3  around   on from the best with other cuts and in another dress, all at once; and paths over what the best plans
            use, a row more or less
4  far      changes of every kind
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from coedge.core.objective import Objective
from coedge.plan.plan import Stage
from orchestrator.evaluation.evaluator import Evaluation, Evaluator, distinct
from orchestrator.search.beam_search import clocked_paths
from orchestrator.search.layout import Layout, alone, layout_of
from orchestrator.search.local_search import NEAR, better, improve_transfer_options, local_search
from orchestrator.search.rounding import stages_of_path
from orchestrator.search.shortest_path import TRANSFERS, Path, Prices, prices_of, shortest_paths
from orchestrator.search.space import MOST_UNORDERED, SearchSpace
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.transfer_options import TransferOptions

# Paths for every price of a transfer.
PATHS = 60
# So much of the steps goes to the second part; and, for each start, at most this part of all.
NEAR_SHARE, ONE_START = 0.3, 1 / 24
# So many of the best drafts are starts whatever their cuts.
BEST = 3
# Paths are looked for around so many of the best plans, and around as many that are each the best of an order of the
# devices; and so many of the paths are starts.
AROUND, NEW_STARTS = 8, 12
# What transfers count in clocked paths, and whether borders are made first; and what looking for them once takes, in
# steps.
CLOCKED, CLOCKED_STEPS = ((1.0, True), (1.0, False), (2.0, True)), 6000


def more_drafts(evaluator: Evaluator, space: SearchSpace, steps: int) -> Iterator[Evaluation]:
    """Paths for each of what transfers may count, in every dress.

    Args:
        steps: of programs, how many may be simulated from here on: with few, little time goes to clocked paths.
    """
    for costs in space.costs:
        for prices in prices_of(evaluator.objective, TRANSFERS):
            yield from _evaluated(evaluator, costs, shortest_paths(costs, prices, PATHS), space.option_sets)
    for costs in space.unordered:
        yield from _clocked(evaluator, space, costs, steps)


def _clocked(evaluator: Evaluator, space: SearchSpace, costs: StageCosts, steps: int) -> Iterator[Evaluation]:
    objective = evaluator.objective
    for transfer, halo_first in _kinds(objective, steps):
        prices = Prices(joule=objective.energy_weight, transfer=transfer)
        option_sets = [options for options in space.option_sets if options.halo_first == halo_first]
        yield from _evaluated(evaluator, costs, clocked_paths(costs, prices, PATHS, halo_first), option_sets)


def _kinds(objective: Objective, steps: int) -> Sequence[tuple[float, bool]]:
    """Of clocked paths, as many as the steps allow. Where time is worth nothing, clocks are not either."""
    return () if objective.goal == "energy" else CLOCKED[: steps // CLOCKED_STEPS]


def _evaluated(
    evaluator: Evaluator, costs: StageCosts, paths: Iterable[Path], option_sets: Sequence[TransferOptions]
) -> Iterator[Evaluation]:
    for path in paths:
        stages = stages_of_path(path, costs)
        yield from (evaluator.evaluate(options(stages)) for options in option_sets)


def multistart(evaluator: Evaluator, space: SearchSpace, drafts: Sequence[Evaluation], steps: int) -> None:
    """Everything that is judged stays with the evaluator.

    Args:
        drafts: best first.
        steps: of programs, about how many may be simulated: a round of new starts that has begun is not broken off.
    """
    objective, limit, part = evaluator.objective, evaluator.steps + steps, int(steps * ONE_START)

    def near(start: Evaluation) -> Evaluation:
        return improve_transfer_options(
            evaluator, local_search(evaluator, start, (), part, NEAR), space.option_sets, part
        )

    best, *others = _starts(drafts)
    best = near(best)
    for start in others:
        if evaluator.steps >= limit - (1 - NEAR_SHARE) * steps:
            break
        best = _better_of(near(start), best, objective)
    while evaluator.steps < limit:
        before = best
        for start in (*_around(evaluator, space, limit - evaluator.steps), *_unlike(evaluator, space, best)):
            best = _better_of(near(start), best, objective)
            if best is not before:
                break
        if best is before:
            best = local_search(evaluator, best, space.layouts, limit - evaluator.steps)
        if best is before:
            break


def _starts(drafts: Sequence[Evaluation]) -> list[Evaluation]:
    """The best; then the best of all cuts and device sets; then the rest."""
    kinds: dict[object, Evaluation] = {}
    for evaluated in drafts:
        kinds.setdefault(tuple((s.first, s.last, frozenset(s.regions)) for s in evaluated.plan.stages), evaluated)
    return list({id(evaluated): evaluated for evaluated in (*drafts[:BEST], *kinds.values(), *drafts)}.values())


def _around(evaluator: Evaluator, space: SearchSpace, steps: int) -> list[Evaluation]:
    """Paths over the layouts that the best plans have, and those with a row handed from one device to another."""
    objective, layers = evaluator.objective, evaluator.model.layers
    if not _kinds(objective, steps):
        return []
    own, near = dict[Layout, None](), dict[Layout, None]()
    for evaluated in _best_and_unlike(evaluator):
        for stage in evaluated.plan.stages:
            layout = layout_of(stage)
            if layout is not None:
                own[layout] = None
                near.update(dict.fromkeys(layout.shifted(layers[stage.last].rows)))
    most = MOST_UNORDERED // len(layers)
    costs = space.costs[0].on_layouts(list({**dict.fromkeys(alone(evaluator.profile)), **own, **near})[:most])
    return distinct(list(_clocked(evaluator, space, costs, steps)), objective)[:NEW_STARTS]


def _best_and_unlike(evaluator: Evaluator) -> list[Evaluation]:
    """The best; and the best of each of the best orders of the devices, stage by stage, without those."""
    ranked = distinct(list(evaluator.evaluated.values()), evaluator.objective)
    kinds: dict[object, Evaluation] = {}
    for evaluated in ranked:
        kinds.setdefault(tuple(tuple(stage.regions) for stage in evaluated.plan.stages), evaluated)
    best = {id(evaluated): evaluated for evaluated in ranked[:AROUND]}
    unlike = [evaluated for evaluated in kinds.values() if id(evaluated) not in best]
    return [*best.values(), *unlike[:AROUND]]


def _unlike(evaluator: Evaluator, space: SearchSpace, best: Evaluation) -> list[Evaluation]:
    """The same shares with other cuts and in other dresses, best first."""
    stages = best.plan.stages
    cuts = (stages, _layer_by_layer(stages), _joined(stages))
    found = [evaluator.evaluate(options(changed)) for changed in cuts for options in space.option_sets]
    others = {id(evaluated): evaluated for evaluated in found if evaluated is not best}
    return sorted(others.values(), key=lambda evaluated: evaluated.rank(evaluator.objective))


def _better_of(found: Evaluation, best: Evaluation, objective: Objective) -> Evaluation:
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
