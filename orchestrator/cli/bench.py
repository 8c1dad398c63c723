"""`coedge bench`: compare schemes on the same cluster, and show the results of a comparison."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.cli import options
from orchestrator.cli.defaults import demo_config
from orchestrator.cli.eager import TORCH, eager_baseline
from orchestrator.cli.models import difference, load_image, load_model, photograph, unsplit

if TYPE_CHECKING:
    from orchestrator.bench.comparison import Comparison, Sample
    from orchestrator.bench.side_by_side import Baseline
    from orchestrator.cluster.cluster import Cluster


def bench(
    cluster: options.Cluster = None,
    models: Annotated[
        str, typer.Option(help="Comma-separated zoo names, .onnx or .pt2 files, or package.module:factory.")
    ] = "mobilenet_v2,resnet18",
    schemes: Annotated[str | None, typer.Option(help="Comma-separated schemes. Default: all schemes and auto.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Measured frames per plan.")] = 10,
    against: Annotated[
        str | None,
        typer.Option(help="Baselines on the best single device: onnxruntime, torch, or both."),
    ] = None,
    goal: options.Goal = None,
    deadline: options.Deadline = None,
    out: Annotated[str | None, typer.Option(help="Folder for the results. Default: bench-DATE-TIME.")] = None,
    show: Annotated[str | None, typer.Option(help="Show the results in a folder instead of measuring.")] = None,
    links: Annotated[bool, typer.Option("--links", help="Show the bytes on every link as well.")] = False,
    size: options.Size = 224,
    budget: options.Budget = None,
    set_: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Plan models by every scheme, run the plans in turns on the same devices, and compare them.

    Every output is compared with the unsplit one. A folder keeps raw samples, plans, profiles, a timeline of each plan,
    and the pictures made from them.

    Example: coedge bench --cluster configs/demo.yaml --models resnet18,unet --against onnxruntime --out results
    """
    from orchestrator.bench.comparison import load
    from orchestrator.cli.bench_report import present

    if show is not None:
        comparison, samples = load(Path(show))
        present(comparison, samples, Path(show), links, as_json)
        return
    folder = _new_folder(out)
    comparison, samples = _measure(
        cluster, _listed(models, "--models"), _schemes(schemes), frames, _against(against),
        (goal, deadline), folder, size, options.with_budget(set_, budget),
    )  # fmt: skip
    present(comparison, samples, folder, links, as_json)


def _measure(
    cluster: str | None,
    specs: Sequence[str],
    schemes: Sequence[str],
    frames: int,
    against: Sequence[str],
    goal_and_deadline: tuple[str | None, str | None],
    folder: Path,
    size: int,
    overrides: Sequence[str],
) -> tuple[Comparison, list[Sample]]:
    """Compare the schemes on one model after the other, and save each model as soon as it is measured."""
    from coedge.config.loading import load_config
    from orchestrator.bench.comparison import Comparison, save, save_artifacts
    from orchestrator.bench.environment import environment
    from orchestrator.bench.side_by_side import ONNXRUNTIME, side_by_side
    from orchestrator.cli.console import busy
    from orchestrator.cluster.cluster import connect
    from orchestrator.planner.explain.figures import energy_source

    config = load_config(cluster or demo_config(), overrides)
    config = config.model_copy(update={"objective": options.objective(config.objective, *goal_and_deadline)})
    with progress("exporting models to ONNX", len(specs)) as done:
        loaded = []
        for spec in specs:
            model = load_model(spec, size)
            loaded.append((spec, model, load_image(photograph(), model)))
            done()
    folder.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(
        cluster=cluster or "four emulated devices", config=config.model_dump(mode="json"), environment=environment(),
        begun=time.strftime("%Y-%m-%d %H:%M:%S"), frames=frames, size=size,
    )  # fmt: skip
    samples: list[Sample] = []
    with busy("starting the cluster"):
        # Schemes are compared on one profile.
        connected = connect(config.model_copy(update={"adapt": False}))
    with connected:
        for spec, model, array in loaded:
            run = side_by_side(
                connected, model, [array], schemes, frames, partial(difference, expected=unsplit(model, array)),
                ONNXRUNTIME in against,
                partial(_baselines, connected, spec, size, model, array) if TORCH in against else None,
            )  # fmt: skip
            samples += run.samples
            source = energy_source(run.profile, run.profile.names)
            cases = (*comparison.cases, *run.cases)
            comparison = comparison.model_copy(update={"cases": cases, "energy_source": source})
            save(comparison, samples, folder)
            save_artifacts(folder, model.name, run.profile, run.plans, run.timelines)
    return comparison, samples


def _baselines(
    cluster: Cluster, spec: str, size: int, model: Model, array: np.ndarray, profile: Profile
) -> list[Baseline]:
    return [eager_baseline(cluster, spec, size, model, array, profile)]


def _listed(text: str, option: str) -> list[str]:
    """Split a comma-separated list and drop repeated names.

    Raises:
        BadParameter: the list is empty.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter(f"{option} is empty; give one or more names, separated by commas")
    return names


def _schemes(text: str | None) -> list[str]:
    from orchestrator.planner.planner import AUTO, SCHEMES, check_scheme

    if text is None:
        return [*SCHEMES, AUTO]
    schemes = _listed(text, "--schemes")
    for scheme in schemes:
        check_scheme(scheme)
    return schemes


def _against(text: str | None) -> list[str]:
    from orchestrator.bench.side_by_side import ONNXRUNTIME

    names = [] if text is None else _listed(text, "--against")
    for name in names:
        if name not in (ONNXRUNTIME, TORCH):
            raise typer.BadParameter(f"--against is {ONNXRUNTIME}, {TORCH}, or both, not {name!r}")
    return names


def _new_folder(out: str | None) -> Path:
    """Return the folder for the results.

    Raises:
        BadParameter: the folder has files, which would be overwritten, or cannot be made.
    """
    folder = options.check_folder(out or time.strftime("bench-%Y%m%d-%H%M%S"), "--out")
    assert folder is not None
    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(
            f"--out {folder} is not empty; name another folder (to show the results in this one, use --show)"
        )
    return folder
