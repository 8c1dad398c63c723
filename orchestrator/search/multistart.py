"""Multistart local search, for small networks: their plans are simulated quickly, and one row matters.

1  drafts    the cheapest path through every (cut, layout), and beam search over strips in every order
2  starts    local search from many drafts of different cuts and devices
3  restarts  the best plan with other cuts and transfer options, and beam search over the layouts of the best plans
             with one row moved
4  all kinds of changes to the best plan
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from coedge.core.objective import Objective
from coedge.plan.plan import Stage
from orchestrator.evaluation.evaluator import Evaluation, Evaluator, distinct
from orchestrator.search.beam_search import beam_paths
from orchestrator.search.layout import Layout, alone, layout_of
from orchestrator.search.local_search import NEAR, better_of, improve_transfer_options, local_search
from orchestrator.search.rounding import stages_of_path
from orchestrator.search.shortest_path import TRANSFERS, Path, Prices, prices_of, shortest_paths
from orchestrator.search.space import MOST_UNORDERED, SearchSpace
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.transfer_options import TransferOptions

# Paths per price of a transfer.
PATHS = 60
# Part of the program steps for the starts, and the limit for one of them.
NEAR_SHARE, ONE_START = 0.3, 1 / 24
# This number of the best drafts are starts whatever their cuts.
BEST = 3
# Number of best plans, and of best plans with other orders of devices, whose layouts the restarts use; and number of
# restarts from paths.
AROUND, NEW_STARTS = 8, 12
# Price of a transfer and halo first of each beam search, and the program steps that one is worth.
BEAM_SEARCHES, BEAM_STEPS = ((1.0, True), (1.0, False), (2.0, True)), 6000


def more_drafts(evaluator: Evaluator, space: SearchSpace, steps: int) -> Iterator[Evaluation]:
    """Yield plans of many paths, with all transfer options.

    Args:
        steps: number of program steps that may be simulated from here on. If it is low, fewer beam searches run.
    """
    for costs in space.costs:
        for prices in prices_of(evaluator.objective, TRANSFERS):
            yield from _evaluated(evaluator, costs, shortest_paths(costs, prices, PATHS), space.option_sets)
    for costs in space.unordered:
        yield from _beam_drafts(evaluator, space, costs, steps)


def multistart(evaluator: Evaluator, space: SearchSpace, drafts: Sequence[Evaluation], steps: int) -> None:
    """Search from many drafts. All evaluations stay with the evaluator.

    Args:
        drafts: best first.
        steps: number of program steps that may be simulated, approximately: a round of restarts is not interrupted.
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
        best = better_of(near(start), best, objective)
    while evaluator.steps < limit:
        before = best
        for start in (*_around(evaluator, space, limit - evaluator.steps), *_recut(evaluator, space, best)):
            best = better_of(near(start), best, objective)
            if best is not before:
                break
        if best is before:
            best = local_search(evaluator, best, space.layouts, limit - evaluator.steps)
        if best is before:
            break


def _beam_drafts(evaluator: Evaluator, space: SearchSpace, costs: StageCosts, steps: int) -> Iterator[Evaluation]:
    objective = evaluator.objective
    for transfer, halo_first in _beam_searches(objective, steps):
        prices = Prices(joule=objective.energy_weight, transfer=transfer)
        option_sets = [options for options in space.option_sets if options.halo_first == halo_first]
        yield from _evaluated(evaluator, costs, beam_paths(costs, prices, PATHS, halo_first), option_sets)


def _beam_searches(objective: Objective, steps: int) -> Sequence[tuple[float, bool]]:
    """Return the beam searches that the steps allow; none for the goal of energy, where time has no price."""
    return () if objective.goal == "energy" else BEAM_SEARCHES[: steps // BEAM_STEPS]


def _evaluated(
    evaluator: Evaluator, costs: StageCosts, paths: Iterable[Path], option_sets: Sequence[TransferOptions]
) -> Iterator[Evaluation]:
    for path in paths:
        stages = stages_of_path(path, costs)
        yield from (evaluator.evaluate(options(stages)) for options in option_sets)


def _starts(drafts: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the best drafts, then the best one of every structure (cuts and device sets), then the others."""
    structures: dict[object, Evaluation] = {}
    for draft in drafts:
        structures.setdefault(tuple((s.first, s.last, frozenset(s.regions)) for s in draft.plan.stages), draft)
    return list({id(draft): draft for draft in (*drafts[:BEST], *structures.values(), *drafts)}.values())


def _around(evaluator: Evaluator, space: SearchSpace, steps: int) -> list[Evaluation]:
    """Return plans of beam search over the layouts of the best plans, also with one row moved between devices."""
    objective, layers = evaluator.objective, evaluator.model.layers
    if not _beam_searches(objective, steps):
        return []
    own, shifted = dict[Layout, None](), dict[Layout, None]()
    for evaluated in _best_and_other_orders(evaluator):
        for stage in evaluated.plan.stages:
            layout = layout_of(stage)
            if layout is not None:
                own[layout] = None
                shifted.update(dict.fromkeys(layout.shifted(layers[stage.last].rows)))
    most = MOST_UNORDERED // len(layers)
    layouts = list({**dict.fromkeys(alone(evaluator.profile.names)), **own, **shifted})[:most]
    costs = space.costs[0].on_layouts(layouts)
    return distinct(list(_beam_drafts(evaluator, space, costs, steps)), objective)[:NEW_STARTS]


def _best_and_other_orders(evaluator: Evaluator) -> list[Evaluation]:
    """Return the best plans, and the best plan of each of the best orders of devices that are not among them."""
    ranked = distinct(list(evaluator.evaluated.values()), evaluator.objective)
    orders: dict[object, Evaluation] = {}
    for evaluated in ranked:
        orders.setdefault(tuple(tuple(stage.regions) for stage in evaluated.plan.stages), evaluated)
    best = {id(evaluated): evaluated for evaluated in ranked[:AROUND]}
    others = [evaluated for evaluated in orders.values() if id(evaluated) not in best]
    return [*best.values(), *others[:AROUND]]


def _recut(evaluator: Evaluator, space: SearchSpace, best: Evaluation) -> list[Evaluation]:
    """Return the best plan's shares with other cuts and all transfer options, best first."""
    stages = best.plan.stages
    cuts = (stages, _layer_by_layer(stages), _merged(stages))
    candidates = [evaluator.evaluate(options(changed)) for changed in cuts for options in space.option_sets]
    others = {id(evaluated): evaluated for evaluated in candidates if evaluated is not best}
    return sorted(others.values(), key=lambda evaluated: evaluated.rank(evaluator.objective))


def _layer_by_layer(stages: Sequence[Stage]) -> list[Stage]:
    """Make every layer a stage of its own, with the same regions."""
    return [
        Stage(first=layer, last=layer, regions=stage.regions)
        for stage in stages
        for layer in range(stage.first, stage.last + 1)
    ]


def _merged(stages: Sequence[Stage]) -> list[Stage]:
    """Merge consecutive stages with the same regions."""
    merged: list[Stage] = []
    for stage in stages:
        if merged and merged[-1].regions == stage.regions:
            merged[-1] = merged[-1].model_copy(update={"last": stage.last})
        else:
            merged.append(stage)
    return merged
