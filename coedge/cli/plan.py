"""`coedge plan`: what would be done, what it would cost, and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from coedge.cli.inputs import check_keep_local, read_given
from coedge.cli.models import MODEL_HELP, load_model
from coedge.cli.options import (
    Deadline,
    Goal,
    Json,
    KeepLocal,
    PlannedCluster,
    PlannedOn,
    Scheme,
    Set,
    Size,
    Without,
    objective,
    writable,
)
from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Plan
from coedge.profile import Profile
from coedge.progress import progress


def plan(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    profile: PlannedOn = None,
    cluster: PlannedCluster = None,
    scheme: Scheme = None,
    goal: Goal = None,
    deadline: Deadline = None,
    without: Without = None,
    keep_local: KeepLocal = None,
    save: Annotated[str | None, typer.Option(help="Write the plan to this file.")] = None,
    save_profile: Annotated[str | None, typer.Option(help="Write the profile to this file.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All schemes and auto side by side.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what binds, what would help, and why devices are left out.")
    ] = False,
    size: Size = 224,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Plans a model on a profile, a test bed or a cluster, and shows who would do what.

    Example: coedge plan vgg16 --profile configs/testbeds/home-wifi.yaml --goal energy --deadline 400ms --explain
    """
    from orchestrator.planner import AUTO, SCHEMES, check_scheme, make_plan

    if compare and (save or scheme or explain):
        raise typer.BadParameter("--compare shows all schemes: no --save, --scheme or --explain with it")
    writable(save, save_profile)
    if scheme:
        check_scheme(scheme)
    given = read_given(profile, cluster, set_, without)
    chosen = scheme or given.scheme
    check_scheme(chosen)
    wanted = objective(given.objective, goal, deadline, keep_local)
    from coedge.cli.render import busy

    with busy(f"building {model} and exporting it once to ONNX"):
        captured = load_model(model, size)
    check_keep_local(wanted.keep_local, captured)
    measured, everybody = given.profiles(captured)
    if save_profile:
        everybody.save(save_profile)
    if compare:
        names = [*SCHEMES, AUTO]
        plans = []
        with progress("planning", len(names)) as done:
            for name in names:
                plans.append(make_plan(captured, measured, wanted, name))
                done()
        _show_all(plans, captured, measured, wanted, as_json)
        return
    with busy(f"planning {captured.name}"):
        made = with_bound(make_plan(captured, measured, wanted, chosen), captured, measured)
    if save:
        made.save(save)
    _show(made, captured, measured, everybody, wanted, explain, as_json)


def with_bound(plan: Plan, model: Model, profile: Profile) -> Plan:
    """The plan with the divisible-load bound beside its prediction."""
    from orchestrator.bound import bound_seconds

    if plan.predicted is None or plan.predicted.bound_seconds is not None:
        return plan
    predicted = plan.predicted.model_copy(update={"bound_seconds": bound_seconds(model, profile)})
    return plan.model_copy(update={"predicted": predicted})


def as_row(plan: Plan, profile: Profile) -> dict[str, Any]:
    """The plan as JSON values, with what it does not say itself: who has a share, and where the watts come from."""
    from orchestrator.explanation import energy_source

    row: dict[str, Any] = json.loads(plan.model_dump_json())
    used = plan.used_devices
    return {**row, "devices_used": used, "energy_source": energy_source(profile, used)}


def _show_all(plans: list[Plan], model: Model, profile: Profile, objective: Objective, as_json: bool) -> None:
    from coedge.cli.render import compare_table, console, ratio, say
    from orchestrator.explanation import energy_source

    plans = [with_bound(plan, model, profile) for plan in plans]
    best = plans[-1]
    if as_json:
        rows = [{**as_row(plan, profile), "ratio_to_auto": ratio(plan, best, objective)} for plan in plans]
        print(json.dumps(rows))
    else:
        console.print(compare_table(plans, best, objective, energy_source(profile, profile.names)))
        for plan in plans:
            if not plan.feasible:
                say(f"* {plan.scheme} is infeasible: {plan.reason}")


def _show(
    plan: Plan,
    model: Model,
    profile: Profile,
    everybody: Profile,
    objective: Objective,
    explained: bool,
    as_json: bool,
) -> None:
    from coedge.cli.render import console, plan_table, prediction_line, say
    from orchestrator.explain import explain, parts_of
    from orchestrator.explanation import energy_source

    reasons = None
    if explained:
        with progress("explaining", parts_of(plan, profile)) as done:
            reasons = explain(plan, model, profile, objective, everybody, done)
    if as_json:
        row = as_row(plan, profile)
        if reasons is not None:
            row["explanation"] = json.loads(reasons.model_dump_json())
        print(json.dumps(row))
        return
    console.print(plan_table(plan, len(model.layers)))
    console.print(prediction_line(plan, energy_source(profile, plan.used_devices)))
    if reasons is not None:
        say(f"\n{reasons}")
