"""Layouts: the devices of a stage and the edges between their strips. They are the nodes of the shortest path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from coedge.core.region import UnitRect, edge_to_row
from coedge.graph.model import Model
from coedge.plan.plan import Stage
from orchestrator.evaluation.cost_table import CostTable

# Up to this number of devices, every subset is a candidate.
ALL_SUBSETS = 4
# Limit of (layers x layouts)^2, which the shortest path's time grows with. Small networks get further strips on whole
# rows up to this limit.
MOST_EDGES = 1_500_000
# Limit on the number of ways to put one set of devices on whole rows.
MOST_ON_ROWS = 100
# Limit on the rows on which strips in every order are placed; the local search refines them.
MOST_BANDS = 12
# With at most this number of devices, rankings without each device in turn are candidates too.
FEW_DEVICES = 10


@dataclass(frozen=True, slots=True)
class Layout:
    """Strips from the top down.

    Attributes:
        edges: from 0 to 1; one more than there are devices.
    """

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
        """Move one of `rows` rows from `giver` to `taker`. The strips between them move by one row.

        Returns:
            None if it is the giver's last row.
        """
        edges = [edge_to_row(edge, rows) for edge in self.edges]
        if edges[giver + 1] - edges[giver] <= 1:
            return None
        for index in range(min(giver, taker) + 1, max(giver, taker) + 1):
            edges[index] += 1 if taker < giver else -1
        return Layout(self.devices, tuple(edge / rows for edge in edges))

    def shifted(self, rows: int) -> Iterator[Layout]:
        """Move one of `rows` rows from each device to each other."""
        for giver, taker in itertools.permutations(range(len(self.devices)), 2):
            moved = self.handed(giver, taker, rows)
            if moved is not None:
                yield moved


def layout_of(stage: Stage) -> Layout | None:
    """Return the strips of a stage; None if it is a grid."""
    parts = [(rect, name) for name, rect in stage.regions.items() if rect.row_stop > rect.row_start]
    if any((rect.col_start, rect.col_stop) != (0.0, 1.0) for rect, _ in parts):
        return None
    parts.sort()
    edges = (0.0, *(rect.row_stop for rect, _ in parts))
    return Layout(tuple(name for _, name in parts), edges)


def in_proportion(shares: Mapping[str, float]) -> Layout:
    """Return strips in this order, proportional to the shares."""
    total = sum(shares.values())
    passed = list(itertools.accumulate(shares.values()))
    edges = [0.0, *(value / total for value in passed[:-1]), 1.0]
    return Layout(tuple(shares), tuple(edges))


def splittable_seconds(table: CostTable) -> dict[str, float]:
    """Return the time of all layers that can be split, as one stage, on each device."""
    layers = [x.index for x in table.model.layers if x.splittable] or [x.index for x in table.model.layers]
    seconds = table.layer_seconds[layers].sum(axis=0)
    return {name: max(float(value), 1e-12) for name, value in zip(table.names, seconds)}


def candidates(table: CostTable) -> list[Layout]:
    """Return each device alone, and sets of devices with strips in the profile's order.

    Strips are proportional to speed, and also to memory if it is limited. For few devices all subsets are taken; for
    many, the first devices of several rankings. If layers have few rows, proportional strips round to something
    else: then strips on whole rows are added, the most balanced ones first.
    """
    model, names = table.model, table.names
    seconds = splittable_seconds(table)
    sets: list[tuple[str, ...]] = []
    if len(names) <= ALL_SUBSETS:
        sets = [s for size in range(2, len(names) + 1) for s in itertools.combinations(names, size)]
    else:
        for ranking in _rankings(table, seconds):
            sets += [tuple(sorted(ranking[:size], key=names.index)) for size in _sizes(len(ranking))]
    unique = dict.fromkeys(sets)
    layouts = [in_proportion({name: 1 / seconds[name] for name in chosen}) for chosen in unique]
    memory = {device.name: device.memory_bytes for device in table.profile.devices}
    if any(value is not None for value in memory.values()):
        most = float(model.weight_nbytes)
        layouts += [in_proportion({n: min(memory[n] or most, most) for n in chosen}) for chosen in unique]
    room = int(math.sqrt(MOST_EDGES) / len(model.layers)) - len(names) - len(layouts)
    if room > 0 and len(names) <= ALL_SUBSETS:
        rows = _fewest_rows(model)
        few = (chosen for chosen in unique if math.comb(rows - 1, len(chosen) - 1) <= MOST_ON_ROWS)
        whole = itertools.chain.from_iterable(_on_rows(chosen, rows) for chosen in few)
        layouts += sorted(whole, key=lambda layout: _slowest(layout, seconds))[:room]
    return list(dict.fromkeys([*alone(table.names), *layouts]))


def in_every_order(table: CostTable, most: int) -> list[Layout]:
    """Return each device alone, and the `most` most balanced strips of all sets of devices in every order.

    Meant for few devices: more of them have too many orders.
    """
    names, seconds = table.names, splittable_seconds(table)
    bands = min(_fewest_rows(table.model), MOST_BANDS)
    sets = (s for size in range(2, min(len(names), bands) + 1) for s in itertools.permutations(names, size))
    strips = itertools.chain.from_iterable(_on_rows(chosen, bands) for chosen in sets)
    balanced = sorted(strips, key=lambda layout: _slowest(layout, seconds))
    return [*alone(names), *balanced[:most]]


def alone(names: Sequence[str]) -> list[Layout]:
    """Return the layout of each device alone."""
    return [Layout((name,), (0.0, 1.0)) for name in names]


def nearest_devices(table: CostTable, count: int) -> list[str]:
    """Return the source, and the `count - 1` other devices that could finish the whole network first."""
    ready = _ready(table, splittable_seconds(table))
    source = table.profile.source
    others = sorted((name for name in table.names if name != source), key=ready)
    return [source, *others[: count - 1]]


def _fewest_rows(model: Model) -> int:
    return min((layer.rows for layer in model.layers if layer.splittable and layer.rows > 1), default=1)


def _on_rows(devices: tuple[str, ...], rows: int) -> Iterator[Layout]:
    """Yield every division of the rows in which each device has at least one."""
    for cut in itertools.combinations(range(1, rows), len(devices) - 1):
        yield Layout(devices, (0.0, *(row / rows for row in cut), 1.0))


def _slowest(layout: Layout, seconds: Mapping[str, float]) -> float:
    return max(share * seconds[name] for name, share in zip(layout.devices, layout.shares))


def _sizes(count: int) -> Iterable[int]:
    """Yield set sizes 2, 3, 4 ..., sparser beyond a dozen."""
    size = 2
    while size < count:
        yield size
        size += max(1, size // 8)
    yield count


def _ready(table: CostTable, seconds: Mapping[str, float]) -> Callable[[str], float]:
    """Return a function: seconds until a device has received the input and computed the whole network."""
    image = sum(t.region_nbytes(t.whole) for t in table.model.inputs)
    sending = image * table.seconds_per_byte[table.source]
    return lambda name: seconds[name] + float(sending[table.position[name]])


def _rankings(table: CostTable, seconds: Mapping[str, float]) -> list[Sequence[str]]:
    """Return orders in which devices may be added to a set."""
    names, source, ready = table.names, table.profile.source, _ready(table, seconds)
    joules = {name: seconds[name] * float(table.compute_watts[table.position[name]]) for name in names}
    others = [name for name in names if name != source]
    by_speed = sorted(names, key=lambda name: seconds[name])
    rankings: list[Sequence[str]] = [
        by_speed, sorted(names, key=ready), sorted(names, key=lambda name: joules[name]),
        [source, *sorted(others, key=ready)],
    ]  # fmt: skip
    # A device that does not help spoils every set behind it in a ranking, so each one is left out in turn.
    if len(names) <= FEW_DEVICES:
        rankings += [[name for name in by_speed if name != gone] for gone in by_speed]
    return rankings
