"""`coedge pareto`: what a joule costs in milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coedge.core.progress import progress
from coedge.plan.plan import Plan
from orchestrator.cli.inputs import check_keep_local, read_given
from orchestrator.cli.models import MODEL_HELP, load_model
from orchestrator.cli.options import (
    Budget,
    Deadline,
    Json,
    KeepLocal,
    PlannedCluster,
    PlannedOn,
    Set,
    Size,
    Without,
    objective,
    picture,
    with_budget,
)


def pareto(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    profile: PlannedOn = None,
    cluster: PlannedCluster = None,
    points: Annotated[int, typer.Option(min=2, max=200, help="Most plans to show.")] = 12,
    deadline: Deadline = None,
    without: Without = None,
    keep_local: KeepLocal = None,
    plot: Annotated[str | None, typer.Option(help="Draw them: a file ending in .png or .svg.")] = None,
    save_plans: Annotated[str | None, typer.Option(help="Write every plan to this folder, as JSON.")] = None,
    size: Size = 224,
    budget: Budget = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Energy against latency: the plans of which none is both slower and hungrier than another.

    Example: coedge pareto mobilenet_v2 --profile configs/testbeds/home-wifi.yaml --plot pareto.png
    """
    from orchestrator.cli.plan import as_row
    from orchestrator.planner.explain.figures import energy_source
    from orchestrator.planner.pareto import pareto as best_plans
    from orchestrator.planner.pareto import progress_steps
    from orchestrator.planner.planner import SCHEMES, make_plan

    picture(plot)
    folder = _folder(save_plans)
    given = read_given(profile, cluster, with_budget(set_, budget, profile), without)
    wanted = objective(given.objective, None, deadline, keep_local)
    from orchestrator.cli.render import busy

    with busy(f"building {model} and exporting it once to ONNX"):
        captured = load_model(model, size)
    check_keep_local(wanted.keep_local, captured)
    measured, _ = given.profiles(captured)
    with progress("looking for plans", progress_steps(points) + len(SCHEMES)) as done:
        plans = best_plans(captured, measured, wanted, points, done)
        schemes = []
        for name in SCHEMES:
            schemes.append(make_plan(captured, measured, wanted, name))
            done()
    if folder is not None:
        folder.mkdir(exist_ok=True)
        for index, plan in enumerate(plans):
            plan.save(folder / f"{index + 1:02d}.json")
    source = energy_source(measured, measured.names)
    if plot:
        from orchestrator.cli.pareto_plot import draw

        draw(plans, schemes, source, plot)
    if as_json:
        rows = [as_row(plan, measured) for plan in plans]
        beside = [as_row(plan, measured) for plan in schemes]
        print(json.dumps({"model": captured.name, "plans": rows, "schemes": beside}))
        return
    _show(plans, schemes, source)


def _folder(path: str | None) -> Path | None:
    """Raises BadParameter where a folder of this name cannot be made."""
    if path is None:
        return None
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"--save-plans {path} is a file; name a folder")
    if not folder.parent.is_dir():
        raise typer.BadParameter(f"--save-plans {path} cannot be made: no folder {folder.parent}")
    return folder


def _show(plans: Sequence[Plan], schemes: Sequence[Plan], source: str) -> None:
    from orchestrator.cli.render import console, pareto_table, say

    if not plans[0].feasible:
        say(f"infeasible: {plans[0].reason}; the nearest plan that was found:")
    console.print(pareto_table(plans, schemes, source))
    if len(plans) == 1 and plans[0].feasible:
        say("one plan is the fastest and takes the least joules: there is nothing to trade")
    elif len(plans) > 1:
        middle = len(plans) // 2
        predicted = plans[middle].predicted
        assert predicted is not None
        limit = math.ceil(predicted.latency_seconds * 1e3)
        say(f"any of them again, such as number {middle + 1}: coedge plan ... --goal energy --deadline {limit}ms")
