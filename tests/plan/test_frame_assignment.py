"""Frames are assigned to plans by weight."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples

from coedge.core.errors import PlanError
from coedge.plan.frame_assignment import assign_frames, frame_assignment

WEIGHTS = st.lists(
    st.one_of(st.integers(0, 9).map(float), st.floats(0, 1), st.sampled_from([1e-300, 0.1, 1 / 3, 1e9])),
    min_size=1,
    max_size=12,
).filter(any)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([1.0], [0, 0, 0]),
        ([0.5, 0.5], [0, 1, 0, 1]),
        ([0.0, 2.0], [1, 1, 1]),
        ([3.0, 1.0], [0, 0, 0, 1, 0, 0, 0, 1]),
        ([2.0, 1.0, 1.0], [0, 1, 0, 2, 0, 1, 0, 2]),
    ],
)
def test_assignments_worked_out_by_hand(weights: list[float], parts: list[int]) -> None:
    assert assign_frames(weights, len(parts)) == tuple(parts)


@given(WEIGHTS, st.integers(0, 200))
@examples(200)
def test_no_plan_is_ever_a_whole_frame_ahead_or_behind(weights: list[float], frames: int) -> None:
    total = sum(Fraction(w) for w in weights)
    counts = [0] * len(weights)
    for done, part in enumerate(assign_frames(weights, frames), 1):
        counts[part] += 1
        for count, weight in zip(counts, weights):
            assert abs(count - done * Fraction(weight) / total) < 1
    assert sum(counts) == frames


def test_weights_that_smooth_weighted_round_robin_assigns_too_unevenly() -> None:
    weights = [3, 1, 1, 25, 2, 1, 1, 25, 7]

    def furthest(parts: Sequence[int]) -> Fraction:
        counts, apart = [0] * len(weights), Fraction(0)
        for done, part in enumerate(parts, 1):
            counts[part] += 1
            apart = max(apart, *(abs(c - done * Fraction(w, sum(weights))) for c, w in zip(counts, weights)))
        return apart

    due, robin = [0] * len(weights), []
    for _ in range(sum(weights)):
        due = [d + w for d, w in zip(due, weights)]
        robin.append(due.index(max(due)))
        due[robin[-1]] -= sum(weights)
    assert furthest(robin) > 1 > furthest(assign_frames(weights, sum(weights)))


@given(WEIGHTS, st.integers(0, 50), st.integers(0, 50))
def test_a_longer_stream_begins_as_a_shorter_one(weights: list[float], frames: int, more: int) -> None:
    assert assign_frames(weights, frames + more)[:frames] == assign_frames(weights, frames)
    assert tuple(islice(frame_assignment(weights), frames)) == assign_frames(weights, frames)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [-1.0, 2.0], [float("nan")], [float("inf"), 1.0]])
def test_weights_that_are_negative_or_all_zero_are_refused(weights: list[float]) -> None:
    with pytest.raises(PlanError, match="weights >= 0"):
        assign_frames(weights, 3)
    with pytest.raises(PlanError):
        frame_assignment(weights)  # at once, not when the first frame is asked for
