"""Estimates: ratios of measured to predicted frames, lasting changes, and the profile as it is now."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nets import DEVICES, examples
from virtual import cases, chain, cluster, halos, layer_split, run

import coedge
from benchmarks.adaptation import as_measured
from coedge.plan.plan import Plan
from coedge.profile.profile import CodecSpeed, Medium, Profile
from coedge.profile.slowdown import Slowdown, slower
from coedge.simulation.span import Span
from coedge.simulation.timeline import Timeline
from orchestrator.adaptation.estimates import ChangeEvent, Estimates
from orchestrator.adaptation.ratios import LEAST_WIRE_SECONDS, ratios

Pair = tuple[str, str]
PAIRS: list[Pair] = list(itertools.permutations(DEVICES, 2))


def send(sender: str, receiver: str, handed: float, arrived: float, channel: int, nbytes: int = 1000) -> list[Span]:
    """Return the spans of a message as devices report them."""
    return [
        Span(sender, 0, "send", "", handed, handed, 0, receiver, nbytes, channel),
        Span(receiver, 0, "receive", "", arrived, arrived, 0, sender, nbytes, channel),
    ]


def timeline(*spans: list[Span], uncertainty: float = 0.0) -> Timeline:
    flat = tuple(span for group in spans for span in group)
    return Timeline(flat, {0: (0.0, max(span.stop_seconds for span in flat))}, True, uncertainty)


NOTHING = Timeline((), {}, False)


def linked(seconds: float = 1.0, latency: float = 0.0, media: tuple[Medium, ...] = ()) -> Profile:
    """Return a profile of devices a to d whose links take `seconds` for 1000 bytes."""
    return cluster(halos(), tuple("abcd"), rate=1000 / seconds, latency=latency, media=media)


@given(case=cases())
@examples(100, 15)
def test_a_profile_that_is_right_shows_ratios_of_1(case: tuple[Plan, Profile]) -> None:
    plan, profile = case
    predicted = run(plan, profile, halos())
    seen = ratios(as_measured(predicted), predicted, profile)
    assert list(seen.devices.values()) == pytest.approx([1.0] * len(seen.devices))
    assert list(seen.links.values()) == pytest.approx([1.0] * len(seen.links), rel=0.05)
    assert all(bound > 0.95 for bound in seen.link_bounds.values())


@given(case=cases(), factors=st.lists(st.floats(0.2, 5.0), min_size=len(DEVICES), max_size=len(DEVICES)))
@examples(100, 15)
def test_factors_of_devices_are_found(case: tuple[Plan, Profile], factors: list[float]) -> None:
    plan, profile = case
    truth = Slowdown(dict(zip(DEVICES, factors)), {}).of(profile)
    seen = ratios(as_measured(run(plan, truth, halos())), run(plan, profile, halos()), profile)
    expected = dict(zip(DEVICES, factors))
    assert dict(seen.devices) == pytest.approx({name: expected[name] for name in seen.devices})


@given(case=cases(), factor=st.floats(0.2, 5.0))
@settings(examples(100, 15), phases=[Phase.generate])
def test_links_that_all_change_show_the_factor(case: tuple[Plan, Profile], factor: float) -> None:
    """Messages that share links may queue otherwise when all take longer, so the ratio is not always exact."""
    plan, profile = case
    truth = Slowdown({}, dict.fromkeys(PAIRS, factor)).of(profile)
    seen = ratios(as_measured(run(plan, truth, halos())), run(plan, profile, halos()), profile)
    assert list(seen.links.values()) == pytest.approx([factor] * len(seen.links), rel=0.5)
    assert all(bound > 0.5 * factor for bound in seen.link_bounds.values())


def test_a_link_shows_its_factor_alone() -> None:
    model = chain(3, rows=32)
    profile = cluster(model, seconds_per_row={"a": 0.01, "b": 0.01}, rate=1e4)
    plan = layer_split(model, 1)
    seen = ratios(
        as_measured(run(plan, Slowdown({}, {("a", "b"): 3.0}).of(profile), model)), run(plan, profile, model), profile
    )
    assert dict(seen.links) == pytest.approx({("a", "b"): 3.0})


def test_frames_of_any_number_and_count_are_compared() -> None:
    model = halos()
    profile = cluster(model, ("a", "b"), rate=1e4)
    plan = coedge.even_plan(model, ["a", "b"], stage_layers=1)
    many = as_measured(run(plan, Slowdown({"a": 2.0}, {}).of(profile), model, frames=3))
    later = replace(many, spans=tuple(span._replace(frame=span.frame + 40) for span in many.spans))
    assert dict(ratios(later, run(plan, profile, model), profile).devices) == pytest.approx({"a": 2.0, "b": 1.0})


def test_bytes_that_take_less_than_the_latency_say_nothing() -> None:
    profile = linked(seconds=0.01, latency=0.02)
    held_up = timeline(send("a", "b", 0.0, 0.3, 0))
    assert not ratios(held_up, NOTHING, profile).links
    large = timeline(send("a", "b", 0.0, 0.12, 0, nbytes=5_000))
    assert dict(ratios(large, NOTHING, profile).links) == pytest.approx({("a", "b"): 2.0})


def test_bytes_that_take_less_than_clocks_are_certain_of_say_nothing() -> None:
    profile = linked(seconds=0.01)
    spans = send("a", "b", 0.0, 0.02, 0)
    assert (
        ratios(timeline(spans), NOTHING, profile).links
        and not ratios(timeline(spans, uncertainty=0.005), NOTHING, profile).links
    )
    tiny = linked(seconds=LEAST_WIRE_SECONDS / 2)
    assert not ratios(timeline(spans), NOTHING, tiny).links


def test_messages_that_queue_count_once() -> None:
    """Three messages that were handed over at once pass one after another."""
    profile = linked()
    queue = timeline(*(send("a", "b", 0.0, 2.0 * (n + 1), n) for n in range(3)))
    assert dict(ratios(queue, NOTHING, profile).links) == pytest.approx({("a", "b"): 2.0})


@pytest.mark.parametrize("arrivals", [(1.0, 2.0), (2.0, 2.0), (2.0, 1.0)])
def test_it_does_not_matter_how_a_transport_shares_an_up_link(arrivals: tuple[float, float]) -> None:
    profile = linked()
    both = timeline(send("a", "b", 0.0, arrivals[0], 0), send("a", "c", 0.0, arrivals[1], 1))
    assert dict(ratios(both, NOTHING, profile).links) == pytest.approx({("a", "b"): 1.0, ("a", "c"): 1.0})


@pytest.mark.parametrize("arrivals", [(1.0, 2.0), (2.0, 2.0)])
def test_it_does_not_matter_how_a_transport_shares_a_down_link(arrivals: tuple[float, float]) -> None:
    profile = linked()
    both = timeline(send("a", "c", 0.0, arrivals[0], 0), send("b", "c", 0.0, arrivals[1], 1))
    assert dict(ratios(both, NOTHING, profile).links) == pytest.approx({("a", "c"): 1.0, ("b", "c"): 1.0})


def test_a_message_alone_tells_more_than_one_among_others() -> None:
    profile = linked()
    spans = [send("a", "b", 0.0, 3.0, 0), send("a", "c", 0.0, 4.0, 1), send("a", "b", 9.0, 12.0, 2)]
    spans.append(send("a", "c", 20.0, 21.0, 3))
    assert dict(ratios(timeline(*spans), NOTHING, profile).links) == pytest.approx({("a", "b"): 3.0, ("a", "c"): 1.0})


def test_messages_on_a_medium_wait_for_each_other() -> None:
    profile = linked()
    spans = timeline(send("a", "b", 0.0, 1.0, 0), send("c", "d", 0.0, 2.0, 1))
    air = Medium(name="air", devices=("a", "c"), bytes_per_second=1000.0)
    assert dict(ratios(spans, NOTHING, linked(media=(air,))).links) == pytest.approx({("a", "b"): 1.0, ("c", "d"): 1.0})
    assert dict(ratios(spans, NOTHING, profile).links) == pytest.approx({("a", "b"): 1.0, ("c", "d"): 2.0})


def test_a_message_that_a_busy_device_took_gives_a_bound() -> None:
    profile = linked()
    computing = [Span("b", 0, "compute", "", 0.0, 5.0, 0)]
    seen = ratios(timeline(send("a", "b", 0.0, 5.0001, 0), computing), NOTHING, profile)
    assert not seen.links and dict(seen.link_bounds) == pytest.approx({("a", "b"): 5.0}, rel=1e-3)
    estimates = Estimates(profile)
    late, early = (timeline(send("a", "b", 0.0, at + 1e-4, 0), [computing[0]._replace(stop_seconds=at)])
                   for at in (5.0, 0.5))  # fmt: skip
    assert [event for _ in range(30) for event in estimates.observe(late, NOTHING)] == []
    (event,) = [event for _ in range(30) for event in estimates.observe(early, NOTHING)]
    assert event.after == pytest.approx(0.5, rel=0.1)


def test_timelines_without_messages_or_computations_say_nothing() -> None:
    empty = Timeline((), {}, True)
    seen = ratios(empty, empty, linked())
    assert not seen.devices and not seen.links and not seen.link_bounds
    assert Estimates(linked()).observe(empty, empty) == []


# ---------------------------------------------------------------- estimates

MODEL_ROWS = 32


def believed() -> tuple[Plan, Profile]:
    model = chain(3, rows=MODEL_ROWS)
    profile = cluster(model, seconds_per_row={"a": 0.01, "b": 0.01}, rate=1e4, latency=1e-3)
    return layer_split(model, 1), profile


def frames(
    estimates: Estimates, devices: Mapping[str, float], links: Mapping[Pair, float], count: int, seed: int = 0
) -> list[ChangeEvent]:
    """Observe frames of a cluster in which these devices and links are slower, with noise of 5 %."""
    plan, profile = believed()
    model, generator = chain(3, rows=MODEL_ROWS), np.random.default_rng(seed)
    predicted, events = run(plan, profile, model), []
    for _ in range(count):
        noisy = {name: devices.get(name, 1.0) * math.exp(0.05 * generator.standard_normal()) for name in "ab"}
        link = {("a", "b"): links.get(("a", "b"), 1.0) * math.exp(0.05 * generator.standard_normal())}
        events += estimates.observe(as_measured(run(plan, Slowdown(noisy, link).of(profile), model)), predicted)
    return events


def test_a_device_and_a_link_that_change_are_told_apart() -> None:
    estimates = Estimates(believed()[1])
    assert frames(estimates, {}, {}, 40) == []
    (event,) = frames(estimates, {"b": 2.0}, {}, 15)
    assert (event.kind, event.names) == ("device", ("b",)) and event.before == 1.0
    assert event.after == pytest.approx(2.0, rel=0.1) and event.what.startswith("b is ")
    (event,) = frames(estimates, {"b": 2.0}, {("a", "b"): 0.5}, 15)
    assert (event.kind, event.names) == ("link", ("a", "b")) and event.after == pytest.approx(0.5, rel=0.1)
    assert event.what.startswith("link from a to b is ") and event.what.endswith(" times as fast")


def test_the_profile_follows_lasting_changes_only() -> None:
    _, base = believed()
    estimates = Estimates(base)
    assert estimates.profile() == base
    frames(estimates, {"a": 1.1}, {}, 40)
    assert estimates.profile() == base  # 10 % are not lastingly different enough
    frames(estimates, {"a": 1.1}, {("a", "b"): 4.0}, 20)
    now = estimates.profile()
    assert now.link("a", "b").bytes_per_second == pytest.approx(2500, rel=0.1)
    assert now.devices == base.devices
    assert now.link("a", "b").latency_seconds == base.link("a", "b").latency_seconds
    frames(estimates, {"a": 1.1}, {}, 20)
    assert estimates.profile() == base


def test_test_messages_are_observed_too() -> None:
    estimates = Estimates(linked(), dwell=5)
    events = [estimates.observe_ratio(("b", "a"), 2.0) for _ in range(12)]
    (event,) = [event for event in events if event is not None]
    assert event.kind == "link" and estimates.factor("b", "a") == pytest.approx(2.0, rel=0.05)
    assert estimates.factor("c", "d") == 1.0


def test_an_unused_link_is_expected_to_be_like_its_neighbours() -> None:
    estimates = Estimates(linked())

    def observe(links: Mapping[Pair, float], count: int) -> None:
        for _ in range(count):
            estimates.observe(NOTHING, NOTHING)
            for link, ratio in links.items():
                estimates.observe_ratio(link, ratio)

    observe({("a", "b"): 4.0, ("a", "c"): 4.0, ("d", "a"): 4.0}, 15)
    assert estimates.factor("b", "c") == pytest.approx(4.0, rel=0.05)  # never observed
    observe({("a", "b"): 1.0, ("a", "c"): 1.0}, 10)
    assert estimates.factor("d", "a") == pytest.approx(4.0, rel=0.05)  # observed 10 frames ago
    observe({("a", "b"): 1.0, ("a", "c"): 1.0}, 15)
    assert estimates.factor("d", "a") == estimates.factor("a", "b") == 1.0
    observe({("a", "b"): 1.0, ("a", "c"): 1.0, ("d", "a"): 4.0}, 1)
    assert estimates.factor("d", "a") == pytest.approx(4.0, rel=0.05)


def test_devices_that_the_profile_does_not_have_are_ignored() -> None:
    _, base = believed()
    estimates = Estimates(base)
    for _ in range(12):
        estimates.observe_ratio(("gone",), 2.0)
        estimates.observe_ratio(("a", "gone"), 2.0)
    assert estimates.factor("gone") > 1.9 and estimates.profile() == base


def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="dwell"):
        Estimates(linked(), dwell=0)


# ---------------------------------------------------------------- slower profiles


def test_a_slower_device_takes_longer_for_everything() -> None:
    model = halos()
    profile = cluster(model, fixed_seconds=0.5)
    speed = CodecSpeed(encode_bytes_per_second=10.0, decode_bytes_per_second=20.0, encode_seconds=1.0)
    own = profile.devices[0].model_copy(update={"codecs": {"x": speed}, "send_seconds": 1.0, "receive_seconds": 2.0})
    slow = slower(own, 2.0)
    assert slow.layers[0].seconds(10) == 2 * own.layers[0].seconds(10)
    assert slow.layer_time(0, ends_stage=False).seconds(3) == 2 * own.layer_time(0, ends_stage=False).seconds(3)
    assert slow.codecs["x"].encode_bytes_per_second == 5.0 and slow.codecs["x"].encode_seconds == 2.0
    assert (slow.send_seconds, slow.receive_seconds, slow.power) == (2.0, 4.0, own.power)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [({}, 1.0), ({("a", "b"): 2.0, ("b", "a"): 3.0}, 2.0), ({("a", "b"): 0.5, ("b", "a"): 0.2}, 0.5),
     ({("a", "b"): 2.0, ("b", "a"): 1.0}, 1.0), ({("a", "b"): 2.0, ("b", "a"): 0.5}, 1.0)],
)  # fmt: skip
def test_a_medium_changes_as_all_of_its_links_do(factors: dict[Pair, float], expected: float) -> None:
    air = Medium(name="air", devices=("a", "b"), bytes_per_second=100.0)
    changed = Slowdown({}, factors).of(cluster(halos(), media=(air,)))
    assert changed.media[0].bytes_per_second == pytest.approx(100.0 / expected)
