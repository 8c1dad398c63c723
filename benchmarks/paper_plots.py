"""Pictures of the paper's figures with printed, predicted and measured values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper_points import SOURCES, Figures, Point
from coedge.core.figure_style import INK, frame

_OF_SOURCE = {"paper": "#222222", "predicted": "#D55E00", "measured": "#0072B2"}
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_LINE = {"paper": (0, (1, 1.5)), "predicted": (0, (5, 2)), "measured": "-"}
_UNIT = {"ms": "latency, ms", "joules": "energy, J"}
_X = {"12": "deadline, ms", "13": "devices", "14": "step", "3": "rows on the Pi, %"}


def draw(figures: Figures, folder: Path) -> list[Path]:
    """Draw `paper-FIGURE-RATE.svg` into the folder, one per figure and scale.

    Returns:
        The paths of the pictures.
    """
    from matplotlib import rc_context

    made = []
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "paper"}):
        for scale in dict.fromkeys(point.scale for point in figures.points):
            for figure in dict.fromkeys(point.figure for point in figures.points):
                here = [point for point in figures.points if (point.figure, point.scale) == (figure, scale)]
                if not here:
                    continue
                path = folder / f"paper-{figure}-{scale:g}MBps.svg"
                picture = _bars(here) if figure == "10" else _lines(here)
                picture.savefig(path, facecolor="white", metadata={"Date": None})
                made.append(path)
    return made


def _bars(points: Sequence[Point]) -> Any:
    """Draw figures 10 and 11: a panel per network and quantity, with three bars per scheme."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(point.network for point in points))
    figure = Figure(figsize=(2.9 * max(len(networks), 2), 4.8), dpi=120, layout="constrained")
    for row, quantity in enumerate(("ms", "joules")):
        for column, network in enumerate(networks):
            axes = figure.add_subplot(2, len(networks), row * len(networks) + column + 1)
            here = [point for point in points if point.network == network]
            for offset, source in enumerate(SOURCES):
                axes.bar(
                    [place + 0.27 * (offset - 1) for place in range(len(here))],
                    [getattr(getattr(point, source), quantity) or 0.0 for point in here],
                    0.25, color=_OF_SOURCE[source], label=source,
                )  # fmt: skip
            if quantity == "ms" and here[0].deadline_ms:
                axes.axhline(here[0].deadline_ms, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.set_xticks(range(len(here)), [point.series.replace("_", "\n") for point in here])
            axes.set_title(network, loc="left", fontsize=9, color=INK)
            if column == 0:
                axes.set_ylabel(_UNIT[quantity], fontsize=8, color=INK)
            frame(axes, "y", 7)
    _title(figure, points[0], "10 and 11")
    _legend(figure)
    return figure


def _lines(points: Sequence[Point]) -> Any:
    """Draw a panel per quantity, with a colour per series and a line style per source."""
    from matplotlib.figure import Figure

    xs = list(dict.fromkeys(point.x for point in points))
    figure = Figure(figsize=(10.8, 3.8), dpi=120, layout="constrained")
    for index, quantity in enumerate(("ms", "joules")):
        axes = figure.add_subplot(1, 2, index + 1)
        for colour, series in zip(_COLOURS, dict.fromkeys(point.series for point in points)):
            for source in SOURCES:
                dots = [
                    (xs.index(point.x), value)
                    for point in points
                    if point.series == series
                    and (value := getattr(getattr(point, source), quantity)) is not None
                    # A plan that misses its deadline is only the nearest one, so it is not drawn as an answer.
                    and not (point.figure == "12" and getattr(point, source).problem)
                ]
                if dots:
                    axes.plot(
                        [x for x, _ in dots], [y for _, y in dots], color=colour, linewidth=1.3, marker="o",
                        markersize=5 if source == "paper" else 3, linestyle=_LINE[source],
                        label=f"{series}, {source}",
                    )  # fmt: skip
        axes.set_xticks(range(len(xs)), [x.replace(": ", "\n").replace(" KB/s", "") for x in xs])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(_X[points[0].figure], fontsize=8, color=INK)
        axes.set_ylabel(_UNIT[quantity], fontsize=8, color=INK)
        frame(axes, "y", 7)
    _title(figure, points[0], points[0].figure)
    _legend(figure)
    return figure


def _legend(figure: Any) -> None:
    """Draw one legend for all panels."""
    found = {}
    for axes in figure.get_axes():
        for handle, label in zip(*axes.get_legend_handles_labels()):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside right upper", frameon=False, fontsize=7)


def _title(figure: Any, point: Point, number: str) -> None:
    text = f"figure {number} of the CoEdge paper again, links of {point.scale:g} MB/s"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9, color=INK)
