"""From cases and raw samples to the rows that people look at. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.bench.comparison import Case, Sample
from orchestrator.planner.planner import AUTO

# Of the latency: by less, one scheme is not said to lose to another.
LOSS = 0.03


@dataclass(frozen=True, slots=True)
class Row:
    """A scheme on a model. What was not measured, or is not known, is None.

    Attributes:
        median_seconds, p95_seconds: latency of the frames.
        median_joules: of a frame.
        sent_nbytes: of a frame, by "sender>receiver", the mean of the frames.
        to_auto, joules_to_auto: what `auto` takes is 1.
        to_bound: median latency over the divisible-load bound.
        difference: the largest of all frames.
        frames: that were measured.
    """

    case: Case
    frames: int = 0
    median_seconds: float | None = None
    p95_seconds: float | None = None
    median_joules: float | None = None
    sent_nbytes: Mapping[str, float] | None = None
    difference: float | None = None
    to_auto: float | None = None
    joules_to_auto: float | None = None

    @property
    def error(self) -> float | None:
        """Of the predicted latency, relative to the measured one."""
        predicted = self.case.predicted_seconds
        return None if predicted is None or not self.median_seconds else predicted / self.median_seconds - 1

    @property
    def to_bound(self) -> float | None:
        return _ratio(self.median_seconds, self.case.bound_seconds)

    @property
    def total_nbytes(self) -> float | None:
        return None if self.sent_nbytes is None else sum(self.sent_nbytes.values())


@dataclass(frozen=True, slots=True)
class Mean:
    """A scheme over all models that both it and `auto` ran.

    Attributes:
        latency, joules: geometric means of what it takes over what `auto` takes; joules None: not known of any.
        least, least_model: the model on which it does best against `auto`.
    """

    scheme: str
    models: int
    latency: float
    joules: float | None
    least: float
    least_model: str


def rows_of(cases: Sequence[Case], samples: Iterable[Sample]) -> list[Row]:
    """A row per case, in their order. Schemes with one plan in common share its samples."""
    frames: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        frames.setdefault((sample.model, sample.scheme), []).append(sample)
    plain = [_row(case, frames.get((case.model, case.same_as or case.scheme), ())) for case in cases]
    autos = {row.case.model: row for row in plain if row.case.scheme == AUTO}
    return [_beside(row, autos.get(row.case.model)) for row in plain]


def means_of(rows: Sequence[Row]) -> list[Mean]:
    """Of every scheme but `auto`, in order of their first rows."""
    found = []
    for scheme in dict.fromkeys(row.case.scheme for row in rows if row.case.scheme != AUTO):
        ratios = {row.case.model: row.to_auto for row in rows if row.case.scheme == scheme and row.to_auto is not None}
        joules = [row.joules_to_auto for row in rows if row.case.scheme == scheme and row.joules_to_auto]
        if ratios:
            least = min(ratios, key=lambda model: ratios[model])
            found.append(
                Mean(
                    scheme, len(ratios), statistics.geometric_mean(ratios.values()),
                    statistics.geometric_mean(joules) if joules else None, ratios[least], least,
                )
            )  # fmt: skip
    return found


def mean_to_bound(rows: Iterable[Row]) -> float | None:
    """Geometric mean over the models of the latency of `auto` over the divisible-load bound."""
    ratios = [row.to_bound for row in rows if row.case.scheme == AUTO and row.to_bound]
    return statistics.geometric_mean(ratios) if ratios else None


def losses_of(rows: Iterable[Row], share: float = LOSS) -> list[Row]:
    """Where `auto` is slower than another scheme by more than this share, the worst first."""
    plans = [row for row in rows if not row.case.alone]
    lost = [(row.to_auto, row) for row in plans if row.to_auto is not None and 1 / row.to_auto > 1 + share]
    return [row for _, row in sorted(lost, key=lambda item: item[0])]


def _row(case: Case, frames: Sequence[Sample]) -> Row:
    if not frames:
        return Row(case)
    seconds = [sample.seconds for sample in frames]
    joules = [sample.joules for sample in frames if sample.joules is not None]
    sent = [sample.sent_nbytes for sample in frames if sample.sent_nbytes is not None]
    links = sorted({link for one in sent for link in one})
    return Row(
        case, len(frames), statistics.median(seconds), float(np.percentile(seconds, 95)),
        statistics.median(joules) if joules else None,
        {link: statistics.fmean(one.get(link, 0) for one in sent) for link in links} if sent else None,
        max(sample.difference for sample in frames),
    )  # fmt: skip


def _beside(row: Row, auto: Row | None) -> Row:
    if auto is None:
        return row
    return replace(
        row,
        to_auto=_ratio(row.median_seconds, auto.median_seconds),
        joules_to_auto=_ratio(row.median_joules, auto.median_joules),
    )


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other
