"""`coedge plan`: what would be done, what it would cost, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coedge.core.objective import Objective
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.cli.inputs import check_keep_local, read_given
from orchestrator.cli.models import MODEL_HELP, load_model
from orchestrator.cli.options import (
    Budget,
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
    with_budget,
    writable,
)

if TYPE_CHECKING:
    from orchestrator.planner.explain.explanation import Explanation
    from orchestrator.planner.mixture import Mixture


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
    budget: Budget = None,
    size: Size = 224,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Plans a model on a profile, a test bed or a cluster, and shows who would do what.

    Example: coedge plan vgg16 --profile configs/testbeds/home-wifi.yaml --goal energy --deadline 400ms --explain
    """
    from orchestrator.planner.explain.explain import explain as explained
    from orchestrator.planner.explain.explain import progress_steps
    from orchestrator.planner.mixture import make_mixture
    from orchestrator.planner.planner import AUTO, SCHEMES, check_scheme, make_plan

    if compare and (save or scheme or explain):
        raise typer.BadParameter("--compare shows all schemes: no --save, --scheme or --explain with it")
    writable(save, save_profile)
    if scheme:
        check_scheme(scheme)
    given = read_given(profile, cluster, with_budget(set_, budget, profile), without)
    chosen = scheme or given.scheme
    check_scheme(chosen)
    wanted = objective(given.objective, goal, deadline, keep_local)
    from orchestrator.cli.render import busy, say

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
        _show_all(plans, measured, wanted, as_json)
        return
    with busy(f"planning {captured.name}"):
        made = make_plan(captured, measured, wanted, chosen)
        mixture = None
        if wanted.goal == "throughput" and chosen == AUTO and made.feasible:
            mixture = make_mixture(captured, measured, wanted, [made])
    if save:
        made.save(save)
    reasons = None
    if explain:
        with progress("explaining", progress_steps(made, measured)) as done:
            reasons = explained(made, captured, measured, wanted, everybody, done)
    if as_json:
        print(json.dumps(as_row(made, measured) | _mixed(mixture) | _explained(reasons)))
        return
    _show(made, captured, measured, mixture)
    if reasons is not None:
        say(f"\n{reasons}")


def as_row(plan: Plan, profile: Profile) -> dict[str, Any]:
    """The plan as JSON values, with what it does not say itself: who has a share, and where the watts come from."""
    from orchestrator.planner.explain.figures import energy_source

    row: dict[str, Any] = json.loads(plan.model_dump_json())
    used = plan.used_devices
    return {**row, "devices_used": used, "energy_source": energy_source(profile, used)}


def _mixed(mixture: Mixture | None) -> dict[str, Any]:
    if mixture is None:
        return {}
    parts = [
        {"part": part, "plan": json.loads(plan.model_dump_json())} for plan, part in zip(mixture.plans, mixture.weights)
    ]
    return {
        "mixture": {
            "rate_fps": mixture.rate_fps,
            "energy_joules": mixture.energy_joules,
            "in_flight": mixture.in_flight,
            "parts": parts,
        }
    }


def _explained(reasons: Explanation | None) -> dict[str, Any]:
    return {} if reasons is None else {"explanation": json.loads(reasons.model_dump_json())}


def _show_all(plans: list[Plan], profile: Profile, objective: Objective, as_json: bool) -> None:
    from orchestrator.cli.render import compare_table, console, ratio, say
    from orchestrator.planner.explain.figures import energy_source

    best = plans[-1]
    if as_json:
        rows = [{**as_row(plan, profile), "ratio_to_auto": ratio(plan, best, objective)} for plan in plans]
        print(json.dumps(rows))
    else:
        console.print(compare_table(plans, best, objective, energy_source(profile, profile.names)))
        for plan in plans:
            if not plan.feasible:
                say(f"* {plan.scheme} is infeasible: {plan.reason}")


def _show(plan: Plan, model: Model, profile: Profile, mixture: Mixture | None) -> None:
    from orchestrator.cli.render import console, plan_table, prediction_line, say
    from orchestrator.planner.explain.figures import energy_source

    console.print(plan_table(plan, len(model.layers)))
    console.print(prediction_line(plan, energy_source(profile, plan.used_devices)))
    if mixture is not None and len(mixture.plans) > 1:
        say(
            f"a mixture of {len(mixture.plans)} plans, whole frames dealt to each, would answer "
            f"{mixture.rate_fps:.1f} frames/s: coedge simulate ... --mixture"
        )
