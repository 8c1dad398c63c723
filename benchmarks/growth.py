"""Planning time against the number of devices and the number of layers, with a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Report
from coedge.core.figure_style import INK, frame, logarithmic
from coedge.graph.model import Model

# Plans a network for a number of devices and returns the seconds.
Timed = Callable[[Model, int], float]
Points = Sequence[tuple[int, float, str]]

_LINE = "#0072B2"


def growth(report: Report, models: Mapping[str, Model], counts: Sequence[int], devices: int, timed: Timed) -> None:
    """Return rows and samples of planning times, and draw a picture of them next to the report.

    Args:
        models: models in the order of their layers. Devices vary for the first; layers vary for `devices` devices.
    """
    first = next(iter(models))
    by_devices = []
    for count in counts:
        seconds = timed(models[first], count)
        by_devices.append((count, seconds, ""))
        report.sample(f"{first}: {count} devices, s", [seconds])
        if count == 64:
            report.at_most(f"{first}: 64 devices", seconds, "s", 20)
        else:
            report.note(f"{first}: {count} devices", seconds, "s")
    by_layers = []
    for name, model in sorted(models.items(), key=lambda item: len(item[1].layers)):
        seconds = timed(model, devices)
        by_layers.append((len(model.layers), seconds, name))
        report.sample(f"{name}: {len(model.layers)} layers, {devices} devices, s", [seconds])
        report.note(f"{name}: {len(model.layers)} layers, {devices} devices", seconds, "s")
    draw(by_devices, by_layers, first, devices, report.beside("-growth.png"))


def draw(by_devices: Points, by_layers: Points, name: str, devices: int, path: str | Path) -> None:
    """Draw two panels: seconds against devices, and seconds against layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, by_devices, "devices", f"{name}: more devices", "-o")
    _panel(right, by_layers, "layers of the network", f"{devices} devices: more layers", "o")
    left.set_xticks([at for at, _, _ in by_devices])
    figure.savefig(path, facecolor="white")


def _panel(axes: Any, points: Points, label: str, title: str, style: str) -> None:

    axes.plot([at for at, _, _ in points], [seconds for _, seconds, _ in points], style, color=_LINE, markersize=5)
    for index, (at, seconds, name) in enumerate(points):
        # Labels alternate above and below, because networks with similar numbers of layers are close together.
        axes.annotate(
            name, (at, seconds), xytext=(0, 6 if index % 2 else -12), textcoords="offset points", fontsize=7,
            color=INK, ha="center",
        )  # fmt: skip
    for which in "xy":
        logarithmic(axes, which)
    axes.margins(0.12)
    axes.set_xlabel(label, color=INK)
    axes.set_ylabel("time to plan, s", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    frame(axes)
