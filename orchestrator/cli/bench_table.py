"""Tables of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from orchestrator.bench.comparison import Comparison
    from orchestrator.bench.table import Mean, Row


def model_table(rows: Sequence[Row], comparison: Comparison) -> Table:
    """Return the table of a model, with a row per scheme."""
    bound = rows[0].case.bound_seconds
    difference = max((row.difference for row in rows if row.difference is not None), default=None)
    captions = [f"divisible-load bound {bound * 1e3:.1f} ms"] if bound else []
    captions.append(f"J {escape(comparison.energy_source)}")
    if difference is not None:
        captions.append(f"largest difference from the unsplit output {difference:.1e}")
    table = Table(
        title=f"{rows[0].case.model} on {escape(comparison.cluster)}, {comparison.frames} frames each, in turns",
        caption="; ".join(captions), title_justify="left", caption_justify="left", header_style="bold",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("scheme", no_wrap=True)
    table.add_column("on", no_wrap=True)
    for column in (
        "p50\nms", "p95\nms", "pred.\nms", "error", "J", "pred.\nJ", "sent\nMB", "x\nbound", "x\nauto",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        case = row.case
        name = f"{case.scheme} [red]*[/]" if case.problem else case.scheme
        devices = case.devices[0] if len(case.devices) == 1 else str(len(case.devices))
        table.add_row(
            name, devices,
            _short(row.median_seconds, 1e3), _short(row.p95_seconds, 1e3), _short(case.predicted_seconds, 1e3),
            _number(row.error, 1, "{:+.0%}"), _short(row.median_joules), _short(case.predicted_joules),
            _short(row.total_nbytes, 1e-6), _number(row.to_bound, 1, "{:.2f}"), _number(row.to_auto, 1, "{:.2f}"),
            style="bold" if case.scheme == "auto" else None,
        )  # fmt: skip
    return table


def links_table(rows: Sequence[Row]) -> Table:
    """Return the table of the KB per frame on each link of a model, with a column per scheme."""
    shown = [row for row in rows if row.sent_nbytes]
    table = Table(
        title=f"{rows[0].case.model}: KB per frame on each link", title_justify="left", header_style="bold",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("link", no_wrap=True)
    for row in shown:
        table.add_column(row.case.scheme, justify="right", no_wrap=True)
    for link in sorted({link for row in shown for link in row.sent_nbytes or {}}):
        table.add_row(link, *(_number((row.sent_nbytes or {}).get(link), 1e-3, "{:.1f}") for row in shown))
    return table


def means_table(means: Sequence[Mean], to_bound: float | None) -> Table:
    """Return the table of the means over all models, with a row per scheme."""
    table = Table(
        title="latency and energy over those of auto: geometric means over the models", title_justify="left",
        caption="" if to_bound is None else f"latency of auto over the divisible-load bound: {to_bound:.2f}",
        caption_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("scheme", no_wrap=True)
    for column in ("models", "latency", "energy", "best"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("on")
    for mean in means:
        table.add_row(
            mean.scheme, str(mean.models), f"{mean.latency:.2f}", _number(mean.joules, 1, "{:.2f}"),
            f"{mean.best:.2f}", mean.best_model,
        )  # fmt: skip
    return table


def losses_line(losses: Sequence[Row]) -> str:
    """Describe where `auto` is slower than another scheme."""
    if not losses:
        return "auto is never slower than another scheme by more than 3 %"
    words = ", ".join(f"{row.case.scheme} on {row.case.model} ({1 / (row.to_auto or 1) - 1:.1%})" for row in losses)
    return f"auto is slower than {words}"


def _short(value: float | None, factor: float = 1.0) -> str:
    """Format a number with three significant digits, or without decimals from 100 on."""
    if value is None:
        return "-"
    return f"{value * factor:.0f}" if value * factor >= 100 else f"{value * factor:.3g}"


def _number(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else form.format(value * factor)
