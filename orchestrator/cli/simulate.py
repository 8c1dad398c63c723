"""`coedge simulate`: a plan in virtual time. Nothing runs but the clock."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan, check_plan
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline
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
    picture,
    with_budget,
    writable,
)

# Of a longer stream, so many answers in its middle are drawn.
DRAWN = 6


@dataclass(frozen=True)
class _Stream:
    """Plans, and the part of the frames that each gets.

    Attributes:
        in_flight: frames that are to be under way; None: it does not say.
    """

    plans: tuple[Plan, ...]
    parts: tuple[float, ...]
    in_flight: int | None = None


def simulate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    profile: PlannedOn = None,
    cluster: PlannedCluster = None,
    plan: Annotated[str | None, typer.Option(help="A saved plan instead of a scheme.")] = None,
    scheme: Scheme = None,
    mixture: Annotated[
        bool, typer.Option("--mixture", help="Deal the frames to several plans, for most frames per second.")
    ] = False,
    goal: Goal = None,
    deadline: Deadline = None,
    without: Without = None,
    keep_local: KeepLocal = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames are asked for.")] = 1,
    in_flight: Annotated[
        int | None, typer.Option(min=1, help="How many of them at a time. Default: as many as a cluster allows.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Write the timeline (opens in Perfetto).")] = None,
    gantt: Annotated[str | None, typer.Option(help="Draw it: a file ending in .png or .svg.")] = None,
    size: Size = 224,
    budget: Budget = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Predicts the timeline of one frame or of a stream: who computes, sends and waits when, and what it draws.

    Example: coedge simulate resnet50 --profile configs/testbeds/home-wifi.yaml --frames 50 --gantt stream.png
    """
    from coedge.plan.lowering import lower
    from coedge.simulation.simulator import credits_of, simulate_mixture
    from orchestrator.planner.planner import check_scheme

    if plan and (scheme or mixture or goal or deadline or without or keep_local is not None):
        raise typer.BadParameter(
            "--plan is simulated as it was saved: no --scheme, --mixture, --goal, --deadline, --without or "
            "--keep-local with it"
        )
    if mixture and (scheme or goal):
        raise typer.BadParameter("--mixture chooses plans for most frames per second: no --scheme or --goal with it")
    writable(trace)
    picture(gantt)
    if scheme:
        check_scheme(scheme)
    given = read_given(profile, cluster, with_budget(set_, budget, profile), without)
    chosen = scheme or given.scheme
    check_scheme(chosen)
    wanted = objective(given.objective, "throughput" if mixture else goal, deadline, keep_local)
    saved = Plan.load(plan) if plan else None
    from orchestrator.cli.render import busy

    with busy(f"building {model} and exporting it once to ONNX"):
        captured = load_model(model, size)
    check_keep_local(wanted.keep_local, captured)
    if saved is not None:
        check_plan(saved, captured)
    measured, _ = given.profiles(captured)
    with busy(f"planning {captured.name}"):
        stream = _stream(saved, captured, measured, wanted, chosen, mixture)
    in_flight = in_flight or stream.in_flight or (1 if frames == 1 else credits_of(len(measured.devices)))
    with busy(f"simulating {frames} frames"):
        parts = [(lower(made, captured), part) for made, part in zip(stream.plans, stream.parts)]
        timeline = simulate_mixture(parts, measured, captured, frames, in_flight)
    if trace:
        timeline.save(trace)
    if gantt:
        from coedge.simulation.gantt import draw

        draw(timeline, gantt, *_window(timeline))
    if as_json:
        plans = [
            {"scheme": made.scheme, "part": part, "devices_used": made.used_devices}
            for made, part in zip(stream.plans, stream.parts)
        ]
        print(json.dumps({"model": captured.name, "plans": plans, **summary(timeline, measured, in_flight)}))
        return
    _show(stream, timeline, measured, in_flight)


def summary(timeline: Timeline, profile: Profile, in_flight: int) -> dict[str, Any]:
    """What a timeline says, as JSON values: seconds, joules, shares of the time."""
    from orchestrator.planner.explain.explain import busiest_of, path_of

    latencies = latencies_of(timeline)
    busiest, busiest_seconds = busiest_of(timeline, profile)
    used = timeline.utilisation(profile)
    return {
        "measured": timeline.measured,
        "frames": len(latencies),
        "in_flight": in_flight,
        "latency_seconds": {
            "mean": timeline.latency_seconds,
            "p50": quantile(latencies, 0.5),
            "p95": quantile(latencies, 0.95),
            "max": latencies[-1],
        },
        "makespan_seconds": timeline.makespan_seconds,
        "throughput_fps": rate_of(timeline, profile, in_flight),
        "saturated_fps": timeline.saturated_fps(profile),
        "energy_joules_per_frame": timeline.energy_joules(profile),
        "energy": [
            {"device": item.device, "cause": item.cause, "joules": item.joules, "source": item.source}
            for item in timeline.energy(profile)
        ],
        "compute_seconds": timeline.compute_seconds(),
        "idle_seconds": timeline.idle_seconds(),
        "utilisation": {
            "devices": dict(used.devices),
            "up_links": dict(used.up_links),
            "down_links": dict(used.down_links),
            "media": dict(used.media),
        },
        "busiest": {"name": busiest, "seconds_per_frame": busiest_seconds},
        "critical_path": [json.loads(part.model_dump_json()) for part in path_of(timeline)],
    }


def rate_of(timeline: Timeline, profile: Profile, in_flight: int) -> float:
    """Answers per second. A short stream may look faster than what is busiest in it allows in the long run."""
    return min(timeline.steady_fps(in_flight), timeline.saturated_fps(profile))


def latencies_of(timeline: Timeline) -> list[float]:
    """Seconds from asked to answered, frame by frame, the shortest first."""
    return sorted(stop - start for start, stop in timeline.answered.values())


def quantile(ascending: list[float], part: float) -> float:
    """The least value that so much of them do not exceed."""
    return ascending[max(math.ceil(part * len(ascending)) - 1, 0)]


def _stream(
    saved: Plan | None, model: Model, profile: Profile, objective: Objective, scheme: str, mixture: bool
) -> _Stream:
    from orchestrator.planner.planner import make_plan, make_stream

    if saved is not None:
        _check_devices(saved, profile)
        return _Stream((saved,), (1.0,))
    if not mixture:
        return _Stream((make_plan(model, profile, objective, scheme),), (1.0,))
    found = make_stream(model, profile, objective)
    return _Stream(found.plans, found.weights, found.in_flight)


def _check_devices(plan: Plan, profile: Profile) -> None:
    missing = [name for name in (*plan.used_devices, plan.source, plan.sink) if name not in profile.names]
    if missing:
        raise PlanError(
            f"the plan needs {', '.join(dict.fromkeys(missing))}, and there is no such device; devices are "
            f"{', '.join(profile.names)}. Give the --profile or --cluster that it was made for"
        )


def _window(timeline: Timeline) -> tuple[float, float] | tuple[None, None]:
    """What is drawn: everything, or of a long stream its middle."""
    stops = sorted(stop for _, stop in timeline.answered.values())
    if len(stops) <= 2 * DRAWN:
        return None, None
    first = (len(stops) - DRAWN) // 2
    return stops[first - 1], stops[first + DRAWN - 1]


def _show(stream: _Stream, timeline: Timeline, profile: Profile, in_flight: int) -> None:
    from coedge.simulation.gantt import text
    from orchestrator.cli.render import console, say, timeline_table
    from orchestrator.planner.explain.explain import busiest_of, path_of
    from orchestrator.planner.explain.figures import energy_source
    from orchestrator.planner.explain.wording import columns, joules, milliseconds

    for plan, part in zip(stream.plans, stream.parts):
        share = f"{part:.1%} of the frames by " if len(stream.plans) > 1 else ""
        say(share + str(plan))
    latencies = latencies_of(timeline)
    if len(latencies) > 1:
        say(
            f"{len(latencies)} frames, {in_flight} under way: latency p50 {milliseconds(quantile(latencies, 0.5))}, "
            f"p95 {milliseconds(quantile(latencies, 0.95))}, max {milliseconds(latencies[-1])}; "
            f"{rate_of(timeline, profile, in_flight):.3g} frames/s"
        )
    names = [name for name in profile.names if name in timeline.devices]
    say(f"{joules(timeline.energy_joules(profile))} a frame, {energy_source(profile, names)}\n")
    console.print(timeline_table(timeline, profile, names))
    first, last = _window(timeline)
    if first is not None:
        say(f"the middle of the stream, {DRAWN} answers:")
    say(text(timeline, max(min(console.width, 160), 60), first, last))
    if len(latencies) > 1:
        name, seconds = busiest_of(timeline, profile)
        say(f"\nbusiest: {name}, {milliseconds(seconds)} of every frame, so at most {1 / seconds:.3g} frames/s")
        return
    say("\ncritical path:")
    path = path_of(timeline)
    for line in columns((part.words, milliseconds(part.seconds), f"{part.share:.0%}") for part in path):
        say(line)
