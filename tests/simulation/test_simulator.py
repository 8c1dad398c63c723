"""The simulator: schedules worked out by hand, and bounds that every schedule keeps."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import make_plan
from nets import one_stage as one_stage_plan
from virtual import LOWER, ROW_NBYTES, UPPER, cases, chain, cluster, halos, layer_split, run

from coedge.core.errors import PlanError
from coedge.core.region import UNIT, Region
from coedge.execution.program import (
    CLIENT,
    Answer,
    Compute,
    Part,
    Patch,
    Program,
    Read,
    Receive,
    Send,
    Step,
    Tile,
    Work,
)
from coedge.graph.model import Model
from coedge.plan.frame_assignment import assign_frames
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from coedge.profile.profile import Medium, Profile, scaled
from coedge.simulation.simulator import credits_of, simulate, simulate_mixture
from coedge.simulation.step_costs import message_nbytes
from coedge.simulation.timeline import Timeline


def times(timeline: Timeline, device: str, kind: str) -> list[tuple[float, float]]:
    """Return the spans of one kind on a device, as (start, stop), in order."""
    return sorted((s.start_seconds, s.stop_seconds) for s in timeline.spans if (s.device, s.kind) == (device, kind))


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
        ("b", "receive", 8.25, 10.25, 8 * ROW_NBYTES),
        ("b", "compute", 10.25, 14.25, 0),
        ("b", "answer", 14.25, 14.25, 0),
    ]
    assert timeline.answered == {0: (0.0, 14.25)} and not timeline.measured


def test_rows_return_to_the_sink_over_the_other_direction_of_the_link() -> None:
    model = chain(2)
    profile = cluster(model, rates={("a", "b"): 512.0, ("b", "a"): 1024.0}, latency=0.25)
    timeline = run(layer_split(model, 1, sink="a"), profile, model)
    assert timeline.latency_seconds == 8 + (2 + 0.25) + 8 + (1 + 0.25)


def test_a_message_occupies_the_devices_at_its_ends() -> None:
    """1 s to send and 2 s to receive, of 4 rows of 128 bytes at 1000 bytes/s."""
    model = chain(2)
    programs = lower(make_plan(model, [(1, {"a": UNIT}), (1, {"b": UNIT})], "a", "b"), model)
    before = simulate(programs, cluster(model), model).latency_seconds
    busy = {"a": {"send_seconds": 1.0}, "b": {"receive_seconds": 2.0}}
    devices = tuple(device.model_copy(update=busy[device.name]) for device in cluster(model).devices)
    after = simulate(programs, cluster(model).model_copy(update={"devices": devices}), model)
    assert after.latency_seconds == pytest.approx(before + 3.0)


def test_latency_includes_the_client() -> None:
    model = chain(2)
    programs = lower(make_plan(model, [(2, {"a": UNIT})], "a"), model)
    before = simulate(programs, cluster(model, ("a",)), model).latency_seconds
    away = cluster(model, ("a",)).model_copy(update={"client_seconds": 0.5})
    assert simulate(programs, away, model).latency_seconds == pytest.approx(before + 0.5)


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
    assert times(timeline, "a", "send")[:2] == [(0.0, 1.0), (1.0, 2.0)]


def test_two_senders_share_the_down_link_of_their_receiver() -> None:
    model = chain(2)
    names = ("a", "b", "c")
    plan = make_plan(model, [(1, {"a": UPPER, "b": LOWER}), (1, {"c": UNIT})], "a", "c")
    # The input is on its way to b at 1e9 bytes/s, next to nothing; both then compute 4 rows in 4 s and send
    # them to c at 512 bytes/s each: 1 s on their own up-links, but 2 s until c has both.
    profile = cluster(model, names, rates={("a", "b"): 1e12}, rate=512.0)
    alone = make_plan(model, [(1, {"a": UPPER, "c": LOWER}), (1, {"c": UNIT})], "a", "c")
    start = {
        label: next(start for start, _ in times(run(p, profile, model), "c", "compute") if start > 4.0)
        for label, p in (("both", plan), ("one", alone))
    }
    assert start["both"] == pytest.approx(6.0, abs=1e-6)
    # One sender: a's rows come at 5 s, and c has computed its own by then.
    assert start["one"] == pytest.approx(6.0 - 1.0, abs=1e-6)


def test_a_faster_down_link_does_not_delay_a_message() -> None:
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


def test_a_stream_is_as_fast_as_its_slower_half() -> None:
    model = chain(2)
    plan, profile = layer_split(model, 1), cluster(model, rate=1e9)
    in_flight = credits_of(len(profile.devices))
    timeline = simulate(lower(plan, model), profile, model, 6 * in_flight + 1, in_flight)
    assert timeline.steady_fps(in_flight) == pytest.approx(1 / 8.0, rel=1e-6)


def test_the_error_names_a_link_that_was_not_measured() -> None:
    model = chain(2)
    profile = cluster(model).model_copy(update={"links": ()})
    with pytest.raises(PlanError, match="no link from 'a' to 'b'"):
        run(layer_split(model, 1), profile, model)


def test_zero_frames_give_an_empty_timeline() -> None:
    model = chain(1)
    timeline = run(one_stage_plan(model, {"a": UNIT}, "a"), cluster(model), model, frames=0)
    assert (timeline.spans, timeline.latency_seconds, timeline.throughput_fps) == ((), 0.0, 0.0)


def planned_transfers(programs: Mapping[str, Program], model: Model) -> dict[tuple[str, str], int]:
    total: dict[tuple[str, str], int] = defaultdict(int)
    for name, program in programs.items():
        for step in program.steps:
            if isinstance(step, Send):
                total[name, step.peer] += message_nbytes(program, step, model)
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

    # Every computation and every byte of every frame is in the timeline.
    computed = timeline.compute_seconds()
    for name, program in programs.items():
        steps = [s for s in program.steps if isinstance(s, Compute)]
        seconds = frames * sum(profile.by_name[name].compute_seconds(s.work) for s in steps)
        assert computed.get(name, 0.0) == pytest.approx(seconds)
        spans = [s for s in timeline.spans if s.device == name and s.kind == "compute"]
        assert len(spans) == frames * len(steps)
    planned = planned_transfers(programs, model)
    assert timeline.sent_nbytes() == {pair: frames * nbytes for pair, nbytes in planned.items()}

    # A device runs one step, and a link or medium carries one message, at a time.
    for name in programs:
        for kind in ("compute", "send", "receive"):
            assert_apart(times(timeline, name, kind), slack)
    for medium in profile.media:
        carried = [
            (s.start_seconds, s.start_seconds + s.nbytes / medium.bytes_per_second)
            for s in timeline.spans
            if s.kind == "send" and {s.device, s.peer} & set(medium.devices)
        ]
        assert_apart(sorted(carried), slack)

    # No resource finishes before its total work is done, and no message arrives before its links can carry it.
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


def assert_apart(intervals: list[tuple[float, float]], slack: float) -> None:
    assert all(earlier[1] <= later[0] + slack for earlier, later in itertools.pairwise(intervals))


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
def test_latency_is_between_the_busiest_device_and_the_sum_of_all_steps(
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
            serial += sum(span.nbytes / m.bytes_per_second for m in profile.media_between(span.device, span.peer))
    assert timeline.latency_seconds <= serial * (1 + 1e-9)


@given(cases(), st.sampled_from([0.5, 2.0, 64.0]), st.integers(1, 3))
def test_times_scale_with_the_profile(case: tuple[Plan, Profile], factor: float, frames: int) -> None:
    """A cluster whose devices and links are slower by a factor takes longer by that factor."""
    plan, profile = case
    model = halos()
    slower = profile.model_copy(
        update={
            "devices": tuple(
                d.model_copy(
                    update={
                        "layers": tuple(scaled(time, factor) for time in d.layers),
                        "fused": tuple(scaled(time, factor) for time in d.fused),
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
            "media": tuple(
                m.model_copy(update={"bytes_per_second": m.bytes_per_second / factor}) for m in profile.media
            ),
        }
    )
    programs = lower(plan, model)
    before, after = (simulate(programs, p, model, frames, in_flight=2) for p in (profile, slower))
    # Powers of two scale floats exactly, so ties are resolved in the same way.
    assert [(s.start_seconds * factor, s.stop_seconds * factor) for s in before.spans] == [
        (s.start_seconds, s.stop_seconds) for s in after.spans
    ]


@given(cases(), st.integers(1, 5), st.integers(1, 3))
def test_every_span_begins_as_soon_as_its_cause_allows(case: tuple[Plan, Profile], frames: int, in_flight: int) -> None:
    """A schedule has no slack, and the cause of each span explains its start."""
    plan, profile = case
    timeline = simulate(lower(plan, halos()), profile, halos(), frames, in_flight)
    slack = 1e-9 * max(timeline.makespan_seconds, 1.0)
    for span in timeline.spans:
        if span.cause < 0:
            assert span.start_seconds == timeline.answered[span.frame][0] == 0.0
            continue
        cause = timeline.spans[span.cause]
        if cause.kind == "answer":  # a frame was answered, so this one began
            assert span.start_seconds == cause.stop_seconds == timeline.answered[span.frame][0]
        elif span.kind == "receive" and cause.kind == "send":
            assert (span.frame, span.channel, span.peer) == (cause.frame, cause.channel, cause.device)
            latency = profile.link(span.peer, span.device).latency_seconds
            assert span.stop_seconds == pytest.approx(cause.stop_seconds + latency, abs=slack)
        elif span.kind == "send" and cause.device != span.device:  # the medium was taken
            shared = profile.media_between(span.device, span.peer)
            shared = tuple(m for m in shared if m in profile.media_between(cause.device, cause.peer))
            ends = [cause.start_seconds + cause.nbytes / m.bytes_per_second for m in shared]
            assert cause.kind == "send" and span.start_seconds in ends
        else:
            assert cause.device == span.device
            left = [cause.stop_seconds]
            if span.kind == cause.kind == "send":
                left += [
                    cause.start_seconds + cause.nbytes / m.bytes_per_second
                    for m in profile.media_between(cause.device, cause.peer)
                ]
            assert span.start_seconds in left


INPUT = Region(0, 8, 0, 8)
NOTHING = Tile(nodes=(), inputs=(), outputs=(), fixed_cols=())


def rows(count: int) -> Region:
    return Region(0, count, 0, 8)


def from_client(channel: int) -> Receive:
    return Receive(channel, CLIENT, -1, (0,))


def programs_of(**steps: Sequence[Step]) -> dict[str, Program]:
    """Return hand-written programs on two patches: 0 is an input or received, 1 is computed or received."""
    model = chain(1)
    patches = (Patch(model.graph.inputs[0], INPUT),) * 3
    return {name: Program(name, model.hash, patches, tuple(listed)) for name, listed in steps.items()}


def send(channel: int, peer: str, count: int, patch: int = 0) -> Send:
    return Send(channel, peer, 0, (Part(patch, rows(count)),))


def compute(count: int, reads: int = 0, writes: int = 1) -> Compute:
    read = Read(chain(1).graph.inputs[0], INPUT, (Part(reads, INPUT),))
    return Compute(0, NOTHING, (read,), (writes,), (Work(0, count),))


def answer(*patches: int) -> Answer:
    return Answer(tuple(Read(chain(1).graph.inputs[0], INPUT, (Part(p, INPUT),)) for p in patches))


def four_apart() -> tuple[Model, Plan]:
    """Half of the image goes from a to c, the other from b to d, at the same time."""
    model = chain(2)
    plan = make_plan(model, [(1, {"a": UPPER, "b": LOWER}), (1, {"c": UPPER, "d": LOWER})], "a", "c")
    return model, plan


@pytest.mark.parametrize(
    ("air", "first", "second"),
    [
        (None, (4.0, 5.0), (4.0, 5.0)),
        (512.0, (4.0, 5.0), (5.0, 6.0)),  # as fast as the links: one after the other
        (256.0, (4.0, 6.0), (6.0, 8.0)),  # slower: it sets the pace, and holds the up-links
        (1024.0, (4.0, 5.0), (4.5, 5.5)),  # room for two links at once: they share it
    ],
)
def test_transfers_share_a_medium(air: float | None, first: tuple[float, float], second: tuple[float, float]) -> None:
    model, plan = four_apart()
    media = () if air is None else (Medium(name="air", devices=("c", "d"), bytes_per_second=air),)
    profile = cluster(model, ("a", "b", "c", "d"), rates={("a", "b"): 2.0**50}, rate=512.0, media=media)
    timeline = run(plan, profile, model)
    found = sorted([times(timeline, "a", "send")[-1], times(timeline, "b", "send")[0]])
    assert found[0] == pytest.approx(first) and found[1] == pytest.approx(second)


def test_a_transfer_takes_part_of_every_medium_that_it_crosses() -> None:
    model, plan = four_apart()
    media = (
        Medium(name="air-1", devices=("b", "c"), bytes_per_second=512.0),
        Medium(name="air-2", devices=("c", "d"), bytes_per_second=256.0),
    )
    profile = cluster(model, ("a", "b", "c", "d"), rates={("a", "b"): 2.0**50}, rate=512.0, media=media)
    timeline = run(plan, profile, model)
    # The input's way to b takes air-1 for a second. Both transfers then take both.
    assert times(timeline, "a", "send") == [(0.0, 1.0), (4.0, 6.0)]
    assert times(timeline, "b", "send")[0] == (6.0, 8.0)


def test_a_message_that_waits_for_its_up_link_holds_neither_medium_nor_down_link() -> None:
    """a: 8 s to c, then 1 s to d. b: to d, from 1 s on, while d and the air have nothing else to do."""
    programs = programs_of(
        a=[from_client(0), send(1, "c", 8), send(2, "d", 1)],
        b=[from_client(0), compute(1), send(3, "d", 1, patch=1)],
        c=[Receive(1, "a", 0, (0,))],
        d=[Receive(2, "a", 0, (0,)), Receive(3, "b", 0, (1,)), answer(0, 1)],
    )
    for media in ((), (Medium(name="air", devices=("d",), bytes_per_second=128.0),)):
        profile = cluster(chain(1), ("a", "b", "c", "d"), rate=128.0, media=media)
        timeline = simulate(programs, profile, chain(1))
        assert times(timeline, "a", "send") == [(0.0, 8.0), (8.0, 9.0)]
        assert times(timeline, "b", "send") == [(1.0, 2.0)]
        assert times(timeline, "d", "receive") == [(1.0, 2.0), (8.0, 9.0)]
        assert timeline.latency_seconds == 9.0


def test_a_slow_medium_does_not_occupy_the_down_link() -> None:
    """a's message takes the air 8 s, of which d's down-link needs one; b's comes over a wire in between."""
    programs = programs_of(
        a=[from_client(0), send(1, "d", 8)],
        b=[from_client(0), compute(1), send(2, "d", 8, patch=1)],
        d=[Receive(1, "a", 0, (0,)), Receive(2, "b", 0, (1,)), answer(0, 1)],
    )
    air = Medium(name="air", devices=("a",), bytes_per_second=128.0)
    timeline = simulate(programs, cluster(chain(1), ("a", "b", "d"), rate=1024.0, media=(air,)), chain(1))
    assert times(timeline, "d", "receive") == [(1.0, 2.0), (7.0, 8.0)]
    assert timeline.latency_seconds == 8.0


def alone_on(device: str, model: Model) -> dict[str, Program]:
    return lower(one_stage_plan(model, {device: UNIT}, "a"), model)


def test_whole_frames_on_two_devices_add_up_their_rates() -> None:
    model = chain(1)
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 0.5}, rate=1e6)
    parts = [(alone_on("a", model), 1.0), (alone_on("b", model), 2.0)]
    timeline = simulate_mixture(parts, profile, model, frames=60, in_flight=6)
    assert timeline.compute_seconds() == {"a": 20 * 8.0, "b": 40 * 4.0}
    assert timeline.steady_fps(6) == pytest.approx(1 / 8 + 1 / 4, rel=1e-3)


def test_a_device_takes_the_oldest_frame_of_all_program_sets() -> None:
    model = chain(1)
    alone = programs_of(a=[from_client(0), compute(4), answer(1)])
    two = programs_of(a=[from_client(0), compute(1), compute(2, reads=1, writes=2), answer(2)])
    profile = cluster(chain(1), ("a",))
    timeline = simulate_mixture([(two, 0.5), (alone, 0.5)], profile, model, frames=4, in_flight=4)
    assert [(s.frame, s.seconds) for s in timeline.spans if s.kind == "compute"] == [
        (0, 1.0), (0, 2.0), (1, 4.0), (2, 1.0), (2, 2.0), (3, 4.0)
    ]  # fmt: skip


@given(cases(), st.integers(0, 6))
def test_a_plan_mixed_with_itself_is_that_plan(case: tuple[Plan, Profile], frames: int) -> None:
    plan, profile = case
    programs = lower(plan, halos())
    expected = simulate(programs, profile, halos(), frames, in_flight=2)
    assert simulate_mixture([(programs, 0.3)], profile, halos(), frames, in_flight=2) == expected
    # Two frames under way are one of each half.
    halves = [(programs, 0.5), (programs, 0.5)]
    assert simulate_mixture(halves, profile, halos(), frames, in_flight=2) == expected


@given(cases(), cases(), st.floats(0.0, 1.0), st.integers(1, 8))
def test_a_mixture_does_the_work_of_its_plans(
    one: tuple[Plan, Profile], other: tuple[Plan, Profile], weight: float, frames: int
) -> None:
    model, profile = halos(), one[1]
    parts = [(lower(one[0], model), weight), (lower(other[0], model), 1.0 - weight)]
    timeline = simulate_mixture(parts, profile, model, frames, in_flight=3)
    assert timeline == simulate_mixture(parts, profile, model, frames, in_flight=3)
    assert sorted(timeline.answered) == list(range(frames))
    counts = [assign_frames([w for _, w in parts], frames).count(part) for part in (0, 1)]
    expected: dict[tuple[str, str], int] = defaultdict(int)
    for (programs, _), count in zip(parts, counts):
        for pair, nbytes in planned_transfers(programs, model).items():
            expected[pair] += count * nbytes
    assert timeline.sent_nbytes() == {pair: nbytes for pair, nbytes in expected.items() if nbytes}


def test_zero_frames_in_flight_are_refused() -> None:
    model = chain(1)
    with pytest.raises(PlanError, match="at least 1"):
        run(one_stage_plan(model, {"a": UNIT}, "a"), cluster(model), model, in_flight=0)


def test_the_error_names_a_device_that_was_not_measured() -> None:
    model = chain(2)
    with pytest.raises(PlanError, match="no device 'b'"):
        run(layer_split(model, 1), cluster(model).model_copy(update={"devices": cluster(model).devices[:1]}), model)


def test_the_error_names_devices_whose_programs_do_not_end() -> None:
    programs = programs_of(a=[from_client(0), Receive(1, "b", 0, (1,)), answer(1)], b=[])
    with pytest.raises(PlanError, match="do not end: a wait"):
        simulate(programs, cluster(chain(1)), chain(1))


def test_a_message_without_a_receiver_is_refused_before_the_start() -> None:
    programs = programs_of(a=[from_client(0), send(7, "b", 1), answer(0)], b=[])
    with pytest.raises(PlanError, match="a sends to b on channel 7"):
        simulate(programs, cluster(chain(1)), chain(1), frames=0)
