"""`coedge run`: one image through a model, together."""

from __future__ import annotations

import json
import statistics
from typing import Annotated, Any

import numpy as np
import typer

from coedge.cli.defaults import demo_config
from coedge.cli.models import MODEL_HELP, difference, load_image, load_model, photograph, unsplit
from coedge.cli.options import Cluster, Deadline, Goal, Json, Scheme, Set, Size, objective, writable


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
    repeat: Annotated[int, typer.Option(min=1, help="How many times; the latencies are summed up.")] = 5,
    trace: Annotated[str | None, typer.Option(help="Write the last frame's timeline (opens in Perfetto).")] = None,
    size: Size = 224,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Runs an image through a model on the cluster, and compares the output with the unsplit one.

    Example: coedge run resnet18 photo.jpg --cluster configs/demo.yaml --trace trace.json
    """
    from coedge.config import load_config
    from coedge.plan import Plan
    from orchestrator.cluster import connect
    from orchestrator.planner import check_scheme

    if plan and (scheme or goal or deadline):
        raise typer.BadParameter("--plan is run as it was saved: no --scheme, --goal or --deadline with it")
    writable(trace)
    config = load_config(cluster or demo_config(), set_ or ())
    check_scheme(scheme or config.scheme)
    wanted = objective(config.objective, goal, deadline)
    captured = load_model(model, size)
    array = load_image(image or photograph(), captured)
    saved = Plan.load(plan, captured) if plan else None
    with connect(config) as joined:
        chosen = saved or joined.plan(captured, wanted, scheme)
        jobs = []
        output: Any = None
        joined.submit(captured, array, plan=saved, objective=wanted, scheme=scheme).result()
        for _ in range(repeat):
            job = joined.submit(captured, array, plan=saved, objective=wanted, scheme=scheme)
            output = job.result()
            jobs.append(job)
        measured = joined.profile(captured)
        latencies = [job.latency_seconds for job in jobs]
        timeline = jobs[-1].timeline
        joules = timeline.energy_joules(measured)
        if trace:
            timeline.save(trace)
    worst = difference(output, unsplit(captured, array))
    classes = _top(output)
    from orchestrator.explanation import energy_source

    source = energy_source(measured, timeline.devices)
    result = {
        "model": captured.name,
        "scheme": chosen.scheme,
        "latency_seconds": {"p50": statistics.median(latencies), "all": latencies},
        "predicted": None if chosen.predicted is None else chosen.predicted.model_dump(),
        "energy_joules_modelled": joules,
        "energy_source": source,
        "compute_seconds": timeline.compute_seconds(),
        "largest_relative_difference": worst,
        "top": classes,
    }
    if as_json:
        print(json.dumps(result))
        return
    from coedge.cli.render import console, plan_table, prediction_line

    console.print(plan_table(chosen, len(captured.layers)))
    if chosen.predicted:
        console.print(prediction_line(chosen, source))
    console.print(
        f"measured: {statistics.median(latencies) * 1e3:.1f} ms (median of {len(latencies)}), "
        f"{joules:.3f} J a frame ({source})"
    )
    for name, busy in sorted(timeline.compute_seconds().items(), key=lambda item: -item[1]):
        console.print(f"  {name}: computed for {busy * 1e3:.1f} ms")
    if classes:
        words = ", ".join(f"{c['index']} ({c['score']:.3g})" for c in classes)
        console.print(f"highest outputs: {words}")
    console.print(f"largest difference to the unsplit output: {worst:.1e} of its largest value")


def _top(output: Any, count: int = 5) -> list[dict[str, float]]:
    """The highest scores, where the output looks like one score per class."""
    array = np.asarray(output) if not isinstance(output, (dict, tuple, list)) else None
    if array is None or array.ndim != 2 or array.shape[0] != 1:
        return []
    order = np.argsort(-array[0])[:count]
    return [{"index": int(i), "score": float(array[0, i])} for i in order]
