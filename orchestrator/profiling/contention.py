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
from itertools import combinations

from coedge.profile.profile import Medium

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

    def parts(self, one: str, other: str) -> bool:
        """Whether one of two devices is an end of the first transfer, and the other of the second, or vice versa."""
        return (one in self.first and other in self.second) or (other in self.first and one in self.second)


def contending_devices(contentions: Iterable[Contention]) -> list[str]:
    """Who is on some medium: the ends of pairs whose two directions slow each other down, but for those of others."""
    both_ways = [c for c in contentions if c.second == c.first[::-1]]
    slowed = {name for c in both_ways if c.shared for name in c.first}
    return sorted(slowed - {name for c in both_ways if c.apart for name in c.first})


def shared_media(contentions: Iterable[Contention]) -> tuple[Medium, ...]:
    """The media that explain what was seen.

    Two devices on air are on the same medium where transfers of theirs slowed each other down, and none did not. So
    are those who are on the same one as a third (union-find).
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
        if any(c.parts(one, other) for c in shared) and not any(c.parts(one, other) for c in apart):
            parent[root(one)] = root(other)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(root(name), []).append(name)
    found = []
    for devices in groups.values():
        rates = [c.bytes_per_second for c in shared if set(c.first) & set(devices) and set(c.second) & set(devices)]
        if rates:
            found.append((tuple(devices), statistics.median(rates)))
    return tuple(
        Medium(name=f"shared-{number}", devices=devices, bytes_per_second=rate)
        for number, (devices, rate) in enumerate(sorted(found), start=1)
    )
