"""`coedge run`: one image through a model, together, again and again."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline
from orchestrator.cli.defaults import demo_config
from orchestrator.cli.models import MODEL_HELP, difference, load_image, load_model, photograph, unsplit
from orchestrator.cli.options import (
    Budget,
    Cluster,
    Deadline,
    Goal,
    Json,
    Scheme,
    Set,
    Size,
    objective,
    with_budget,
    writable,
)

if TYPE_CHECKING:
    from orchestrator.planner.mixture import Mixture
    from orchestrator.runtime.job import Job

# Of a stream, so many times the frames that are under way: its beginning and its end do not count.
STREAM_ROUNDS = 6


@dataclass(frozen=True)
class _PlanRun:
    """A plan, the part of the frames that is meant for it, its jobs, and the timeline of the last one."""

    plan: Plan
    part: float
    jobs: Sequence[Job]
    timeline: Timeline

    @property
    def latency_seconds(self) -> float:
        return statistics.median(job.latency_seconds for job in self.jobs)


def run(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    image: Annotated[
        str | None, typer.Argument(help="An image file. Default: the photograph that comes along.")
    ] = None,
    cluster: Cluster = None,
    scheme: Scheme = None,
    goal: Goal = None,
    deadline: Deadline = None,
    plan: Annotated[str | None, typer.Option(help="Run by a saved plan.")] = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, help="How many times. Default: 5; of a stream, as many as its rate takes.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Write the last frame's timeline (opens in Perfetto).")] = None,
    size: Size = 224,
    budget: Budget = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Runs an image through a model on the cluster, and compares the output with the unsplit one.

    One frame at a time; for the goal throughput and the scheme auto a stream, dealt to a mixture of plans.

    Example: coedge run resnet18 photo.jpg --cluster configs/demo.yaml --trace trace.json
    """
    from coedge.config.loading import load_config
    from orchestrator.cluster.cluster import connect
    from orchestrator.planner.planner import AUTO, check_scheme

    if plan and (scheme or goal or deadline):
        raise typer.BadParameter("--plan is run as it was saved: no --scheme, --goal or --deadline with it")
    writable(trace)
    config = load_config(cluster or demo_config(), with_budget(set_, budget))
    check_scheme(scheme or config.scheme)
    wanted = objective(config.objective, goal, deadline)
    captured = load_model(model, size)
    array = load_image(image or photograph(), captured)
    saved = Plan.load(plan, captured) if plan else None
    mixture = None
    with connect(config) as joined:
        if saved is None and wanted.goal == "throughput" and (scheme or config.scheme) == AUTO:
            mixture = joined.mixture(captured, wanted)
            plans, parts = mixture.plans, mixture.weights
            frames = itertools.repeat(array, repeat or STREAM_ROUNDS * mixture.in_flight + 1)
            for _ in joined.stream(captured, itertools.repeat(array, mixture.in_flight), plan=mixture):
                pass  # warm
            jobs = list(joined.stream_jobs(captured, frames, plan=mixture))
        else:
            plans, parts = (saved or joined.plan(captured, wanted, scheme),), (1.0,)
            jobs = []
            joined.submit(captured, array, plan=saved, objective=wanted, scheme=scheme).result()
            for _ in range(repeat or 5):
                jobs.append(joined.submit(captured, array, plan=saved, objective=wanted, scheme=scheme))
                jobs[-1].result()
        output = jobs[-1].result()
        measured = joined.profile(captured)
        ran = [_ran(made, part, [job for job in jobs if job.plan == made]) for made, part in zip(plans, parts)]
        if trace:
            jobs[-1].timeline.save(trace)
    worst = difference(output, unsplit(captured, array))
    result = _result(captured.name, ran, measured, jobs) | _rate(mixture, ran, jobs)
    result |= {"largest_relative_difference": worst, "top": _top(output)}
    if as_json:
        print(json.dumps(result))
    else:
        _show(result, ran, len(captured.layers), mixture)


def _ran(plan: Plan, part: float, jobs: Sequence[Job]) -> _PlanRun:
    for job in jobs:
        job.result()
    return _PlanRun(plan, part, jobs, jobs[-1].timeline if jobs else Timeline((), {}, True))


def _result(model_name: str, ran: Sequence[_PlanRun], measured: Profile, jobs: Sequence[Job]) -> dict[str, Any]:
    """As JSON values. Of several plans: per frame of the stream."""
    from orchestrator.planner.explain.figures import energy_source

    latencies = [job.latency_seconds for job in jobs]
    busy: dict[str, float] = {}
    for one in ran:
        for name, seconds in one.timeline.compute_seconds().items():
            busy[name] = busy.get(name, 0.0) + one.part * seconds
    chosen = ran[0].plan
    return {
        "model": model_name,
        "scheme": chosen.scheme,
        "latency_seconds": {"p50": statistics.median(latencies), "all": latencies},
        "predicted": None if chosen.predicted is None else chosen.predicted.model_dump(),
        "energy_joules_modelled": sum(one.part * one.timeline.energy_joules(measured) for one in ran),
        "energy_source": energy_source(measured, sorted(busy)),
        "compute_seconds": busy,
    }


def _rate(mixture: Mixture | None, ran: Sequence[_PlanRun], jobs: Sequence[Job]) -> dict[str, Any]:
    """Of a stream: frames per second, in all and by plan."""
    if mixture is None:
        return {}
    answered = {job.frame: (job.asked_seconds, job.answered_seconds or 0.0) for job in jobs}
    plans = [
        {
            "scheme": one.plan.scheme,
            "part": one.part,
            "frames": len(one.jobs),
            "devices_used": one.plan.used_devices,
            "latency_seconds_p50": one.latency_seconds if one.jobs else None,
        }
        for one in ran
    ]
    return {
        "throughput_fps": Timeline((), answered, True).steady_fps(mixture.in_flight),
        "predicted_fps": mixture.rate_fps,
        "in_flight": mixture.in_flight,
        "plans": plans,
    }


def _show(result: dict[str, Any], ran: Sequence[_PlanRun], layers: int, mixture: Mixture | None) -> None:
    from orchestrator.cli.render import console, plan_table, prediction_line

    source = result["energy_source"]
    for one in ran:
        if mixture is not None:
            console.print(f"{one.part:.1%} of the frames, {one.part * mixture.rate_fps:.3g} frames/s predicted, by")
        console.print(plan_table(one.plan, layers))
        if one.plan.predicted:
            console.print(prediction_line(one.plan, source))
        if mixture is not None and one.jobs:
            console.print(f"ran {len(one.jobs)} frames, {one.latency_seconds * 1e3:.1f} ms each (median)\n")
    count, joules = len(result["latency_seconds"]["all"]), result["energy_joules_modelled"]
    if mixture is not None:
        console.print(
            f"measured: {result['throughput_fps']:.3g} frames/s ({mixture.rate_fps:.3g} predicted) over {count} "
            f"frames, {result['in_flight']} under way"
        )
    console.print(
        f"measured: {result['latency_seconds']['p50'] * 1e3:.1f} ms (median of {count}), "
        f"{joules:.3f} J a frame ({source})"
    )
    for name, busy in sorted(result["compute_seconds"].items(), key=lambda item: -item[1]):
        console.print(f"  {name}: computed for {busy * 1e3:.1f} ms")
    if result["top"]:
        words = ", ".join(f"{c['index']} ({c['score']:.3g})" for c in result["top"])
        console.print(f"highest outputs: {words}")
    worst = result["largest_relative_difference"]
    console.print(f"largest difference to the unsplit output: {worst:.1e} of its largest value")


def _top(output: Any, count: int = 5) -> list[dict[str, float]]:
    """The highest scores, where the output looks like one score per class."""
    array = np.asarray(output) if not isinstance(output, (dict, tuple, list)) else None
    if array is None or array.ndim != 2 or array.shape[0] != 1:
        return []
    order = np.argsort(-array[0])[:count]
    return [{"index": int(i), "score": float(array[0, i])} for i in order]
