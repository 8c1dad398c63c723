"""Measures the network: rate and latency of every ordered pair of devices, and which of them share a medium.

1  Each pair with both directions loaded at once, as rows are exchanged; one pair at a time.
2  Where their addresses differ, each direction alone too: two that slow each other down share a medium.
3  All devices in disjoint pairs at once, as in the rounds of a tournament; pairs that slowed down there, two by two.

Devices at one address have emulated links, each its own, or none that would be worth the name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from coedge.profile import Link, Medium
from coedge.progress import progress
from orchestrator.media import SHARED_BELOW, Contention, Pair, shared_media

FIRST_NBYTES, LAST_NBYTES = 4_096, 1_048_576
ENOUGH_SECONDS = 0.03


class Latency(NamedTuple):
    """Of an empty message and its echo; see `ProbeTimes`."""

    send_seconds: float
    flight_seconds: float


class Prober(Protocol):
    """Sends test messages between devices."""

    def latencies(self, pairs: Sequence[Pair]) -> dict[Pair, Latency]:
        """Of each (sender, receiver), all pairs at once."""

    def rates(self, pairs: Sequence[Pair], nbytes: int) -> dict[Pair, tuple[float, float]]:
        """(bytes per second, seconds that it took) of messages of `nbytes` one behind the other, all pairs at once."""


@dataclass(frozen=True, slots=True)
class Way:
    """What a message takes, one way."""

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, nbytes: int) -> float:
        return self.latency_seconds + nbytes / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Network:
    """What was measured of the network.

    Attributes:
        client: between the client and the source.
    """

    links: tuple[Link, ...]
    media: tuple[Medium, ...] = ()
    client: Way | None = None


def measure_network(addresses: Mapping[str, str], prober: Prober, given: Sequence[Medium] = ()) -> Network:
    """Measures the links between devices, and finds the media that they share.

    Args:
        addresses: of the interface of each device.
        given: media that are known: their devices are not searched.

    Raises:
        ClusterError: naming a pair that cannot talk to each other.
    """
    names = list(addresses)
    pairs = list(itertools.combinations(names, 2))
    apart = {pair for pair in pairs if addresses[pair[0]] != addresses[pair[1]]}
    known = {name for medium in given for name in medium.devices}
    loaded: dict[Pair, float] = {}
    alone: dict[Pair, float] = {}
    latency: dict[Pair, Latency] = {}
    nbytes: dict[Pair, int] = {}
    rounds = [[pair for pair in played if pair in apart and not known & set(pair)] for played in tournament(names)]
    searched = [played for played in rounds if len(played) > 1]
    with progress("measuring links", len(pairs) + len(searched)) as advance:
        for there, back in ((pair, pair[::-1]) for pair in pairs):
            latency |= prober.latencies([there, back])
            measured, size = _long_enough(prober, [there, back])
            loaded |= {pair: rate for pair, (rate, _) in measured.items()}
            if there in apart or known & set(there):
                alone |= {pair: prober.rates([pair], size)[pair][0] for pair in (there, back)}
            nbytes[there] = size
            advance()
        contentions = [_contention(pair, pair[::-1], loaded, alone) for pair in sorted(apart) if not known & set(pair)]
        for played in searched:
            contentions += _search(
                played, alone, lambda at_once: prober.rates(at_once, max(nbytes[p] for p in at_once))
            )
            advance()
    media = (*given, *(medium for medium in shared_media(contentions) if not known & set(medium.devices)))
    shared = {name for medium in media for name in medium.devices}
    return Network(
        tuple(
            Link(
                sender=sender, receiver=receiver, latency_seconds=_on_the_way(latency, sender, receiver),
                # The share of others is the medium's to count.
                bytes_per_second=(alone if shared & {sender, receiver} else loaded)[sender, receiver],
            )
            for sender, receiver in itertools.permutations(names, 2)
        ),
        media,
    )  # fmt: skip


def _on_the_way(latency: Mapping[Pair, Latency], sender: str, receiver: str) -> float:
    """Half of the way there and back, without handing over the echo."""
    there, back = latency[sender, receiver], latency[receiver, sender]
    return max(there.flight_seconds - back.send_seconds, 0.0) / 2


def _long_enough(prober: Prober, pairs: Sequence[Pair]) -> tuple[dict[Pair, tuple[float, float]], int]:
    """Rates of messages so large that they take long enough to be timed, and their size."""
    nbytes = FIRST_NBYTES
    while True:
        measured = prober.rates(pairs, nbytes)
        if nbytes >= LAST_NBYTES or min(seconds for _, seconds in measured.values()) >= ENOUGH_SECONDS:
            return measured, nbytes
        nbytes *= 4


def _search(
    played: Sequence[Pair],
    alone: Mapping[Pair, float],
    rates: Callable[[Sequence[Pair]], dict[Pair, tuple[float, float]]],
) -> list[Contention]:
    """What disjoint pairs do to each other: nothing where none slows down; else those that did are tried in twos."""

    def seen(first: Pair, second: Pair, together: Mapping[Pair, tuple[float, float]]) -> Contention:
        return _contention(first, second, {pair: together[pair][0] for pair in (first, second)}, alone)

    together = rates(played)
    slow = [pair for pair in played if together[pair][0] < SHARED_BELOW * alone[pair]]
    found = [
        seen(first, second, together)
        for first, second in itertools.combinations(played, 2)
        if not (first in slow and second in slow)
    ]
    return found + [seen(first, second, rates([first, second])) for first, second in itertools.combinations(slow, 2)]


def _contention(first: Pair, second: Pair, together: Mapping[Pair, float], alone: Mapping[Pair, float]) -> Contention:
    kept = (together[first] / alone[first], together[second] / alone[second])
    return Contention(first, second, kept, together[first] + together[second])


def tournament(names: Sequence[str]) -> list[list[Pair]]:
    """Rounds in which each pair meets once and nobody is in two pairs at a time (the circle method)."""
    order = {name: index for index, name in enumerate(names)}
    circle: list[str | None] = [*names, *([None] if len(names) % 2 else [])]
    rounds = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        met = zip(circle[:half], reversed(circle[half:]))
        rounds.append([_ordered(a, b, order) for a, b in met if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds


def _ordered(a: str, b: str, order: Mapping[str, int]) -> Pair:
    return (a, b) if order[a] < order[b] else (b, a)
