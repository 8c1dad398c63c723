"""Measurement of links and shared media on simulated networks: capacities that transfers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coedge.profile.profile import Medium
from orchestrator.profiling.contention import Contention, Pair, shared_media
from orchestrator.profiling.links import Latency, Network, measure_network

LINE = 100.0


class FakeNetwork:
    """Full-duplex lines of 100 bytes/s, and media. Transfers that share a capacity get equal parts of it."""

    def __init__(self, media: Iterable[tuple[set[str], float]] = (), noise: float = 0.0) -> None:
        self.media = list(media)
        self.noise = noise
        self.calls: list[tuple[Pair, ...]] = []

    def latencies(self, pairs: Sequence[Pair]) -> dict[Pair, Latency]:
        return {pair: Latency(0.001, 0.009) for pair in pairs}

    def rates(self, pairs: Sequence[Pair], nbytes: int) -> dict[Pair, tuple[float, float]]:
        assert len({s for s, _ in pairs}) == len(pairs) == len({r for _, r in pairs})
        self.calls.append(tuple(pairs))
        found = {}
        for index, pair in enumerate(pairs):
            shares = [
                rate / sum(1 for p in pairs if devices & set(p)) for devices, rate in self.media if devices & set(pair)
            ]
            rate = min([LINE, *shares]) * (1 + self.noise * (-1) ** (index + len(self.calls)))
            found[pair] = rate, 4 * nbytes / rate
        return found

    def measure(self, names: str, given: Sequence[Medium] = (), hosts: str | None = None) -> Network:
        return measure_network(dict(zip(names, hosts or names)), self, given)


def _crosses(call: tuple[Pair, ...]) -> bool:
    """Return whether two transfers ran at once that are not the two directions of one pair."""
    return len(call) == 2 and call[0] != call[1][::-1]


def devices_of(network: Network) -> list[str]:
    return ["".join(medium.devices) for medium in network.media]


# ---------------------------------------------------------------- links


def test_latency_is_half_of_the_round_trip_without_the_time_for_sending_the_echo() -> None:
    links = FakeNetwork().measure("ab").links
    assert [(link.sender, link.receiver) for link in links] == [("a", "b"), ("b", "a")]
    assert all(link.latency_seconds == pytest.approx(0.004) and link.bytes_per_second == LINE for link in links)


def test_both_directions_are_loaded_at_once() -> None:
    network = FakeNetwork()
    network.measure("ab", hosts="hh")
    assert set(network.calls) == {(("a", "b"), ("b", "a"))}


def test_every_ordered_pair_has_a_link() -> None:
    links = FakeNetwork().measure("abcd").links
    assert {(link.sender, link.receiver) for link in links} == {(a, b) for a in "abcd" for b in "abcd" if a != b}


def test_one_device_has_no_links() -> None:
    assert FakeNetwork().measure("a") == Network((), ())


def test_media_are_not_searched_for_on_one_host() -> None:
    network = FakeNetwork([({"a", "b", "c"}, 50.0)])
    assert network.measure("abc", hosts="hhh").media == ()
    assert max(len(call) for call in network.calls) == 2


def test_devices_of_one_host_may_share_a_medium_with_others() -> None:
    network = FakeNetwork([({"a"}, 50.0)]).measure("abxy", hosts="hhxy")
    assert len(network.links) == 12 and devices_of(network) == ["a"]


# ---------------------------------------------------------------- media


@pytest.mark.parametrize(
    ("names", "air"),
    [
        ("ab", "ab"),
        ("abc", "abc"),
        ("abcd", "abcd"),
        ("abxy", "ab"),
        ("abcxyz", "abc"),
        ("axy", "a"),
        ("abcdex", "abcde"),
    ],
)
def test_the_devices_on_a_medium_are_found(names: str, air: str) -> None:
    network = FakeNetwork([(set(air), 50.0)]).measure(names)
    (medium,) = network.media
    assert medium.bytes_per_second == pytest.approx(50.0)
    others = set(names) - set(air)
    if len(others) > 1:  # otherwise every transfer has an end on the medium, with or without the others
        assert set(medium.devices) == set(air)
    for link in network.links:
        touches = {link.sender, link.receiver} & set(medium.devices)
        assert link.bytes_per_second == pytest.approx(50.0 if touches else LINE)


def test_wires_alone_are_no_medium() -> None:
    assert FakeNetwork(noise=0.05).measure("abcdef").media == ()


def test_two_media_are_told_apart() -> None:
    network = FakeNetwork([({"a", "b"}, 40.0), ({"c", "d"}, 60.0)]).measure("abcdxy")
    assert devices_of(network) == ["ab", "cd"]
    assert [medium.bytes_per_second for medium in network.media] == pytest.approx([40.0, 60.0])


def test_a_given_medium_is_kept_and_its_devices_are_not_searched() -> None:
    given = Medium(name="wifi", devices=("a", "b"), bytes_per_second=30.0)
    network = FakeNetwork([({"a", "b"}, 50.0), ({"c", "d"}, 40.0)])
    measured = network.measure("abcdxy", [given])
    assert measured.media[0] == given and devices_of(measured)[1:] == ["cd"]
    assert not any({"a", "b"} & {name for pair in call for name in pair} for call in network.calls if _crosses(call))
    # The medium accounts for contention: the link has its rate alone.
    assert {link.bytes_per_second for link in measured.links if link.sender == "a"} == {50.0, 40.0}


@given(st.integers(2, 7).flatmap(lambda n: st.tuples(st.just("abcdefg"[:n]), st.sets(st.sampled_from("abcdefg"[:n])))))
def test_detected_media_predict_which_transfers_contend(case: tuple[str, set[str]]) -> None:
    """The detected medium may have more or fewer devices only if no transfer shows the difference."""
    names, air = case
    found = FakeNetwork([(air, 50.0)] if air else []).measure(names).media
    for pair in combinations(names, 2):
        touches = bool(air & set(pair))
        assert touches == any(set(medium.devices) & set(pair) for medium in found)


def contention(first: str, second: str, kept: float) -> Contention:
    return Contention((first[0], first[1]), (second[0], second[1]), (kept, kept), 50.0)


def test_contention_that_no_medium_explains_gives_no_medium() -> None:
    """Two switches share the wire between them, but the line of every device is free in both directions."""
    pairs = ["ab", "ac", "ad", "bc", "bd", "cd"]
    assert shared_media([contention("ac", "bd", 0.5), *(contention(p, p[::-1], 1.0) for p in pairs)]) == ()


def test_transfers_that_slow_down_a_little_give_no_medium() -> None:
    assert shared_media([contention("ab", "ba", 0.8), contention("ab", "cd", 0.8)]) == ()
