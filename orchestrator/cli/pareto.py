"""`coedge pareto`: the Pareto front of energy against latency."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated

import typer

from coedge.core.objective import Objective
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.estimate_error import EstimateError
from coedge.profile.profile import Profile
from orchestrator.cli import options
from orchestrator.cli.inputs import read_input
from orchestrator.cli.models import capture_model


def pareto(
    model: options.ModelName,
    profile: options.PlannedOn = None,
    cluster: options.PlannedCluster = None,
    points: Annotated[int, typer.Option(min=2, max=200, help="Maximum number of plans.")] = 12,
    deadline: options.Deadline = None,
    without: options.Without = None,
    keep_local: options.KeepLocal = None,
    plot: Annotated[str | None, typer.Option(help="Plot the front to a .png or .svg file.")] = None,
    save_plans: Annotated[str | None, typer.Option(help="Save every plan to this folder (JSON).")] = None,
    size: options.Size = 224,
    budget: options.Budget = None,
    estimate: options.Estimate = False,
    set_: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Find the Pareto front of energy against latency, and compare it with the named schemes.

    Example: coedge pareto mobilenet_v2 --profile configs/testbeds/home-wifi.yaml --plot pareto.png
    """
    from orchestrator.cli.plan import as_row
    from orchestrator.planner.explain.figures import energy_source

    options.check_picture(plot)
    folder = options.check_folder(save_plans, "--save-plans")
    planning_input = read_input(profile, cluster, set_, without, budget, estimate)
    objective = options.objective(planning_input.objective, None, deadline, keep_local)
    captured = capture_model(model, size, objective.keep_local)
    measured, _ = planning_input.profiles(captured)
    plans, schemes = _plans(captured, measured, objective, points)
    if folder is not None:
        folder.mkdir(exist_ok=True)
        for index, plan in enumerate(plans):
            plan.save(folder / f"{index + 1:02d}.json")
    source = energy_source(measured, measured.names)
    if plot:
        from orchestrator.cli.pareto_plot import draw

        error = measured.estimate_error
        draw(plans, schemes, f"{source}; {error}" if error else source, plot)
    if as_json:
        rows = [as_row(plan, measured) for plan in plans]
        scheme_rows = [as_row(plan, measured) for plan in schemes]
        print(json.dumps({"model": captured.name, "plans": rows, "schemes": scheme_rows}))
        return
    _show(plans, schemes, source, measured.estimate_error)


def _plans(model: Model, profile: Profile, objective: Objective, points: int) -> tuple[list[Plan], list[Plan]]:
    """Return the plans of the front and those of the named schemes."""
    from orchestrator.planner.pareto import pareto as pareto_front
    from orchestrator.planner.pareto import progress_steps
    from orchestrator.planner.planner import SCHEMES, make_plan

    with progress("searching", progress_steps(points) + len(SCHEMES)) as done:
        plans = pareto_front(model, profile, objective, points, done)
        schemes = []
        for name in SCHEMES:
            schemes.append(make_plan(model, profile, objective, name))
            done()
    return plans, schemes


def _show(plans: Sequence[Plan], schemes: Sequence[Plan], source: str, error: EstimateError | None) -> None:
    from orchestrator.cli.console import console, say
    from orchestrator.cli.plan_tables import pareto_table

    if not plans[0].feasible:
        say(f"infeasible: {plans[0].reason}; the nearest plan found:")
    console.print(pareto_table(plans, schemes, source, error))
    if len(plans) == 1 and plans[0].feasible:
        say("one plan has both the least latency and the least energy, so there is nothing to trade")
    elif len(plans) > 1:
        middle = len(plans) // 2
        predicted = plans[middle].predicted
        assert predicted is not None
        limit = math.ceil(predicted.latency_seconds * 1e3)
        say(f"to make plan {middle + 1} again: coedge plan ... --goal energy --deadline {limit}ms")
