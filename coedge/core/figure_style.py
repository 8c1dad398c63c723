"""Common style of all figures: colours, frame of the axes, logarithmic ticks."""

from __future__ import annotations

from typing import Any

INK, PALE = "#222222", "#D5D5DA"


def frame(axes: Any, grid: str = "both", size: float | None = None) -> None:
    """Draw the left and bottom side of the axes and a pale grid behind the data.

    Args:
        axes: matplotlib axes.
        grid: `x`, `y` or `both`.
        size: font size of the tick labels, in points. None: matplotlib's own.
    """
    axes.grid(color=PALE, linewidth=0.5, axis=grid)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, color=PALE, which="both", **({} if size is None else {"labelsize": size}))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(PALE)


def logarithmic(axes: Any, which: str) -> None:
    """Make an axis logarithmic, with ticks at 1, 2 and 5 times powers of ten, written without exponents.

    Args:
        which: `x` or `y`.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
