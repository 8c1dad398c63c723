"""Detection of shared media, such as the air of a Wi-Fi, from transfers that slow each other down.

    a -> b alone     |=====|            a -> b and c -> d at once     |==========|     half the rate each: shared
    c -> d alone     |=====|                                          |==========|

A transfer takes a part of a medium if its sender or its receiver is on it. If two transfers slow each other down,
each has an end on the medium. If they do not, at most one of them has.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from coedge.profile.profile import Medium

Pair = tuple[str, str]

# Fraction of its rate alone that a transfer keeps beside another one: half on a shared medium, all of it otherwise.
SHARED_BELOW, APART_ABOVE = 0.7, 0.85


@dataclass(frozen=True, slots=True)
class Contention:
    """Measurement of two simultaneous transfers with different senders and different receivers.

    Attributes:
        first, second: (sender, receiver) of each.
        kept: fraction of its rate alone that each kept.
        bytes_per_second: both rates added, while they ran together.
    """

    first: Pair
    second: Pair
    kept: tuple[float, float]
    bytes_per_second: float

    @property
    def shared(self) -> bool:
        """Return whether both transfers used one medium."""
        return max(self.kept) < SHARED_BELOW

    @property
    def apart(self) -> bool:
        """Return whether the transfers did not disturb each other."""
        return min(self.kept) > APART_ABOVE

    def separates(self, one: str, other: str) -> bool:
        """Return whether one of two devices is an end of the first transfer and the other an end of the second."""
        return (one in self.first and other in self.second) or (other in self.first and one in self.second)


def contending_devices(contentions: Iterable[Contention]) -> list[str]:
    """Return the devices that are on some medium.

    These are the ends of pairs whose two directions slow each other down, without devices that also have a pair whose
    directions do not.
    """
    both_ways = [c for c in contentions if c.second == c.first[::-1]]
    slowed = {name for c in both_ways if c.shared for name in c.first}
    return sorted(slowed - {name for c in both_ways if c.apart for name in c.first})


def shared_media(contentions: Iterable[Contention]) -> tuple[Medium, ...]:
    """Return the media that explain the measurements.

    Two contending devices are on the same medium if transfers of theirs slowed each other down and none ran
    undisturbed. The relation is closed transitively (union-find).
    """
    contentions = list(contentions)
    shared = [c for c in contentions if c.shared]
    apart = [c for c in contentions if c.apart]
    names = contending_devices(contentions)
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for one, other in combinations(names, 2):
        if any(c.separates(one, other) for c in shared) and not any(c.separates(one, other) for c in apart):
            parent[root(one)] = root(other)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(root(name), []).append(name)
    media = []
    for devices in groups.values():
        rates = [c.bytes_per_second for c in shared if set(c.first) & set(devices) and set(c.second) & set(devices)]
        if rates:
            media.append((tuple(devices), statistics.median(rates)))
    return tuple(
        Medium(name=f"shared-{number}", devices=devices, bytes_per_second=rate)
        for number, (devices, rate) in enumerate(sorted(media), start=1)
    )
