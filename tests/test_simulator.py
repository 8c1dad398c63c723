"""The simulator: schedules worked out by hand, bounds that every schedule keeps, its timeline."""

from __future__ import annotations

import functools
import itertools
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import DEVICES, Net, make_plan, plans
from nets import one_stage as one_stage_plan

from coedge.capturing import capture
from coedge.config import PowerConfig
from coedge.errors import PlanError
from coedge.lowering import lower
from coedge.model import Model
from coedge.plan import Plan
from coedge.profile import DeviceProfile, LayerTime, Link, Profile, scaled
from coedge.program import Compute, Program, Receive, Send
from coedge.region import UNIT, UnitRect
from coedge.simulator import predict, send_nbytes, simulate
from coedge.timeline import Timeline

UPPER, LOWER = UnitRect(row_stop=0.5), UnitRect(row_start=0.5)


@functools.cache
def chain(layers: int = 2, rows: int = 8) -> Model:
    """Convolutions 1x1 with 4 channels each, on 8 columns: a layer's output has 128 bytes per row."""
    net = Net()
    x = net.input([1, 4, rows, 8])
    for _ in range(layers):
        x = net.op("Conv", x, net.weight(4, 4, 1, 1))
    model = capture(net.proto(x), name="chain")
    assert len(model.layers) == layers
    return model


@functools.cache
def halos() -> Model:
    """Convolutions 3x3, so that strips need rows of their neighbours, with a global mean at the end."""
    net = Net()
    x = net.input([1, 3, 16, 8])
    for _ in range(3):
        x = net.op("Conv", x, net.weight(3, 3, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(net.op("GlobalAveragePool", x)), name="halos")


ROW_NBYTES = 4 * 8 * 4


def cluster(
    model: Model,
    names: tuple[str, ...] = ("a", "b"),
    seconds_per_row: Mapping[str, float] | None = None,
    fixed_seconds: float = 0.0,
    rates: Mapping[tuple[str, str], float] | None = None,
    rate: float = 1000.0,
    latency: float = 0.0,
    fused: float = 1.0,
    power: PowerConfig | None = None,
) -> Profile:
    return Profile(
        model_name=model.name,
        model_hash=model.hash,
        source=names[0],
        devices=tuple(
            DeviceProfile(
                name=name,
                power=power or PowerConfig(),
                layers=(
                    time := LayerTime(
                        fixed_seconds=fixed_seconds, seconds_per_row=(seconds_per_row or {}).get(name, 1.0)
                    ),
                )
                * len(model.layers),
                fused=(scaled(time, fused),) * len(model.layers),
            )
            for name in names
        ),
        links=tuple(
            Link(
                sender=a,
                receiver=b,
                bytes_per_second=(rates or {}).get((a, b), rate),
                latency_seconds=latency,
            )
            for a in names
            for b in names
            if a != b
        ),
    )


def layer_split(model: Model, at: int, sink: str = "b") -> Plan:
    """The first `at` layers on a, the rest on b."""
    return make_plan(model, [(at, {"a": UNIT}), (len(model.layers) - at, {"b": UNIT})], "a", sink)


def run(plan: Plan, profile: Profile, model: Model, frames: int = 1, in_flight: int = 1) -> Timeline:
    return simulate(lower(plan, model), profile, model, frames, in_flight)


# ---------------------------------------------------------------- worked out by hand


def test_one_device_takes_the_sum_of_its_layers() -> None:
    model = chain(3)
    plan = make_plan(model, [(1, {"a": UNIT})] * 3, "a")
    profile = cluster(model, ("a",), {"a": 0.25}, fixed_seconds=2.0)
    timeline = run(plan, profile, model)
    assert timeline.latency_seconds == 3 * (2.0 + 8 * 0.25)
    assert timeline.compute_seconds() == {"a": 12.0}
    assert timeline.sent_nbytes() == {}


def test_layers_of_one_stage_take_their_fused_share() -> None:
    model = chain(3)
    profile = cluster(model, ("a",), {"a": 0.25}, fused=0.5)
    assert run(one_stage_plan(model, {"a": UNIT}, "a"), profile, model).latency_seconds == (0.5 + 0.5 + 1) * 8 * 0.25


def test_a_layer_split_computes_then_sends_then_computes() -> None:
    model = chain(2)
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 0.5}, rate=512.0, latency=0.25)
    timeline = run(layer_split(model, 1), profile, model)
    # a computes 8 rows in 8 s; 8 x 128 bytes take 2 s and arrive 0.25 s later; b computes 8 rows in 4 s.
    found = [(s.device, s.kind, s.start_seconds, s.stop_seconds, s.nbytes) for s in timeline.spans]
    assert found == [
        ("a", "compute", 0.0, 8.0, 0),
        ("a", "send", 8.0, 10.0, 8 * ROW_NBYTES),
        ("b", "compute", 10.25, 14.25, 0),
        ("b", "answer", 14.25, 14.25, 0),
    ]
    assert timeline.answered == {0: (0.0, 14.25)} and not timeline.measured


def test_an_answer_returns_to_the_sink_over_the_other_direction() -> None:
    model = chain(2)
    profile = cluster(model, rates={("a", "b"): 512.0, ("b", "a"): 1024.0}, latency=0.25)
    timeline = run(layer_split(model, 1, sink="a"), profile, model)
    assert timeline.latency_seconds == 8 + (2 + 0.25) + 8 + (1 + 0.25)


def test_strips_compute_side_by_side() -> None:
    model = chain(1)
    plan = one_stage_plan(model, {"a": UPPER, "b": LOWER}, "a")
    # b: 4 input rows at 512 bytes/s 1 s, compute 4 s, 4 output rows back 1 s. a computes 4 s meanwhile;
    # it sends first, as b waits for it.
    assert run(plan, cluster(model, rate=512.0), model).latency_seconds == 6.0


def test_one_sender_shares_its_up_link_between_receivers() -> None:
    model = chain(1)
    names = ("a", "b", "c")
    plan = one_stage_plan(model, {"b": UPPER, "c": LOWER}, "a")
    timeline = run(plan, cluster(model, names, rate=512.0), model)
    sends = sorted((s.start_seconds, s.stop_seconds) for s in timeline.spans if s.device == "a")[:2]
    assert sends == [(0.0, 1.0), (1.0, 2.0)]


def test_two_senders_share_the_down_link_of_their_receiver() -> None:
    model = chain(2)
    names = ("a", "b", "c")
    plan = make_plan(model, [(1, {"a": UPPER, "b": LOWER}), (1, {"c": UNIT})], "a", "c")
    # The input is on its way to b at 1e9 bytes/s, next to nothing; both then compute 4 rows in 4 s and send
    # them to c at 512 bytes/s each: 1 s on their own up-links, but 2 s until c has both.
    profile = cluster(model, names, rates={("a", "b"): 1e12}, rate=512.0)
    alone = make_plan(model, [(1, {"a": UPPER, "c": LOWER}), (1, {"c": UNIT})], "a", "c")
    start = {
        label: next(s.start_seconds for s in run(p, profile, model).spans if s.device == "c" and s.stage == 1)
        for label, p in (("both", plan), ("one", alone))
    }
    assert start["both"] == pytest.approx(6.0, abs=1e-6)
    # One sender: a's rows come at 5 s, and c has computed its own by then.
    assert start["one"] == pytest.approx(6.0 - 1.0, abs=1e-6)


def test_a_fast_receiver_takes_no_longer_than_its_sender() -> None:
    """Up-link and down-link of one transfer are passed at the same time, not one after the other."""
    model = chain(2)
    timeline = run(layer_split(model, 1), cluster(model, rate=512.0), model)
    assert timeline.latency_seconds == 8 + 2 + 8


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.5), (0.5, 1.0), (1.0, 1.0)])
def test_a_stream_is_as_fast_as_its_busier_device(a: float, b: float) -> None:
    model = chain(2)
    profile = cluster(model, seconds_per_row={"a": a, "b": b}, rate=1e9)
    plan = layer_split(model, 1)
    stream = run(plan, profile, model, frames=40, in_flight=4)
    assert len(stream.answered) == 40
    assert stream.throughput_fps == pytest.approx(1 / (8 * max(a, b)), rel=1e-6)
    # One at a time nothing overlaps.
    single = run(plan, profile, model, frames=40, in_flight=1)
    assert single.throughput_fps == pytest.approx(1 / (8 * (a + b)), rel=1e-6)


def test_a_stream_is_as_fast_as_its_slowest_link() -> None:
    model = chain(2)
    profile = cluster(model, seconds_per_row={"a": 0.1, "b": 0.1}, rate=512.0)
    stream = run(layer_split(model, 1), profile, model, frames=20, in_flight=4)
    assert stream.throughput_fps == pytest.approx(1 / 2.0, rel=1e-6)


def test_frames_are_answered_in_order_and_no_more_than_asked_for_are_under_way() -> None:
    model = chain(2)
    timeline = run(layer_split(model, 1), cluster(model), model, frames=12, in_flight=3)
    assert sorted(timeline.answered) == list(range(12))
    stops = [timeline.answered[frame][1] for frame in range(12)]
    assert stops == sorted(stops)
    for asked, answered in timeline.answered.values():
        assert asked < answered
        under_way = sum(start <= asked < stop for start, stop in timeline.answered.values())
        assert under_way <= 3


def test_energy_is_watts_times_busy_seconds_per_frame() -> None:
    model = chain(2)
    watts = PowerConfig(idle_watts=100.0, compute_watts=3.0, transmit_watts=7.0)
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 0.5}, rate=512.0, latency=9.0, power=watts)
    plan = layer_split(model, 1)
    expected = 3.0 * (8.0 + 4.0) + 7.0 * (8 * ROW_NBYTES / 512.0)
    for frames in (1, 5):
        timeline = run(plan, profile, model, frames, in_flight=2)
        assert timeline.energy_joules(profile) == pytest.approx(expected)
    assert predict(plan, lower(plan, model), profile, model).energy_joules == pytest.approx(expected)


def test_the_prediction_is_of_one_frame_and_of_a_stream() -> None:
    model = chain(2)
    plan, profile = layer_split(model, 1), cluster(model, rate=1e9)
    prediction = predict(plan, lower(plan, model), profile, model)
    assert prediction.latency_seconds == run(plan, profile, model).latency_seconds
    assert prediction.throughput_fps == pytest.approx(1 / 8.0, rel=1e-6)


def test_a_link_that_was_not_measured_is_named() -> None:
    model = chain(2)
    profile = cluster(model).model_copy(update={"links": ()})
    with pytest.raises(PlanError, match="no link from 'a' to 'b'"):
        run(layer_split(model, 1), profile, model)


def test_no_frames_take_no_time() -> None:
    model = chain(1)
    timeline = run(one_stage_plan(model, {"a": UNIT}, "a"), cluster(model), model, frames=0)
    assert (timeline.spans, timeline.latency_seconds, timeline.throughput_fps) == ((), 0.0, 0.0)


# ---------------------------------------------------------------- what holds for any plan


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, Profile]:
    model = halos()
    numbers = st.floats(0.001, 10.0)
    count = len(model.layers)
    times = st.lists(
        st.builds(LayerTime, fixed_seconds=numbers, seconds_per_row=numbers), min_size=count, max_size=count
    )
    profile = Profile(
        model_name=model.name,
        model_hash=model.hash,
        source=DEVICES[0],
        devices=tuple(
            DeviceProfile(
                name=name,
                layers=draw(times),
                fused=draw(times),
            )
            for name in DEVICES
        ),
        links=tuple(
            Link(
                sender=a, receiver=b, bytes_per_second=draw(st.floats(10.0, 1e5)),
                latency_seconds=draw(st.floats(0.0, 2.0)),
            )
            for a in DEVICES
            for b in DEVICES
            if a != b
        ),
    )  # fmt: skip
    return draw(plans(model)), profile


def planned_transfers(programs: Mapping[str, Program], model: Model) -> dict[tuple[str, str], int]:
    total: dict[tuple[str, str], int] = defaultdict(int)
    for name, program in programs.items():
        for step in program.steps:
            if isinstance(step, Send):
                total[name, step.peer] += send_nbytes(program, step, model)
    return dict(total)


@given(cases(), st.integers(1, 4), st.integers(1, 3))
def test_every_schedule_keeps_its_bounds(case: tuple[Plan, Profile], frames: int, in_flight: int) -> None:
    plan, profile = case
    model = halos()
    programs = lower(plan, model)
    timeline = simulate(programs, profile, model, frames, in_flight)
    again = simulate(programs, profile, model, frames, in_flight)
    assert (timeline.spans, timeline.answered) == (again.spans, again.answered)

    assert sorted(timeline.answered) == list(range(frames))
    end = max(stop for _, stop in timeline.answered.values())
    slack = 1e-9 * max(end, 1.0)

    # Nothing is lost: every computation and every byte of every frame.
    computed = timeline.compute_seconds()
    for name, program in programs.items():
        steps = [s for s in program.steps if isinstance(s, Compute)]
        seconds = frames * sum(profile.by_name[name].compute_seconds(s.work) for s in steps)
        assert computed.get(name, 0.0) == pytest.approx(seconds)
        spans = [s for s in timeline.spans if s.device == name and s.kind == "compute"]
        assert len(spans) == frames * len(steps)
    planned = planned_transfers(programs, model)
    assert timeline.sent_nbytes() == {pair: frames * nbytes for pair, nbytes in planned.items()}

    # No device computes twice at a time, no up-link carries two messages at a time.
    for name in programs:
        for kind in ("compute", "send"):
            spans = sorted(
                (s.start_seconds, s.stop_seconds) for s in timeline.spans if s.device == name and s.kind == kind
            )
            assert all(earlier[1] <= later[0] + slack for earlier, later in itertools.pairwise(spans))

    # Nobody is done before all that it must do, and nothing arrives faster than its links carry it.
    all_stop = max([end, *(s.stop_seconds for s in timeline.spans)])
    for seconds in computed.values():
        assert all_stop >= seconds - slack
    out: dict[str, float] = defaultdict(float)
    into: dict[str, float] = defaultdict(float)
    for (sender, receiver), nbytes in timeline.sent_nbytes().items():
        wire = nbytes / profile.link(sender, receiver).bytes_per_second
        out[sender] += wire
        into[receiver] += wire
    assert all(all_stop >= seconds - slack for seconds in out.values())
    answering = {plan.sink}
    assert all(end >= seconds - slack for name, seconds in into.items() if name in answering)
    check_causality(timeline, programs, profile)


def check_causality(timeline: Timeline, programs: Mapping[str, Program], profile: Profile) -> None:
    """A computation that reads what a message brings begins after the message has come."""
    starts = {(s.device, s.frame, s.stage): s.start_seconds for s in timeline.spans if s.kind == "compute"}
    arrivals: dict[tuple[str, int, str, int], float] = {}
    for span in timeline.spans:
        if span.kind == "send":
            latency = profile.link(span.device, span.peer).latency_seconds
            key = (span.peer, span.frame, span.device, span.stage)
            arrivals[key] = max(arrivals.get(key, 0.0), span.stop_seconds + latency)
    for (receiver, frame, sender, stage), arrived in arrivals.items():
        expected = any(
            isinstance(s, Receive) and (s.peer, s.stage) == (sender, stage) for s in programs[receiver].steps
        )
        assert expected
        if (receiver, frame, stage) in starts:
            assert starts[receiver, frame, stage] >= arrived * (1 - 1e-9)
        else:  # needed by nobody's computation: it is for the answer
            assert timeline.answered[frame][1] >= arrived * (1 - 1e-9)


@given(cases())
def test_latency_is_at_least_that_of_any_one_device_and_at_most_all_in_a_row(
    case: tuple[Plan, Profile],
) -> None:
    plan, profile = case
    model = halos()
    programs = lower(plan, model)
    timeline = simulate(programs, profile, model)
    # Every computation and transfer of this network is on a path to the answer.
    assert timeline.latency_seconds >= max(timeline.compute_seconds().values()) * (1 - 1e-9)
    serial = sum(timeline.compute_seconds().values())
    for span in timeline.spans:
        if span.kind == "send":
            link = profile.link(span.device, span.peer)
            serial += 2 * span.nbytes / link.bytes_per_second + link.latency_seconds
    assert timeline.latency_seconds <= serial * (1 + 1e-9)


@given(cases(), st.floats(1.1, 10.0))
def test_time_is_in_proportion(case: tuple[Plan, Profile], factor: float) -> None:
    """A cluster that is slower by a factor in all respects takes longer by just that factor."""
    plan, profile = case
    model = halos()
    slower = profile.model_copy(
        update={
            "devices": tuple(
                d.model_copy(
                    update={
                        "layers": tuple(
                            LayerTime(
                                fixed_seconds=t.fixed_seconds * factor,
                                seconds_per_row=t.seconds_per_row * factor,
                            )
                            for t in d.layers
                        )
                    }
                )
                for d in profile.devices
            ),
            "links": tuple(
                link.model_copy(
                    update={
                        "bytes_per_second": link.bytes_per_second / factor,
                        "latency_seconds": link.latency_seconds * factor,
                    }
                )
                for link in profile.links
            ),
        }
    )
    programs = lower(plan, model)
    before, after = (simulate(programs, p, model).latency_seconds for p in (profile, slower))
    assert after == pytest.approx(before * factor, rel=1e-6)


# ---------------------------------------------------------------- the timeline as a file


def test_a_saved_timeline_is_a_chrome_trace(tmp_path: Path) -> None:
    model = chain(2)
    timeline = run(layer_split(model, 1), cluster(model, rate=512.0), model, frames=2)
    path = tmp_path / "trace.json"
    timeline.save(path)
    trace = json.loads(path.read_text("utf-8"))
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert sorted(names.values()) == ["a", "b"]
    threads = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["name"] == "thread_name"}
    complete = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(complete) == len(timeline.spans)
    for event, span in zip(complete, timeline.spans):
        assert (names[event["pid"]], event["cat"], event["name"]) == (span.device, span.kind, span.label)
        assert (event["ts"], event["dur"]) == (span.start_seconds * 1e6, span.seconds * 1e6)
        assert event["args"]["frame"] == span.frame and event["args"]["nbytes"] == span.nbytes
        assert (event["pid"], event["tid"]) in threads
    assert trace["otherData"] == {"measured": False, "clock_uncertainty_seconds": 0.0}
