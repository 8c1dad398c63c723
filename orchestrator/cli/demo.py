"""`coedge demo`: a photograph through a network on four emulated devices, by several schemes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.cli.defaults import demo_config
from orchestrator.cli.models import capture_model, difference, load_image, photograph, unsplit
from orchestrator.cli.options import Json

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.runtime.job import Job

SCHEMES = ("local", "modnn", "coedge", "auto")
ROUNDS = 5


@dataclass
class _DemoRun:
    """Measured frames of every scheme.

    Attributes:
        classes: classes with the highest score, over all frames; empty unless the output is one score per class.
        difference: largest relative difference from the unsplit output.
    """

    jobs: dict[str, list[Job]] = field(default_factory=lambda: {scheme: [] for scheme in SCHEMES})
    classes: set[int] = field(default_factory=set)
    difference: float = 0.0


def demo(
    model: Annotated[str, typer.Option(help="Network of the zoo. Heavy networks gain most.")] = "vgg16",
    size: Annotated[int, typer.Option(help="Height and width of the photograph.")] = 192,
    as_json: Json = False,
) -> None:
    """Run a photograph through a network on four emulated unequal devices, by several schemes.

    Example: coedge demo --model resnet50
    """
    from orchestrator.cli.console import busy, console
    from orchestrator.cli.device_tables import devices_table
    from orchestrator.cluster.cluster import connect

    captured = capture_model(model, size)
    array = load_image(photograph(), captured)
    expected = unsplit(captured, array)
    with busy("starting Ray and four emulated devices"):
        cluster = connect({**demo_config(), "adapt": False})  # schemes are compared on one profile
    with cluster:
        infos = cluster.devices()
        if not as_json:
            console.print(
                f"{captured.name}: {len(captured.layers)} layers, {captured.weight_nbytes / 1e6:.0f} MB of weights, "
                "random, not trained: the output is exact, but the class has no meaning.\n"
            )
            console.print(devices_table(infos))
        with busy(f"measuring {captured.name} on each kind of device"):
            profile = cluster.profile(captured)
        with busy("planning"):
            plans = {scheme: cluster.plan(captured, scheme=scheme) for scheme in SCHEMES}
        with busy("running the schemes in turns"):
            measured = _run(cluster, captured, array, plans, expected)
        rows = [_row(plan, measured.jobs[scheme], scheme, profile) for scheme, plan in plans.items()]
    if as_json:
        result = {
            "model": captured.name,
            "devices": [{"name": i.name, "speed": i.speed, "gflops": i.gflops} for i in infos],
            "plan": json.loads(plans["auto"].model_dump_json()),
            "schemes": rows,
            "largest_relative_difference": measured.difference,
        }
        print(json.dumps(result))
        return
    _show(captured, plans["auto"], rows, measured, expected)


def _run(
    cluster: Cluster, model: Model, array: np.ndarray, plans: Mapping[str, Plan], expected: list[np.ndarray]
) -> _DemoRun:
    """Run every plan `ROUNDS` times in turns, after a first round that does not count."""
    for plan in plans.values():
        cluster.submit(model, array, plan=plan).result()
    measured = _DemoRun()
    for _ in range(ROUNDS):
        for scheme, plan in plans.items():
            job = cluster.submit(model, array, plan=plan)
            output = job.result()
            measured.difference = max(measured.difference, difference(output, expected))
            if _has_classes(expected):
                measured.classes.add(int(np.argmax(output)))
            measured.jobs[scheme].append(job)
    return measured


def _row(plan: Plan, jobs: Sequence[Job], scheme: str, profile: Profile) -> dict[str, Any]:
    assert plan.predicted is not None
    return {
        "scheme": scheme,
        "devices": len(plan.used_devices),
        "predicted_ms": plan.predicted.latency_seconds * 1e3,
        "measured_ms": statistics.median(job.latency_seconds for job in jobs) * 1e3,
        "predicted_joules": plan.predicted.energy_joules,
        "measured_joules": statistics.median(job.timeline.energy_joules(profile) for job in jobs),
    }


def _has_classes(expected: list[np.ndarray]) -> bool:
    return len(expected) == 1 and expected[0].ndim == 2


def _show(
    model: Model, plan: Plan, rows: Sequence[Mapping[str, Any]], measured: _DemoRun, expected: list[np.ndarray]
) -> None:
    from rich.table import Table

    from orchestrator.cli.console import console
    from orchestrator.cli.plan_tables import plan_table

    console.print(plan_table(plan, len(model.layers)))
    table = Table(
        title=f"the photograph through {model.name}, median of {ROUNDS}", title_justify="left", header_style="bold"
    )
    table.add_column("scheme")
    for column in ("devices", "predicted ms", "measured ms", "vs local", "predicted J", "measured J"):
        table.add_column(column, justify="right")
    local = rows[0]["measured_ms"]
    for row in rows:
        table.add_row(
            row["scheme"], str(row["devices"]), f"{row['predicted_ms']:.1f}", f"{row['measured_ms']:.1f}",
            f"{local / row['measured_ms']:.2f}x", f"{row['predicted_joules']:.2f}", f"{row['measured_joules']:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        "The devices are emulated on this machine: kernels wait, links are paced. Joules are modelled from watts; "
        "measured joules use measured times."
    )
    if _has_classes(expected):
        classes = ", ".join(str(index) for index in sorted(measured.classes))
        console.print(f"class of the photograph: {classes} by every scheme, {int(np.argmax(expected[0]))} unsplit")
    console.print(f"largest difference from the unsplit output: {measured.difference:.1e} of its largest value")
