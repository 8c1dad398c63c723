"""Regions, and the input rows that output rows need, compared with brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import Net, examples, mosaic, session

from coedge.core.errors import PlanError
from coedge.core.region import UNIT, Interval, Region, UnitRect, check_cover
from coedge.frontend.capture import capture
from coedge.graph.axis_map import AxisMap, Linear, Mirror, Repeat, Same, Spread, Whole, Window
from coedge.plan.plan import strips

EXTENT = 7


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Draw a region; it may be empty or end before it starts."""
    edge = st.integers(0, EXTENT)
    return Region(draw(edge), draw(edge), draw(edge), draw(edge))


def pixels(region: Region) -> set[tuple[int, int]]:
    rows = range(region.row_start, region.row_stop)
    return set(itertools.product(rows, range(region.col_start, region.col_stop)))


@given(regions(), regions())
@examples(300)
def test_minus_is_set_difference_in_disjoint_parts(one: Region, other: Region) -> None:
    parts = one.minus(other)
    assert len(parts) <= 4
    assert not any(part.empty for part in parts)
    assert sum(part.area for part in parts) == len(pixels(one) - pixels(other))
    assert set().union(*map(pixels, parts)) == pixels(one) - pixels(other)


@given(regions(), regions())
@examples(300)
def test_intersection_hull_contains_and_area(one: Region, other: Region) -> None:
    common = one.intersection(other)
    assert pixels(common) == pixels(one) & pixels(other)
    assert common.empty == (not pixels(common))
    assert one.area == len(pixels(one))
    assert one.contains(other) == (pixels(other) <= pixels(one))
    assume(not one.empty and not other.empty)
    hull = one.hull(other)
    both = pixels(one) | pixels(other)
    assert (hull.row_start, hull.row_stop - 1) == (min(r for r, _ in both), max(r for r, _ in both))
    assert (hull.col_start, hull.col_stop - 1) == (min(c for _, c in both), max(c for _, c in both))


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(1, 40), st.integers(1, 9))
@examples(200)
def test_strips_partition_the_rows_of_every_tensor(inner: list[float], rows: int, cols: int) -> None:
    edges = [0.0, *sorted(inner), 1.0]
    got = [UnitRect(a, b).of_extent(rows, cols) for a, b in itertools.pairwise(edges)]
    assert [row for region in got for row in range(*region.rows)] == list(range(rows))
    assert all(region.cols == (0, cols) for region in got)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=7))
@examples(200)
def test_strips_follow_their_shares(shares: list[float]) -> None:
    assume(sum(shares) > 1e-6)
    rects = strips({str(i): share for i, share in enumerate(shares)})
    check_cover(rects.values())
    for share, rect in zip(shares, rects.values()):
        assert rect.row_stop - rect.row_start == pytest.approx(share / sum(shares), abs=1e-9)


@given(st.data(), st.integers(1, 6), st.integers(1, 20), st.integers(1, 20))
@examples(200)
def test_every_tiling_of_the_unit_square_partitions_every_tensor(
    data: st.DataObject, count: int, rows: int, cols: int
) -> None:
    names = [str(i) for i in range(count)]
    rects = mosaic(names, lambda n: data.draw(st.integers(0, n - 1)))
    check_cover(rects.values())
    owned = [pixels(rect.of_extent(rows, cols)) for rect in rects.values()]
    assert sum(map(len, owned)) == rows * cols
    assert set().union(*owned) == pixels(Region(0, rows, 0, cols))


@pytest.mark.parametrize(
    ("rects", "words"),
    [
        ([UnitRect(0, 0.5)], r"rows 0\.5000\.\.1\.0000.*belongs to no device"),
        ([], "belongs to no device"),
        ([UnitRect(0, 0.6), UnitRect(0.5, 1)], r"rows 0\.5000\.\.0\.6000.*belongs to 2 devices"),
        ([UNIT, UNIT], "belongs to 2 devices"),
        ([UnitRect(0, 0.5), UnitRect(0.5, 1, 0, 0.9)], r"columns 0\.9000\.\.1\.0000.*no device"),
        ([UnitRect(-0.1, 1)], "outside of the unit square"),
        ([UnitRect(0, 1.1)], "outside of the unit square"),
        ([UnitRect(0.6, 0.4)], "ends before it starts"),
        ([UnitRect(0, math.nan)], "not a number"),
        ([UnitRect(0, math.inf)], "not a number"),
    ],
)
def test_rectangles_that_do_not_cover_the_square_once_are_refused(rects: list[UnitRect], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        check_cover(rects)


def test_empty_rectangles_do_not_affect_the_cover() -> None:
    check_cover([UnitRect(0, 0.5), UnitRect(0.5, 0.5), UnitRect(0.5, 1), UnitRect(0.2, 0.2), UnitRect(1, 1)])


# ---------------------------------------------------------------- axis maps


def influence(net: Net, y: str, extent: int) -> np.ndarray:
    """Return [output row, input row]: whether the output row depends on the input row."""
    run = session(net.proto(y))
    images = np.zeros((extent, 1, extent, 1), np.float32)
    images[np.arange(extent), 0, np.arange(extent), 0] = 1
    felt = run.run(None, {"x": images})[0] - run.run(None, {"x": np.zeros_like(images)})[0]
    return np.abs(felt).max(axis=(1, 3)).T > 1e-7


def check_map(net: Net, y: str, extent: int, slack: int | None = 0) -> AxisMap:
    """Compare the row map of the last node of a captured column with the inputs that each output row depends on.

    Args:
        slack: rows on each side that a map may ask for beyond need. None: any number.
    """
    felt = influence(net, y, extent)
    model = capture(net.proto(y))
    (maps,) = model.rules[-1].maps.values()
    rows = maps[0]
    assert model.rules[-1].kind != "whole", model.rules[-1].why
    assert model.outputs[0].rows == len(felt)
    for start, stop in itertools.combinations(range(len(felt) + 1), 2):
        needs = rows.needs(Interval(start, stop))
        assert 0 <= needs.start < needs.stop <= extent
        really = np.flatnonzero(felt[start:stop].any(axis=0))
        if really.size:
            assert needs.start <= really[0] and really[-1] < needs.stop, f"rows {start}..{stop}: {needs}"
            if slack is not None:
                assert needs.start >= really[0] - slack and needs.stop <= really[-1] + 1 + slack
    return rows


def column(extent: int, opset: int = 20) -> Net:
    net = Net(opset)
    net.input((extent, 1, extent, 1))
    return net


@given(
    extent=st.integers(2, 14), kernel=st.integers(1, 7), stride=st.integers(1, 4), dilation=st.integers(1, 3),
    above=st.integers(0, 3), below=st.integers(0, 3),
)  # fmt: skip
@examples(80)
def test_window(extent: int, kernel: int, stride: int, dilation: int, above: int, below: int) -> None:
    reach = dilation * (kernel - 1) + 1
    assume(max(above, below) < reach <= extent + above + below)
    net = column(extent)
    weight = net.const(np.ones((1, 1, kernel, 1)))
    y = net.op("Conv", "x", weight, strides=[stride, 1], dilations=[dilation, 1], pads=[above, 0, below, 0])
    # A dilated window does not read the rows between its taps.
    assert isinstance(check_map(net, y, extent, slack=0 if dilation == 1 else None), Window)


@given(
    extent=st.integers(1, 10), kernel=st.integers(1, 6), stride=st.integers(1, 4), dilation=st.integers(1, 2),
    above=st.integers(0, 3), below=st.integers(0, 3), added=st.integers(0, 3),
)  # fmt: skip
@examples(80)
def test_transposed_window(
    extent: int, kernel: int, stride: int, dilation: int, above: int, below: int, added: int
) -> None:
    out = (extent - 1) * stride + dilation * (kernel - 1) + 1 + added - above - below
    assume(out >= 1 and added < stride and extent >= 2)
    net = column(extent)
    y = net.op(
        "ConvTranspose", "x", net.const(np.ones((1, 1, kernel, 1))), strides=[stride, 1],
        dilations=[dilation, 1], pads=[above, 0, below, 0], output_padding=[added, 0],
    )  # fmt: skip
    model = capture(net.proto(y))
    assume(model.rules[-1].kind != "whole")  # more rows added than a tile can add
    assert isinstance(check_map(net, y, extent, slack=2), Spread)


@given(st.integers(2, 9), st.integers(2, 4), st.sampled_from(["half_pixel", "pytorch_half_pixel", "asymmetric"]))
@examples(40)
def test_linear_resize(extent: int, factor: int, where: str) -> None:
    net = column(extent)
    y = net.resize("x", [1, 1, factor, 1], mode="linear", coordinate_transformation_mode=where)
    assert isinstance(check_map(net, y, extent, slack=1), Linear)


@given(st.integers(2, 9), st.integers(2, 4), st.booleans())
@examples(40)
def test_nearest_resize(extent: int, factor: int, centred: bool) -> None:
    net = column(extent)
    given: dict[str, Any] = {
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_ceil",
    }
    if not centred:
        given = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    y = net.resize("x", [1, 1, factor, 1], mode="nearest", **given)
    assert isinstance(check_map(net, y, extent), Repeat)


@given(st.integers(3, 9), st.integers(0, 2), st.integers(0, 2), st.sampled_from(["reflect", "edge"]))
@examples(60)
def test_mirroring_pad(extent: int, above: int, below: int, mode: str) -> None:
    assume(above or below)
    net = column(extent)
    y = net.op("Pad", "x", net.ints(0, 0, above, 0, 0, 0, below, 0), mode=mode)
    assert isinstance(check_map(net, y, extent, slack=None), Mirror)


@given(st.integers(4, 9), st.integers(-2, 4), st.integers(-2, 4))
@examples(40)
def test_constant_pad(extent: int, above: int, below: int) -> None:
    assume((above or below) and extent + above + below > 0)
    net = column(extent)
    y = net.op("Pad", "x", net.ints(0, 0, above, 0, 0, 0, below, 0))
    assert isinstance(check_map(net, y, extent), Window)


@given(st.integers(2, 12), st.integers(-12, 12), st.integers(-12, 14), st.integers(1, 3))
@examples(60)
def test_slice_with_a_step(extent: int, start: int, stop: int, step: int) -> None:
    left = range(extent)[start:stop:step]
    assume(len(left) > 1 and len(left) < extent)
    net = column(extent)
    check_map(net, net.slice("x", start, stop, 2, step), extent)


def test_row_local_and_whole() -> None:
    net = column(5)
    assert check_map(net, net.op("LeakyRelu", "x"), 5) == Same()
    assert Whole(5).needs(Interval(0, 1)) == (0, 5)


@pytest.mark.parametrize("maps", [[Window(9, 3, 1, 1, 1), Window(9, 5, 2, 1, 2), Repeat(4, 3), Spread(5, 3, 2, 1, 1)]])
def test_needs_grow_with_what_is_asked_for(maps: Sequence[AxisMap]) -> None:
    """The hull of the needs of two intervals lies in the needs of their hull."""
    for axis_map in maps:
        for a, b, c, d in itertools.product(range(8), repeat=4):
            if a < b and c < d:
                hull = axis_map.needs(Interval(a, b).hull(Interval(c, d)))
                both = axis_map.needs(Interval(a, b)).hull(axis_map.needs(Interval(c, d)))
                assert hull.start <= both.start and both.stop <= hull.stop
