"""Draws a timeline as a Gantt chart, one lane per device, to a file or for the terminal.

board-1   |  send     ▬▬▬▬                |   messages on the up-link
          |  compute  ██████░░░░░████     |   kernels; grey is waiting
          |  receive         ▬▬▬          |   messages on the down-link
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coedge.core.errors import CoEdgeError, ConfigError
from coedge.core.figure_style import INK, PALE
from coedge.simulation.timeline import Span, Timeline

SUFFIXES = (".png", ".svg")

# Colours by Okabe and Ito, which colour-blind people can tell apart. Every other frame of a stream has the lighter one.
_COLOURS = {"compute": ("#0072B2", "#56A5D8"), "send": ("#D55E00", "#EE9A5B"), "receive": ("#009E73", "#5CC4A5")}
_WAIT = "#E9E9EC"
# (middle, height) within a lane of height 1, downwards.
_STRIPS = {"send": (-0.27, 0.11), "compute": (0.0, 0.36), "receive": (0.27, 0.11)}
_WIDTH_INCHES, _DOTS_PER_INCH = 10.5, 160


@dataclass(frozen=True, slots=True)
class _TimeWindow:
    """The part of the time that is shown, in seconds."""

    first: float
    last: float

    @property
    def seconds(self) -> float:
        return self.last - self.first


def draw(
    timeline: Timeline, path: str | Path, first_seconds: float | None = None, last_seconds: float | None = None
) -> None:
    """Draw a PNG or SVG file, depending on the suffix. A single frame is drawn with its critical path.

    Args:
        first_seconds, last_seconds: the part of the time to show; all of it by default.

    Raises:
        ConfigError: the suffix is another one, or there is nothing to show between these times.
        CoEdgeError: matplotlib is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"cannot draw {target.name!r}: end the name with {' or '.join(SUFFIXES)}")
    window = _window(timeline, first_seconds, last_seconds)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CoEdgeError("pictures need matplotlib: pip install 'coedge[full]'") from error
    devices = timeline.devices
    lanes = {name: lane for lane, name in enumerate(devices)}
    figure = Figure(figsize=(_WIDTH_INCHES, 1.2 + 0.58 * len(devices)), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    _bars(axes, timeline, window, lanes)
    if len(timeline.answered) == 1:
        _critical_path(axes, timeline, window, lanes)
    _frame(axes, timeline, window, devices)
    figure.savefig(target, facecolor="white", metadata={"Date": None} if target.suffix.lower() == ".svg" else None)


def text(
    timeline: Timeline, width: int = 100, first_seconds: float | None = None, last_seconds: float | None = None
) -> str:
    """Return the chart as text for a terminal: one line per device, without colours.

    Args:
        width: characters per line, at least 40.
        first_seconds, last_seconds: the part of the time to show; all of it by default.

    Raises:
        ConfigError: there is nothing to show between these times.
    """
    window = _window(timeline, first_seconds, last_seconds)
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in timeline.devices]
    margin = max(len(name) for name in names) + 2
    cells = max(width, 40) - margin - len("   100%")
    many = len(timeline.answered) > 1
    lines = [_title(timeline), " " * margin + _axis(window, cells) + "   busy"]
    spans: dict[str, list[Span]] = defaultdict(list)
    for span in timeline.spans:
        spans[span.device].append(span)
    for name, device in zip(names, timeline.devices):
        row = _row(spans[device], window, cells, many)
        busy = sum(_inside(s, window) for s in spans[device] if s.kind == "compute") / window.seconds
        lines.append(f"{name:{margin}}{row}  {busy:5.0%}")
    computing = "0-9 compute, last digit of the frame" if many else "█ compute"
    lines.append(f"{'':{margin}}{computing}   > send   < receive   · wait")
    return "\n".join(lines)


def _window(timeline: Timeline, first: float | None, last: float | None) -> _TimeWindow:
    asked = [start for start, _ in timeline.answered.values()]
    answered = [stop for _, stop in timeline.answered.values()]
    window = _TimeWindow(
        min(asked, default=0.0) if first is None else first, max(answered, default=0.0) if last is None else last
    )
    if window.seconds <= 0 or not any(_inside(span, window) > 0 for span in timeline.spans):
        raise ConfigError(
            f"nothing happens between {window.first:.6g} and {window.last:.6g} s; "
            f"this timeline has {len(timeline.spans)} spans from {min(asked, default=0.0):.6g} "
            f"to {max(answered, default=0.0):.6g} s"
        )
    return window


def _inside(span: Span, window: _TimeWindow) -> float:
    """Return the seconds of a span that lie in the window."""
    return max(min(span.stop_seconds, window.last) - max(span.start_seconds, window.first), 0.0)


def _title(timeline: Timeline) -> str:
    kind = "measured" if timeline.measured else "predicted"
    latency = f"{_ms(timeline.latency_seconds)} ms"
    frames = len(timeline.answered)
    if frames == 1:
        return f"{kind}: {latency}"
    return f"{kind}: {frames} frames, {latency} each, {timeline.throughput_fps:.3g} frames/s"


def _ms(seconds: float) -> str:
    """Return milliseconds with four digits, or all digits before the decimal point."""
    return f"{seconds * 1e3:.4g}" if abs(seconds) < 1 else f"{seconds * 1e3:.0f}"


def _bars(axes: Any, timeline: Timeline, window: _TimeWindow, lanes: Mapping[str, int]) -> None:
    pixel = window.seconds / (_WIDTH_INCHES * _DOTS_PER_INCH)
    bars: dict[tuple[int, str, int], list[tuple[float, float]]] = defaultdict(list)
    for span in timeline.spans:
        if span.kind in _STRIPS and span.stop_seconds >= window.first and span.start_seconds <= window.last:
            inside = max(span.start_seconds, window.first), min(span.stop_seconds, window.last)
            bars[lanes[span.device], span.kind, span.frame % 2].append(inside)
    middle, height = _STRIPS["compute"]
    for lane in lanes.values():
        waiting = [(window.first * 1e3, window.seconds * 1e3)]
        axes.broken_barh(waiting, (lane + middle - height / 2, height), facecolors=_WAIT, zorder=1)
    many = len(timeline.answered) > 1
    for (lane, kind, odd), times in bars.items():
        middle, height = _STRIPS[kind]
        widths = [(start * 1e3, max(stop - start, pixel) * 1e3) for start, stop in _merged(times, pixel)]
        colour = _COLOURS[kind][odd if many else 0]
        # A white edge separates steps and messages that are wide enough for it.
        axes.broken_barh(
            widths, (lane + middle - height / 2, height), facecolors=colour, edgecolors="white",
            linewidth=[0.5 if width > 6e3 * pixel else 0.0 for _, width in widths], zorder=2,
        )  # fmt: skip


def _merged(times: Iterable[tuple[float, float]], pixel: float) -> list[tuple[float, float]]:
    """Return the intervals in order. Intervals that are too short to be seen, or too close together, are merged."""
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(times):
        if merged and start - merged[-1][1] < pixel and min(stop - start, merged[-1][1] - merged[-1][0]) < 3 * pixel:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _critical_path(axes: Any, timeline: Timeline, window: _TimeWindow, lanes: Mapping[str, int]) -> None:
    across: list[float] = []
    down: list[float] = []
    for span in timeline.critical_path():
        height = lanes[span.device] + _STRIPS.get(span.kind, _STRIPS["compute"])[0]
        across += [span.start_seconds * 1e3, span.stop_seconds * 1e3]
        down += [height, height]
    axes.plot(across, down, color=INK, linewidth=0.9, solid_joinstyle="round", zorder=3)


def _frame(axes: Any, timeline: Timeline, window: _TimeWindow, devices: tuple[str, ...]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_xlim(window.first * 1e3, window.last * 1e3)
    axes.set_ylim(len(devices) - 0.45, -0.55)
    axes.set_yticks(range(len(devices)), devices, color=INK)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.tick_params(axis="x", colors=INK, color=PALE)
    axes.set_xlabel("ms", color=INK, loc="right", labelpad=1)
    axes.grid(axis="x", color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
    axes.set_title(_title(timeline), loc="left", color=INK, fontsize=11)
    handles: list[Any] = [Patch(color=colours[0], label=kind) for kind, colours in _COLOURS.items()]
    handles.append(Patch(color=_WAIT, label="wait"))
    if len(timeline.answered) == 1:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, label="critical path"))
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), frameon=False,
        fontsize=9, handlelength=1.2, handleheight=0.8, columnspacing=1.4, labelcolor=INK, borderaxespad=0.3,
    )  # fmt: skip


def _axis(window: _TimeWindow, cells: int) -> str:
    first, last = _ms(window.first), f"{_ms(window.last)} ms"
    return first + " " * max(cells - len(first) - len(last), 1) + last


def _row(spans: Iterable[Span], window: _TimeWindow, cells: int, many: bool) -> str:
    """Return one character per cell: what the device did for most of it, kernels before messages."""
    spent: list[dict[str, float]] = [defaultdict(float) for _ in range(cells)]
    width = window.seconds / cells
    for span in spans:
        start, stop = ((t - window.first) / width for t in (span.start_seconds, span.stop_seconds))
        if span.kind not in _STRIPS or stop < 0 or start >= cells:
            continue
        kind = str(span.frame % 10) if many and span.kind == "compute" else span.kind
        for cell in range(max(int(start), 0), min(max(math.ceil(stop), int(start) + 1), cells)):
            spent[cell][kind] += min(stop, cell + 1) - max(start, cell)
    return "".join(_character(cell) for cell in spent)


def _character(spent: Mapping[str, float]) -> str:
    messages = {">": spent.get("send", -1.0), "<": spent.get("receive", -1.0)}
    kernels = {kind: share for kind, share in spent.items() if kind not in ("send", "receive")}
    computing = sum(kernels.values())
    if computing > 0 and (computing >= 0.5 or computing > max(messages.values())):
        kind = max(kernels, key=lambda name: kernels[name])
        return "█" if kind == "compute" else kind
    character = max(messages, key=lambda name: messages[name])
    return character if messages[character] >= 0 else "·"
