"""Devices are ranked and chosen by the rate that is left to them on a shared medium."""

from __future__ import annotations

import pytest
from test_algorithm_1 import chain, softmax_inside
from virtual import cluster

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.profile.profile import Medium, Profile
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.schemes.scheme import place_whole
from orchestrator.search.layout import nearest_devices

SLOW = Medium(name="air", devices=("b",), bytes_per_second=1.0)


def bed(model: Model, *media: Medium) -> Profile:
    """Device b is faster than c, and both are faster than the source."""
    return cluster(model, ("a", "b", "c"), {"a": 1000.0, "b": 1.0, "c": 2.0}, rate=1e9, media=media)


def test_the_nearest_device_is_not_behind_a_slow_medium() -> None:
    model = chain()
    assert nearest_devices(CostTable(model, bed(model)), 2) == ["a", "b"]
    assert nearest_devices(CostTable(model, bed(model, SLOW)), 2) == ["a", "c"]
    fast = SLOW.model_copy(update={"bytes_per_second": 1e10})
    assert nearest_devices(CostTable(model, bed(model, fast)), 2) == ["a", "b"]


@pytest.mark.parametrize("make", [chain, softmax_inside])
def test_layers_that_cannot_be_split_are_not_placed_behind_a_slow_medium(make) -> None:
    model = make()
    assert not all(layer.splittable for layer in model.layers)
    shares = {"a": 0.9, "b": 0.05, "c": 0.05}
    assert place_whole(model, bed(model), shares) == "b"
    assert place_whole(model, bed(model, SLOW), shares) == "c"


def test_a_sender_that_waits_for_the_medium_draws_no_power_meanwhile() -> None:
    """The least energy is that of the quickest device, whatever its medium."""
    model = chain()
    assert place_whole(model, bed(model, SLOW), {"a": 0.9, "b": 0.05, "c": 0.05}, Objective(goal="energy")) == "b"
