"""`coedge plan`: what would be done, and what it would cost."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from coedge.cli.defaults import demo_config
from coedge.cli.models import MODEL_HELP, load_model
from coedge.cli.options import Cluster, Deadline, Goal, Json, Scheme, Set, Size, objective, writable


def plan(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    cluster: Cluster = None,
    profile: Annotated[str | None, typer.Option(help="A saved profile (JSON) instead of a cluster.")] = None,
    scheme: Scheme = None,
    goal: Goal = None,
    deadline: Deadline = None,
    save: Annotated[str | None, typer.Option(help="Write the plan to this file.")] = None,
    save_profile: Annotated[str | None, typer.Option(help="Write the measured profile to this file.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All schemes side by side.")] = False,
    size: Size = 224,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Plans a model on a cluster (or on a saved profile) and shows who would do what.

    Example: coedge plan vgg16 --cluster configs/demo.yaml --goal energy --deadline 400ms
    """
    from coedge.config import load_config
    from coedge.objective import Objective
    from coedge.profile import Profile
    from orchestrator.planner import AUTO, SCHEMES, check_scheme, make_plan

    if profile and (cluster or set_ or save_profile):
        raise typer.BadParameter("--profile stands for a cluster: no --cluster, --set or --save-profile with it")
    if compare and (save or scheme):
        raise typer.BadParameter("--compare shows all schemes: no --save or --scheme with it")
    writable(save, save_profile)
    config = None if profile else load_config(cluster or demo_config(), set_ or ())
    chosen = scheme or (config.scheme if config else AUTO)
    check_scheme(chosen)
    wanted = objective(config.objective if config else Objective(), goal, deadline)
    loaded = Profile.load(profile) if profile else None
    captured = load_model(model, size)
    if loaded is not None:
        measured = loaded
    else:
        from orchestrator.cluster import connect

        assert config is not None
        with connect(config) as joined:
            measured = joined.profile(captured)
    if save_profile:
        measured.save(save_profile)
    plans = [make_plan(captured, measured, wanted, name) for name in (SCHEMES if compare else [chosen])]
    if save:
        plans[0].save(save)
    if as_json:
        rows = [json.loads(p.model_dump_json()) for p in plans]
        print(json.dumps(rows if compare else rows[0]))
        return
    from rich.table import Table

    from coedge.cli.render import console, plan_table, prediction_line

    if compare:
        table = Table(title=f"{captured.name}, predicted", title_justify="left", header_style="bold")
        for column in ("scheme", "ms", "J (modelled)", "frames/s", "devices", ""):
            table.add_column(column, justify="left" if column in ("scheme", "") else "right")
        for made in plans:
            assert made.predicted is not None
            used = {n for s in made.stages for n, r in s.regions.items() if r.row_stop > r.row_start}
            table.add_row(
                made.scheme, f"{made.predicted.latency_seconds * 1e3:.1f}", f"{made.predicted.energy_joules:.3f}",
                f"{made.predicted.throughput_fps:.1f}", str(len(used)), "" if made.feasible else made.reason,
            )  # fmt: skip
        console.print(table)
        return
    console.print(plan_table(plans[0], len(captured.layers)))
    console.print(prediction_line(plans[0]))
