"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coedge.core.objective import Objective

GOALS = ("latency", "energy", "throughput")
PICTURES = (".png", ".svg")

Cluster = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="Cluster configuration (YAML). Default: four emulated devices."),
]
PlannedCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        help="Cluster configuration (YAML), to be started and measured. Default: four emulated devices. "
        "A test bed (--profile) is quicker: nothing starts.",
    ),
]
PlannedOn = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Instead of a cluster: a saved profile (JSON), or a test bed (YAML) such as those in configs/testbeds.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override of the configuration, such as devices.0.speed=0.5; may be repeated."),
]
Without = Annotated[list[str] | None, typer.Option("--without", help="Leave this device out; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Scheme = Annotated[
    str | None,
    typer.Option(
        "--scheme",
        "-s",
        help="local, offload, equal, musical_chair, modnn, coedge, aofl, neurosurgeon, "
        "or auto: a search through all that they can do and more.",
    ),
]
Goal = Annotated[str | None, typer.Option("--goal", help="latency, energy or throughput.")]
Deadline = Annotated[str | None, typer.Option("--deadline", help="Such as 100ms or 0.1s.")]
Budget = Annotated[
    str | None,
    typer.Option("--budget", help="What measuring the model on one kind of device may take, about: such as 20s."),
]
KeepLocal = Annotated[
    int | None, typer.Option("--keep-local", min=0, help="So many layers, and the raw input, stay on the source.")
]
Size = Annotated[
    int, typer.Option("--size", min=1, help="Height and width of the input, where the model leaves it open.")
]


def seconds(text: str, option: str = "--deadline", unit: str = "ms") -> float:
    """A duration such as `100ms`, `0.1s` or `100` (of the unit), in seconds."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s)?\s*", text.lower())
    if not match or float(match[1]) <= 0:
        raise typer.BadParameter(f"{option}: {text!r} is not a duration such as 100ms or 0.1s")
    return float(match[1]) * (1.0 if (match[2] or unit) == "s" else 0.001)


def with_budget(overrides: Sequence[str] | None, budget: str | None, profile: str | None = None) -> list[str]:
    """The overrides of a cluster's configuration, with the time that measuring may take."""
    if budget is None:
        return list(overrides or ())
    if profile is not None:
        raise typer.BadParameter("--budget is for measuring a cluster; with --profile nothing is measured")
    return [*(overrides or ()), f"profile_budget_seconds={seconds(budget, '--budget', 's'):g}"]


def objective(base: Objective, goal: str | None, deadline: str | None, keep_local: int | None = None) -> Objective:
    """The configuration's objective with what the command line says."""
    changed: dict[str, object] = {}
    if goal is not None:
        if goal not in GOALS:
            raise typer.BadParameter(f"--goal is latency, energy or throughput, not {goal!r}")
        changed["goal"] = goal
    if deadline is not None:
        changed["deadline_ms"] = seconds(deadline) * 1000
    if keep_local is not None:
        changed["keep_local"] = keep_local
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


def picture(path: str | None) -> None:
    """The same for pictures, whose names say which kind.

    Raises:
        BadParameter: as `writable`, or another ending.
    """
    writable(path)
    if path is not None and Path(path).suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"{path}: the name of a picture ends in {' or '.join(PICTURES)}")
