"""Tables of plans."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from coedge.core.objective import Objective
from coedge.core.region import UnitRect
from coedge.plan.plan import Plan, Stage, stage_runs
from coedge.profile.estimate_error import EstimateError

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "white")
# Width in characters of the bar of a stage's shares.
BAR_WIDTH = 24
# Maximum number of devices named in a cell; a larger number of devices is only counted.
MAX_NAMES = 3


def plan_table(plan: Plan, layers: int) -> Table:
    """Return a table with a row per run of stages with the same shares, and a bar of the shares."""
    nearest = "" if plan.feasible else "; infeasible, the nearest plan"
    count = f"{len(plan.stages)} stage{'' if len(plan.stages) == 1 else 's'}"
    title = f"plan {plan.scheme}: {count} of {layers} layers, {plan.source} -> {plan.sink}{nearest}"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("stages")
    table.add_column("layers")
    table.add_column("rows, top to bottom")
    table.add_column("shares")
    with_options = any(stage.halo_first or stage.codecs for stage in plan.stages)
    if with_options:
        table.add_column("transfers")
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(plan.devices)}
    for start, stop, stage in stage_runs(plan.stages):
        stages = str(start) if stop - start == 1 else f"{start}-{stop - 1}"
        layer_range = f"{plan.stages[start].first}-{plan.stages[stop - 1].last}"
        shares = [(name, area(rect)) for name, rect in stage.regions.items() if area(rect) > 0]
        bar = "".join(f"[{colour[name]}]{'█' * max(1, round(BAR_WIDTH * share))}[/]" for name, share in shares)
        words = ", ".join(f"[{colour[name]}]{name}[/] {share:.0%}" for name, share in shares)
        table.add_row(stages, layer_range, bar, words, *[_transfers(plan.stages[start:stop])] * with_options)
    return table


def _transfers(stages: Sequence[Stage]) -> str:
    """Describe how the inputs of stages travel, unless they travel raw and after the whole stage before."""
    words = ["halo first"] if any(stage.halo_first for stage in stages) else []
    codecs = sorted({codec for stage in stages for codec in stage.codecs.values() if codec != "raw"})
    return ", ".join(words + codecs)


def area(rect: UnitRect) -> float:
    """Return the area of a rectangle in the unit square."""
    return (rect.row_stop - rect.row_start) * (rect.col_stop - rect.col_start)


def prediction_line(plan: Plan, energy_source: str = "modelled from watts", error: EstimateError | None = None) -> str:
    """Describe the predicted cost of a plan, with the error of an estimate and the reason if it is infeasible."""
    assert plan.predicted is not None
    seconds, bound = plan.predicted.latency_seconds, plan.predicted.bound_seconds
    within = f" {error.brief}" if error else ""
    to_bound = ""
    if bound:
        to_bound = f" ({seconds / bound:.2f} x the divisible-load bound, {bound * 1e3:.1f} ms{within})"
    line = (
        f"predicted: {seconds * 1e3:.1f} ms{within}{to_bound}, {plan.predicted.energy_joules:.3f} J{within} per frame "
        f"({escape(energy_source)}), {plan.predicted.throughput_fps:.1f} frames/s{within} in a stream"
    )
    if error:
        line += f"\n{error}"
    if not plan.feasible:
        return f"{line}\n[red]infeasible:[/] {escape(plan.reason)}; this is the nearest plan found"
    return f"{line}\n{escape(plan.reason)}" if plan.reason else line


def compare_table(
    plans: Sequence[Plan],
    best: Plan,
    objective: Objective,
    energy_source: str,
    error: EstimateError | None = None,
) -> Table:
    """Return a table with a row per plan, compared with the best one, with the error of an estimate."""
    table = Table(
        title=f"{best.model_name}, predicted, by {objective.goal}", caption=_caption(best, energy_source, error),
        title_justify="left", caption_justify="left", header_style="bold",
    )  # fmt: skip
    table.add_column("scheme", no_wrap=True)
    within = f"\n{error.brief}" if error else ""
    for column in (
        f"ms{within}", "x bound", f"J\n(modelled){within}", f"frames/s{within}", f"x {best.scheme}",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("devices")
    bound = _bound(best)
    for plan in plans:
        assert plan.predicted is not None
        seconds = plan.predicted.latency_seconds
        table.add_row(
            plan.scheme if plan.feasible else f"{plan.scheme} [red]*[/]", f"{seconds * 1e3:.1f}",
            f"{seconds / bound:.2f}" if bound else "-", f"{plan.predicted.energy_joules:.3f}",
            f"{plan.predicted.throughput_fps:.1f}", f"{cost_ratio(plan, best, objective):.2f}", _names(plan),
            style="bold" if plan is best else None,
        )  # fmt: skip
    return table


def pareto_table(
    plans: Sequence[Plan], schemes: Sequence[Plan], energy_source: str, error: EstimateError | None = None
) -> Table:
    """Return a table of the numbered plans of a Pareto front and the plans of named schemes, the fastest first."""
    table = Table(
        title=f"{plans[0].model_name}: energy against latency, predicted",
        caption=_caption(plans[0], energy_source, error),
        title_justify="left", caption_justify="left", header_style="bold",
    )  # fmt: skip
    within = f"\n{error.brief}" if error else ""
    for column in ("", f"ms{within}", f"J\n(modelled){within}", f"frames/s{within}"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("devices")
    table.add_column("scheme")
    numbered = [(str(index + 1), plan) for index, plan in enumerate(plans)]
    digests = {plan.digest for plan in plans}
    scheme_names: dict[str, list[str]] = {}
    for plan in schemes:
        scheme_names.setdefault(plan.digest, []).append(plan.scheme)
    others = {plan.digest: ("", plan) for plan in schemes if plan.digest not in digests}
    for number, plan in sorted([*numbered, *others.values()], key=lambda item: _seconds_and_joules(item[1])):
        seconds, joules = _seconds_and_joules(plan)
        assert plan.predicted is not None
        words = ", ".join(scheme_names.get(plan.digest, ())) + ("" if plan.feasible else " (infeasible)")
        table.add_row(
            number, f"{seconds * 1e3:.1f}", f"{joules:.3f}", f"{plan.predicted.throughput_fps:.1f}",
            _names(plan), words, style="bold" if number else "dim",
        )  # fmt: skip
    return table


def cost_ratio(plan: Plan, best: Plan, objective: Objective) -> float:
    """Return the cost of a plan over the cost of the best one, as the objective defines it."""
    assert plan.predicted is not None and best.predicted is not None
    costs = [
        objective.cost(p.predicted.latency_seconds, p.predicted.energy_joules, p.predicted.throughput_fps)
        for p in (plan, best)
        if p.predicted is not None
    ]
    return costs[0] / max(costs[1], 1e-12)


def _caption(plan: Plan, energy_source: str, error: EstimateError | None) -> str:
    within, said = (f" {error.brief}", f"\n{error}") if error else ("", "")
    return f"divisible-load bound {_bound(plan) * 1e3:.1f} ms{within}; J {escape(energy_source)}{said}"


def _bound(plan: Plan) -> float:
    assert plan.predicted is not None
    return plan.predicted.bound_seconds or 0.0


def _seconds_and_joules(plan: Plan) -> tuple[float, float]:
    assert plan.predicted is not None
    return plan.predicted.latency_seconds, plan.predicted.energy_joules


def _names(plan: Plan) -> str:
    names = plan.used_devices
    return ", ".join(names) if len(names) <= MAX_NAMES else str(len(names))
