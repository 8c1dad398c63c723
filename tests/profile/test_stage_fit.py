"""The fit of layer times to measured stages recovers known times and gives none below zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coedge.execution.program import Work
from coedge.profile.profile import DeviceProfile, LayerTime
from coedge.profile.stage_fit import MOST_UNLIKE, StageTime, fit_fused, fit_layers, like_in_time

ROWS = (4.0, 8.0, 16.0, 32.0)
NBYTES = (1000.0, 4000.0, 2000.0, 500.0, 8000.0, 3000.0)


def layer(fixed: float, per_row: float) -> LayerTime:
    return LayerTime(fixed_seconds=fixed, seconds_per_row=per_row)


LAYERS = tuple(layer(200e-6 + 10e-6 * i, (40 + 7 * i) * 1e-6) for i in range(len(NBYTES)))
OWN = range(len(LAYERS))


def stage_seconds(first: int, last: int, rows: float, u: float, v: float) -> float:
    inner = range(first, last)
    return sum(LAYERS[i].seconds(rows) for i in range(first, last + 1)) - sum(u + v * NBYTES[i] * rows for i in inner)


def stages(lengths: Sequence[int], u: float, v: float, rows: Sequence[float] = ROWS) -> list[StageTime]:
    found = []
    for length in lengths:
        for first in range(0, len(LAYERS) - length + 1, length):
            for r in rows:
                work = tuple(Work(i, r) for i in range(first, first + length))
                found.append(StageTime(work, stage_seconds(first, first + length - 1, r, u, v)))
    return found


def test_the_fit_recovers_layer_times() -> None:
    for found, true in zip(fit_layers(stages([1, 2], 1e-5, 1e-10), OWN), LAYERS):
        assert found.fixed_seconds == pytest.approx(true.fixed_seconds)
        assert found.seconds_per_row == pytest.approx(true.seconds_per_row)


def test_the_median_of_several_samples_counts() -> None:
    samples = [StageTime((Work(0, rows),), seconds) for rows in (1.0, 2.0) for seconds in (rows, rows, 100.0)]
    assert fit_layers(samples, [0])[0].seconds(4.0) == pytest.approx(4.0)


def test_layers_of_a_kind_share_their_samples() -> None:
    samples = [StageTime((Work(0, 1.0),), 3.0), StageTime((Work(1, 2.0),), 5.0)]
    first, second = fit_layers(samples, [0, 0])
    assert first == second and first.seconds(3.0) == pytest.approx(7.0)


def test_a_layer_with_another_time_than_its_kind_is_fitted_alone() -> None:
    """The third of five layers with equal shapes takes ten times as long; the last one is of another kind."""
    slow = {2: 10.0, 3: MOST_UNLIKE * 0.98}
    samples = [
        StageTime((Work(index, rows),), rows * slow.get(index, 1.0)) for index in range(6) for rows in (1.0, 4.0, 8.0)
    ]
    kinds = like_in_time(samples, [0, 0, 0, 0, 0, 5])
    assert kinds == [0, 0, 2, 0, 0, 5]
    times = fit_layers(samples, kinds)
    assert times[2].seconds(3.0) == pytest.approx(30.0) and times[0].seconds(3.0) == pytest.approx(3.0, rel=0.01)
    assert like_in_time(samples[:3], [0, 0]) == [0, 0], "a layer without samples stays with its kind"


def test_the_first_layer_of_a_kind_may_leave_it() -> None:
    samples = [StageTime((Work(index, 1.0),), 9.0 if index == 0 else 1.0) for index in range(4)]
    assert like_in_time(samples, [0, 0, 0, 0]) == [0, 1, 1, 1]


def test_a_layer_that_was_not_measured_takes_no_time() -> None:
    assert fit_layers([], [0]) == (layer(0, 0),)


@given(st.floats(0, 150e-6), st.floats(0, 2e-9))
def test_the_fit_recovers_the_cost_of_borders(u: float, v: float) -> None:
    fused = fit_fused(stages([2, 3], u, v), LAYERS, NBYTES, OWN)
    device = DeviceProfile(name="a", layers=LAYERS, fused=fused)
    for sample in stages([1, 2, 4, 6], u, v, rows=(5.0, 20.0)):
        assert device.compute_seconds(sample.work) == pytest.approx(sample.seconds, rel=1e-3)


def test_a_layer_that_gains_more_than_others_has_a_scale_of_its_own() -> None:
    """Layer 2 saves a third of its time where the next layer follows."""
    u, v, gain = 50e-6, 1e-10, 1 / 3
    samples = [
        StageTime(s.work, s.seconds - sum(gain * LAYERS[2].seconds(w.rows) for w in s.work[:-1] if w.layer == 2))
        for s in stages([2, 3, 6], u, v)
    ]
    device = DeviceProfile(name="a", layers=LAYERS, fused=fit_fused(samples, LAYERS, NBYTES, OWN))
    for sample in samples:
        assert device.compute_seconds(sample.work) == pytest.approx(sample.seconds, rel=0.1)
    assert device.fused[2].seconds(16) < 0.8 * fit_fused(stages([2, 3, 6], u, v), LAYERS, NBYTES, OWN)[2].seconds(16)


def test_one_disturbed_stage_has_no_effect() -> None:
    u, v = 50e-6, 1e-9
    samples = stages([2, 3], u, v)
    samples[3] = StageTime(samples[3].work, samples[3].seconds * 10)
    device = DeviceProfile(name="a", layers=LAYERS, fused=fit_fused(samples, LAYERS, NBYTES, OWN))
    for sample in stages([2, 3], u, v):
        assert device.compute_seconds(sample.work) == pytest.approx(sample.seconds, rel=0.1)


def test_without_longer_stages_nothing_is_saved() -> None:
    assert fit_fused(stages([1], 1e-5, 1e-9), LAYERS, NBYTES, OWN) == LAYERS


positive = st.floats(1e-9, 1.0)


@given(
    st.lists(st.builds(layer, st.floats(0, 1.0), st.floats(0, 1.0)), min_size=2, max_size=6),
    st.lists(st.tuples(st.integers(0, 4), st.integers(2, 6), st.integers(1, 64), positive), max_size=8),
    st.lists(st.floats(0, 1e6), min_size=6, max_size=6),
    st.booleans(),
)
def test_no_time_is_negative_or_infinite(
    layers: list[LayerTime], drawn: list[tuple[int, int, int, float]], nbytes: list[float], same: bool
) -> None:
    samples = [
        StageTime(tuple(Work(i, float(rows)) for i in range(first, first + length)), seconds)
        for first, length, rows, seconds in drawn
        if first + length <= len(layers)
    ]
    alike = [0 if same else i for i in range(len(layers))]
    for found in fit_fused(samples, layers, nbytes[: len(layers)], alike):
        assert 0 <= found.fixed_seconds < math.inf and 0 <= found.seconds_per_row < math.inf
