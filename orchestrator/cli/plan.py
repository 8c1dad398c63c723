"""`coedge plan`: a plan, its predicted cost, a comparison with all schemes, or an explanation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coedge.core.objective import Objective
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.cli import options
from orchestrator.cli.inputs import read_input
from orchestrator.cli.models import capture_model

if TYPE_CHECKING:
    from orchestrator.planner.explain.explanation import Explanation
    from orchestrator.planner.mixture import Mixture


def plan(
    model: options.ModelName,
    profile: options.PlannedOn = None,
    cluster: options.PlannedCluster = None,
    scheme: options.Scheme = None,
    goal: options.Goal = None,
    deadline: options.Deadline = None,
    without: options.Without = None,
    keep_local: options.KeepLocal = None,
    save: Annotated[str | None, typer.Option(help="Save the plan to a file (JSON).")] = None,
    save_profile: Annotated[str | None, typer.Option(help="Save the profile to a file (JSON).")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare the plans of all schemes.")] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Explain the plan: bottleneck, sensitivities, binding constraints, unused devices."
        ),
    ] = False,
    budget: options.Budget = None,
    estimate: options.Estimate = False,
    size: options.Size = 224,
    set_: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Plan a model on a profile, a test bed or a cluster, and show the plan and its predicted cost.

    Example: coedge plan vgg16 --profile configs/testbeds/home-wifi.yaml --goal energy --deadline 400ms --explain
    """
    from orchestrator.planner.planner import check_scheme

    if compare and (save or scheme or explain):
        raise typer.BadParameter("--compare excludes --save, --scheme and --explain")
    options.check_writable(save, save_profile)
    if scheme:
        check_scheme(scheme)
    planning_input = read_input(profile, cluster, set_, without, budget, estimate)
    scheme = scheme or planning_input.scheme
    check_scheme(scheme)
    objective = options.objective(planning_input.objective, goal, deadline, keep_local)
    captured = capture_model(model, size, objective.keep_local)
    measured, full_profile = planning_input.profiles(captured)
    if save_profile:
        full_profile.save(save_profile)
    if compare:
        _show_all(_plans(captured, measured, objective), measured, objective, as_json)
        return
    planned, mixture = _plan(captured, measured, objective, scheme)
    if save:
        planned.save(save)
    explanation = _explain(planned, captured, measured, objective, full_profile) if explain else None
    if as_json:
        print(json.dumps(as_row(planned, measured) | _mixture_row(mixture) | _explanation_row(explanation)))
    else:
        _show(planned, captured, measured, mixture, explanation)


def as_row(plan: Plan, profile: Profile) -> dict[str, Any]:
    """Return a plan as JSON values, with the devices that it uses, the source of their watts and the error of the
    estimate that its prediction rests on (null: layers were measured).
    """
    from orchestrator.planner.explain.figures import energy_source

    row: dict[str, Any] = json.loads(plan.model_dump_json())
    used = plan.used_devices
    error = profile.estimate_error
    return {
        **row,
        "devices_used": used,
        "energy_source": energy_source(profile, used),
        "estimate_error": None if error is None else error.model_dump(),
    }


def _plan(model: Model, profile: Profile, objective: Objective, scheme: str) -> tuple[Plan, Mixture | None]:
    """Plan a model and, for the goal throughput with the scheme auto, a mixture of plans."""
    from orchestrator.cli.console import busy
    from orchestrator.planner.mixture import make_mixture
    from orchestrator.planner.planner import AUTO, make_plan

    with busy(f"planning {model.name}"):
        planned = make_plan(model, profile, objective, scheme)
        if objective.goal == "throughput" and scheme == AUTO and planned.feasible:
            return planned, make_mixture(model, profile, objective, [planned])
    return planned, None


def _plans(model: Model, profile: Profile, objective: Objective) -> list[Plan]:
    """Plan a model by every scheme; the last plan is that of auto."""
    from orchestrator.planner.planner import AUTO, SCHEMES, make_plan

    schemes = [*SCHEMES, AUTO]
    plans = []
    with progress("planning", len(schemes)) as done:
        for scheme in schemes:
            plans.append(make_plan(model, profile, objective, scheme))
            done()
    return plans


def _explain(plan: Plan, model: Model, profile: Profile, objective: Objective, full_profile: Profile) -> Explanation:
    from orchestrator.planner.explain.explain import explain, progress_steps

    with progress("explaining", progress_steps(plan, profile)) as done:
        return explain(plan, model, profile, objective, full_profile, done)


def _mixture_row(mixture: Mixture | None) -> dict[str, Any]:
    if mixture is None:
        return {}
    plans = [
        {"weight": weight, "plan": json.loads(plan.model_dump_json())}
        for plan, weight in zip(mixture.plans, mixture.weights)
    ]
    return {
        "mixture": {
            "rate_fps": mixture.rate_fps,
            "energy_joules": mixture.energy_joules,
            "in_flight": mixture.in_flight,
            "plans": plans,
        }
    }


def _explanation_row(explanation: Explanation | None) -> dict[str, Any]:
    return {} if explanation is None else {"explanation": json.loads(explanation.model_dump_json())}


def _show_all(plans: list[Plan], profile: Profile, objective: Objective, as_json: bool) -> None:
    from orchestrator.cli.console import console, say
    from orchestrator.cli.plan_tables import compare_table, cost_ratio
    from orchestrator.planner.explain.figures import energy_source

    best = plans[-1]
    if as_json:
        rows = [{**as_row(plan, profile), "ratio_to_auto": cost_ratio(plan, best, objective)} for plan in plans]
        print(json.dumps(rows))
        return
    console.print(compare_table(plans, best, objective, energy_source(profile, profile.names), profile.estimate_error))
    for plan in plans:
        if not plan.feasible:
            say(f"* {plan.scheme} is infeasible: {plan.reason}")


def _show(plan: Plan, model: Model, profile: Profile, mixture: Mixture | None, explanation: Explanation | None) -> None:
    from orchestrator.cli.console import console, say
    from orchestrator.cli.plan_tables import plan_table, prediction_line
    from orchestrator.planner.explain.figures import energy_source

    console.print(plan_table(plan, len(model.layers)))
    error = profile.estimate_error
    console.print(prediction_line(plan, energy_source(profile, plan.used_devices), error))
    if mixture is not None and len(mixture.plans) > 1:
        within = f" {error.brief}" if error else ""
        say(
            f"a mixture of {len(mixture.plans)} plans would process {mixture.rate_fps:.1f} frames/s{within}; "
            "simulate it: coedge simulate ... --mixture"
        )
    if explanation is not None:
        say(f"\n{explanation}")
        if error:
            say(f"The times, rates and joules above rest on an estimate: {error}")
