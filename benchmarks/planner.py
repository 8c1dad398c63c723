"""Measure predicted costs of plans and planning times. No device is needed.

    table    every scheme against `auto`: zoo x test beds, latency and energy (for least latency)
    times    a plan for eight devices from nothing, and new boundaries after a change of bandwidth
    growth   a plan for more and more devices, and of networks of more and more layers; with a picture
    rises    how often better conditions give a worse plan (see `benchmarks.monotonicity`)

`python -m benchmarks.planner [--json] [--quick]`, about eight minutes.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.growth import growth
from benchmarks.instances import chain
from benchmarks.monotonicity import monotonicity
from benchmarks.report import Report, arguments
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Link, Profile
from coedge.profile.testbed import load_testbed, profile_of
from orchestrator.cli.models import load_model
from orchestrator.planner.planner import AUTO, SCHEMES, make_plan
from orchestrator.planner.replan import BoundarySolver

BEDS = Path(__file__).resolve().parent.parent / "configs" / "testbeds"
MODELS = ("mobilenet_v2", "googlenet", "resnet50", "unet", "vgg16", "squeezenet", "resnet18", "ssd")
TIMED = ("mobilenet_v2", "googlenet", "resnet50", "unet")
# From a dozen layers to two hundred.
GROWING = ("alexnet", "vgg16", "squeezenet", "resnet50", "mobilenet_v3", "googlenet")
CHAINS = (100, 200)


def main() -> None:
    options = arguments(__doc__)
    report = Report("planner")
    names = ("mobilenet_v2", "squeezenet") if options.quick else MODELS
    models = {name: load_model(name, 300 if name == "ssd" else 224) for name in names}
    table(report, models)
    times(report, {name: models[name] for name in TIMED if name in models})
    growing = {name: models.get(name) or load_model(name, 224) for name in (("alexnet",) if options.quick else GROWING)}
    for layers in () if options.quick else CHAINS:
        growing[f"chain of {layers}"] = chain(0, layers, 112)
    growth(
        report, {TIMED[0]: models[TIMED[0]], **growing}, (2, 4, 8) if options.quick else (2, 4, 8, 16, 32, 64), 8,
        lambda model, count: timed(model, of_size(model, count))[0],
    )  # fmt: skip
    monotonicity(report, 2 if options.quick else 10)
    report.finish(options.json)


def table(report: Report, models: dict[str, Model]) -> None:
    """Report the latency of every scheme over that of `auto`, as geometric mean over the networks of each test bed."""
    worst = 1.0
    for path in sorted(BEDS.glob("*.yaml")):
        bed, ratios, joules, bounds = path.stem, dict[str, list[float]](), dict[str, list[float]](), []
        for name, model in models.items():
            profile = profile_of(load_testbed(path), model)
            plans = {scheme: make_plan(model, profile, scheme=scheme) for scheme in (*SCHEMES, AUTO)}
            auto = plans[AUTO].predicted
            assert auto is not None and auto.bound_seconds is not None
            bounds.append(auto.latency_seconds / auto.bound_seconds)
            for scheme, plan in plans.items():
                assert plan.predicted is not None
                ratio = plan.predicted.latency_seconds / auto.latency_seconds
                ratios.setdefault(scheme, []).append(ratio)
                joules.setdefault(scheme, []).append(plan.predicted.energy_joules / auto.energy_joules)
                report.sample(f"{bed} {name} {scheme}, s", [plan.predicted.latency_seconds])
                report.sample(f"{bed} {name} {scheme}, J", [plan.predicted.energy_joules])
                worst = min(worst, ratio)
        for scheme in SCHEMES:
            report.note(f"{bed}: {scheme}", statistics.geometric_mean(ratios[scheme]), "x latency of auto")
            report.note(f"{bed}: {scheme}, energy", statistics.geometric_mean(joules[scheme]), "x joules of auto")
        best = [min(of) for of in zip(*(ratios[scheme] for scheme in SCHEMES))]
        report.note(f"{bed}: the best scheme of each network", statistics.geometric_mean(best), "x latency of auto")
        report.note(f"{bed}: auto", statistics.geometric_mean(bounds), "x divisible-load bound")
    report.at_least("any scheme against auto", worst, "x latency of auto", 1.0)


def times(report: Report, models: dict[str, Model]) -> None:
    for name, model in models.items():
        profile = of_size(model, 8)
        model.hash  # noqa: B018  # computed once per model, not part of planning
        seconds, plan = timed(model, profile)
        report.at_most(f"{name}: cold plan, 8 devices", seconds, "s", 2)
        report.at_most(f"{name}: again after a change of bandwidth", replan(model, profile, plan) * 1e3, "ms", 100)


def timed(model: Model, profile: Profile) -> tuple[float, Plan]:
    start = time.perf_counter()
    plan = make_plan(model, profile)
    return time.perf_counter() - start, plan


def replan(model: Model, profile: Profile, plan: Plan) -> float:
    """Return the seconds for new boundaries with the same cuts after a change of all links; the median of five."""
    solver = BoundarySolver(plan, model, profile)
    solver.resolve(profile, Objective())
    taken = []
    for factor in (0.67, 0.9, 1.1, 0.8, 0.7):
        links = tuple(
            link.model_copy(update={"bytes_per_second": link.bytes_per_second * factor}) for link in profile.links
        )
        changed = profile.model_copy(update={"links": links})
        start = time.perf_counter()
        solver.resolve(changed, Objective())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def of_size(model: Model, count: int) -> Profile:
    """Return a profile of devices of four speeds in turn, on 1 Gbit/s."""
    bed = profile_of(load_testbed(BEDS / "rack-1000mbps.yaml"), model)
    one = bed.devices[0]
    devices = []
    for index in range(count):
        factor = (1.0, 1.33, 2.0, 4.0)[index % 4]
        slower = [
            tuple(
                t.model_copy(
                    update={"fixed_seconds": t.fixed_seconds * factor, "seconds_per_row": t.seconds_per_row * factor}
                )
                for t in times
            )
            for times in (one.layers, one.fused)
        ]
        devices.append(one.model_copy(update={"name": f"d{index}", "layers": slower[0], "fused": slower[1]}))
    names = [device.name for device in devices]
    links = tuple(
        Link(sender=a, receiver=b, bytes_per_second=1.25e8, latency_seconds=2e-4)
        for a in names
        for b in names
        if a != b
    )
    return bed.model_copy(update={"devices": tuple(devices), "links": links, "source": "d0", "media": ()})


if __name__ == "__main__":
    main()
