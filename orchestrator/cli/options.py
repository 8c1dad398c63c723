"""Options that several commands share, and their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coedge.core.objective import Objective

GOALS = ("latency", "energy", "throughput")
PICTURES = (".png", ".svg")
TESTBED_SUFFIXES = (".yaml", ".yml")
MODEL_HELP = "Network: a zoo name (such as resnet18), a .onnx or .pt2 file, or package.module:factory."

ModelName = Annotated[str, typer.Argument(help=MODEL_HELP)]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="Cluster configuration (YAML). Default: four emulated devices."),
]
PlannedCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        help="Cluster configuration (YAML); the cluster is started and measured. Default: four emulated devices. "
        "With --profile nothing is started.",
    ),
]
PlannedOn = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Plan on a saved profile (JSON) or a test bed (YAML, see configs/testbeds) instead of a cluster.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the configuration, such as devices.0.speed=0.5. Repeatable."),
]
Without = Annotated[list[str] | None, typer.Option("--without", help="Exclude a device. Repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Scheme = Annotated[
    str | None,
    typer.Option(
        "--scheme",
        "-s",
        help="Planning scheme: local, offload, equal, musical_chair, modnn, coedge, aofl, neurosurgeon, "
        "or auto, a search of the whole plan space.",
    ),
]
Goal = Annotated[str | None, typer.Option("--goal", help="Optimise latency, energy or throughput.")]
Deadline = Annotated[str | None, typer.Option("--deadline", help="Latency limit per frame, such as 100ms or 0.1s.")]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Approximate time for measuring the model on each kind of device (or, for a test bed, on this machine), "
        "such as 20s.",
    ),
]
Estimate = Annotated[
    bool,
    typer.Option(
        "--estimate",
        help="With a test bed: estimate the layer times of a network that has no reference times, instead of "
        "measuring it on this machine once.",
    ),
]
KeepLocal = Annotated[
    int | None, typer.Option("--keep-local", min=0, help="Keep the input and this many layers on the source.")
]
Size = Annotated[
    int, typer.Option("--size", min=1, help="Height and width of the input, if the model does not fix them.")
]


def seconds(text: str, option: str = "--deadline", unit: str = "ms") -> float:
    """Parse a duration such as `100ms`, `0.1s` or `100` (of the unit), in seconds.

    Raises:
        BadParameter: the text is not a positive duration.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s)?\s*", text.lower())
    if not match or float(match[1]) <= 0:
        raise typer.BadParameter(f"{option}: {text!r} is not a duration such as 100ms or 0.1s")
    return float(match[1]) * (1.0 if (match[2] or unit) == "s" else 0.001)


def is_testbed(profile: str | None) -> bool:
    """Return whether a `--profile` is a test bed (YAML) rather than a saved profile (JSON)."""
    return profile is not None and profile.lower().endswith(TESTBED_SUFFIXES)


def with_budget(overrides: Sequence[str] | None, budget: str | None, profile: str | None = None) -> list[str]:
    """Add the time for measuring to the overrides of a cluster's configuration.

    A test bed has no such key: `read_input` takes the time itself.

    Raises:
        BadParameter: `budget` is not a duration, or `profile` is a saved one, so that nothing is measured.
    """
    if budget is None or is_testbed(profile):
        return list(overrides or ())
    if profile is not None:
        raise typer.BadParameter(
            "--budget limits the measuring of a cluster or for a test bed; it has no effect with a saved --profile"
        )
    return [*(overrides or ()), f"profile_budget_seconds={seconds(budget, '--budget', 's'):g}"]


def objective(base: Objective, goal: str | None, deadline: str | None, keep_local: int | None = None) -> Objective:
    """Override the objective of the configuration with the options of the command line.

    Raises:
        BadParameter: there is no such goal, or the deadline is not a duration.
    """
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


def check_writable(*paths: str | None) -> None:
    """Check that files can be written, before a command starts to work.

    Raises:
        BadParameter: a file's folder does not exist, or the path is a folder.
    """
    for path in paths:
        if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            problem = "is a folder" if Path(path).is_dir() else f"cannot be written: no folder {Path(path).parent}"
            raise typer.BadParameter(f"{path} {problem}")


def check_picture(path: str | None) -> None:
    """Check that a picture can be written.

    Raises:
        BadParameter: as `check_writable`, or the extension is not that of a picture.
    """
    check_writable(path)
    if path is not None and Path(path).suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"{path}: the name of a picture ends in {' or '.join(PICTURES)}")


def check_folder(path: str | None, option: str) -> Path | None:
    """Check that a folder exists or can be made.

    Raises:
        BadParameter: the path is a file, or its parent does not exist.
    """
    if path is None:
        return None
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{option} {path} is a file; name a folder")
    if not folder.parent.is_dir():
        raise typer.BadParameter(f"{option} {path} cannot be made: no folder {folder.parent}")
    return folder
