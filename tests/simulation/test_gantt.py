"""Gantt charts, in files and in the terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples
from virtual import cases, chain, cluster, halos, layer_split, run

from coedge.core.errors import ConfigError
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation import gantt
from coedge.simulation.simulator import simulate
from coedge.simulation.span import Span
from coedge.simulation.timeline import Timeline


def two_devices(frames: int = 1, in_flight: int = 1) -> Timeline:
    """a computes 8 s, sends 2 s; b computes 10 s: 20 s."""
    model = chain(2)
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 1.25}, rate=512.0)
    return run(layer_split(model, 1), profile, model, frames, in_flight)


def test_a_lane_per_device_in_characters() -> None:
    # 50 characters: 3 for the name, 7 for the share, 40 for 20 s.
    assert gantt.text(two_devices(), width=50) == "\n".join(
        [
            "predicted: 20000 ms",
            "   0                               20000 ms   busy",
            "a  ████████████████>>>>····················    40%",
            "b  ················<<<<████████████████████    50%",
            "   █ compute   > send   < receive   · wait",
        ]
    )


def test_frames_of_a_stream_are_told_apart_by_their_last_digit() -> None:
    lines = gantt.text(two_devices(frames=12, in_flight=2), width=110).splitlines()
    assert lines[0].startswith("predicted: 12 frames, ") and lines[0].endswith(" frames/s")
    for line in lines[2:4]:
        assert re.sub(r"(\d)\1*|[<>·]", r"\1", line[3:103]) == "012345678901"
    assert "0-9 compute" in lines[-1]


def test_a_part_of_the_time() -> None:
    lines = gantt.text(two_devices(), 50, first_seconds=6.0, last_seconds=14.0).splitlines()
    assert lines[2] == "a  ██████████>>>>>>>>>>····················    25%"
    assert lines[3] == "b  ··········<<<<<<<<<<████████████████████    50%"


@given(cases(), st.integers(1, 4), st.integers(0, 200))
@examples(40)
def test_any_timeline_fits_its_width(case: tuple[Plan, Profile], frames: int, width: int) -> None:
    plan, profile = case
    timeline = simulate(lower(plan, halos()), profile, halos(), frames, in_flight=2)
    lines = gantt.text(timeline, width).splitlines()
    assert len(lines) == 3 + len(timeline.devices)
    lanes = lines[2:-1]
    assert {len(lane) for lane in lanes} == {max(width, 40)}
    assert [lane.split()[0] for lane in lanes] == list(timeline.devices)


def test_a_message_that_took_no_time_is_still_seen() -> None:
    spans = (
        Span("a", 3, "receive", "from b", 0.5, 0.5, peer="b"),
        Span("a", 3, "compute", "conv", 0.75, 1.0),
    )
    lane = gantt.text(Timeline(spans, {3: (0.0, 1.0)}, measured=True), 50).splitlines()
    assert lane[0] == "measured: 1000 ms"
    assert lane[2] == "a  ····················<·········██████████    25%"


def test_long_names_are_cut() -> None:
    name = "the-very-long-name-of-a-device"
    timeline = Timeline((Span(name, 0, "compute", "conv", 0.0, 1.0),), {0: (0.0, 1.0)}, measured=False)
    assert gantt.text(timeline, 60).splitlines()[2].startswith("the-very-long-n…  ███")


def test_a_png(tmp_path: Path) -> None:
    gantt.draw(two_devices(), tmp_path / "frame.png")
    data = (tmp_path / "frame.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > 2 * height > 400


def test_an_svg_names_devices_and_what_is_drawn(tmp_path: Path) -> None:
    gantt.draw(two_devices(), tmp_path / "frame.SVG")
    svg = (tmp_path / "frame.SVG").read_text("utf-8")
    assert svg.lstrip().startswith("<?xml")
    # Text is drawn as shapes, with the string in a comment beside each.
    said = re.findall(r"<!-- (.*?) -->", svg)
    assert {"a", "b", "ms", "compute", "send", "receive", "wait", "critical path"} <= set(said)
    assert "predicted: 20000 ms" in said


def test_a_stream_is_drawn_without_a_critical_path_and_with_two_shades(tmp_path: Path) -> None:
    gantt.draw(two_devices(frames=4, in_flight=2), tmp_path / "stream.svg")
    svg = (tmp_path / "stream.svg").read_text("utf-8")
    assert "critical path" not in svg
    assert {"#0072b2", "#56a5d8"} <= set(re.findall(r"fill: (#\w{6})", svg))


def test_a_long_stream_stays_a_small_picture(tmp_path: Path) -> None:
    """Spans that are too short to be seen are merged."""
    model = chain(2)
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 0.01}, rate=1e6)
    timeline = run(layer_split(model, 1), profile, model, frames=6000, in_flight=4)
    gantt.draw(timeline, tmp_path / "all.svg")
    assert (tmp_path / "all.svg").stat().st_size < 2_000_000
    gantt.draw(timeline, tmp_path / "part.svg", first_seconds=80.0, last_seconds=160.0)
    assert (tmp_path / "part.svg").stat().st_size < 200_000


@pytest.mark.parametrize("name", ["frame.jpg", "frame", "frame.png.txt"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        gantt.draw(two_devices(), tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("first", "last"), [(30.0, None), (5.0, 5.0), (9.0, 3.0), (-4.0, -1.0)])
def test_a_window_without_spans_is_refused(tmp_path: Path, first: float, last: float | None) -> None:
    with pytest.raises(ConfigError, match="from 0 to 20 s"):
        gantt.text(two_devices(), first_seconds=first, last_seconds=last)
    with pytest.raises(ConfigError, match="nothing happens between"):
        gantt.draw(two_devices(), tmp_path / "none.png", first, last)


def test_an_empty_timeline_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 spans"):
        gantt.text(Timeline((), {}, measured=False))


def test_drawing_leaves_no_global_state(tmp_path: Path) -> None:
    code = (
        "import sys, coedge.simulation.gantt as g\n"
        "from coedge.simulation.timeline import Timeline; from coedge.simulation.span import Span\n"
        "assert 'matplotlib' not in sys.modules\n"
        "t = Timeline((Span('a', 0, 'compute', 'conv', 0.0, 1.0),), {0: (0.0, 1.0)}, False)\n"
        f"g.draw(t, {str(tmp_path / 'x.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
