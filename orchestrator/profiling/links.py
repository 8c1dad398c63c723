"""Measures the network: rate and latency of every ordered pair of devices, and which of them share a medium.

1  Each pair with both directions loaded at once, as rows are exchanged; one pair at a time.
2  Where their addresses differ, each direction alone too: two that slow each other down use a medium, which one of
   the two devices is on at least.
3  For every two devices that are on some medium, two transfers at once, one of each, to somebody else: if these slow
   each other down, it is the same medium.

Devices at one address have emulated links, each its own, or none that would be worth the name.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from coedge.core.progress import progress
from coedge.profile.network import Network
from coedge.profile.profile import Link, Medium
from orchestrator.profiling.contention import Contention, Pair, contending_devices, shared_media

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


def measure_network(addresses: Mapping[str, str], prober: Prober, given: Sequence[Medium] = ()) -> Network:
    """Measures the links between devices, and finds the media that they share.

    Args:
        addresses: of the interface of each device.
        given: media that are known: their devices are not searched.

    Raises:
        ClusterError: naming a pair that cannot talk to each other.
    """
    names = list(addresses)
    known = {name for medium in given for name in medium.devices}
    loaded: dict[Pair, float] = {}
    alone: dict[Pair, float] = {}
    latency: dict[Pair, Latency] = {}
    nbytes: dict[Pair, int] = {}
    contentions: list[Contention] = []
    pairs = list(itertools.combinations(names, 2))
    with progress("measuring links", len(pairs)) as advance:
        for there in pairs:
            back = there[::-1]
            latency |= prober.latencies([there, back])
            measured, size = _long_enough(prober, [there, back])
            loaded |= {pair: rate for pair, (rate, _) in measured.items()}
            given_here = bool(known & set(there))
            if given_here or addresses[there[0]] != addresses[there[1]]:
                nbytes |= dict.fromkeys((there, back), size)
                alone |= {pair: prober.rates([pair], size)[pair][0] for pair in (there, back)}
                if not given_here:
                    contentions.append(_contention(there, back, loaded, alone))
            advance()
    for first, second in _crossings(
        contending_devices(contentions), [name for name in names if name not in known], alone
    ):
        together = {
            pair: rate for pair, (rate, _) in prober.rates([first, second], max(nbytes[first], nbytes[second])).items()
        }
        contentions.append(_contention(first, second, together, alone))
    media = (*given, *shared_media(contentions))
    shared = {name for medium in media for name in medium.devices}
    return Network(
        tuple(
            Link(
                sender=sender, receiver=receiver, latency_seconds=_on_the_way(latency, sender, receiver),
                # The share of others is the medium's to count.
                bytes_per_second=(loaded | alone if shared & {sender, receiver} else loaded)[sender, receiver],
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


def _crossings(air: Sequence[str], names: Sequence[str], alone: Container[Pair]) -> Iterator[tuple[Pair, Pair]]:
    """For every two devices on air, transfers of theirs to others: to such as are not on air, if there are any."""
    for one, other in itertools.combinations(air, 2):
        others = sorted((name for name in names if name not in (one, other)), key=lambda name: name in air)
        for to, to_other in itertools.permutations(others[:3], 2):
            if (one, to) in alone and (other, to_other) in alone:
                yield (one, to), (other, to_other)
                break


def _contention(first: Pair, second: Pair, together: Mapping[Pair, float], alone: Mapping[Pair, float]) -> Contention:
    kept = (together[first] / alone[first], together[second] / alone[second])
    return Contention(first, second, kept, together[first] + together[second])
