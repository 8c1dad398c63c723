"""Signs of life: who counts as silent, and whom a broken link excludes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples

from coedge.execution.program import CLIENT
from orchestrator.control.presence import PATIENCE, Presence, unreachable
from workers.runtime.heartbeat import Hearing
from workers.transport.message import Message, MessageKind

NAMES = ("a", "b", "c", "d")
Pairs = frozenset[tuple[str, str]]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_peer_is_silent_only_for_as_long_as_the_queue_was_seen_empty() -> None:
    clock = Clock()
    hearing = Hearing(2.0, clock)
    hearing.expect([1, 2])
    clock.now += 10.0  # a long kernel: nothing was received
    assert hearing.silent == ()
    hearing.heard(1)
    hearing.heard(7)  # nobody expects it
    hearing.emptied(clock.now)
    assert hearing.silent == (2,) and hearing.silent_seconds(2) == 10.0 and hearing.silent_seconds(7) == 0.0
    clock.now += 3.0
    hearing.heard(2)
    hearing.emptied(clock.now)
    assert hearing.silent == (1,)
    hearing.forget(1)
    assert hearing.silent == ()


def test_a_process_that_was_stopped_does_not_take_its_own_silence_for_that_of_its_peers() -> None:
    clock = Clock()
    hearing = Hearing(2.0, clock)
    hearing.expect([1])
    begun = hearing.now()
    clock.now += 60.0  # stopped between the look at the queue and the return
    hearing.emptied(begun)
    assert hearing.silent == ()


def heartbeat(sender: int, *silent: int) -> Message:
    return Message(MessageKind.HEARTBEAT, sender, arrays=(np.array(silent, np.int32),) if silent else ())


def test_devices_report_the_peers_that_they_do_not_hear() -> None:
    presence = Presence({0: "a", 1: "b", 2: CLIENT}, 2.0)
    for message in (heartbeat(0, 1, 99), heartbeat(1)):  # 99 is no device of this cluster
        presence.came(message)
    assert presence.unreachable(["a", "b"], "a") == {"b": "nothing comes from b to a"}
    assert presence.unreachable(["a", "b"], "a", busy=["b"]) == {}
    presence.came(heartbeat(0))
    assert presence.unreachable(["a", "b"], "a") == {}
    presence.came(heartbeat(1, 2))
    assert presence.unreachable(["a", "b"], "a") == {"b": "nothing comes from the client to b"}
    presence.expect("b")
    assert presence.unreachable(["a", "b"], "a") == {}
    for nonsense in (np.array([[0.5, np.nan]]), np.array(1), np.array([], np.int8)):
        presence.came(Message(MessageKind.HEARTBEAT, 1, arrays=(nonsense,)))
    assert presence.unreachable(["a", "b"], "a") in ({}, {"b": "nothing comes from b to b"})


def test_a_device_that_loads_may_be_silent_for_longer() -> None:
    presence, clock = Presence({0: "a", 1: CLIENT}, 2.0), Clock()
    presence.hearing = Hearing(2.0, clock)
    presence.hearing.expect([0])
    clock.now += 2.5
    presence.emptied(clock.now)
    assert presence.unreachable(["a"], "a") == {"a": "it has not been heard for 2.5 s"}
    assert presence.unreachable(["a"], "a", busy=["a"]) == {}
    clock.now += 2.0 * PATIENCE
    presence.emptied(clock.now)
    assert list(presence.unreachable(["a"], "a", busy=["a"])) == ["a"]


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
