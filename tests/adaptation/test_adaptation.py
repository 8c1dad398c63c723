"""A stream over links that change: traces, and plans that follow what the frames show."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples
from virtual import cluster

from benchmarks.adaptation import Planner, follow, interval, losses, truths
from benchmarks.instances import chain
from benchmarks.traces import MOBILE_RATES, PAPER_RATES, TRACES, WALK_BOUNDS, mobile, random_walk, steps


@pytest.mark.parametrize("name", TRACES)
def test_equal_seeds_give_equal_traces(name: str) -> None:
    trace = TRACES[name](100, 1)
    assert len(trace) == 100 and trace == TRACES[name](100, 1)
    assert (trace != TRACES[name](100, 2)) == (name in ("random walk", "mobile"))


def test_traces_keep_to_their_rates() -> None:
    assert list(dict.fromkeys(steps(60)))[:5] == list(PAPER_RATES[:5]) and steps(60)[-1] == PAPER_RATES[-1]
    walk = random_walk(5_000)
    assert WALK_BOUNDS[0] <= min(walk) < 0.5 * max(walk) and max(walk) <= WALK_BOUNDS[1]
    network = mobile(5_000)
    assert 0.5 * MOBILE_RATES[0] < min(network) < max(network) < 2 * MOBILE_RATES[-1]


@given(count=st.integers(1, 200), seed=st.integers(0, 1000))
@examples(50)
def test_rates_are_positive(count: int, seed: int) -> None:
    assert all(len(trace(count, seed)) == count and min(trace(count, seed)) > 0 for trace in TRACES.values())


@pytest.fixture(scope="module")
def planner(brief_search: None) -> Planner:
    model = chain(1, layers=4, rows=48)
    speeds = {"a": 4e-4, "b": 2e-4, "c": 1e-4}
    return Planner(model, cluster(model, ("a", "b", "c"), speeds, rate=1e6, latency=1e-4), [0.2, 1.0, 5.0])


def test_adaptive_plans_reach_the_oracle_after_a_change(planner: Planner) -> None:
    frames, settled = 50, 20
    trace = steps(3 * frames, rates=(1e6, 1e5, 5e6))
    profiles = truths(planner, trace, 0)
    runs = {policy: follow(planner, trace, profiles, policy) for policy in ("static", "adaptive", "oracle")}
    assert losses([runs], "adaptive") < losses([runs], "static")
    for end in (frames, 2 * frames, 3 * frames):
        late = slice(end - settled, end)
        assert statistics.fmean(runs["adaptive"].seconds[late]) < 1.1 * statistics.fmean(runs["oracle"].seconds[late])
    assert 2 <= runs["adaptive"].switches <= 8 and runs["static"].switches == 0


def test_plans_stay_where_nothing_changes(planner: Planner) -> None:
    trace = [1e6] * 200
    profiles = truths(planner, trace, 3)
    assert follow(planner, trace, profiles, "adaptive").switches == 0


def test_intervals() -> None:
    assert interval([1.0]) == (1.0, 0.0)
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0 and half == pytest.approx(2.78 * 1.5811 / 5**0.5, rel=1e-3)
