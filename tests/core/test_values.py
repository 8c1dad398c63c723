"""The relative difference of outputs."""

from __future__ import annotations

import numpy as np
import pytest

from coedge.core.values import relative_difference
from orchestrator.cli.models import difference

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("got", "expected", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([NAN, INF, 1.0], [NAN, INF, 1.0], 0.0),
        ([1.0, 2.0], [NAN, 2.0], INF),
        ([NAN, 2.0], [1.0, 2.0], INF),
        ([INF, 2.0], [-INF, 2.0], INF),
        ([NAN], [NAN], 0.0),
        ([1.0], [1.0, 1.0], INF),
        ([], [], 0.0),
    ],
)
def test_values_that_are_not_finite_must_be_the_same(got: list[float], expected: list[float], apart: float) -> None:
    a, b = np.array(got, np.float32), np.array(expected, np.float32)
    assert relative_difference(a, b) == apart
    assert difference({"y": [a]}, [b]) == apart


def test_the_largest_of_all_outputs_counts() -> None:
    one, two = np.ones(3, np.float32), np.full(3, 2, np.float32)
    assert difference((one, two), [one, one]) == 1.0
    assert difference((), []) == 0.0
