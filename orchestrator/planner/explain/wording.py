"""Figures as text: numbers with units, and aligned columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from coedge.core.objective import Objective
from coedge.core.units import mbps_of
from orchestrator.planner.explain.figures import Figures

# Savings below this share of the total are not mentioned. Longer lists are cut.
MIN_SHARE, MAX_LINES = 1e-4, 8


def milliseconds(seconds: float) -> str:
    """Format a duration in milliseconds."""
    return f"{_significant(seconds * 1e3)} ms"


def joules(amount: float) -> str:
    """Format an energy in J, or in mJ below 1 J."""
    return f"{_significant(amount)} J" if abs(amount) >= 1 else f"{_significant(amount * 1e3)} mJ"


def mbps(bytes_per_second: float) -> str:
    """Format a rate in Mbit/s."""
    rate = _significant(mbps_of(bytes_per_second))
    return f"{rate.rstrip('0').rstrip('.') if '.' in rate else rate} Mbit/s"


def percent(share: float) -> str:
    """Format a share as whole per cent, or with one decimal below one per cent."""
    return f"{share:.0%}" if share >= 0.0095 else f"{share:.1%}"


def goal_name(objective: Objective) -> str:
    """Name the quantity that the objective optimises."""
    if objective.goal == "latency" and objective.energy_weight:
        return "latency and energy"
    return {"latency": "latency", "energy": "energy", "throughput": "the frame rate"}[objective.goal]


def goal_words(figures: Figures, objective: Objective) -> str:
    """Format the figure that the objective optimises."""
    if objective.goal == "energy":
        return joules(figures.energy_joules)
    if objective.goal == "throughput":
        return f"{_significant(figures.throughput_fps)} frames/s"
    words = milliseconds(figures.latency_seconds)
    return f"{words} and {joules(figures.energy_joules)}" if objective.energy_weight else words


def saved_words(current: Figures, saves: Figures, objective: Objective) -> str:
    """Format savings, the figure that the objective optimises first."""
    time = _change(saves.latency_seconds, current.latency_seconds, milliseconds)
    energy = _change(saves.energy_joules, current.energy_joules, joules)
    words = [energy, time] if objective.goal == "energy" else [time, energy]
    saved = ", ".join(word for word in words if word)
    if objective.goal == "throughput":
        return f"gains {_significant(saves.throughput_fps)} frames/s" + (f", saves {saved}" if saved else "")
    return f"saves {saved or 'nothing'}"


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Align rows of cells in columns; of more than `MAX_LINES` rows, keep the first ones and count the rest."""
    table = list(rows)
    if not table:
        return []
    shown, more = table[:MAX_LINES], len(table) - MAX_LINES
    widths = [max(len(row[column]) for row in shown) for column in range(len(table[0]))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in shown]
    return lines if more <= 0 else [*lines, f"  and {more} smaller ones"]


def _change(saved: float, current: float, words: Callable[[float], str]) -> str:
    if abs(saved) <= MIN_SHARE * current:
        return ""
    return words(saved) if saved > 0 else f"but costs {words(-saved)}"


def _significant(value: float) -> str:
    """Format a number with at least three significant digits and without an exponent."""
    if abs(value) < 1e-6:
        return "0"
    magnitude = math.floor(math.log10(float(f"{abs(value):.3g}")))
    return f"{value:.{max(2 - magnitude, 0)}f}"
