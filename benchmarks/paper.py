"""The figures of the CoEdge paper: as printed, as predicted on its test bed, and as measured on a cluster.

    3       two devices, and all shares of the rows
    10, 11  latency and energy of four networks by four schemes
    12      energy against the deadline
    13      devices join one by one
    14      the bandwidth changes; plans are made again from the measured rates

The figures are made at the printed 1 MB/s and at 8 MB/s. At 1 MB/s the image alone takes 151 ms to leave the Pi (with
one byte per value; 602 ms with four), so no plan meets the paper's deadline of 100 ms. At 8 MB/s its Algorithm 1 meets
all of its deadlines. The watts are chosen so that a single device uses the joules of the paper's figures; see
`configs/testbeds/paper.yaml`.

`python -m benchmarks.paper [--cluster FILE] [--quick | --predicted-only] [--out FOLDER] [--show FOLDER]`. In a lab:
`coedge lab up configs/lab/paper.yaml --fast-weights`, then
`coedge lab run -- python -m benchmarks.paper --cluster configs/lab/paper.yaml`, 22 minutes; `coedge lab rate` sets the
rates. Emulated devices have the speeds on each network that the paper's milliseconds imply.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import paper_cluster
from benchmarks.paper_plots import draw
from benchmarks.paper_points import Claim, Figures, Point, Value, claims_of, orderings
from benchmarks.paper_trials import NETWORKS, SWEPT, Trial, trials, with_rates
from benchmarks.report import RESULTS, environment
from coedge.config.loading import load_config
from coedge.core.errors import CoEdgeError
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.profile.testbed import Testbed, load_testbed, profile_of
from orchestrator.cli.models import load_model
from orchestrator.cluster.cluster import connect

ROOT = Path(__file__).resolve().parent.parent
BED = ROOT / "configs" / "testbeds" / "paper.yaml"
SCALES = (1.0, 8.0)
KEPT = "paper.json"


def main() -> int:
    options = _arguments()
    try:
        if options.show:
            figures = Figures.load(Path(options.show) / KEPT)
            folder = Path(options.show)
        else:
            figures = make(options.quick, options.predicted_only, options.cluster, options.frames, options.lab)
            # A partial run does not overwrite complete results.
            less = options.quick or options.predicted_only
            folder = Path(options.out or (RESULTS / "paper" if less else ROOT / "docs" / "results"))
            folder.mkdir(parents=True, exist_ok=True)
            figures.save(folder / KEPT)
        pictures = draw(figures, folder)
    except CoEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console(width=150)
    for scale in dict.fromkeys(point.scale for point in figures.points):
        _show(console, [point for point in figures.points if point.scale == scale])
    _show_claims(console, figures.points)
    console.print(f"{folder / KEPT} and {', '.join(path.name for path in pictures)}")
    return 0


def make(quick: bool, predicted_only: bool, cluster: str | None = None, frames: int = 6, lab: str = "lab") -> Figures:
    """Return the points of all figures.

    Args:
        quick: use one network, one scale and few frames.
        cluster: configuration of a cluster with the devices of the test bed; None emulates them on this machine.
        frames: measured frames per plan.
        lab: name of the lab of the cluster, if its links are not emulated.
    """
    bed = load_testbed(BED)
    networks = (SWEPT,) if quick else NETWORKS
    if cluster and not predicted_only:
        paper_cluster.check_devices(load_config(cluster), bed)
    models = {}
    with progress("capturing networks", len(networks)) as done:
        for name in networks:
            models[name] = load_model(name)
            done()
    found = Figures(environment(), cluster or f"{BED.name}, emulated", 0 if predicted_only else frames)
    all_trials = [(scale, trial) for scale in (SCALES[1:] if quick else SCALES) for trial in trials(scale, networks)]
    if quick:
        all_trials = [(s, t) for s, t in all_trials if "auto" not in t.series or t.figure == "10"]
    points = predict(bed, models, all_trials)
    if not predicted_only:
        values: dict[int, Value] = {}
        for name, model in models.items():
            given = cluster or paper_cluster.emulated(bed, name)
            config = load_config(given, paper_cluster.speeds(load_config(given), bed, name))
            of_network = {i: trial for i, (_, trial) in enumerate(all_trials) if trial.network == name}
            with connect(config.model_copy(update={"adapt": False})) as joined:
                values |= paper_cluster.measure(joined, config, bed, model, of_network, 2 if quick else frames, lab)
        points = [Point(**{**vars(point), "measured": values[index]}) for index, point in enumerate(points)]
    found.points = points
    return found


def predict(bed: Testbed, models: dict[str, Model], given: Sequence[tuple[float, Trial]]) -> list[Point]:
    """Predict a point with the simulator on the test bed."""
    profiles = {name: profile_of(bed, model) for name, model in models.items()}
    points = []
    with progress("predicting", len(given)) as done:
        for scale, trial in given:
            model, profile = models[trial.network], with_rates(profiles[trial.network], trial.factor)
            plan = trial.make(model, profile)
            assert plan.predicted is not None
            predicted = Value(
                plan.predicted.latency_seconds * 1e3, plan.predicted.energy_joules,
                "" if plan.feasible else plan.reason,
            )  # fmt: skip
            points.append(
                Point(
                    trial.figure, scale, trial.series, trial.x, trial.network, trial.deadline_ms,
                    Value(trial.paper_ms, trial.paper_joules), predicted, devices=plan.used_devices,
                )
            )  # fmt: skip
            done()
    return points


def _show(console: Console, points: Sequence[Point]) -> None:
    """Print a table per figure for one scale."""
    for figure in dict.fromkeys(point.figure for point in points):
        here = [point for point in points if point.figure == figure]
        title = f"figure {'10 and 11' if figure == '10' else figure}, links of {here[0].scale:g} MB/s"
        table = Table(title=title, title_justify="left", header_style="bold")
        for column in ("series", "x"):
            table.add_column(column, no_wrap=True)
        for column in ("ms:\npaper", "\npredicted", "\nmeasured", "J:\npaper", "\npredicted", "\nmeasured"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("on")
        for point in here:
            late = " *" if point.predicted.problem else ""
            on = ", ".join(point.devices) if len(point.devices) < 4 else str(len(point.devices))
            table.add_row(
                point.series, point.x, _number(point.paper.ms), _number(point.predicted.ms) + late,
                _number(point.measured.ms), _number(point.paper.joules), _number(point.predicted.joules),
                _number(point.measured.joules), on,
            )  # fmt: skip
        console.print(table)
        if any(point.predicted.problem for point in here):
            console.print("* misses its deadline, as predicted")


def _show_claims(console: Console, points: Sequence[Point]) -> None:
    table = Table(title="what the figures show", title_justify="left", header_style="bold")
    for column in ("figure", "MB/s", "", "paper", "predicted", "measured"):
        table.add_column(column, no_wrap=True)
    for claim in claims_of(points):
        table.add_row(
            claim.figure, f"{claim.scale:g}", claim.what, _word(claim.paper),
            _verdict(claim, claim.predicted), _verdict(claim, claim.measured),
        )  # fmt: skip
    reasons = {(c.figure, c.what): c.why for c in claims_of(points) if not c.reproduced}
    for scale in dict.fromkeys(point.scale for point in points):
        of_figure = [point for point in points if point.figure == "10" and point.scale == scale]
        for figure, quantity in (("10", "ms"), ("11", "joules")):
            cells = []
            for source in ("predicted", "measured"):
                same, count, other = orderings(of_figure, quantity, source)
                cells.append(f"{same} of {count}" if count else "-")
                for pair in other:
                    console.print(f"figure {figure}, {scale:g} MB/s, {source}: not as in the paper: {pair}")
            table.add_row(figure, f"{scale:g}", "pairs of schemes in the paper's order", "", *cells)
    console.print(table)
    for (figure, what), why in reasons.items():
        console.print(f"figure {figure}, {what}: {why or 'not explained'}", highlight=False)


def _word(shown: bool | None) -> str:
    return "-" if shown is None else "yes" if shown else "no"


def _verdict(claim: Claim, shown: bool | None) -> str:
    if shown is None:
        return "-"
    if claim.paper is None:
        return _word(shown)
    return f"{_word(shown)}: {'reproduced' if shown == claim.paper else '[red]not reproduced[/]'}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", help="cluster configuration; by default the test bed is emulated on this machine")
    parser.add_argument("--lab", default="lab", help="name of the lab that this command runs in")
    parser.add_argument("--quick", action="store_true", help="one network, 8 MB/s, few frames, to check that it runs")
    parser.add_argument("--predicted-only", action="store_true", help="predict only, without a cluster")
    parser.add_argument("--frames", type=int, default=6, help="measured frames per plan; 6 by default")
    parser.add_argument("--out", help="folder; by default docs/results, or benchmarks/results/paper for a partial run")
    parser.add_argument("--show", help="show tables and pictures of the values in this folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
