"""Rows of result tables, computed from cases and raw samples. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.bench.comparison import Case, Sample
from orchestrator.planner.planner import AUTO

# Relative tolerance below which two latencies count as equal.
LOSS = 0.03


@dataclass(frozen=True, slots=True)
class Row:
    """The results of a scheme on a model. Values that are unknown or were not measured are None.

    Attributes:
        frames: number of measured frames.
        median_seconds, p95_seconds: latency per frame.
        median_joules: energy per frame.
        sent_nbytes: mean bytes per frame, by "sender>receiver".
        difference: largest difference of all frames.
        to_auto, joules_to_auto: median latency and energy over those of `auto`.
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
        """Relative error of the predicted latency."""
        predicted = self.case.predicted_seconds
        return None if predicted is None or not self.median_seconds else predicted / self.median_seconds - 1

    @property
    def to_bound(self) -> float | None:
        """Median latency over the divisible-load bound."""
        return _ratio(self.median_seconds, self.case.bound_seconds)

    @property
    def total_nbytes(self) -> float | None:
        """Mean bytes per frame on all links."""
        return None if self.sent_nbytes is None else sum(self.sent_nbytes.values())


@dataclass(frozen=True, slots=True)
class Mean:
    """The results of a scheme over all models that both it and `auto` ran.

    Attributes:
        models: number of models.
        latency, joules: geometric means of the ratios to `auto`; `joules` is None if unknown for all models.
        best, best_model: the smallest ratio of latencies, and its model.
    """

    scheme: str
    models: int
    latency: float
    joules: float | None
    best: float
    best_model: str


def rows_of(cases: Sequence[Case], samples: Iterable[Sample]) -> list[Row]:
    """Return a row per case, in the same order. Schemes with the same plan share its samples."""
    frames: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        frames.setdefault((sample.model, sample.scheme), []).append(sample)
    rows = [_row(case, frames.get((case.model, case.same_as or case.scheme), ())) for case in cases]
    autos = {row.case.model: row for row in rows if row.case.scheme == AUTO}
    return [_with_ratios(row, autos.get(row.case.model)) for row in rows]


def means_of(rows: Sequence[Row]) -> list[Mean]:
    """Return the means of every scheme except `auto`, in the order of their first rows."""
    means = []
    for scheme in dict.fromkeys(row.case.scheme for row in rows if row.case.scheme != AUTO):
        ratios = {row.case.model: row.to_auto for row in rows if row.case.scheme == scheme and row.to_auto is not None}
        joules = [row.joules_to_auto for row in rows if row.case.scheme == scheme and row.joules_to_auto]
        if ratios:
            best = min(ratios, key=lambda model: ratios[model])
            means.append(
                Mean(
                    scheme, len(ratios), statistics.geometric_mean(ratios.values()),
                    statistics.geometric_mean(joules) if joules else None, ratios[best], best,
                )
            )  # fmt: skip
    return means


def mean_to_bound(rows: Iterable[Row]) -> float | None:
    """Return the geometric mean over models of the latency of `auto` over the divisible-load bound."""
    ratios = [row.to_bound for row in rows if row.case.scheme == AUTO and row.to_bound]
    return statistics.geometric_mean(ratios) if ratios else None


def losses_of(rows: Iterable[Row], share: float = LOSS) -> list[Row]:
    """Return the rows of schemes that are faster than `auto` by more than a share, the largest loss first."""
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
        case, len(frames), statistics.median(seconds), float(np.quantile(seconds, 0.95)),
        statistics.median(joules) if joules else None,
        {link: statistics.fmean(one.get(link, 0) for one in sent) for link in links} if sent else None,
        max(sample.difference for sample in frames),
    )  # fmt: skip


def _with_ratios(row: Row, auto: Row | None) -> Row:
    if auto is None:
        return row
    return replace(
        row,
        to_auto=_ratio(row.median_seconds, auto.median_seconds),
        joules_to_auto=_ratio(row.median_joules, auto.median_joules),
    )


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other
