"""The figures of the CoEdge paper as points, and the claims that they support. Pure values and functions."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SOURCES = ("paper", "predicted", "measured")
# Relative tolerances of equal values: rounding of the paper's values and of rows, and measurement errors.
SLACK = {"paper": 0.0, "predicted": 0.01, "measured": 0.05}


@dataclass(frozen=True)
class Value:
    """A latency, an energy, or the problem of a plan.

    Attributes:
        problem: the constraint that the predicted plan breaks, if any.
        samples_ms: latency of every measured frame.
    """

    ms: float | None = None
    joules: float | None = None
    problem: str = ""
    samples_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Point:
    """A bar or a marker of a figure, with its printed, predicted and measured values.

    Attributes:
        figure: "10" covers figure 10 (latency) and figure 11 (energy).
        scale: factor on the rates of all links in the paper.
        devices: devices that the predicted plan uses.
    """

    figure: str
    scale: float
    series: str
    x: str
    network: str
    deadline_ms: float | None = None
    paper: Value = Value()
    predicted: Value = Value()
    measured: Value = Value()
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A statement that a figure of the paper supports, and whether our values support it; None if undecided.

    Attributes:
        why: reason why our values may not support it.
    """

    figure: str
    scale: float
    what: str
    paper: bool | None
    predicted: bool | None
    measured: bool | None
    why: str = ""

    @property
    def reproduced(self) -> bool:
        """Return whether no known value contradicts the claim."""
        return self.paper is None or all(shown in (None, self.paper) for shown in (self.predicted, self.measured))


@dataclass
class Figures:
    """Points and claims of the paper."""

    environment: dict[str, Any]
    cluster: str
    frames: int
    points: list[Point] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the points as JSON, a point per line, together with the claims."""
        kept = {**asdict(self), "claims": [asdict(claim) for claim in claims_of(self.points)]}
        path.write_text(json.dumps(kept, separators=(",", ":")).replace('{"figure"', '\n{"figure"'), "utf-8")

    @classmethod
    def load(cls, path: Path) -> Figures:
        kept = json.loads(path.read_text(encoding="utf-8"))
        del kept["claims"]
        points = [
            Point(**{**point, **_values(point), "devices": tuple(point["devices"])}) for point in kept.pop("points")
        ]
        return cls(**kept, points=points)


def _values(point: Mapping[str, Any]) -> dict[str, Value]:
    return {
        source: Value(**{**point[source], "samples_ms": tuple(point[source]["samples_ms"])}) for source in SOURCES
    }  # fmt: skip


def claims_of(points: Sequence[Point]) -> list[Claim]:
    """Return the claims of each figure, scale by scale."""
    found = []
    for scale in dict.fromkeys(point.scale for point in points):
        here = [point for point in points if point.scale == scale]
        for figure, makers in _CLAIMS.items():
            of_figure = [point for point in here if point.figure == ("10" if figure == "11" else figure)]
            for what, paper, told, why in makers if of_figure else ():
                seen = {source: told(_Seen(of_figure, source)) for source in SOURCES}
                found.append(
                    Claim(
                        figure, scale, what, seen["paper"] if paper is None else paper, seen["predicted"],
                        seen["measured"], why if scale == 1 or why != _SLOW else "",
                    )
                )  # fmt: skip
    return found


def orderings(points: Iterable[Point], quantity: str, source: str) -> tuple[int, int, list[str]]:
    """Return the number of pairs of schemes that are in the paper's order, the number of all pairs, and the others.

    Args:
        quantity: "ms" or "joules".
    """
    by_network: dict[str, dict[str, Point]] = {}
    for point in points:
        if getattr(point.paper, quantity) is not None and getattr(getattr(point, source), quantity) is not None:
            by_network.setdefault(point.network, {})[point.series] = point
    same, count, other = 0, 0, []
    for network, by_series in by_network.items():
        for a, b in itertools.combinations(by_series.values(), 2):
            first, second = sorted((a, b), key=lambda point: float(getattr(point.paper, quantity)))
            count += 1
            if getattr(getattr(first, source), quantity) < getattr(getattr(second, source), quantity):
                same += 1
            else:
                other.append(f"{network}: {first.series} < {second.series}")
    return same, count, other


class _Seen:
    """The values of one source, by series and in the order of x."""

    def __init__(self, points: Sequence[Point], source: str) -> None:
        self.points, self.source, self.slack = points, source, SLACK[source]

    def values(self, series: str, quantity: str) -> list[float]:
        """Return the values of plans that meet their deadline."""
        found = [
            getattr(self.of(point), quantity)
            for point in self.points
            if point.series == series and not self.of(point).problem
        ]
        return [value for value in found if value is not None]

    def of(self, point: Point) -> Value:
        value: Value = getattr(point, self.source)
        return value

    def never_rises(self, series: str, quantity: str) -> bool | None:
        values = self.values(series, quantity)
        if len(values) < 2:
            return None
        return all(later <= earlier * (1 + self.slack) for earlier, later in itertools.pairwise(values))

    def in_time(self, series: str) -> bool | None:
        """Return whether every latency meets its deadline."""
        met = [
            self.of(point).ms <= point.deadline_ms * (1 + self.slack)  # type: ignore[operator]
            for point in self.points
            if point.series == series and point.deadline_ms is not None and self.of(point).ms is not None
        ]
        return all(met) if met else None


def _faster(series: str, other: str) -> Callable[[_Seen], bool | None]:
    return _compared(series, other, "ms")


def _compared(series: str, other: str, quantity: str) -> Callable[[_Seen], bool | None]:
    """Return whether one series is below another on every network."""

    def told(seen: _Seen) -> bool | None:
        values: dict[str, dict[str, float]] = {}
        for point in seen.points:
            value = getattr(seen.of(point), quantity)
            if value is not None:
                values.setdefault(point.x, {})[point.series] = value
        pairs = [(by[series], by[other]) for by in values.values() if series in by and other in by]
        return all(a < b for a, b in pairs) if pairs else None

    return told


def _follows_bandwidth(seen: _Seen) -> bool | None:
    """Return whether latency never falls when the bandwidth falls, and never rises when it rises."""
    values = [
        (float(point.x.split(": ")[1].split(" ")[0]), value)
        for point in seen.points
        if point.series == "coedge" and (value := seen.of(point).ms) is not None
    ]
    pairs = [(b - a, v / u - 1) for (a, u), (b, v) in itertools.pairwise(values)]
    return all(change * rate <= 0 or abs(change) <= seen.slack for rate, change in pairs) if pairs else None


def _misses_at_500(series: str) -> Callable[[_Seen], bool | None]:
    def told(seen: _Seen) -> bool | None:
        values = [
            value > (point.deadline_ms or 0.0)
            for point in seen.points
            if point.series == series and "500 KB/s" in point.x and "1500" not in point.x
            if (value := seen.of(point).ms) is not None
        ]
        return all(values) if values else None

    return told


def _fails_at_the_shortest(seen: _Seen) -> bool | None:
    """Return whether no plan meets the shortest deadline. (The paper's own failure is not a point.)"""
    first = min(
        (p for p in seen.points if p.series == "coedge"), key=lambda p: p.deadline_ms or 0.0, default=None
    )  # fmt: skip
    if first is None or seen.of(first).ms is None:
        return None
    late = (seen.of(first).ms or 0.0) > (first.deadline_ms or 0.0)
    return bool(seen.of(first).problem) or late


def _rises(seen: _Seen) -> bool | None:
    values = [value for point in seen.points if (value := seen.of(point).joules) is not None]
    if len(values) < 2:
        return None
    return values[-1] > values[0] and all(b >= a * (1 - seen.slack) for a, b in itertools.pairwise(values))


_SLOW = "at 1 MB/s the image alone takes longer than the deadline to any other device, and the Pi alone does too"
_FEW = "MoDNN shares every layer among all six devices; the plans of CoEdge leave most of them out, and their halos"
_LEAST_ENERGY = (
    "least joules within a loose deadline is all of the work on the device that takes least energy, which is not the "
    "fastest"
)
_ONE_BY_ONE = (
    "Algorithm 1 does not try all sets of devices: for an earlier deadline it comes down to one of them, for a later "
    "one it stops at two, which take more joules"
)
_AGAIN = (
    "a second Pi joins and the plan stays on the first: the same work, measured again on a machine that emulates six "
    "devices with a few cores, where a frame's kernels vary by a tenth"
)
_FOUND = "`auto` searches: with a device less it may come upon a plan that it does not find again, here 4 % quicker"
_HALOS = "sharing sends rows, which take joules: with slow links the middle is dearer than its ends"

# Per figure: (statement; whether the paper shows it, None to compute it from its values; test; why ours may differ).
_CLAIMS: Mapping[str, Sequence[tuple[str, bool | None, Callable[[_Seen], bool | None], str]]] = {
    "10": [
        ("CoEdge is faster than Local on every network", None, _faster("coedge", "local"), ""),
        ("CoEdge is faster than Musical Chair on every network", None, _faster("coedge", "musical_chair"), ""),
        ("CoEdge is faster than MoDNN on every network", None, _faster("coedge", "modnn"), _FEW),
        ("CoEdge meets the deadlines", None, lambda seen: seen.in_time("coedge"), _SLOW),
    ],
    "11": [
        (
            f"CoEdge takes fewer joules than {title} on every network", None, _compared("coedge", series, "joules"),
            "",
        )
        for title, series in (("Local", "local"), ("MoDNN", "modnn"), ("Musical Chair", "musical_chair"))
    ],
    "12": [
        ("no plan meets the shortest deadline", True, _fails_at_the_shortest, ""),
        (
            "joules never rise as the deadline gets later", None, lambda seen: seen.never_rises("coedge", "joules"),
            _ONE_BY_ONE,
        ),
    ],
    "13": [
        ("latency never rises as devices join", None, lambda seen: seen.never_rises("coedge", "ms"), _LEAST_ENERGY),
        ("joules never rise as devices join", None, lambda seen: seen.never_rises("coedge", "joules"), _AGAIN),
        (
            "least latency never rises as devices join", None,
            lambda seen: seen.never_rises("auto, least latency", "ms"), _FOUND,
        ),
    ],
    "14": [
        (
            "latency goes against the bandwidth", None, _follows_bandwidth,
            "it is joules that are least: with more bandwidth a slower and thriftier plan meets the deadline",
        ),
        ("CoEdge meets the deadline at every bandwidth", None, lambda seen: seen.in_time("coedge"), _SLOW),
        ("MoDNN misses the deadline at 500 KB/s", True, _misses_at_500("modnn"), ""),
        ("Musical Chair misses the deadline at 500 KB/s", True, _misses_at_500("musical_chair"), ""),
    ],
    "3": [("joules rise with the share of the Pi", None, _rises, _HALOS)],
}  # fmt: skip


def median_value(ms: Sequence[float], joules: Sequence[float], problem: str) -> Value:
    """Return the value of measured frames."""
    return Value(
        statistics.median(ms) if ms else None, statistics.median(joules) if joules else None, problem,
        tuple(round(value, 3) for value in ms),
    )  # fmt: skip
