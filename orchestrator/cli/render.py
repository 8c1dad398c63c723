"""Tables for people."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coedge.core.objective import Objective
from coedge.core.region import UnitRect
from coedge.core.units import mbps_of
from coedge.plan.plan import Plan, Stage, stage_runs
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "white")
# So many devices are named in a cell; of more, how many there are.
NAMED = 3

console = Console()


def busy(text: str) -> Any:
    """Says what takes a moment, where somebody can see it: on stderr, so that output stays clean."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    return Console(stderr=True).status(text)


def say(text: str) -> None:
    """Plain words, with no brackets taken for markup and no lines broken for width."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def devices_table(infos: Iterable[Any], providers: Mapping[str, Sequence[str]] | None = None) -> Table:
    """One row per device, with its execution providers if given; at the right are the links to the others."""
    infos = list(infos)
    table = Table(title="devices, as measured (links: Mbit/s, one-way ms)", title_justify="left", header_style="bold")
    table.add_column("device")
    table.add_column("state")
    table.add_column("speed", justify="right")
    table.add_column("GFLOP/s", justify="right")
    if providers:
        table.add_column("runs on")
    for info in infos:
        table.add_column(f"to {info.name}", justify="right")
    for info in infos:
        links = []
        for other in infos:
            link = info.links.get(other.name)
            if link is None:
                links.append("-")
            else:
                links.append(f"{mbps_of(link.bytes_per_second):.0f}, {link.latency_seconds * 1e3:.1f}")
        speed = "real" if info.speed is None else f"x {info.speed:g}"
        on = [", ".join(providers[info.name])] if providers else []
        table.add_row(info.name, info.state, speed, f"{info.gflops:.1f}", *on, *links)
    return table


def plan_table(plan: Plan, layers: int) -> Table:
    """One row per run of stages with the same shares, with a bar of who has which rows."""
    nearest = "" if plan.feasible else "; the nearest plan, not feasible"
    title = f"plan {plan.scheme}: {len(plan.stages)} stages of {layers} layers, {plan.source} -> {plan.sink}{nearest}"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("stages")
    table.add_column("layers")
    table.add_column("rows, top to bottom")
    table.add_column("shares")
    with_options = any(stage.halo_first or stage.codecs for stage in plan.stages)
    if with_options:
        table.add_column("sent")
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(plan.devices)}
    for start, stop, stage in stage_runs(plan.stages):
        stages = str(start) if stop - start == 1 else f"{start}-{stop - 1}"
        layer_range = f"{stage.first if stop - start == 1 else plan.stages[start].first}-{plan.stages[stop - 1].last}"
        shares = [(name, area(rect)) for name, rect in stage.regions.items() if area(rect) > 0]
        bar = "".join(f"[{colour[n]}]{'█' * max(1, round(24 * s))}[/]" for n, s in shares)
        words = ", ".join(f"[{colour[n]}]{n}[/] {s:.0%}" for n, s in shares)
        table.add_row(stages, layer_range, bar, words, *[_sent(plan.stages[start:stop])] * with_options)
    return table


def _sent(stages: Sequence[Stage]) -> str:
    """How what these stages need travels, where that is not raw and at the end of the stage."""
    words = ["borders first"] if any(stage.halo_first for stage in stages) else []
    codecs = sorted({codec for stage in stages for codec in stage.codecs.values() if codec != "raw"})
    return ", ".join(words + codecs)


def area(rect: UnitRect) -> float:
    return (rect.row_stop - rect.row_start) * (rect.col_stop - rect.col_start)


def prediction_line(plan: Plan, energy_source: str = "modelled from watts") -> str:
    assert plan.predicted is not None
    seconds, bound = plan.predicted.latency_seconds, plan.predicted.bound_seconds
    beside = "" if not bound else f" ({seconds / bound:.2f} x the divisible-load bound, {bound * 1e3:.1f} ms)"
    line = (
        f"predicted: {seconds * 1e3:.1f} ms{beside}, {plan.predicted.energy_joules:.3f} J a frame "
        f"({escape(energy_source)}), {plan.predicted.throughput_fps:.1f} frames/s in a stream"
    )
    if not plan.feasible:
        return f"{line}\n[red]infeasible:[/] {escape(plan.reason)}; this is the nearest plan that was found"
    return f"{line}\n{escape(plan.reason)}" if plan.reason else line


def compare_table(plans: Sequence[Plan], best: Plan, objective: Objective, energy_source: str) -> Table:
    """One row per plan, beside the best one."""
    assert best.predicted is not None
    bound = best.predicted.bound_seconds or 0.0
    table = Table(
        title=f"{best.model_name}, predicted, by {objective.goal}",
        caption=f"divisible-load bound {bound * 1e3:.1f} ms; J {escape(energy_source)}",
        title_justify="left", caption_justify="left", header_style="bold",
    )  # fmt: skip
    table.add_column("scheme", no_wrap=True)
    for column in ("ms", "x bound", "J\n(modelled)", "frames/s", f"x {best.scheme}"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("devices")
    for plan in plans:
        assert plan.predicted is not None
        seconds = plan.predicted.latency_seconds
        table.add_row(
            plan.scheme if plan.feasible else f"{plan.scheme} [red]*[/]", f"{seconds * 1e3:.1f}",
            f"{seconds / bound:.2f}" if bound else "-", f"{plan.predicted.energy_joules:.3f}",
            f"{plan.predicted.throughput_fps:.1f}", f"{ratio(plan, best, objective):.2f}", _names(plan),
            style="bold" if plan is best else None,
        )  # fmt: skip
    return table


def pareto_table(plans: Sequence[Plan], schemes: Sequence[Plan], energy_source: str) -> Table:
    """The plans, the fastest first, and the named schemes where they belong among them."""
    assert plans[0].predicted is not None
    bound = plans[0].predicted.bound_seconds or 0.0
    table = Table(
        title=f"{plans[0].model_name}: energy against latency, predicted", title_justify="left",
        caption=f"divisible-load bound {bound * 1e3:.1f} ms; J {escape(energy_source)}", caption_justify="left",
        header_style="bold",
    )  # fmt: skip
    for column in ("", "ms", "J\n(modelled)", "frames/s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("devices")
    table.add_column("scheme")
    numbered = [(str(index + 1), plan) for index, plan in enumerate(plans)]
    digests = {plan.digest for plan in plans}
    named: dict[str, list[str]] = {}
    for plan in schemes:
        named.setdefault(plan.digest, []).append(plan.scheme)
    beside = {plan.digest: ("", plan) for plan in schemes if plan.digest not in digests}
    for number, plan in sorted([*numbered, *beside.values()], key=lambda item: _seconds_and_joules(item[1])):
        seconds, joules = _seconds_and_joules(plan)
        assert plan.predicted is not None
        words = ", ".join(named.get(plan.digest, ())) + ("" if plan.feasible else " (infeasible)")
        table.add_row(
            number, f"{seconds * 1e3:.1f}", f"{joules:.3f}", f"{plan.predicted.throughput_fps:.1f}",
            _names(plan), words, style="bold" if number else "dim",
        )  # fmt: skip
    return table


def _seconds_and_joules(plan: Plan) -> tuple[float, float]:
    assert plan.predicted is not None
    return plan.predicted.latency_seconds, plan.predicted.energy_joules


def _names(plan: Plan) -> str:
    names = plan.used_devices
    return ", ".join(names) if len(names) <= NAMED else str(len(names))


def ratio(plan: Plan, best: Plan, objective: Objective) -> float:
    """What a plan costs, over what the best one costs, as the objective counts."""
    assert plan.predicted is not None and best.predicted is not None
    costs = [
        objective.cost(p.predicted.latency_seconds, p.predicted.energy_joules, p.predicted.throughput_fps)
        for p in (plan, best)
        if p.predicted is not None
    ]
    return costs[0] / max(costs[1], 1e-12)


def timeline_table(timeline: Timeline, profile: Profile, names: Sequence[str]) -> Table:
    """A row per device: what it and its links were busy with, and what it drew for what."""
    used, idle, busy_seconds = timeline.utilisation(profile), timeline.idle_seconds(), timeline.compute_seconds()
    items = timeline.energy(profile)
    causes = [cause for cause in ("compute", "transmit", "receive", "idle") if any(i.cause == cause for i in items)]
    table = Table(
        title="all frames together; joules are modelled", title_justify="left", header_style="bold",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    headers = ("device", "compute\nms", "idle\nms", "busy", "up-\nlink", "down-\nlink")
    for column in (*headers, *(f"{cause}\nJ" for cause in causes)):
        table.add_column(column, justify="left" if column == "device" else "right", no_wrap=True)
    for name in names:
        drawn = [sum(i.joules for i in items if i.device == name and i.cause == cause) for cause in causes]
        table.add_row(
            name, f"{busy_seconds.get(name, 0.0) * 1e3:.4g}", f"{idle.get(name, 0.0) * 1e3:.4g}",
            f"{used.devices.get(name, 0.0):.0%}", f"{used.up_links.get(name, 0.0):.0%}",
            f"{used.down_links.get(name, 0.0):.0%}", *(f"{joules:.3f}" for joules in drawn),
        )  # fmt: skip
    for name, share in used.media.items():
        table.add_row(f"({name})", "", "", f"{share:.0%}")
    return table
