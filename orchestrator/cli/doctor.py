"""`coedge doctor`: what is wrong with this machine or with a cluster, and what mends it."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from orchestrator.cli.options import Json, Set

ExaminedCluster = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="Cluster configuration (YAML). Default: this machine only."),
]


def doctor(cluster: ExaminedCluster = None, set_: Set = None, as_json: Json = False) -> None:
    """Check this machine, or a cluster, and say what mends it. It takes at most 30 s.

    The exit code is 1 if anything is red.

    Example: coedge doctor --cluster boards.yaml
    """
    from orchestrator.cli.console import busy, console, say
    from orchestrator.cli.doctor_table import doctor_table, summary
    from orchestrator.doctor.examination import examine
    from orchestrator.doctor.findings import findings

    with busy("examining the machines" if cluster else "examining this machine"):
        facts = examine(cluster, tuple(set_ or ()))
    found = findings(facts)
    if as_json:
        rows = [dataclasses.asdict(finding) for finding in found]
        print(json.dumps({"findings": rows, "facts": dataclasses.asdict(facts)}))
    else:
        console.print(doctor_table(found))
        say(summary(found))
    if any(finding.level == "red" for finding in found):
        raise typer.Exit(1)
