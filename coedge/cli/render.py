"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from coedge.plan import Plan, stage_runs
from coedge.region import UnitRect

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "white")

console = Console()


def devices_table(infos: Iterable[Any]) -> Table:
    """One row per device; the columns at the right are the links to the others."""
    infos = list(infos)
    table = Table(title="devices, as measured (links: Mbit/s, one-way ms)", title_justify="left", header_style="bold")
    table.add_column("device")
    table.add_column("state")
    table.add_column("speed", justify="right")
    table.add_column("GFLOP/s", justify="right")
    for info in infos:
        table.add_column(f"to {info.name}", justify="right")
    for info in infos:
        links = []
        for other in infos:
            link = info.links.get(other.name)
            if link is None:
                links.append("-")
            else:
                links.append(f"{link.bytes_per_second * 8 / 1e6:.0f}, {link.latency_seconds * 1e3:.1f}")
        speed = "real" if info.speed is None else f"x {info.speed:g}"
        table.add_row(info.name, info.state, speed, f"{info.gflops:.1f}", *links)
    return table


def plan_table(plan: Plan, layers: int) -> Table:
    """One row per run of stages with the same shares, with a bar of who has which rows."""
    title = f"plan {plan.scheme}: {len(plan.stages)} stages of {layers} layers, {plan.source} -> {plan.sink}"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("stages")
    table.add_column("layers")
    table.add_column("rows, top to bottom")
    table.add_column("shares")
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(plan.devices)}
    for start, stop, stage in stage_runs(plan.stages):
        stages = str(start) if stop - start == 1 else f"{start}-{stop - 1}"
        layer_range = f"{stage.first if stop - start == 1 else plan.stages[start].first}-{plan.stages[stop - 1].last}"
        shares = [(name, _area(rect)) for name, rect in stage.regions.items() if _area(rect) > 0]
        bar = "".join(f"[{colour[n]}]{'█' * max(1, round(24 * s))}[/]" for n, s in shares)
        words = ", ".join(f"[{colour[n]}]{n}[/] {s:.0%}" for n, s in shares)
        table.add_row(stages, layer_range, bar, words)
    return table


def _area(rect: UnitRect) -> float:
    return (rect.row_stop - rect.row_start) * (rect.col_stop - rect.col_start)


def prediction_line(plan: Plan) -> str:
    assert plan.predicted is not None
    line = (
        f"predicted: {plan.predicted.latency_seconds * 1e3:.1f} ms, {plan.predicted.energy_joules:.3f} J a frame "
        f"(modelled from watts), {plan.predicted.throughput_fps:.1f} frames/s in a stream"
    )
    return line if plan.feasible else f"{line}\n[red]infeasible:[/] {plan.reason}"
