"""Pictures of a comparison, made from saved samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coedge.core.errors import CoEdgeError
from coedge.core.figure_style import INK, frame, logarithmic

if TYPE_CHECKING:
    from orchestrator.bench.comparison import Comparison
    from orchestrator.bench.table import Row

_BAR, _AUTO, _DOT = "#8DB4D2", "#0072B2", "#D55E00"
# Maximum number of panels per row, and the ratio of the largest to the smallest value of a logarithmic axis.
_MAX_COLUMNS, _LOG_RATIO = 4, 20.0


def draw(rows: Sequence[Row], comparison: Comparison, folder: Path) -> list[Path]:
    """Draw `latency.svg`, `energy.svg` and `prediction.svg` into the folder, as far as values were measured.

    Returns:
        The paths of the pictures.
    """
    measured = [row for row in rows if row.median_seconds is not None]
    if not measured:
        return []
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise CoEdgeError("pictures need matplotlib: pip install 'coedge[full]'") from error
    where = f"{comparison.cluster}, {comparison.frames} frames"
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "coedge"}):
        paths = [_save(_latency(measured, where), folder / "latency.svg")]
        if any(row.median_joules for row in measured):
            paths.append(_save(_energy(measured, where, comparison.energy_source), folder / "energy.svg"))
        if any(row.case.predicted_seconds for row in measured):
            paths.append(_save(_prediction(measured, where), folder / "prediction.svg"))
    return paths


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    return path


def _latency(rows: Sequence[Row], where: str) -> Any:
    def mark(axes: Any, here: Sequence[Row], places: Sequence[int]) -> None:
        for row, place in zip(here, places):
            assert row.median_seconds is not None and row.p95_seconds is not None
            axes.plot([row.median_seconds * 1e3, row.p95_seconds * 1e3], [place, place], color=INK, linewidth=1.0)
        bound = here[0].case.bound_seconds
        if bound:
            axes.axvline(bound * 1e3, color=INK, linewidth=0.9, linestyle=(0, (2, 3)))

    return _panels(
        rows, f"latency of a frame, ms ({where}); bar: median, line: to p95, dot: predicted, dotted: bound",
        lambda row: _scaled(row.median_seconds), lambda row: _scaled(row.case.predicted_seconds), mark,
    )  # fmt: skip


def _energy(rows: Sequence[Row], where: str, source: str) -> Any:
    return _panels(
        [row for row in rows if row.median_joules], f"energy of a frame, J ({where}), {source}; dot: predicted",
        lambda row: row.median_joules, lambda row: row.case.predicted_joules, lambda axes, here, places: None,
    )  # fmt: skip


def _panels(
    rows: Sequence[Row],
    title: str,
    value: Callable[[Row], float | None],
    predicted: Callable[[Row], float | None],
    mark: Callable[[Any, Sequence[Row], Sequence[int]], None],
) -> Any:
    """Draw a panel per model with a bar per scheme."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.case.model for row in rows))
    wide = min(_MAX_COLUMNS, len(models))
    high = math.ceil(len(models) / wide)
    most = max(sum(row.case.model == model for row in rows) for model in models)
    # The title needs some width even if there are few panels.
    figure = Figure(figsize=(max(3.4 * wide, 7.0), (0.6 + 0.24 * most) * high + 0.4), dpi=120, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=INK)
    for index, model in enumerate(models):
        axes = figure.add_subplot(high, wide, index + 1)
        here = [row for row in rows if row.case.model == model]
        places = list(range(len(here)))[::-1]
        colours = [_AUTO if row.case.scheme == "auto" else _BAR for row in here]
        axes.barh(places, [value(row) or 0.0 for row in here], color=colours, height=0.7)
        dots = [(dot, place) for row, place in zip(here, places) if (dot := predicted(row)) is not None]
        axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=_DOT, markersize=3.5)
        mark(axes, here, places)
        axes.set_yticks(places, [row.case.scheme for row in here])
        axes.set_xlim(left=0)
        axes.set_title(model, loc="left", fontsize=9, color=INK)
        frame(axes, size=8)
    return figure


def _prediction(rows: Sequence[Row], where: str) -> Any:
    """Draw predicted against measured latency; schemes with the same plan are one dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    places = []
    for model in dict.fromkeys(row.case.model for row in rows):
        dots = [
            (row.median_seconds * 1e3, row.case.predicted_seconds * 1e3)
            for row in rows
            if row.case.model == model and not row.case.same_as and row.median_seconds and row.case.predicted_seconds
        ]
        places += dots
        axes.plot([x for x, _ in dots], [y for _, y in dots], "o", markersize=4.5, alpha=0.8, label=model)
    ends = [min(_flat(places)), max(_flat(places))]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), label="predicted = measured")
    if ends[1] > _LOG_RATIO * ends[0] > 0:
        for which in "xy":
            logarithmic(axes, which)
    axes.set_xlabel("measured, ms (median)", color=INK)
    axes.set_ylabel("predicted, ms", color=INK)
    axes.set_title(f"latency of a frame ({where})", loc="left", fontsize=9, color=INK)
    frame(axes, size=8)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _scaled(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _flat(pairs: Iterable[tuple[float, float]]) -> list[float]:
    return [number for pair in pairs for number in pair]
