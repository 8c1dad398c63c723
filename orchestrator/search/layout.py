"""Who takes part in a stage, and where the strips meet: the nodes of the shortest path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from coedge.core.region import UnitRect, edge_to_row
from coedge.graph.model import Model
from coedge.plan.plan import Stage
from coedge.profile.profile import Profile

# Up to so many devices, every subset is looked at.
ALL_SUBSETS = 4
# What the shortest path may take: (layers x layouts)^2. Beyond what speeds suggest, small networks are given
# strips on whole rows up to there.
MOST_EDGES = 1_500_000
MOST_ON_ROWS = 100
# Of strips in every order, so many bands at most: of more there are too many, and polishing finds the rest.
MOST_BANDS = 12


@dataclass(frozen=True, slots=True)
class Layout:
    """Strips from the top down. `edges` begin with 0 and end with 1: one more than there are devices."""

    devices: tuple[str, ...]
    edges: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        return tuple(b - a for a, b in zip(self.edges, self.edges[1:]))

    @property
    def regions(self) -> dict[str, UnitRect]:
        return {name: UnitRect(a, b) for name, a, b in zip(self.devices, self.edges, self.edges[1:])}

    def stage(self, first: int, last: int) -> Stage:
        return Stage(first=first, last=last, regions=self.regions)

    def handed(self, giver: int, taker: int, rows: int) -> Layout | None:
        """A row of so many handed from one device to another; what lies between them moves by a row.

        None: it is the giver's last one.
        """
        edges = [edge_to_row(edge, rows) for edge in self.edges]
        if edges[giver + 1] - edges[giver] <= 1:
            return None
        for index in range(min(giver, taker) + 1, max(giver, taker) + 1):
            edges[index] += 1 if taker < giver else -1
        return Layout(self.devices, tuple(edge / rows for edge in edges))

    def shifted(self, rows: int) -> Iterator[Layout]:
        """A row of so many handed from each device to each other."""
        for giver, taker in itertools.permutations(range(len(self.devices)), 2):
            moved = self.handed(giver, taker, rows)
            if moved is not None:
                yield moved


def layout_of(stage: Stage) -> Layout | None:
    """The strips of a stage; None where it is a grid."""
    parts = [(rect, name) for name, rect in stage.regions.items() if rect.row_stop > rect.row_start]
    if any((rect.col_start, rect.col_stop) != (0.0, 1.0) for rect, _ in parts):
        return None
    parts.sort()
    edges = (0.0, *(rect.row_stop for rect, _ in parts))
    return Layout(tuple(name for _, name in parts), edges)


def in_proportion(shares: Mapping[str, float]) -> Layout:
    """Strips in this order, proportional to the shares."""
    total = sum(shares.values())
    passed = list(itertools.accumulate(shares.values()))
    edges = [0.0, *(value / total for value in passed[:-1]), 1.0]
    return Layout(tuple(shares), tuple(edges))


def full_seconds(model: Model, profile: Profile) -> dict[str, float]:
    """Time of everything that can be split, as one stage, on each device."""
    found = {}
    for device in profile.devices:
        splittable = [layer for layer in model.layers if layer.splittable] or list(model.layers)
        seconds = sum(device.layer_time(layer.index, False).seconds(layer.rows) for layer in splittable)
        found[device.name] = max(seconds, 1e-12)
    return found


def candidates(model: Model, profile: Profile) -> list[Layout]:
    """Every device alone, and sets of them with strips in proportion to their speed (and to their memory, where it
    is limited), in the profile's order.

    For few devices all subsets; for many, the best so many by speed, by nearness to the source, by joules.
    Of few rows, fractions are far from what can be had: there, other strips on whole rows too, the most even first.
    """
    names = profile.names
    seconds = full_seconds(model, profile)
    sets: list[tuple[str, ...]] = []
    if len(names) <= ALL_SUBSETS:
        sets = [s for size in range(2, len(names) + 1) for s in itertools.combinations(names, size)]
    else:
        for ranking in _rankings(model, profile, seconds):
            sets += [tuple(sorted(ranking[:size], key=names.index)) for size in _sizes(len(ranking))]
    unique = dict.fromkeys(sets)
    made = [in_proportion({name: 1 / seconds[name] for name in chosen}) for chosen in unique]
    room = {device.name: device.memory_bytes for device in profile.devices}
    if any(value is not None for value in room.values()):
        most = float(model.weight_nbytes)
        made += [in_proportion({n: min(room[n] or most, most) for n in chosen}) for chosen in unique]
    room_left = int(math.sqrt(MOST_EDGES) / len(model.layers)) - len(names) - len(made)
    if room_left > 0 and len(names) <= ALL_SUBSETS:
        rows = _fewest_rows(model)
        few = (chosen for chosen in unique if math.comb(rows - 1, len(chosen) - 1) <= MOST_ON_ROWS)
        whole = itertools.chain.from_iterable(_on_rows(chosen, rows) for chosen in few)
        made += sorted(whole, key=lambda layout: _slowest(layout, seconds))[:room_left]
    return list(dict.fromkeys([*alone(profile), *made]))


def in_every_order(model: Model, profile: Profile, most: int) -> list[Layout]:
    """Every device alone, and strips of every set of them in every order, the most even so many.

    For few devices: there are too many orders of more.
    """
    names, seconds = profile.names, full_seconds(model, profile)
    bands = min(_fewest_rows(model), MOST_BANDS)
    sets = (s for size in range(2, min(len(names), bands) + 1) for s in itertools.permutations(names, size))
    strips = itertools.chain.from_iterable(_on_rows(chosen, bands) for chosen in sets)
    nearest = sorted(strips, key=lambda layout: _slowest(layout, seconds))
    return [*alone(profile), *nearest[:most]]


def alone(profile: Profile) -> list[Layout]:
    """Every device by itself."""
    return [Layout((name,), (0.0, 1.0)) for name in profile.names]


def _fewest_rows(model: Model) -> int:
    return min((layer.rows for layer in model.layers if layer.splittable and layer.rows > 1), default=1)


def _on_rows(devices: tuple[str, ...], rows: int) -> Iterator[Layout]:
    """Every way in which all of these devices can share so many rows."""
    for cut in itertools.combinations(range(1, rows), len(devices) - 1):
        yield Layout(devices, (0.0, *(row / rows for row in cut), 1.0))


def _slowest(layout: Layout, seconds: Mapping[str, float]) -> float:
    return max(share * seconds[name] for name, share in zip(layout.devices, layout.shares))


def _sizes(count: int) -> Iterable[int]:
    """2, 3, 4 ... and sparser beyond a dozen."""
    size = 2
    while size < count:
        yield size
        size += max(1, size // 8)
    yield count


def nearest_devices(model: Model, profile: Profile, count: int) -> list[str]:
    """The source, and the others that would be done first with all of it."""
    near = _nearness(model, profile, full_seconds(model, profile))
    others = sorted((name for name in profile.names if name != profile.source), key=near)
    return [profile.source, *others[: count - 1]]


def _nearness(model: Model, profile: Profile, seconds: Mapping[str, float]) -> Callable[[str], float]:
    """Seconds until a device would have the input and be done with it."""
    image = sum(t.region_nbytes(t.whole) for t in model.inputs)

    def near(name: str) -> float:
        source = profile.source
        return seconds[name] + (0.0 if name == source else image / profile.link(source, name).bytes_per_second)

    return near


def _rankings(model: Model, profile: Profile, seconds: Mapping[str, float]) -> list[Sequence[str]]:
    """Orders in which devices could be taken on."""
    source = profile.source
    near = _nearness(model, profile, seconds)

    def joules(name: str) -> float:
        return seconds[name] * profile.by_name[name].power.compute_watts

    others = [name for name in profile.names if name != source]
    by_speed = sorted(profile.names, key=lambda name: seconds[name])
    by_nearness = sorted(profile.names, key=near)
    by_joules = sorted(profile.names, key=joules)
    from_source = [source, *sorted(others, key=near)]
    # One slow device in the middle of a ranking is in the way of all that follow: leave each out in turn.
    rankings: list[Sequence[str]] = [by_speed, by_nearness, by_joules, from_source]
    if len(profile.names) <= 10:
        rankings += [[name for name in by_speed if name != gone] for gone in by_speed]
    return rankings
