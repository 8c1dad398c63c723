"""Which devices share a medium, such as the air of a Wi-Fi, as told by transfers that slow each other down.

    a -> b alone     |=====|            a -> b and c -> d at once     |==========|     half the rate each: shared
    c -> d alone     |=====|                                          |==========|

On a medium, a transfer takes part of it where its sender or its receiver is on it: of two transfers that slow each
other down, each has an end there. Of two that do not, at most one has.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from coedge.profile import Medium

Pair = tuple[str, str]

# Of its rate alone, what a transfer keeps beside another one: half of it on a shared medium, all of it otherwise.
SHARED_BELOW, APART_ABOVE = 0.7, 0.85


@dataclass(frozen=True, slots=True)
class Contention:
    """Two transfers at once, (sender, receiver) each; their senders differ, and so do their receivers.

    Attributes:
        kept: what each kept of the rate that it has alone.
        bytes_per_second: of both together, when at once.
    """

    first: Pair
    second: Pair
    kept: tuple[float, float]
    bytes_per_second: float

    @property
    def shared(self) -> bool:
        return max(self.kept) < SHARED_BELOW

    @property
    def apart(self) -> bool:
        return min(self.kept) > APART_ABOVE

    @property
    def pairs(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(self.first), frozenset(self.second)


def shared_media(contentions: Iterable[Contention]) -> tuple[Medium, ...]:
    """The media that explain what was seen.

    1  Pairs of devices whose transfers slow each other down belong together (union-find).
    2  On their medium are the devices of those pairs, but for those of a pair that was seen beside one of them and
       did not slow down.
    3  Where that leaves a pair with nobody on it, what was seen is not the work of a medium.
    4  Media with a device in common are one.
    """
    contentions = list(contentions)
    parent: dict[frozenset[str], frozenset[str]] = {}

    def root(pair: frozenset[str]) -> frozenset[str]:
        while parent.setdefault(pair, pair) != pair:
            pair = parent[pair]
        return pair

    for contention in contentions:
        if contention.shared:
            first, second = contention.pairs
            parent[root(first)] = root(second)
    groups: dict[frozenset[str], list[frozenset[str]]] = {}
    for pair in list(parent):
        groups.setdefault(root(pair), []).append(pair)
    found: list[tuple[set[str], list[float]]] = []
    for pairs in groups.values():
        devices = set().union(*pairs)
        rates = []
        for contention in contentions:
            first, second = contention.pairs
            if contention.shared and first in pairs:
                rates.append(contention.bytes_per_second)
            for pair, other in ((first, second), (second, first)):
                if contention.apart and other in pairs and pair not in pairs:
                    devices -= pair
        if all(pair & devices for pair in pairs):
            found.append((devices, rates))
    return _named(_joined(found))


def _joined(found: Iterable[tuple[set[str], list[float]]]) -> list[tuple[set[str], list[float]]]:
    joined: list[tuple[set[str], list[float]]] = []
    for devices, rates in found:
        touching = [other for other in joined if other[0] & devices]
        joined = [other for other in joined if not other[0] & devices]
        joined.append((devices.union(*(d for d, _ in touching)), rates + [r for _, other in touching for r in other]))
    return joined


def _named(found: Iterable[tuple[set[str], list[float]]]) -> tuple[Medium, ...]:
    ordered = sorted((tuple(sorted(devices)), statistics.median(rates)) for devices, rates in found)
    return tuple(
        Medium(name=f"shared-{number}", devices=devices, bytes_per_second=rate)
        for number, (devices, rate) in enumerate(ordered, start=1)
    )
