"""`coedge demo`: the whole of it in a minute, on this machine alone."""

from __future__ import annotations

import contextlib
import json
import statistics
from typing import Annotated, Any

import numpy as np
import typer

from orchestrator.cli.defaults import demo_config
from orchestrator.cli.models import difference, load_image, load_model, photograph, unsplit
from orchestrator.cli.options import Json

SCHEMES = ("local", "modnn", "coedge", "auto")
ROUNDS = 5


def demo(
    model: Annotated[str, typer.Option(help="A zoo name; heavy networks gain most.")] = "vgg16",
    size: Annotated[int, typer.Option(help="Height and width of the photograph.")] = 192,
    as_json: Json = False,
) -> None:
    """A photograph through a network, on four emulated unequal devices together.

    Example: coedge demo --model resnet50
    """
    from orchestrator.cli.render import console, devices_table, plan_table
    from orchestrator.cluster.cluster import connect

    quiet: Any = contextlib.nullcontext()

    def busy(text: str) -> Any:
        return quiet if as_json else console.status(text)

    with busy(f"building {model} and exporting it once to ONNX"):
        captured = load_model(model, size)
        array = load_image(photograph(), captured)
        expected = unsplit(captured, array)
    with busy("starting Ray and four emulated devices"):
        cluster = connect(demo_config())
    with cluster:
        infos = cluster.devices()
        if not as_json:
            console.print(
                f"{captured.name}: {len(captured.layers)} layers, {captured.weight_nbytes / 1e6:.0f} MB of weights, "
                "seeded, not trained: the output is exact, the class means nothing.\n"
            )
            console.print(devices_table(infos))
        with busy(f"measuring {captured.name} on each kind of device"):
            profile = cluster.profile(captured)
        plans = {scheme: cluster.plan(captured, scheme=scheme) for scheme in SCHEMES}
        with busy("preparing the devices"):
            for made in plans.values():
                cluster.submit(captured, array, plan=made).result()
        jobs: dict[str, list[Any]] = {scheme: [] for scheme in SCHEMES}
        worst, classes = 0.0, set[int]()
        with busy("running, the schemes in turn"):
            for _ in range(ROUNDS):
                for scheme, made in plans.items():
                    job = cluster.submit(captured, array, plan=made)
                    output = job.result()
                    worst = max(worst, difference(output, expected))
                    classes.add(int(np.argmax(output)) if len(expected) == 1 else -1)
                    jobs[scheme].append(job)
        rows = []
        for scheme, made in plans.items():
            assert made.predicted is not None
            rows.append(
                {
                    "scheme": scheme,
                    "devices": len({d for s in made.stages for d, r in s.regions.items() if r.row_stop > r.row_start}),
                    "predicted_ms": made.predicted.latency_seconds * 1e3,
                    "measured_ms": statistics.median(j.latency_seconds for j in jobs[scheme]) * 1e3,
                    "predicted_joules": made.predicted.energy_joules,
                    "measured_joules": statistics.median(j.timeline.energy_joules(profile) for j in jobs[scheme]),
                }
            )
    if as_json:
        shown = {
            "model": captured.name,
            "devices": [{"name": i.name, "speed": i.speed, "gflops": i.gflops} for i in infos],
            "plan": json.loads(plans["auto"].model_dump_json()),
            "schemes": rows,
            "largest_relative_difference": worst,
        }
        print(json.dumps(shown))
        return
    from rich.table import Table

    console.print(plan_table(plans["auto"], len(captured.layers)))
    table = Table(
        title=f"the photograph through {captured.name}, median of {ROUNDS}",
        title_justify="left",
        header_style="bold",
    )
    for column in (
        "scheme",
        "devices",
        "predicted ms",
        "measured ms",
        "vs local",
        "predicted J",
        "measured J",
    ):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    base = rows[0]["measured_ms"]
    for row in rows:
        table.add_row(
            row["scheme"], str(row["devices"]), f"{row['predicted_ms']:.1f}", f"{row['measured_ms']:.1f}",
            f"{base / row['measured_ms']:.2f}x", f"{row['predicted_joules']:.2f}",
            f"{row['measured_joules']:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        "Devices are emulated on this machine: speed by waiting, links by pacing. Joules are modelled from watts; "
        "the measured ones use measured times."
    )
    if len(expected) == 1 and expected[0].ndim == 2:
        found = ", ".join(str(index) for index in sorted(classes))
        console.print(f"class of the photograph: {found} by every scheme, {int(np.argmax(expected[0]))} unsplit")
    console.print(f"largest difference to the unsplit output: {worst:.1e} of its largest value")
