"""Timelines: rates, joules by cause, idle time, the critical path, and files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import DEVICES, examples
from virtual import ROW_NBYTES, cases, chain, cluster, halos, layer_split, run

from coedge.config.sections import PowerConfig
from coedge.core.errors import PlanError
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from coedge.profile.profile import Medium, Profile
from coedge.simulation.simulator import simulate
from coedge.simulation.span import Span
from coedge.simulation.timeline import Timeline

WATTS = PowerConfig(idle_watts=100.0, compute_watts=3.0, transmit_watts=7.0, receive_watts=5.0)


def two_devices(frames: int = 1, **options: object) -> tuple[Timeline, Profile]:
    """a computes 8 s, sends 2 s, 0.25 s later b has it and computes 4 s: 14.25 s."""
    model = chain(2)
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 0.5}, rate=512.0, latency=0.25, power=WATTS, **options)  # type: ignore[arg-type]
    return run(layer_split(model, 1), profile, model, frames), profile


def answers(*stops: float) -> Timeline:
    return Timeline((), {frame: (0.0, stop) for frame, stop in enumerate(stops)}, measured=False)


def test_the_steady_rate_ignores_filling_and_emptying() -> None:
    # Rounds of two: two that fill, three of one per 5 s, one that empties.
    stream = answers(1, 2, 3, 4, 10, 14, 20, 24, 30, 34, 40, 41, 42)
    assert stream.steady_fps(2) == 6 / 30.0
    assert stream.throughput_fps == 12 / 41.0


def test_a_short_stream_is_taken_as_a_whole() -> None:
    assert answers(4, 5, 6).steady_fps(2) == answers(4, 5, 6).throughput_fps == 2 / 2.0
    assert answers(4.0).steady_fps(1) == 1 / 4.0
    assert answers().steady_fps(3) == answers().throughput_fps == 0.0


def test_utilisation_is_relative_to_the_makespan() -> None:
    media = (
        Medium(name="air", devices=("b",), bytes_per_second=1024.0),
        Medium(name="off", devices=(), bytes_per_second=1),
    )
    timeline, profile = two_devices(media=media)
    assert timeline.makespan_seconds == 14.25
    used = timeline.utilisation(profile)
    assert used.devices == {"a": 8 / 14.25, "b": 4 / 14.25}
    assert used.up_links == {"a": 2 / 14.25, "b": 0.0}
    assert used.down_links == {"a": 0.0, "b": 2 / 14.25}
    assert used.media == {"air": 1 / 14.25, "off": 0.0}
    assert timeline.idle_seconds() == {"a": 6.25, "b": 10.25}


def test_the_saturated_rate_follows_from_the_busiest_resource() -> None:
    one, profile = two_devices()
    assert one.saturated_fps(profile) == pytest.approx(1 / 8)
    plan, model = layer_split(chain(2), 1), chain(2)
    assert run(plan, profile, model, frames=25, in_flight=4).steady_fps(4) == pytest.approx(1 / 8)


@given(cases(), st.integers(1, 4), st.integers(1, 3))
def test_utilisation_is_at_most_one(case: tuple[Plan, Profile], frames: int, in_flight: int) -> None:
    plan, profile = case
    timeline = simulate(lower(plan, halos()), profile, halos(), frames, in_flight)
    used = timeline.utilisation(profile)
    # Unused computations could go on after the last answer; this network has none.
    for shares in (used.devices, used.up_links, used.down_links, used.media):
        assert all(0 <= share <= 1 + 1e-9 for share in shares.values())
    assert frames / timeline.makespan_seconds <= timeline.saturated_fps(profile) * (1 + 1e-9)
    busy = timeline.compute_seconds()
    for name, idle in timeline.idle_seconds().items():
        assert idle + busy.get(name, 0.0) == pytest.approx(timeline.makespan_seconds)


def test_joules_by_device_and_cause() -> None:
    timeline, profile = two_devices()
    found = {(item.device, item.cause): item.joules for item in timeline.energy(profile)}
    assert found == {
        ("a", "compute"): 3.0 * 8,
        ("a", "transmit"): 7.0 * 2,
        ("b", "compute"): 3.0 * 4,
        ("b", "receive"): 5.0 * 2,
    }
    assert timeline.energy_joules(profile) == sum(found.values())


def test_total_joules_include_the_idle_watts_of_used_devices() -> None:
    model = chain(2)
    profile = cluster(model, ("a", "b", "c"), rate=512.0, power=WATTS).model_copy(update={"joules": "total"})
    timeline = run(layer_split(model, 1), profile, model, frames=3)
    idle = {item.device: item.joules for item in timeline.energy(profile) if item.cause == "idle"}
    assert idle == {"a": 100.0 * 3 * 18, "b": 100.0 * 3 * 18}, "c has no part in it"
    dynamic = profile.model_copy(update={"joules": "dynamic"})
    assert timeline.energy_joules(profile) == pytest.approx(timeline.energy_joules(dynamic) + 2 * 100.0 * 18)


def test_joules_name_the_source_of_their_watts() -> None:
    model = chain(2)
    profile = cluster(model)
    metered = profile.devices[0].model_copy(update={"power_source": "RAPL"})
    profile = profile.model_copy(update={"devices": (metered, *profile.devices[1:])})
    sources = {item.device: item.source for item in run(layer_split(model, 1), profile, model).energy(profile)}
    assert sources == {"a": "RAPL watts, modelled", "b": "configured watts, modelled"}


@given(cases(), st.integers(1, 4))
def test_joules_add_up_over_equal_frames(case: tuple[Plan, Profile], frames: int) -> None:
    plan, profile = case
    programs = lower(plan, halos())
    one, several = (simulate(programs, profile, halos(), n) for n in (1, frames))
    items = several.energy(profile)
    assert len({(item.device, item.cause) for item in items}) == len(items)
    assert all(item.joules > 0 for item in items)
    assert several.energy_joules(profile) == pytest.approx(sum(i.joules for i in items) / frames)
    # One frame after the other, so not even idle watts differ.
    assert several.energy_joules(profile) == pytest.approx(one.energy_joules(profile))
    by_hand = sum(s.seconds * profile.by_name[s.device].power.compute_watts for s in one.spans if s.kind == "compute")
    for (sender, receiver), nbytes in one.sent_nbytes().items():
        watts = profile.by_name[sender].power.transmit_watts + profile.by_name[receiver].power.receive_watts
        by_hand += watts * nbytes / profile.link(sender, receiver).bytes_per_second
    if profile.joules == "total":
        by_hand += sum(profile.by_name[name].power.idle_watts for name in one.devices) * one.latency_seconds
    assert one.energy_joules(profile) == pytest.approx(by_hand)


def summary(path: Sequence[Span]) -> list[tuple[str, str, float, float]]:
    return [(span.device, span.kind, span.start_seconds, span.stop_seconds) for span in path]


def test_the_critical_path_of_a_layer_split() -> None:
    timeline, _ = two_devices()
    assert summary(timeline.critical_path()) == [
        ("a", "compute", 0.0, 8.0),
        ("a", "send", 8.0, 10.0),  # then 0.25 s of latency
        ("b", "compute", 10.25, 14.25),
        ("b", "answer", 14.25, 14.25),
    ]


def test_the_critical_path_of_a_stream_goes_through_the_frames_before() -> None:
    model = chain(2)
    profile = cluster(model, seconds_per_row={"a": 0.25, "b": 1.0}, rate=1024.0)
    timeline = run(layer_split(model, 1), profile, model, frames=3, in_flight=2)
    # Frame 2 was asked for when frame 0 was answered, at 2 + 1 + 8; b is busy with frame 1 until 19.
    assert timeline.answered[2] == (11.0, 27.0)
    path = timeline.critical_path(2)
    assert summary(path) == [("b", "compute", 11.0, 19.0), ("b", "compute", 19.0, 27.0), ("b", "answer", 27.0, 27.0)]
    assert [span.frame for span in path] == [1, 2, 2]


def test_a_message_that_queued_for_a_down_link_is_on_the_path() -> None:
    spans = (
        Span("a", 0, "send", "to c", 0.0, 2.0, 0, "c", 8, 1),
        Span("b", 0, "send", "to c", 0.0, 2.0, 0, "c", 8, 2),
        Span("c", 0, "receive", "from a", 1.0, 3.0, 0, "a", 8, 1, cause=0),
        Span("c", 0, "receive", "from b", 3.0, 5.0, 0, "b", 8, 2, cause=2),
        Span("c", 0, "answer", "answer", 5.0, 5.0, cause=3),
    )
    path = Timeline(spans, {0: (0.0, 5.0)}, measured=False).critical_path()
    assert path == (spans[0], spans[3], spans[4]), "from a: 1 s of latency; then from b"


def test_the_critical_path_of_an_unanswered_frame_is_an_error() -> None:
    timeline, _ = two_devices()
    with pytest.raises(PlanError, match="frame 5 was not answered"):
        timeline.critical_path(5)
    with pytest.raises(PlanError, match="0 frames"):
        answers().critical_path()


@given(cases(), st.integers(1, 5), st.integers(1, 4))
def test_spans_and_latencies_on_the_critical_path_add_up(
    case: tuple[Plan, Profile], frames: int, in_flight: int
) -> None:
    plan, profile = case
    timeline = simulate(lower(plan, halos()), profile, halos(), frames, in_flight)
    slack = 1e-9 * max(timeline.makespan_seconds, 1.0)
    for frame, (asked, answered) in timeline.answered.items():
        path = timeline.critical_path(frame)
        assert path[-1].kind == "answer" and path[-1].frame == frame and path[-1].stop_seconds == answered
        assert path[0].start_seconds == asked
        total = sum(span.seconds for span in path)
        for span, following in itertools.pairwise(path):
            gap = following.start_seconds - span.stop_seconds
            if span.kind == "send" and following.device == span.peer and following.kind != "send":
                latency = profile.link(span.device, span.peer).latency_seconds
                assert gap == pytest.approx(latency, abs=slack)
            elif span.kind == "send" and following.kind == "send" and following.device == span.peer and gap > slack:
                assert gap == pytest.approx(profile.link(span.device, span.peer).latency_seconds, abs=slack)
            else:
                assert gap == 0.0
            total += gap
        assert total == pytest.approx(answered - asked, abs=slack)


# As a cluster reports it: messages are taken when they arrive, and causes are not known.
MEASURED = (
    Span("a", 7, "receive", "from @client", 0.001, 0.001, -1, "@client", 8, 0),
    Span("a", 7, "compute", "conv 1", 0.0011, 0.0051, 0),
    Span("a", 7, "send", "to b", 0.0052, 0.0054, 1, "b", 8, 1),
    Span("a", 7, "compute", "conv 2", 0.0055, 0.0075, 1),
    Span("b", 7, "receive", "from a", 0.0090, 0.0090, 1, "a", 8, 1),
    Span("b", 7, "compute", "conv 2", 0.0091, 0.0191, 1),
    Span("b", 7, "send", "to a", 0.0192, 0.0193, 2, "a", 8, 2),
    Span("a", 7, "receive", "from b", 0.0220, 0.0220, 2, "b", 8, 2),
    Span("a", 7, "answer", "answer", 0.0221, 0.0222),
)


def test_the_critical_path_of_a_measurement_follows_from_its_times() -> None:
    timeline = Timeline(MEASURED, {7: (0.0, 0.0230)}, measured=True)
    path = timeline.critical_path(7)
    assert [(s.device, s.kind, s.label) for s in path] == [
        ("a", "receive", "from @client"),
        ("a", "compute", "conv 1"),
        ("a", "send", "to b"),
        ("b", "compute", "conv 2"),
        ("b", "send", "to a"),
        ("a", "answer", "answer"),
    ]


def test_a_busy_device_did_not_wait_for_a_message_that_had_arrived() -> None:
    """Rows of b are taken right after a long computation on a, so they waited for a."""
    late = [s._replace(stop_seconds=0.0300) if (s.device, s.label) == ("a", "conv 2") else s for s in MEASURED[:-2]]
    late.append(MEASURED[-2]._replace(start_seconds=0.03005, stop_seconds=0.03005))
    late.append(MEASURED[-1]._replace(start_seconds=0.0301, stop_seconds=0.0302))
    path = Timeline(tuple(late), {7: (0.0, 0.031)}, measured=True).critical_path(7)
    assert [(s.device, s.label) for s in path][-3:] == [("a", "to b"), ("a", "conv 2"), ("a", "answer")]


@given(cases(), st.integers(1, 3), st.floats(-1.0, 1.0))
def test_any_measurement_has_a_path_in_order(case: tuple[Plan, Profile], frames: int, skew: float) -> None:
    """The path is in order even if the clock of a device is off."""
    plan, profile = case
    timeline = simulate(lower(plan, halos()), profile, halos(), frames, in_flight=2)
    spans = tuple(
        s._replace(start_seconds=s.start_seconds + skew, stop_seconds=s.stop_seconds + skew)
        if s.device == DEVICES[1]
        else s
        for s in timeline.spans
    )
    for frame, (asked, _) in timeline.answered.items():
        path = Timeline(spans, timeline.answered, measured=True).critical_path(frame)
        assert path[-1].kind == "answer" and path[-1].frame == frame
        assert all(span.seconds >= 0 for span in path)
        assert all(span.stop_seconds <= after.start_seconds for span, after in itertools.pairwise(path))
        assert path[0].start_seconds >= min(asked, path[-1].start_seconds)


def test_a_saved_timeline_is_a_chrome_trace(tmp_path: Path) -> None:
    model = chain(2)
    timeline = run(layer_split(model, 1), cluster(model, rate=512.0), model, frames=2)
    path = tmp_path / "trace.json"
    timeline.save(path)
    trace = json.loads(path.read_text("utf-8"))
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert sorted(names.values()) == ["a", "b"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    complete = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(complete) == len(timeline.spans)
    for event, span in zip(complete, timeline.spans):
        assert (names[event["pid"]], event["cat"], event["name"]) == (span.device, span.kind, span.label)
        assert (event["ts"], event["dur"]) == (span.start_seconds * 1e6, span.seconds * 1e6)
        assert event["args"]["frame"] == span.frame and event["args"]["nbytes"] == span.nbytes
        assert threads[event["pid"], event["tid"]] == ("compute" if span.kind == "answer" else span.kind)


def test_arrows_lead_from_every_send_to_its_receive(tmp_path: Path) -> None:
    timeline, _ = two_devices(frames=3)
    timeline.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]
    spans = {(e["pid"], e["tid"], e["ts"]): e for e in events if e["ph"] == "X"}
    tails = {e["id"]: spans[e["pid"], e["tid"], e["ts"]] for e in events if e["ph"] == "s"}
    heads = {e["id"]: spans[e["pid"], e["tid"], e["ts"]] for e in events if e["ph"] == "f"}
    assert len(tails) == 3 and tails.keys() == heads.keys()
    for arrow, tail in tails.items():
        assert (tail["cat"], heads[arrow]["cat"]) == ("send", "receive")
        assert tail["args"]["frame"] == heads[arrow]["args"]["frame"]


@given(case=cases(), frames=st.integers(0, 3))
@settings(examples(30), suppress_health_check=[*HealthCheck])
def test_a_predicted_timeline_survives_a_file(tmp_path: Path, case: tuple[Plan, Profile], frames: int) -> None:
    plan, profile = case
    timeline = simulate(lower(plan, halos()), profile, halos(), frames, in_flight=2)
    timeline.save(tmp_path / "trace.json")
    assert Timeline.load(tmp_path / "trace.json") == timeline


def test_a_measured_timeline_survives_a_file(tmp_path: Path) -> None:
    timeline = Timeline(MEASURED, {7: (0.0, 0.023)}, True, 0.0004, {"a": 0.0, "b": -1234.5678901234567})
    timeline.save(tmp_path / "trace.json")
    assert Timeline.load(str(tmp_path / "trace.json")) == timeline


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"traceEvents": []}', '{"traceEvents": [{"ph": "X"}], "otherData": {}}', "\udcff"]
)
def test_the_error_names_a_file_that_is_not_a_timeline(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PlanError, match=r"other\.json is not a timeline that coedge saved"):
        Timeline.load(path)


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read the timeline .*none\.json"):
        Timeline.load(tmp_path / "none.json")


def test_the_bytes_of_a_row_are_counted_at_both_ends() -> None:
    timeline, _ = two_devices()
    messages = {span.kind: span for span in timeline.spans if span.peer}
    assert messages["send"].nbytes == messages["receive"].nbytes == 8 * ROW_NBYTES
    assert messages["send"].channel == messages["receive"].channel >= 0
