"""`coedge run`: run one image through a model on a cluster and compare the output with the unsplit one."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline
from orchestrator.cli import options
from orchestrator.cli.defaults import demo_config
from orchestrator.cli.models import capture_model, difference, load_image, photograph, unsplit

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.planner.mixture import Mixture
    from orchestrator.runtime.job import Job

# Default number of frames: of a single plan, and of a stream as a multiple of its frames in flight, so that its
# beginning and its end do not count much.
REPEAT, STREAM_ROUNDS = 5, 6


@dataclass(frozen=True)
class _PlanRun:
    """A plan and the frames that it ran.

    Attributes:
        weight: share of the frames assigned to the plan.
        timeline: timeline of its last frame.
    """

    plan: Plan
    weight: float
    jobs: Sequence[Job]
    timeline: Timeline

    @property
    def latency_seconds(self) -> float:
        """Median latency."""
        return statistics.median(job.latency_seconds for job in self.jobs)


def run(
    model: options.ModelName,
    image: Annotated[str | None, typer.Argument(help="Image file. Default: the photograph in the package.")] = None,
    cluster: options.Cluster = None,
    scheme: options.Scheme = None,
    goal: options.Goal = None,
    deadline: options.Deadline = None,
    plan: Annotated[str | None, typer.Option(help="Run a saved plan (JSON).")] = None,
    repeat: Annotated[
        int | None,
        typer.Option(min=1, help="Number of frames. Default: 5, or several times the frames in flight of a stream."),
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Save the last frame's timeline to a file for Perfetto.")] = None,
    size: options.Size = 224,
    budget: options.Budget = None,
    set_: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Run an image through a model on the cluster, and compare the output with the unsplit one.

    Frames run one at a time. With the goal throughput and the scheme auto they run as a stream, assigned to a mixture
    of plans.

    Example: coedge run resnet18 photo.jpg --cluster configs/demo.yaml --trace trace.json
    """
    from coedge.config.loading import load_config
    from orchestrator.cli.console import busy
    from orchestrator.cluster.cluster import connect
    from orchestrator.planner.planner import AUTO, check_scheme

    if plan and (scheme or goal or deadline):
        raise typer.BadParameter("--plan excludes --scheme, --goal and --deadline")
    options.check_writable(trace)
    config = load_config(cluster or demo_config(), options.with_budget(set_, budget))
    check_scheme(scheme or config.scheme)
    objective = options.objective(config.objective, goal, deadline)
    captured = capture_model(model, size)
    array = load_image(image or photograph(), captured)
    saved = Plan.load(plan, captured) if plan else None
    mixture = None
    with busy("starting the cluster"):
        connected = connect(config)
    with connected:
        with busy(f"planning and running {captured.name}"):
            if saved is None and objective.goal == "throughput" and (scheme or config.scheme) == AUTO:
                mixture = connected.mixture(captured, objective)
                weighted = list(zip(mixture.plans, mixture.weights))
                jobs = _run_stream(connected, captured, array, mixture, repeat)
            else:
                weighted = [(saved or connected.plan(captured, objective, scheme), 1.0)]
                jobs = _run_frames(connected, captured, array, saved, objective, scheme, repeat or REPEAT)
        output = jobs[-1].result()
        measured = connected.profile(captured)
        runs = [_plan_run(one, weight, [job for job in jobs if job.plan == one]) for one, weight in weighted]
        if trace:
            jobs[-1].timeline.save(trace)
    result = _result(captured.name, runs, measured, jobs) | _stream_result(mixture, runs, jobs)
    result |= {"largest_relative_difference": difference(output, unsplit(captured, array)), "top": _top(output)}
    if as_json:
        print(json.dumps(result))
    else:
        _show(result, runs, len(captured.layers), mixture)


def _run_stream(cluster: Cluster, model: Model, array: np.ndarray, mixture: Mixture, repeat: int | None) -> list[Job]:
    """Run a stream of one image after a warm-up, which does not count."""
    for _ in cluster.stream(model, itertools.repeat(array, mixture.in_flight), plan=mixture):
        pass
    frames = itertools.repeat(array, repeat or STREAM_ROUNDS * mixture.in_flight + 1)
    return list(cluster.stream_jobs(model, frames, plan=mixture))


def _run_frames(
    cluster: Cluster,
    model: Model,
    array: np.ndarray,
    plan: Plan | None,
    objective: Objective,
    scheme: str | None,
    repeat: int,
) -> list[Job]:
    """Run one image `repeat` times, one frame at a time, after a first frame that does not count."""
    jobs = []
    for _ in range(repeat + 1):
        jobs.append(cluster.submit(model, array, plan=plan, objective=objective, scheme=scheme))
        jobs[-1].result()
    return jobs[1:]


def _plan_run(plan: Plan, weight: float, jobs: Sequence[Job]) -> _PlanRun:
    for job in jobs:
        job.result()
    return _PlanRun(plan, weight, jobs, jobs[-1].timeline if jobs else Timeline((), {}, True))


def _result(model_name: str, runs: Sequence[_PlanRun], measured: Profile, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the measurements as JSON values; joules and seconds are those of an average frame."""
    from orchestrator.planner.explain.figures import energy_source

    latencies = [job.latency_seconds for job in jobs]
    busy: dict[str, float] = {}
    for one in runs:
        for name, seconds in one.timeline.compute_seconds().items():
            busy[name] = busy.get(name, 0.0) + one.weight * seconds
    first = runs[0].plan
    return {
        "model": model_name,
        "scheme": first.scheme,
        "latency_seconds": {"p50": statistics.median(latencies), "all": latencies},
        "predicted": None if first.predicted is None else first.predicted.model_dump(),
        "energy_joules_modelled": sum(one.weight * one.timeline.energy_joules(measured) for one in runs),
        "energy_source": energy_source(measured, sorted(busy)),
        "compute_seconds": busy,
    }


def _stream_result(mixture: Mixture | None, runs: Sequence[_PlanRun], jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the frame rate of a stream and the frames of each plan as JSON values."""
    if mixture is None:
        return {}
    answered = {job.frame: (job.asked_seconds, job.answered_seconds or 0.0) for job in jobs}
    plans = [
        {
            "scheme": one.plan.scheme,
            "weight": one.weight,
            "frames": len(one.jobs),
            "devices_used": one.plan.used_devices,
            "latency_seconds_p50": one.latency_seconds if one.jobs else None,
        }
        for one in runs
    ]
    return {
        "throughput_fps": Timeline((), answered, True).steady_fps(mixture.in_flight),
        "predicted_fps": mixture.rate_fps,
        "in_flight": mixture.in_flight,
        "plans": plans,
    }


def _show(result: dict[str, Any], runs: Sequence[_PlanRun], layers: int, mixture: Mixture | None) -> None:
    from orchestrator.cli.console import console
    from orchestrator.cli.plan_tables import plan_table, prediction_line

    source = result["energy_source"]
    for one in runs:
        if mixture is not None:
            console.print(f"{one.weight:.1%} of the frames, {one.weight * mixture.rate_fps:.3g} frames/s predicted:")
        console.print(plan_table(one.plan, layers))
        if one.plan.predicted:
            console.print(prediction_line(one.plan, source))
        if mixture is not None and one.jobs:
            console.print(f"measured: {len(one.jobs)} frames, {one.latency_seconds * 1e3:.1f} ms (median)\n")
    count, joules = len(result["latency_seconds"]["all"]), result["energy_joules_modelled"]
    if mixture is not None:
        console.print(
            f"measured: {result['throughput_fps']:.3g} frames/s ({mixture.rate_fps:.3g} predicted) over {count} "
            f"frames, {result['in_flight']} in flight"
        )
    console.print(
        f"measured: {result['latency_seconds']['p50'] * 1e3:.1f} ms (median of {count}), "
        f"{joules:.3f} J per frame ({source})"
    )
    for name, busy in sorted(result["compute_seconds"].items(), key=lambda item: -item[1]):
        console.print(f"  {name}: computed for {busy * 1e3:.1f} ms")
    if result["top"]:
        words = ", ".join(f"{one['index']} ({one['score']:.3g})" for one in result["top"])
        console.print(f"highest outputs: {words}")
    largest = result["largest_relative_difference"]
    console.print(f"largest difference from the unsplit output: {largest:.1e} of its largest value")


def _top(output: Any, count: int = 5) -> list[dict[str, float]]:
    """Return the highest scores if the output is one score per class, else an empty list."""
    array = np.asarray(output) if not isinstance(output, (dict, tuple, list)) else None
    if array is None or array.ndim != 2 or array.shape[0] != 1:
        return []
    order = np.argsort(-array[0])[:count]
    return [{"index": int(i), "score": float(array[0, i])} for i in order]
