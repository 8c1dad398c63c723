"""Picture of a Pareto front of energy against latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coedge.core.errors import CoEdgeError
from coedge.core.figure_style import INK, frame, logarithmic
from coedge.plan.plan import Plan

# Colours of Okabe and Ito, which colour-blind readers can tell apart. Shapes tell schemes apart without colour.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#8C8C00", "#000000")
_SHAPES = ("s", "^", "D", "v", "P", "X", "<", ">")
_FRONT = "#0072B2"
# Ratio of the largest to the smallest value from which an axis is logarithmic.
_LOG_RATIO = 4.0


def draw(plans: Sequence[Plan], schemes: Sequence[Plan], energy_source: str, path: str | Path) -> None:
    """Draw a picture, as PNG or SVG by the extension of its path.

    Args:
        plans: Pareto-optimal plans, the fastest first.
        schemes: plans of named schemes, marked in the picture.
        energy_source: description of where the joules come from.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CoEdgeError("pictures need matplotlib: pip install 'coedge[full]'") from error
    with rc_context({"svg.fonttype": "none"}):
        figure = Figure(figsize=(8.4, 4.8), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        _frontier(axes, plans)
        for index, (place, names) in enumerate(_together(schemes).items()):
            # Hollow markers do not hide the front.
            axes.plot(
                *([value] for value in place), _SHAPES[index % len(_SHAPES)], linestyle="none", markersize=10,
                markerfacecolor="none", markeredgecolor=_COLOURS[index % len(_COLOURS)], markeredgewidth=1.7,
                label="\n".join(names), zorder=4,
            )  # fmt: skip
        _frame(axes, [*plans, *schemes], plans[0].model_name, energy_source)
        kind = Path(path).suffix.lower()
        figure.savefig(path, facecolor="white", metadata={"Date": None} if kind == ".svg" else None)


def _places(plans: Sequence[Plan]) -> tuple[list[float], list[float]]:
    """Return the milliseconds and the joules of plans."""
    predicted = [plan.predicted for plan in plans if plan.predicted is not None]
    return [p.latency_seconds * 1e3 for p in predicted], [p.energy_joules for p in predicted]


def _together(schemes: Sequence[Plan]) -> dict[tuple[float, float], list[str]]:
    """Return the names of schemes by seconds and joules, rounded to three digits so that equal plans share a marker."""
    names: dict[tuple[float, float], list[str]] = {}
    for plan in schemes:
        (seconds,), (joules,) = _places([plan])
        name = plan.scheme if plan.feasible else f"{plan.scheme} (infeasible)"
        names.setdefault((float(f"{seconds:.3g}"), float(f"{joules:.3g}")), []).append(name)
    return names


def _frontier(axes: Any, plans: Sequence[Plan]) -> None:
    milliseconds, joules = _places(plans)
    # A plan is the best known one for all deadlines up to the latency of the next, so the front is a step function.
    axes.step(milliseconds, joules, where="post", color=_FRONT, linewidth=1.2, alpha=0.6, zorder=2)
    axes.plot(milliseconds, joules, "o", color=_FRONT, markersize=5, label="best found", zorder=5)
    bound = plans[0].predicted.bound_seconds if plans[0].predicted else None
    if bound:
        axes.axvline(bound * 1e3, color=INK, linewidth=0.9, linestyle=(0, (2, 3)), label="divisible-load bound")


def _frame(axes: Any, everything: Sequence[Plan], name: str, energy_source: str) -> None:
    milliseconds, joules = _places(everything)
    for which, values in (("x", milliseconds), ("y", joules)):
        if min(values) > 0 and max(values) / min(values) > _LOG_RATIO:
            logarithmic(axes, which)
    axes.set_xlabel("latency of a frame, ms", color=INK)
    axes.set_ylabel("energy of a frame, J", color=INK)
    axes.set_title(f"{name}: energy against latency, predicted", loc="left", color=INK, fontsize=11)
    axes.text(0.0, -0.16, f"joules {energy_source}", transform=axes.transAxes, fontsize=7.5, color=INK, va="top")
    frame(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, labelcolor=INK)
