"""Estimates of networks without reference times, checked on reference networks that the estimate does not know."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coedge.profile import reference_times as module
from coedge.profile.border_saving import BorderSaving, fit_border_saving
from coedge.profile.estimate_error import EstimateError
from coedge.profile.layer_work import LayerCost
from coedge.profile.profile import LayerTime
from coedge.profile.reference_times import ESTIMATE_ERROR, ReferenceTimes, reference_models, reference_times


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that estimates a reference network from the others."""
    monkeypatch.setattr(module, "layer_costs", lambda model: model.costs)

    def estimate(name: str) -> ReferenceTimes:
        known = reference_models()
        stub: Any = SimpleNamespace(name=name, costs=[layer.cost for layer in known[name].layers])
        return reference_times(stub, {other: known[other] for other in known if other != name})

    return estimate


def test_networks_that_were_held_out_are_estimated_within_the_error(without: Any) -> None:
    errors = {name: without(name).seconds / model.seconds - 1 for name, model in reference_models().items()}
    print(", ".join(f"{name} {error:+.0%}" for name, error in errors.items()))
    sizes = [abs(error) for error in errors.values()]
    assert statistics.median(sizes) < min(ESTIMATE_ERROR.median, 0.05)
    assert np.quantile(sizes, 0.95) < min(ESTIMATE_ERROR.p95, 0.1)


def test_an_estimate_says_its_error(without: Any) -> None:
    times = without("mobilenet_v2")
    assert (times.like, times.error) == (None, ESTIMATE_ERROR)
    assert EstimateError(median=0.2, p95=0.45).brief == "±20%"
    assert str(EstimateError(median=0.2, p95=0.45)).endswith("at most 20% off, 19 of 20 at most 45%")


def test_the_fit_of_savings_recovers_a_machine_that_follows_it() -> None:
    machine = BorderSaving(6e-5, 5e-11, 0.45)
    networks = []
    for size in (1e5, 2e5, 4e5, 6e5, 9e5, 2e6):
        costs = [LayerCost("conv", "", 8, 1e6, size * index, 0) for index in range(1, 5)]
        times = [
            LayerTime(fixed_seconds=5e-5, seconds_per_row=(5e-11 * size + 3e-6) * index**3) for index in range(1, 5)
        ]
        fused = [*map(machine.fused, times[:-1], costs), times[-1]]
        networks.append((costs, [time.seconds(8) for time in times], sum(time.seconds(8) for time in fused)))
    saving = fit_border_saving(networks)
    assert (saving.seconds, saving.seconds_per_byte) == pytest.approx((6e-5, 5e-11), rel=1e-4)
    assert saving.least_share == pytest.approx(0.45, rel=1e-4)


def test_a_layer_keeps_part_of_its_time_inside_a_stage() -> None:
    saving = BorderSaving(1e-4, 0.0, 0.4)
    cost = LayerCost("conv", "", 10, 1e6, 1e5, 0)
    time = LayerTime(fixed_seconds=1e-4, seconds_per_row=9e-5)
    assert saving.fused(time, cost).seconds(10) == pytest.approx(9e-4)
    small = LayerTime(fixed_seconds=1e-5, seconds_per_row=1e-6)
    assert 0 < saving.fused(small, cost).seconds(10) < small.seconds(10)
    nothing = LayerTime(fixed_seconds=0, seconds_per_row=0)
    assert saving.fused(nothing, cost) == nothing
