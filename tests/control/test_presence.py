"""Signs of life: who counts as silent, and whom a broken link excludes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples

from coedge.execution.program import CLIENT
from orchestrator.control.presence import MOST_PATIENCE_SECONDS, Presence, unreachable
from workers.runtime.heartbeat import SETTLE_SECONDS, Hearing
from workers.transport.message import Message, MessageKind

NAMES = ("a", "b", "c", "d")
Pairs = frozenset[tuple[str, str]]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def seen_empty(hearing: Hearing, clock: Clock) -> None:
    """Look at an empty queue twice, so that all that came before was taken."""
    hearing.emptied()
    clock.now += 2 * SETTLE_SECONDS
    hearing.emptied()


def test_a_peer_is_silent_only_for_as_long_as_the_queue_was_seen_empty() -> None:
    clock = Clock()
    hearing = Hearing(2.0, clock)
    hearing.expect([1, 2])
    clock.now += 10.0  # a long kernel: nothing was received
    assert hearing.silent == ()
    assert hearing.heard(1) == 10.0
    assert hearing.heard(7) == 0.0  # nobody expects it
    seen_empty(hearing, clock)
    assert hearing.silent == (2,) and hearing.silent_seconds(2) == 10.0 and hearing.silent_seconds(7) == 0.0
    clock.now += 3.0
    hearing.heard(2)
    seen_empty(hearing, clock)
    assert hearing.silent == (1,)
    hearing.forget(1)
    assert hearing.silent == ()


def test_a_process_that_was_stopped_does_not_take_its_own_silence_for_that_of_its_peers() -> None:
    clock = Clock()
    hearing = Hearing(2.0, clock)
    hearing.expect([1, 2])
    seen_empty(hearing, clock)
    clock.now += 60.0  # stopped
    for peer in (1, 2):  # their messages come one after the other, and the queue is empty before and between
        hearing.emptied()
        clock.now += SETTLE_SECONDS / 3
        hearing.emptied()
        assert hearing.silent == ()
        hearing.heard(peer)
    seen_empty(hearing, clock)
    assert hearing.silent == ()


def heartbeat(sender: int, *silent: int, patience_ms: int = 0) -> Message:
    arrays = (np.array(silent, np.int32),) if silent else ()
    return Message(MessageKind.HEARTBEAT, sender, channel=patience_ms, arrays=arrays)


def test_devices_report_the_peers_that_they_do_not_hear() -> None:
    presence = Presence({0: "a", 1: "b", 2: CLIENT}, 2.0)
    for message in (heartbeat(0, 1, 99), heartbeat(1)):  # 99 is no device of this cluster
        presence.came(message)
    assert presence.unreachable(["a", "b"], "a") == {"b": "nothing comes from b to a"}
    assert presence.unreachable(["a", "b"], "a", lost=["a"]) == {"a": "nothing comes from b to a"}
    presence.came(heartbeat(0))
    assert presence.unreachable(["a", "b"], "a") == {}
    presence.came(heartbeat(1, 2))
    assert presence.unreachable(["a", "b"], "a") == {"b": "nothing comes from the client to b"}
    presence.expect("b")
    assert presence.unreachable(["a", "b"], "a") == {}
    for nonsense in (np.array([[0.5, np.nan]]), np.array(1), np.array([], np.int8)):
        presence.came(Message(MessageKind.HEARTBEAT, 1, arrays=(nonsense,)))
    assert presence.unreachable(["a", "b"], "a") in ({}, {"b": "nothing comes from b to b"})


def watched(clock: Clock) -> Presence:
    """Return what is known of devices a and b, which were heard just now."""
    presence = Presence({0: "a", 1: "b", 2: CLIENT}, 2.0)
    presence.hearing = Hearing(2.0, clock)
    presence.hearing.expect([0, 1])
    return presence


def test_a_device_that_builds_sessions_may_be_silent_for_as_long_as_it_has_said() -> None:
    clock = Clock()
    presence = watched(clock)
    for message in (heartbeat(0), heartbeat(1, patience_ms=3000)):
        presence.came(message)
    clock.now += 2.5
    seen_empty(presence.hearing, clock)
    assert presence.unreachable(["a", "b"], "a") == {"a": "it has not been heard for 2.5 s"}
    clock.now += 3.0
    seen_empty(presence.hearing, clock)
    assert set(presence.unreachable(["a", "b"], "a")) == {"a", "b"}
    presence.came(heartbeat(1, patience_ms=2**32 - 1))
    clock.now += MOST_PATIENCE_SECONDS + 3.0
    seen_empty(presence.hearing, clock)
    assert "b" in presence.unreachable(["a", "b"], "a")


def test_what_is_said_of_the_links_of_a_device_that_stood_still_does_not_count() -> None:
    clock = Clock()
    presence = watched(clock)
    for _ in range(4):  # a stands still, and b is the first to say so
        clock.now += 0.45
        presence.came(heartbeat(1, 0))
    seen_empty(presence.hearing, clock)
    assert presence.unreachable(["a", "b"], "a") == {}
    presence.came(heartbeat(0))  # a goes on; b says so a little later
    clock.now += 0.5
    for message in (heartbeat(0), heartbeat(1, 0)):
        presence.came(message)
    assert presence.unreachable(["a", "b"], "a") == {}
    clock.now += 0.6
    for message in (heartbeat(0), heartbeat(1, 0)):
        presence.came(message)
    assert presence.unreachable(["a", "b"], "a") == {"b": "nothing comes from a to b"}


@pytest.mark.parametrize(
    ("silent", "broken", "left_out"),
    [
        ({}, [], set()),
        ({"c": 3.0}, [("c", "a"), ("b", "c")], {"c"}),  # the links of a silent device say nothing about others
        ({}, [("b", "c")], {"c"}),
        ({}, [("a", "d")], {"d"}),  # the source stays
        ({}, [("d", "a")], {"d"}),
        ({}, [("b", "c"), ("d", "b"), ("a", "b")], {"b"}),
        ({}, [("a", "b"), ("c", "a"), ("a", "d")], {"a"}),  # the source, if everything speaks against it
        ({}, [(CLIENT, "a")], {"a"}),
        ({}, [("b", "nobody")], set()),
    ],
)
def test_the_device_with_the_most_broken_links_is_left_out(
    silent: dict[str, float], broken: list[tuple[str, str]], left_out: set[str]
) -> None:
    assert set(unreachable(NAMES, "a", silent, broken)) == left_out


PAIRS = st.frozensets(st.sampled_from([*itertools.permutations(NAMES, 2), *((CLIENT, name) for name in NAMES)]))


def test_of_two_devices_the_one_that_is_not_in_use_is_left_out() -> None:
    assert set(unreachable(NAMES, "a", {}, [("d", "b")])) == {"d"}
    assert set(unreachable(NAMES, "a", {}, [("d", "b")], lost=["b"])) == {"b"}
    assert set(unreachable(NAMES, "a", {}, [("d", "b"), ("d", "a")], lost=["b"])) == {"d"}


@given(PAIRS, st.frozensets(st.sampled_from(NAMES)))
@examples(200)
def test_those_that_are_left_reach_each_other_and_nobody_is_left_out_without_a_reason(
    broken: Pairs, silent: frozenset[str]
) -> None:
    left_out = unreachable(NAMES, "a", dict.fromkeys(silent, 3.0), broken)
    left = set(NAMES) - left_out.keys()
    assert not any(set(pair) <= left | {CLIENT} for pair in broken)
    for name in left_out.keys() - silent:
        assert any(name in pair for pair in broken)
