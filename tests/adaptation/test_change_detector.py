"""The change detector: few false alarms, lasting steps found in a few samples, any positive sample taken."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import deep_after, examples
from numpy.typing import NDArray

from orchestrator.adaptation.change_detector import MOST_RUNS, Change, ChangeDetector

WITHIN, SETTLED = 10, 15


def noise(seed: int, count: int, sigma: float, correlation: float = 0.0, outliers: float = 0.01) -> NDArray[np.float64]:
    """Return log-normal samples of level 1, some of them 3 to 10 times as large.

    Args:
        correlation: of the logarithm of a sample with the one before.
        outliers: share of the large ones.
    """
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(count)
    for index in range(1, count if correlation else 0):
        values[index] = correlation * values[index - 1] + math.sqrt(1 - correlation**2) * values[index]
    large = np.where(generator.random(count) < outliers, generator.uniform(3, 10, count), 1.0)
    return np.exp(sigma * values) * large


def changes(samples: Iterable[float], detector: ChangeDetector | None = None) -> list[tuple[int, Change]]:
    detector = detector or ChangeDetector()
    found = [(index, detector.update(float(sample))) for index, sample in enumerate(samples)]
    return [(index, change) for index, change in found if change is not None]


@pytest.mark.parametrize("seed", deep_after(range(10), [0]))
@pytest.mark.parametrize(
    ("sigma", "correlation"), deep_after([(0.05, 0.0), (0.1, 0.3), (0.2, 0.0), (0.2, 0.3)], [(0.05, 0.0), (0.2, 0.3)])
)
def test_there_is_at_most_one_false_alarm_in_ten_thousand_samples(sigma: float, correlation: float, seed: int) -> None:
    assert len(changes(noise(seed, 10_000, sigma, correlation))) <= 1


@pytest.mark.parametrize("length", [3, 4, 5, 6, 8, 12])
def test_a_level_that_returns_soon_is_believed_again(length: int) -> None:
    """The samples of before are then explained best by the old segment, with outliers in between."""
    samples = np.exp(0.01 * np.random.default_rng(length).standard_normal(240))
    samples[4 : 4 + length] *= 10.0
    detector = ChangeDetector(level=1.0)
    found = changes(samples, detector)
    assert [round(change.after) for _, change in found] == [10, 1] and found[1][0] < 4 + length + 2 * WITHIN
    assert detector.level == pytest.approx(1.0, rel=0.02) and detector.reported_level == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("seeds", deep_after([40, 200], [40]))
@pytest.mark.parametrize("factor", [1.3, 1 / 1.3, 3.0])
@pytest.mark.parametrize("sigma", [0.05, 0.1])
def test_a_lasting_step_is_noticed_soon_and_its_level_known(sigma: float, factor: float, seeds: int) -> None:
    before, noticed, known = 100, 0, 0
    for seed in range(seeds):
        samples = noise(seed, before + SETTLED, sigma)
        samples[before:] *= factor
        detector = ChangeDetector()
        found = [(index, change) for index, change in changes(samples, detector) if index >= before]
        noticed += any(index < before + WITHIN for index, _ in found)
        known += abs(detector.level / factor - 1) < 0.1
    assert noticed >= 0.95 * seeds and known >= 0.95 * seeds


@pytest.mark.parametrize("size", [0.01, 0.2, 5.0, 1000.0])
def test_one_outlier_is_no_change(size: float) -> None:
    samples = noise(0, 200, 0.05, outliers=0.0)
    samples[[50, 120, 160, 161]] *= size
    detector = ChangeDetector()
    assert changes(samples, detector) == []
    assert detector.level == pytest.approx(1, rel=0.03)


def test_a_change_tells_levels_and_samples() -> None:
    samples = np.concatenate([noise(1, 100, 0.02, outliers=0), 2 * noise(2, 30, 0.02, outliers=0)])
    ((index, change),) = changes(samples)
    assert change.before == pytest.approx(1, rel=0.02) and change.after == pytest.approx(2, rel=0.05)
    assert change.factor == change.after / change.before
    assert index - change.samples + 1 == 100


def test_small_steps_are_followed_but_not_reported_until_they_add_up() -> None:
    detector = ChangeDetector(hysteresis=0.15)
    steps = [level * noise(seed, 60, 0.02, outliers=0) for seed, level in enumerate([1, 1.08, 1.16, 1.24])]
    assert changes(steps[0], detector) == changes(steps[1], detector) == []
    assert detector.level == pytest.approx(1.08, rel=0.02) and detector.reported_level == pytest.approx(1, rel=0.02)
    ((_, change),) = changes(np.concatenate(steps[2:]), detector)
    assert change.before == pytest.approx(1, rel=0.02)
    assert change.after > 1.15


@pytest.mark.parametrize("dwell", [1, 10, 40])
def test_reports_keep_their_distance(dwell: int) -> None:
    levels = np.repeat([1, 2, 1, 2, 1, 2, 1, 2], 8)
    found = [index for index, _ in changes(levels * noise(3, 64, 0.03, outliers=0), ChangeDetector(dwell=dwell))]
    assert found and min(np.diff(found), default=dwell) >= dwell


def test_a_change_back_within_the_dwell_is_not_reported() -> None:
    samples = np.concatenate([np.ones(50), np.full(8, 2.0), np.ones(50)]) * noise(4, 108, 0.02, outliers=0)
    reported = changes(samples, ChangeDetector(dwell=200))
    assert len(reported) == 1  # the first one; the way back comes within 200 samples


def test_an_expected_level_counts_as_the_first_segment() -> None:
    expecting, without = ChangeDetector(level=1.0), ChangeDetector()
    assert expecting.level == expecting.reported_level == 1.0 and math.isnan(without.level)
    samples = 1.5 * noise(5, 30, 0.05)
    ((index, change),) = changes(samples, expecting)
    assert change.before == 1.0 and change.after == pytest.approx(1.5, rel=0.1) and index < WITHIN
    assert changes(samples, without) == []
    assert changes(1.05 * noise(6, 300, 0.05), ChangeDetector(level=1.0)) == []


def test_what_is_no_sample_is_ignored() -> None:
    detector = ChangeDetector()
    assert changes([0.0, -1.0, math.nan, math.inf], detector) == [] and detector.samples == 0
    detector.update(3.0)
    assert detector.level == pytest.approx(3.0)


@pytest.mark.parametrize("wrong", [{"dwell": 0}, {"hysteresis": -0.1}, {"hysteresis": math.nan}, {"level": 0.0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ChangeDetector(**wrong)  # type: ignore[arg-type]


streams = st.lists(st.tuples(st.floats(0.1, 10.0), st.integers(1, 30)), min_size=1, max_size=4)


def stream(segments: Sequence[tuple[float, int]], seed: int = 0) -> NDArray[np.float64]:
    levels = np.concatenate([np.full(count, level) for level, count in segments])
    return levels * noise(seed, len(levels), 0.05)


@given(segments=streams, exponent=st.integers(-12, 12))
@examples(100, 15)
def test_the_unit_of_the_samples_does_not_matter(segments: list[tuple[float, int]], exponent: int) -> None:
    one, other = ChangeDetector(), ChangeDetector()
    scale = 10.0**exponent
    samples = stream(segments)
    found, scaled = changes(samples, one), changes(samples * scale, other)
    assert [index for index, _ in found] == [index for index, _ in scaled]
    assert other.level == pytest.approx(one.level * scale, rel=1e-5)
    for (_, change), (_, same) in zip(found, scaled):
        assert same.factor == pytest.approx(change.factor, rel=1e-5) and same.samples == change.samples


@given(segments=streams)
@examples(100, 15)
def test_levels_stay_among_the_samples(segments: list[tuple[float, int]]) -> None:
    detector, samples = ChangeDetector(), stream(segments)
    for count, sample in enumerate(samples, 1):
        change = detector.update(float(sample))
        slack = 1.1
        assert samples[:count].min() / slack <= detector.level <= samples[:count].max() * slack
        assert change is None or abs(math.log(change.factor)) >= math.log(1.15)


@given(samples=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200), known=st.booleans())
@examples(200, 30)
def test_no_sample_makes_a_level_useless(samples: list[float], known: bool) -> None:
    detector = ChangeDetector(level=1.0 if known else None)
    for sample in samples:
        detector.update(sample)
    if known or detector.samples:
        assert 0 < detector.level < math.inf and 0 < detector.reported_level < math.inf
        assert 0 < detector.noise < math.inf


def test_memory_is_bounded_and_the_current_segment_is_kept() -> None:
    detector = ChangeDetector()
    assert changes(noise(7, 3_000, 0.1), detector) == []
    assert detector._runs.shape[1] == MOST_RUNS + 1 and detector.samples == 3_000


@pytest.mark.clock
def test_a_sample_takes_little_time() -> None:
    detector, samples = ChangeDetector(), noise(8, 2_000, 0.1).tolist()
    fastest = math.inf
    for start in range(0, len(samples), 250):
        began = time.process_time()
        changes(samples[start : start + 250], detector)
        fastest = min(fastest, (time.process_time() - began) / 250)
    assert fastest < 1e-4
