"""`coedge bench`: every scheme on the same cluster, in turns; tables and pictures from what was kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.cli.defaults import demo_config
from orchestrator.cli.eager import TORCH, eager_guest
from orchestrator.cli.models import difference, load_image, load_model, photograph, unsplit
from orchestrator.cli.options import Budget, Cluster, Deadline, Goal, Json, Set, Size, objective, with_budget

if TYPE_CHECKING:
    from orchestrator.bench.comparison import Comparison, Sample
    from orchestrator.bench.side_by_side import Guest
    from orchestrator.bench.table import Row
    from orchestrator.cluster.cluster import Cluster as Joined


def bench(
    cluster: Cluster = None,
    models: Annotated[
        str, typer.Option(help="With commas between: zoo names, .onnx or .pt2 files, package.module:factory.")
    ] = "mobilenet_v2,resnet18",
    schemes: Annotated[str | None, typer.Option(help="With commas between. Default: all of them, and auto.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each plan that count.")] = 10,
    against: Annotated[
        str | None,
        typer.Option(help="onnxruntime, torch, or both: also the whole network on the best single device."),
    ] = None,
    goal: Goal = None,
    deadline: Deadline = None,
    out: Annotated[str | None, typer.Option(help="Folder for all that was measured. Default: bench-DATE-TIME.")] = None,
    show: Annotated[
        str | None, typer.Option(help="Measure nothing: tables and pictures again, from such a folder.")
    ] = None,
    links: Annotated[bool, typer.Option("--links", help="Also the bytes on every link.")] = False,
    size: Size = 224,
    budget: Budget = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Plans models by every scheme, runs the plans in turns on the same devices, and compares.

    Every output is compared with the unsplit one. Raw samples, plans, profiles and a timeline of each plan are kept
    in a folder, with tables and pictures made from them.

    Example: coedge bench --cluster configs/demo.yaml --models resnet18,unet --against onnxruntime --out results
    """
    from orchestrator.bench.comparison import load

    if show is not None:
        comparison, samples = load(Path(show))
        _present(comparison, samples, Path(show), links, as_json)
        return
    folder = _new_folder(out)
    comparison, samples = _measure(
        cluster, _listed(models, "--models"), _schemes(schemes), frames, _against(against),
        (goal, deadline), folder, size, with_budget(set_, budget),
    )  # fmt: skip
    _present(comparison, samples, folder, links, as_json)


def _measure(
    cluster: str | None,
    specs: Sequence[str],
    schemes: Sequence[str],
    frames: int,
    against: Sequence[str],
    wanted: tuple[str | None, str | None],
    folder: Path,
    size: int,
    overrides: Sequence[str],
) -> tuple[Comparison, list[Sample]]:
    """Model after model; each is saved as soon as it has run."""
    from coedge.config.loading import load_config
    from orchestrator.bench.comparison import Comparison, save
    from orchestrator.bench.environment import environment
    from orchestrator.bench.side_by_side import ONE_SESSION, side_by_side
    from orchestrator.cluster.cluster import connect
    from orchestrator.planner.explain.figures import energy_source

    config = load_config(cluster or demo_config(), overrides)
    config = config.model_copy(update={"objective": objective(config.objective, *wanted)})
    with progress("capturing models", len(specs)) as captured:
        loaded = []
        for spec in specs:
            model = load_model(spec, size)
            loaded.append((spec, model, load_image(photograph(), model)))
            captured()
    folder.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(
        cluster=cluster or "four emulated devices", config=config.model_dump(mode="json"), environment=environment(),
        begun=time.strftime("%Y-%m-%d %H:%M:%S"), frames=frames, size=size,
    )  # fmt: skip
    samples: list[Sample] = []
    with connect(config) as joined:
        for spec, model, array in loaded:
            ran = side_by_side(
                joined, model, [array], schemes, frames, partial(difference, expected=unsplit(model, array)),
                ONE_SESSION in against,
                partial(_guests, joined, spec, size, model, array) if TORCH in against else None,
            )  # fmt: skip
            samples += ran.samples
            comparison = comparison.model_copy(
                update={
                    "cases": (*comparison.cases, *ran.cases),
                    "energy_source": energy_source(ran.profile, ran.profile.names),
                }
            )
            save(comparison, samples, folder)
            for kind in ("profiles", "plans", "timelines"):
                (folder / kind).mkdir(exist_ok=True)
            ran.profile.save(folder / "profiles" / f"{model.name}.json")
            for scheme, plan in ran.plans.items():
                plan.save(folder / "plans" / f"{model.name}.{scheme}.json")
            for scheme, timeline in ran.timelines.items():
                timeline.save(folder / "timelines" / f"{model.name}.{scheme}.json.gz")
    return comparison, samples


def _guests(joined: Joined, spec: str, size: int, model: Model, array: np.ndarray, profile: Profile) -> list[Guest]:
    return [eager_guest(joined, spec, size, model, array, profile)]


def _present(comparison: Comparison, samples: list[Sample], folder: Path, links: bool, as_json: bool) -> None:
    from orchestrator.bench.table import losses_of, mean_to_bound, means_of, rows_of

    rows = rows_of(comparison.cases, samples)
    pictures = _draw(rows, comparison, folder)
    means, bound, losses = means_of(rows), mean_to_bound(rows), losses_of(rows)
    if as_json:
        shown = {
            "folder": str(folder),
            "rows": [_as_row(row) for row in rows],
            "means": [asdict(mean) for mean in means],
            "auto_to_bound": bound,
            "losses": [{"model": row.case.model, "scheme": row.case.scheme, "to_auto": row.to_auto} for row in losses],
            "pictures": pictures,
        }
        print(json.dumps(shown))
        return
    from orchestrator.cli.bench_table import links_table, losses_line, means_table, model_table
    from orchestrator.cli.render import console, say

    for model in dict.fromkeys(row.case.model for row in rows):
        of_model = [row for row in rows if row.case.model == model]
        console.print(model_table(of_model, comparison))
        for row in of_model:
            if row.case.problem:
                say(f"* {row.case.scheme}: {row.case.problem}")
        for row in of_model:
            if row.case.same_as:
                say(f"  {row.case.scheme}: the plan of {row.case.same_as}, so its frames")
            if row.case.note and not row.case.problem:
                say(f"  {row.case.scheme}: {row.case.note}")
        if links:
            console.print(links_table(of_model))
    if means:
        console.print(means_table(means, bound))
        alone = list(dict.fromkeys(row.case.scheme for row in rows if row.case.alone))
        if alone:
            say(f"{', '.join(alone)}: on the fastest device, as if the input were there; no link counts")
        say(losses_line(losses))
    say(f"in {folder}: samples, plans, profiles, timelines (they open in Perfetto){_and(pictures)}")


def _draw(rows: Sequence[Row], comparison: Comparison, folder: Path) -> list[str]:
    """Names of the pictures, made anew; there are none where nothing was measured."""
    from orchestrator.cli.bench_plot import draw

    return [path.name for path in draw(rows, comparison, folder)]


def _as_row(row: Row) -> dict[str, Any]:
    found = asdict(row)
    return {
        **row.case.model_dump(mode="json"),
        **{key: value for key, value in found.items() if key != "case"},
        "error": row.error,
        "to_bound": row.to_bound,
    }


def _and(pictures: Sequence[str]) -> str:
    return "".join(f", {name}" for name in pictures)


def _listed(text: str, option: str) -> list[str]:
    """What stands between the commas, each once.

    Raises:
        BadParameter: nothing does.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise typer.BadParameter(f"{option} names nothing; give one or more, with commas between")
    return found


def _schemes(text: str | None) -> list[str]:
    from orchestrator.planner.planner import AUTO, SCHEMES, check_scheme

    if text is None:
        return [*SCHEMES, AUTO]
    found = _listed(text, "--schemes")
    for scheme in found:
        check_scheme(scheme)
    return found


def _against(text: str | None) -> list[str]:
    from orchestrator.bench.side_by_side import ONE_SESSION

    found = [] if text is None else _listed(text, "--against")
    for name in found:
        if name not in (ONE_SESSION, TORCH):
            raise typer.BadParameter(f"--against is {ONE_SESSION}, {TORCH}, or both, not {name!r}")
    return found


def _new_folder(out: str | None) -> Path:
    """Raises BadParameter where something would be lost, or where no folder can be."""
    folder = Path(out or time.strftime("bench-%Y%m%d-%H%M%S"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "has files in it, which stay" if folder.is_dir() else "is a file"
        raise typer.BadParameter(f"--out {folder} {what}; name another folder (--show makes tables from an old one)")
    if not folder.parent.is_dir():
        raise typer.BadParameter(f"--out {folder} cannot be made: no folder {folder.parent}")
    return folder
