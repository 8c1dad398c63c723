"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from coedge.objective import Objective

Cluster = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="Cluster configuration (YAML). Default: four emulated devices."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override of the configuration, such as devices.0.speed=0.5."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Scheme = Annotated[
    str | None, typer.Option("--scheme", "-s", help="local, equal, modnn, coedge, or auto: the best of them.")
]
Goal = Annotated[str | None, typer.Option("--goal", help="latency or energy.")]
Deadline = Annotated[str | None, typer.Option("--deadline", help="Such as 100ms or 0.1s.")]
Size = Annotated[
    int, typer.Option("--size", min=1, help="Height and width of the input, where the model leaves it open.")
]


def seconds(text: str) -> float:
    """A duration such as `100ms`, `0.1s` or `100` (ms), in seconds."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s)?\s*", text.lower())
    if not match or float(match[1]) <= 0:
        raise typer.BadParameter(f"--deadline: {text!r} is not a duration such as 100ms or 0.1s")
    return float(match[1]) * (1.0 if match[2] == "s" else 0.001)


def objective(base: Objective, goal: str | None, deadline: str | None) -> Objective:
    """The configuration's objective with what the command line says."""
    changed: dict[str, object] = {}
    if goal is not None:
        if goal not in ("latency", "energy"):
            raise typer.BadParameter(f"--goal is latency or energy, not {goal!r}")
        changed["goal"] = goal
    if deadline is not None:
        changed["deadline_ms"] = seconds(deadline) * 1000
    return Objective.model_validate({**base.model_dump(), **changed})


def writable(*paths: str | None) -> None:
    """Before anything takes long: files can only be written to folders that there are.

    Raises:
        BadParameter: there is no such folder, or a folder has the file's name.
    """
    for path in paths:
        if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            what = "is a folder" if Path(path).is_dir() else f"cannot be written: no folder {Path(path).parent}"
            raise typer.BadParameter(f"{path} {what}")
