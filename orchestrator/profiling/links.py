"""Measurement of the network: rate and latency of every ordered pair of devices, and shared media.

1  Every pair is measured with both directions loaded, as when rows are exchanged; one pair at a time.
2  Pairs with different addresses are also measured in each direction alone. If the directions slow each other down,
   at least one of the two devices is on a medium.
3  For every two devices on some medium, two simultaneous transfers are measured, one of each device to another
   device. If they slow each other down, both devices are on the same medium.

Devices at one address have emulated links of their own or share the memory of a host; they share no medium.
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
    """Times of an empty message and its echo; see `ProbeTimes`."""

    send_seconds: float
    flight_seconds: float


class Prober(Protocol):
    """A sender of test messages between devices."""

    def latencies(self, pairs: Sequence[Pair]) -> dict[Pair, Latency]:
        """Measure each (sender, receiver), all pairs at the same time."""

    def rates(self, pairs: Sequence[Pair], nbytes: int) -> dict[Pair, tuple[float, float]]:
        """Send messages of `nbytes` one behind the other, all pairs at the same time.

        Returns:
            (bytes per second, duration in seconds) by pair.
        """


def measure_network(
    addresses: Mapping[str, str], prober: Prober, given: Sequence[Medium] = (), only: str | None = None
) -> Network:
    """Measure the links between devices, and detect the media that they share.

    Args:
        addresses: address of the network interface, by device name.
        given: media that are known. Their devices are left out of the detection.
        only: measure the links of this device alone, and detect no media.

    Raises:
        ClusterError: two devices cannot reach each other; the message names them.
    """
    names = list(addresses)
    known = set(names) if only else {name for medium in given for name in medium.devices}
    loaded: dict[Pair, float] = {}
    alone: dict[Pair, float] = {}
    latency: dict[Pair, Latency] = {}
    nbytes: dict[Pair, int] = {}
    contentions: list[Contention] = []
    pairs = [pair for pair in itertools.combinations(names, 2) if only is None or only in pair]
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
                sender=sender, receiver=receiver, latency_seconds=_one_way_seconds(latency, sender, receiver),
                # On a medium, the rate alone: the medium itself accounts for contention.
                bytes_per_second=(loaded | alone if shared & {sender, receiver} else loaded)[sender, receiver],
            )
            for sender, receiver in itertools.permutations(names, 2)
            if (sender, receiver) in loaded
        ),
        media,
    )  # fmt: skip


def _one_way_seconds(latency: Mapping[Pair, Latency], sender: str, receiver: str) -> float:
    """Return half of the round trip, without the time in which the receiver sends the echo."""
    outward, echo = latency[sender, receiver], latency[receiver, sender]
    return max(outward.flight_seconds - echo.send_seconds, 0.0) / 2


def _long_enough(prober: Prober, pairs: Sequence[Pair]) -> tuple[dict[Pair, tuple[float, float]], int]:
    """Return rates of messages that are large enough to be timed, and the size of these messages."""
    nbytes = FIRST_NBYTES
    while True:
        measured = prober.rates(pairs, nbytes)
        if nbytes >= LAST_NBYTES or min(seconds for _, seconds in measured.values()) >= ENOUGH_SECONDS:
            return measured, nbytes
        nbytes *= 4


def _crossings(contending: Sequence[str], names: Sequence[str], alone: Container[Pair]) -> Iterator[tuple[Pair, Pair]]:
    """Yield, for every two contending devices, a transfer of each to another device, if possible one on no medium."""
    for one, other in itertools.combinations(contending, 2):
        others = sorted((name for name in names if name not in (one, other)), key=lambda name: name in contending)
        for to, to_other in itertools.permutations(others[:3], 2):
            if (one, to) in alone and (other, to_other) in alone:
                yield (one, to), (other, to_other)
                break


def _contention(first: Pair, second: Pair, together: Mapping[Pair, float], alone: Mapping[Pair, float]) -> Contention:
    kept = (together[first] / alone[first], together[second] / alone[second])
    return Contention(first, second, kept, together[first] + together[second])
