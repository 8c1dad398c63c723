"""Edges of strips on whole rows: lowering, the search and the schemes round in the same way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import examples

from coedge.core.region import UnitRect, edge_to_row, edges_to_rows
from orchestrator.search.layout import Layout, in_proportion

NAMES = ("a", "b", "c", "d", "e")


def rows_of(layout: Layout, rows: int) -> list[int]:
    """Rows that lowering gives each device."""
    return [rect.of_extent(rows, 1).rows.length for rect in layout.regions.values()]


@pytest.mark.parametrize(("extent", "row"), [(1, 1), (3, 2), (5, 3), (7, 4)])
def test_the_middle_of_an_odd_extent_is_rounded_up(extent: int, row: int) -> None:
    assert edge_to_row(0.5, extent) == row
    assert UnitRect(0, 0.5, 0, 0.5).of_extent(extent, extent)[1::2] == (row, row)
    assert edges_to_rows(np.array([0.5]), np.array([float(extent)])) == [row]


@given(st.integers(1, 4096), st.data())
@examples(200)
def test_an_edge_on_a_row_is_that_row(extent: int, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, extent))
    assert edge_to_row(row / extent, extent) == row


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 500))
@examples(200)
def test_arrays_are_rounded_as_single_edges_are(edges: list[float], extent: int) -> None:
    expected = [edge_to_row(edge, extent) for edge in edges]
    assert list(edges_to_rows(np.array(edges), np.array(float(extent)))) == expected


@pytest.mark.parametrize(("giver", "taker", "expected"), [(0, 1, [2, 3]), (1, 0, [4, 1])])
def test_of_two_equal_strips_on_five_rows_one_row_is_handed_over(giver: int, taker: int, expected: list[int]) -> None:
    even = in_proportion({"a": 1.0, "b": 1.0})
    assert rows_of(even, 5) == [3, 2]
    moved = even.handed(giver, taker, 5)
    assert moved is not None
    assert rows_of(moved, 5) == expected


@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=5), st.integers(2, 60), st.data())
@examples(300)
def test_a_row_handed_over_is_exactly_one_row(shares: list[float], rows: int, data: st.DataObject) -> None:
    layout = in_proportion(dict(zip(NAMES, shares)))
    giver, taker = data.draw(st.permutations(range(len(shares))))[:2]
    before = rows_of(layout, rows)
    moved = layout.handed(giver, taker, rows)
    if before[giver] <= 1:
        assert moved is None
        return
    assume(all(before))
    assert moved is not None
    expected = list(before)
    expected[giver] -= 1
    expected[taker] += 1
    assert rows_of(moved, rows) == expected
