"""Overhead of the runtime over the kernels, and the gain of several devices.

    one device    single frames and a stream, against `InferenceSession.run` on the whole model; its memory
    halves        two devices at half speed, a stage per layer, against half the time of one of them
    pipeline      a stream through two devices with some layers each, against the kernels of the busier one
    halos         halo first against not: the share of the transfers that overlaps with kernels
    bound         four unequal devices by `auto`, against the divisible-load bound
    streams       frames per second by the mixture and by the best single plan, against the prediction
    speed-up      2 to 4 devices by known schemes, against one of them and against the ideal, the sum of the speeds

All devices except the one of `one device` are emulated. Compared plans run in turns.
`python -m benchmarks.runtime [--json] [--quick]`, about a quarter of an hour (two minutes).
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import psutil

import coedge
from benchmarks.report import Report, arguments
from coedge import zoo
from coedge.core.region import UNIT
from coedge.core.units import mbps_of
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import program_nbytes
from coedge.plan.plan import Plan, Stage, even_plan
from coedge.simulation.simulator import credits_of
from coedge.simulation.timeline import Timeline
from workers.runtime.kernels import Kernels, unsplit_session

Array = np.ndarray[Any, Any]
FAST = {"mbps": 10_000, "latency_ms": 0.0}
HALO_SHARE = 0.3
BEGUN = time.monotonic()
WARM = 3
OPTIONS: dict[str, dict[str, Any]] = {"unet": {"width": 0.25}}
SIZES = {"unet": 160}


def main() -> None:
    options = arguments(__doc__)
    report = Report("runtime")
    quick, frames = options.quick, 5 if options.quick else 40
    models = {name: _captured(name) for name in (("resnet18",) if quick else ("mobilenet_v2", "resnet18", "vgg16"))}
    one_device(report, models, frames)
    heavy = {name: model for name, model in models.items() if name != "mobilenet_v2"}
    halves(report, heavy, max(frames // 3, 4))
    pipeline(report, heavy, frames)
    halos(report, max(frames // 2, 5))
    wanted = {name: models.get(name) or _captured(name) for name in ("vgg16", "resnet50", "unet")[2 if quick else 0 :]}
    bound(report, wanted, max(frames // 4, 4), (1000,) if quick else (1000, 100))
    if not quick:
        speed_up(report, heavy, frames // 4)
        streams(report, models, 8)
        memory(report, {**models, **wanted})
    report.finish(options.json)


def _captured(name: str) -> Model:
    _say(f"capturing {name}")
    return coedge.capture(zoo.build(name, **OPTIONS.get(name, {})), _example(name), name=name)


def _example(name: str) -> Any:
    return zoo.example(name, image_size=SIZES.get(name))


def _say(what: str) -> None:
    print(f"{time.monotonic() - BEGUN:6.0f} s  {what}", file=sys.stderr, flush=True)


def _array(model: Model) -> Array:
    return _example(model.name).numpy()  # type: ignore[no-any-return]


def _latencies(cluster: Any, model: Model, x: Array, plans: Mapping[str, Plan], frames: int) -> dict[str, list[float]]:
    """Return the seconds of each frame by each plan. Plans run in turns, after a warm-up."""
    taken: dict[str, list[float]] = defaultdict(list)
    for number in range(frames + 1):
        for label, plan in plans.items():
            # Caches hold the weights of the plan before, so the second frame counts.
            cluster.submit(model, x, plan=plan, timeout=60.0).result()
            job = cluster.submit(model, x, plan=plan, timeout=60.0)
            job.result()
            if number:
                taken[label].append(job.latency_seconds)
    return taken


def one_device(report: Report, models: dict[str, Model], frames: int) -> None:
    """Measure single frames and a stream at real speed on one thread."""
    with coedge.connect({"adapt": False, "devices": [{"name": "only", "threads": 1}]}) as cluster:
        for name, model in models.items():
            x, plan = _array(model), _whole(model)
            plain_run = functools.partial(unsplit_session(model, 1).run, None, {model.inputs[0].name: x})
            asked_run = functools.partial(_ask, cluster, model, x, plan)
            plain: list[float] = []
            asked: list[float] = []
            streamed: list[float] = []
            for number in range(frames + WARM):
                plain.append(_seconds(plain_run))
                asked.append(_seconds(asked_run))
                if number % 8 == WARM:
                    streamed.append(_stream_seconds(cluster, model, x, plan, 8))
            base = report.sample(f"{name}: InferenceSession.run, s", plain[WARM:]) * 1e3
            single = report.sample(f"{name}: submit to result, s", asked[WARM:]) * 1e3
            stream = report.sample(f"{name}: stream, s per frame", streamed) * 1e3
            report.note(f"{name}: InferenceSession.run", base, "ms")
            report.at_most(f"{name}: submit to result", single, "ms", 1.05 * base + 1.5)
            report.at_most(f"{name}: stream, per frame", stream, "ms", 1.05 * base)
            _say(f"one device, {name}")


def _ask(cluster: Any, model: Model, x: Array, plan: Plan) -> None:
    cluster.submit(model, x, plan=plan).result()


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _stream_seconds(cluster: Any, model: Model, x: Array, plan: Plan, frames: int) -> float:
    """Return the seconds per frame of a stream in its steady state, from the first answer to the last."""
    answers = cluster.stream(model, [x] * (frames + 2), plan=plan)
    next(answers)
    next(answers)
    start = time.perf_counter()
    count = sum(1 for _ in answers)
    return (time.perf_counter() - start) / count


def _whole(model: Model, name: str = "only") -> Plan:
    return even_plan(model, [name], stage_layers=len(model.layers))


def halves(report: Report, models: dict[str, Model], frames: int) -> None:
    devices = [{"name": name, "speed": 0.5, "link": FAST} for name in ("d0", "d1")]
    with coedge.connect({"adapt": False, "devices": devices, "source": "d0"}) as cluster:
        for name, model in models.items():
            plans = {
                "one": _whole(model, "d0"),
                "a stage per layer": even_plan(model, ["d0", "d1"], split_dense=True),
            }
            taken = _latencies(cluster, model, _array(model), plans, frames)
            one, two = (report.sample(f"{name}, halves: {label}, s", values) for label, values in taken.items())
            report.at_most(f"{name}: two halves, a stage per layer", two / (one / 2), "x half of one", 1.15)
            _say(f"halves, {name}")


def pipeline(report: Report, models: dict[str, Model], frames: int) -> None:
    devices = [{"name": name, "speed": 0.5, "link": FAST} for name in ("d0", "d1")]
    with coedge.connect({"adapt": False, "devices": devices, "source": "d0"}) as cluster:
        for name, model in models.items():
            x = _array(model)
            plan = _cut(model, _middle(cluster, model, x))
            busiest = []
            for number in range(WARM + 3):
                job = cluster.submit(model, x, plan=plan)
                job.result()
                if number >= WARM:
                    busiest.append(max(job.timeline.compute_seconds().values()))
            streamed = [_stream_seconds(cluster, model, x, plan, max(frames // 2, 8)) for _ in range(2)]
            busy = report.sample(f"{name}, pipeline: kernels of the busier device, s", busiest)
            value = report.sample(f"{name}, pipeline: s per frame", streamed)
            report.at_most(f"{name}: stream through two devices", value / busy, "x busier device", 1.1)
            _say(f"pipeline, {name}")


def _middle(cluster: Any, model: Model, x: Array) -> int:
    """Return the layer before which half of the time has passed."""
    job = cluster.submit(model, x, plan=even_plan(model, ["d0"]))
    job.result()
    spans = sorted((s for s in job.timeline.spans if s.kind == "compute"), key=lambda span: span.start_seconds)
    total = sum(span.stop_seconds - span.start_seconds for span in spans)
    passed = 0.0
    for span in spans:
        passed += span.stop_seconds - span.start_seconds
        if passed >= total / 2:
            return min(max(span.stage + 1, 1), len(model.layers) - 1)
    raise AssertionError("no time has passed")


def _cut(model: Model, at: int) -> Plan:
    """Return a plan with the first layers on d0 and the others on d1."""
    last = len(model.layers) - 1
    stages = (
        Stage(first=0, last=at - 1, regions={"d0": UNIT}),
        Stage(first=at, last=last, regions={"d1": UNIT}),
    )
    return even_plan(model, ["d0", "d1"]).model_copy(update={"stages": stages, "sink": "d1"})


def halos(report: Report, frames: int) -> None:
    """Measure ten equal convolutions between two light ones on two devices, with a halo of `HALO_SHARE` of a stage."""
    import torch

    channels, rows, speed = 64, 112, 0.5
    sizes = [1, *[channels] * 10, 1]  # input and answer of the client are light
    convolutions = [torch.nn.Conv2d(few, many, 3, padding=1) for few, many in itertools.pairwise(sizes)]
    net = torch.nn.Sequential(*(module for conv in convolutions for module in (conv, torch.nn.ReLU()))).eval()
    example = torch.rand(1, 1, rows, rows)
    model = coedge.capture(net, example, name="twelve convolutions")
    kernels, program = Kernels(model, 1), lower(even_plan(model, 2), model)["device-0"]
    run = functools.partial(
        kernels.run, program.tiles()[len(sizes) // 2], [np.zeros((1, channels, rows // 2 + 1, rows), np.float32)]
    )
    stage = statistics.median(_seconds(run) for _ in range(30)) / speed
    halo_seconds = HALO_SHARE * stage
    link = {"mbps": mbps_of(channels * rows * 4 / halo_seconds), "latency_ms": 0.0}
    devices = [{"name": name, "speed": speed, "link": link} for name in ("d0", "d1")]
    with coedge.connect({"adapt": False, "devices": devices, "source": "d0"}) as cluster:
        plain = even_plan(model, ["d0", "d1"])
        first = tuple(stage.model_copy(update={"halo_first": True}) for stage in plain.stages)
        plans = {"after": plain, "first": plain.model_copy(update={"stages": first})}
        taken = _latencies(cluster, model, example.numpy(), plans, frames)
    after, before = (report.sample(f"halos: borders {label}, s", values) for label, values in taken.items())
    transfers = (len(sizes) - 3) * halo_seconds  # between the wide layers
    report.note("halos: a stage's kernel", stage * 1e3, "ms")
    report.note("halos: borders with the rest", after * 1e3, "ms")
    report.note("halos: borders first", before * 1e3, "ms")
    report.at_least("halos: hidden by borders first", (after - before) / transfers * 100, "% of transfers", 70)
    _say("halos")


def bound(report: Report, models: dict[str, Model], frames: int, rates: tuple[int, ...]) -> None:
    limits = {1000: 1.2, 100: 1.35}
    for mbps in rates:
        devices = [
            {"name": f"d{index}", "speed": speed, "link": {"mbps": mbps, "latency_ms": 0.1}}
            for index, speed in enumerate((0.4, 0.2, 0.1, 0.1))
        ]
        with coedge.connect({"adapt": False, "devices": devices, "source": "d0"}) as cluster:
            for name, model in models.items():
                plan = cluster.plan(model, scheme="auto")
                assert plan.predicted is not None and plan.predicted.bound_seconds is not None
                taken = _latencies(cluster, model, _array(model), {"auto": plan}, frames)
                value = report.sample(f"{name}, {mbps} Mbit/s: auto, s", taken["auto"])
                least, predicted = plan.predicted.bound_seconds, plan.predicted.latency_seconds
                report.note(f"{name}, {mbps} Mbit/s: auto, predicted", predicted / least, "x bound")
                report.at_most(f"{name}, {mbps} Mbit/s: auto, measured", value / least, "x bound", limits[mbps])
                _say(f"bound at {mbps} Mbit/s, {name}")


def speed_up(report: Report, models: dict[str, Model], frames: int) -> None:
    """Measure plans on a 1 Gbit/s network."""
    for speeds in ((0.5, 0.5), (0.5, 0.3, 0.2), (0.4, 0.2, 0.1, 0.1)):
        devices = [
            {"name": f"d{i}", "speed": speed, "link": {"mbps": 1000, "latency_ms": 0.1}}
            for i, speed in enumerate(speeds)
        ]
        label = "/".join(f"{speed:g}" for speed in speeds)
        with coedge.connect({"adapt": False, "devices": devices, "source": "d0"}) as cluster:
            for name, model in models.items():
                plans = {scheme: cluster.plan(model, scheme=scheme) for scheme in ("local", "modnn", "coedge")}
                taken = _latencies(cluster, model, _array(model), plans, frames)
                medians = {
                    scheme: report.sample(f"{name} on {label}: {scheme}, s", values) for scheme, values in taken.items()
                }
                report.note(f"{name} on {label}: ideal", sum(speeds) / max(speeds), "x local")
                for scheme, plan in plans.items():
                    assert plan.predicted is not None
                    if scheme != "local":
                        report.note(f"{name} on {label}: {scheme}", medians["local"] / medians[scheme], "x local")
                    error = abs(plan.predicted.latency_seconds / medians[scheme] - 1)
                    report.note(f"{name} on {label}: {scheme} predicted, error", error * 100, "%")
                _say(f"speed-up on {label}, {name}")


def memory(report: Report, models: dict[str, Model]) -> None:
    """Measure the memory of a worker after it ran a model, above that of an idle worker; each uses a new worker."""
    for name, model in models.items():
        with coedge.connect({"adapt": False, "devices": [{"name": "only", "threads": 1}]}) as cluster:
            process = psutil.Process(cluster.devices()[0].pid)
            empty = process.memory_full_info()
            plan = _whole(model)
            for _ in range(3):
                cluster.submit(model, _array(model), plan=plan).result()
            full = process.memory_full_info()
            predicted = program_nbytes(lower(plan, model)["only"], model)
            report.note(f"{name}: memory of a worker, predicted", predicted / 1e6, "MB")
            report.note(f"{name}: resident, above its {empty.rss / 1e6:.0f} MB", (full.rss - empty.rss) / 1e6, "MB")
            # Ray's object store is shared by the devices of a host, so it does not count.
            report.note(f"{name}: of that, not shared", (full.uss - empty.uss) / 1e6, "MB")
            _say(f"memory, {name}")


def streams(report: Report, models: dict[str, Model], rounds: int) -> None:
    """Measure streams on unequal emulated devices at 1 Gbit/s. Filling and draining take four uncounted rounds."""
    speeds = (0.4, 0.2, 0.1, 0.05)
    devices = [
        {"name": f"d{i}", "speed": speed, "link": {"mbps": 1000, "latency_ms": 0.1}} for i, speed in enumerate(speeds)
    ]
    with coedge.connect({"adapt": False, "devices": devices, "source": "d0"}) as cluster:
        for name, model in models.items():
            mixture = cluster.mixture(model)
            single = cluster.plan(model, coedge.Objective(goal="throughput"))
            assert single.predicted is not None
            for label, plan, in_flight, predicted in (
                ("mixture", mixture, mixture.in_flight, mixture.rate_fps),
                ("one plan", single, credits_of(len(devices)), single.predicted.throughput_fps),
            ):
                frames = itertools.repeat(_array(model), (rounds + 4) * in_flight + 1)
                jobs = cluster.stream_jobs(model, frames, plan=plan)
                answered = {job.frame: (job.asked_seconds, job.answered_seconds or 0.0) for job in jobs}
                rate = Timeline((), answered, True).steady_fps(in_flight)
                report.note(f"{name} stream, {label}", rate, "frames/s")
                report.note(f"{name} stream, {label}: of the prediction", rate / predicted * 100, "%")
            _say(f"streams, {name}")


if __name__ == "__main__":
    main()
