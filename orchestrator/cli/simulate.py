"""`coedge simulate`: the timeline of one frame or of a stream, in virtual time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan, check_plan
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline
from orchestrator.cli import options
from orchestrator.cli.inputs import read_input
from orchestrator.cli.models import capture_model

# Number of answers that are drawn from the middle of a longer stream.
DRAWN = 6


@dataclass(frozen=True)
class _WeightedPlans:
    """Plans and the share of the frames that each gets.

    Attributes:
        in_flight: recommended number of frames in flight; None for a single plan.
    """

    plans: tuple[Plan, ...]
    weights: tuple[float, ...]
    in_flight: int | None = None


def simulate(
    model: options.ModelName,
    profile: options.PlannedOn = None,
    cluster: options.PlannedCluster = None,
    plan: Annotated[str | None, typer.Option(help="Simulate a saved plan (JSON).")] = None,
    scheme: options.Scheme = None,
    mixture: Annotated[
        bool,
        typer.Option("--mixture", help="Assign the frames to several plans, for the highest frame rate."),
    ] = False,
    goal: options.Goal = None,
    deadline: options.Deadline = None,
    without: options.Without = None,
    keep_local: options.KeepLocal = None,
    frames: Annotated[int, typer.Option(min=1, help="Number of frames.")] = 1,
    in_flight: Annotated[
        int | None, typer.Option(min=1, help="Number of frames in flight. Default: as many as a cluster allows.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Save the timeline to a file for Perfetto.")] = None,
    gantt: Annotated[str | None, typer.Option(help="Draw a Gantt chart to a .png or .svg file.")] = None,
    size: options.Size = 224,
    budget: options.Budget = None,
    estimate: options.Estimate = False,
    set_: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Predict the timeline of one frame or of a stream: computing, transfers, waiting and energy of every device.

    Example: coedge simulate resnet50 --profile configs/testbeds/home-wifi.yaml --frames 50 --gantt stream.png
    """
    from orchestrator.cli.console import busy
    from orchestrator.cli.timeline_summary import summary
    from orchestrator.planner.planner import check_scheme

    if plan and (scheme or mixture or goal or deadline or without or keep_local is not None):
        raise typer.BadParameter("--plan excludes --scheme, --mixture, --goal, --deadline, --without and --keep-local")
    if mixture and (scheme or goal):
        raise typer.BadParameter("--mixture excludes --scheme and --goal")
    options.check_writable(trace)
    options.check_picture(gantt)
    if scheme:
        check_scheme(scheme)
    planning_input = read_input(profile, cluster, set_, without, budget, estimate)
    scheme = scheme or planning_input.scheme
    check_scheme(scheme)
    objective = options.objective(planning_input.objective, "throughput" if mixture else goal, deadline, keep_local)
    saved = Plan.load(plan) if plan else None
    captured = capture_model(model, size, objective.keep_local)
    if saved is not None:
        check_plan(saved, captured)
    measured, _ = planning_input.profiles(captured)
    with busy(f"planning {captured.name}"):
        weighted = _weighted_plans(saved, captured, measured, objective, scheme, mixture)
    in_flight = in_flight or weighted.in_flight or _default_in_flight(frames, measured)
    with busy(f"simulating {frames} frames"):
        timeline = _simulate(weighted, measured, captured, frames, in_flight)
    if trace:
        timeline.save(trace)
    if gantt:
        from coedge.simulation.gantt import draw

        draw(timeline, gantt, *_window(timeline))
    if as_json:
        plans = [
            {"scheme": one.scheme, "weight": weight, "devices_used": one.used_devices}
            for one, weight in zip(weighted.plans, weighted.weights)
        ]
        print(json.dumps({"model": captured.name, "plans": plans, **summary(timeline, measured, in_flight)}))
        return
    _show(weighted, timeline, measured, in_flight)


def _default_in_flight(frames: int, profile: Profile) -> int:
    from coedge.simulation.simulator import credits_of

    return 1 if frames == 1 else credits_of(len(profile.devices))


def _simulate(weighted: _WeightedPlans, profile: Profile, model: Model, frames: int, in_flight: int) -> Timeline:
    from coedge.plan.lowering import lower
    from coedge.simulation.simulator import simulate_mixture

    programs = [(lower(plan, model), weight) for plan, weight in zip(weighted.plans, weighted.weights)]
    return simulate_mixture(programs, profile, model, frames, in_flight)


def _weighted_plans(
    saved: Plan | None, model: Model, profile: Profile, objective: Objective, scheme: str, mixture: bool
) -> _WeightedPlans:
    """Return the saved plan, or plan the model by a scheme or as a mixture.

    Raises:
        PlanError: the saved plan needs a device that the profile does not have.
    """
    from orchestrator.planner.planner import make_plan, make_stream

    if saved is not None:
        _check_devices(saved, profile)
        return _WeightedPlans((saved,), (1.0,))
    if not mixture:
        return _WeightedPlans((make_plan(model, profile, objective, scheme),), (1.0,))
    mixed = make_stream(model, profile, objective)
    return _WeightedPlans(mixed.plans, mixed.weights, mixed.in_flight)


def _check_devices(plan: Plan, profile: Profile) -> None:
    missing = [name for name in (*plan.used_devices, plan.source, plan.sink) if name not in profile.names]
    if missing:
        raise PlanError(
            f"the plan needs {', '.join(dict.fromkeys(missing))}, but the devices are {', '.join(profile.names)}. "
            "Give the --profile or --cluster that the plan was made for"
        )


def _window(timeline: Timeline) -> tuple[float, float] | tuple[None, None]:
    """Return the interval to draw: the middle of a long stream, or (None, None) for all of a short one."""
    stops = sorted(stop for _, stop in timeline.answered.values())
    if len(stops) <= 2 * DRAWN:
        return None, None
    first = (len(stops) - DRAWN) // 2
    return stops[first - 1], stops[first + DRAWN - 1]


def _show(weighted: _WeightedPlans, timeline: Timeline, profile: Profile, in_flight: int) -> None:
    from coedge.simulation.gantt import text
    from orchestrator.cli.console import console, say
    from orchestrator.cli.device_tables import timeline_table
    from orchestrator.cli.timeline_summary import latencies_of, quantile, rate_of
    from orchestrator.planner.explain.explain import busiest_of, path_of
    from orchestrator.planner.explain.figures import energy_source
    from orchestrator.planner.explain.wording import columns, joules, milliseconds

    error = profile.estimate_error
    within = f" {error.brief}" if error else ""
    if error:
        say(f"{error}; ± marks the numbers that rest on them")
    for plan, weight in zip(weighted.plans, weighted.weights):
        say((f"{weight:.1%} of the frames: " if len(weighted.plans) > 1 else "") + str(plan))
    latencies = latencies_of(timeline)
    if len(latencies) > 1:
        say(
            f"{len(latencies)} frames, {in_flight} in flight: latency p50 {milliseconds(quantile(latencies, 0.5))}, "
            f"p95 {milliseconds(quantile(latencies, 0.95))}, max {milliseconds(latencies[-1])}{within}; "
            f"{rate_of(timeline, profile, in_flight):.3g} frames/s{within}"
        )
    names = [name for name in profile.names if name in timeline.devices]
    say(f"{joules(timeline.energy_joules(profile))}{within} per frame, {energy_source(profile, names)}\n")
    console.print(timeline_table(timeline, profile, names))
    first, last = _window(timeline)
    if first is not None:
        say(f"the middle of the stream, {DRAWN} frames:")
    say(text(timeline, max(min(console.width, 160), 60), first, last))
    if len(latencies) > 1:
        name, seconds = busiest_of(timeline, profile)
        say(f"\nbusiest: {name}, {milliseconds(seconds)} per frame, so at most {1 / seconds:.3g} frames/s{within}")
        return
    say(f"\ncritical path{within}:")
    for line in columns((part.words, milliseconds(part.seconds), f"{part.share:.0%}") for part in path_of(timeline)):
        say(line)
