"""Beam search, compared with all paths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import deep_after, examples

from benchmarks.instances import chain, small_profile
from coedge.core.objective import Objective
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import Evaluator
from orchestrator.search.beam_search import beam_paths
from orchestrator.search.layout import in_every_order
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.rounding import stages_of_path
from orchestrator.search.shortest_path import Path, Prices
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.transfer_options import TransferOptions

MOST = 40


def tables(seed: int, layers: int, rows: int, devices: int, layouts: int = 100) -> StageCosts:
    model = chain(seed, layers, rows)
    table = CostTable(model, small_profile(seed, model, devices))
    return StageCosts(table, ReceptiveFields(model), in_every_order(table, layouts))


def all_paths(costs: StageCosts) -> Iterator[Path]:
    for inner in itertools.product((False, True), repeat=costs.count - 1):
        cuts = [0, *(i + 1 for i, cut in enumerate(inner) if cut), costs.count]
        pairs = list(itertools.pairwise(cuts))
        for layouts in itertools.product(range(len(costs.layouts)), repeat=len(pairs)):
            if all(costs.allowed[first, stop, at] for (first, stop), at in zip(pairs, layouts)):
                yield tuple((first, stop, at) for (first, stop), at in zip(pairs, layouts))


@given(data=st.data())
@examples(10, 3)
def test_paths_go_from_the_first_layer_to_the_last_on_allowed_layouts(data: st.DataObject) -> None:
    seed, devices = data.draw(st.integers(0, 1000)), data.draw(st.integers(1, 4))
    costs = tables(seed, data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9)), devices)
    paths = beam_paths(costs, Prices(joule=data.draw(st.sampled_from((0.0, 0.1)))), MOST, data.draw(st.booleans()))
    assert 0 < len(paths) == len(set(paths)) <= MOST
    for path in paths:
        assert [0, *(stop for _, stop, _ in path)] == [*(first for first, _, _ in path), costs.count]
        assert all(costs.allowed[stage] for stage in path)


@pytest.mark.parametrize("joule", [0.0, 0.05])
@pytest.mark.parametrize("halo_first", [False, True])
@pytest.mark.parametrize("seed", deep_after(range(6), range(2)))
def test_the_best_path_is_near_the_best_of_all_paths(seed: int, halo_first: bool, joule: float) -> None:
    """Compare simulated costs. Beam search ignores that messages queue at their receiver."""
    costs = tables(seed, layers=3, rows=4, devices=2)
    objective = Objective(energy_weight=joule)
    evaluator = Evaluator(costs.model, costs.table.profile, objective)
    options = TransferOptions(costs.table, halo_first=halo_first)

    def cost(path: Path) -> float:
        return evaluator.evaluate(options(stages_of_path(path, costs))).rank(objective)[1]

    found = min(map(cost, beam_paths(costs, Prices(joule=joule), MOST, halo_first)))
    assert found <= (1.04 if halo_first else 1.02) * min(map(cost, all_paths(costs)))


def test_a_single_device_computes_everything() -> None:
    costs = tables(seed=1, layers=3, rows=4, devices=1)
    assert (((0, 3, 0),)) in beam_paths(costs, Prices(), MOST)
