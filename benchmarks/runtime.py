"""What running on a cluster costs beside the kernels, and what several devices bring.

    overhead    a cluster of one device (real speed) against `InferenceSession.run` on the whole model
    speed-up    2 to 4 emulated devices against one of them, beside the ideal: the sum of the speeds
    streams     frames per second by the mixture and by the best single plan, beside what was predicted
    error       predicted against measured latency, over the schemes

Each pair is taken interleaved, frame by frame. `python -m benchmarks.runtime [--json] [--quick]`
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

import coedge
from benchmarks.report import Report, arguments
from coedge import zoo
from coedge.simulator import credits_of
from coedge.timeline import Timeline
from workers.kernels import unsplit_session


def main() -> None:
    options = arguments(__doc__)
    report = Report("runtime")
    frames = 5 if options.quick else 40
    models = {name: coedge.capture(zoo.build(name), zoo.example(name), name=name) for name in _models(options.quick)}
    arrays = {name: zoo.example(name).numpy() for name in models}
    overhead(report, models, arrays, frames)
    speed_up(report, models, arrays, frames)
    streams(report, models, arrays, 2 if options.quick else 8)
    report.finish(options.json)


def _models(quick: bool) -> tuple[str, ...]:
    return ("mobilenet_v2",) if quick else ("mobilenet_v2", "resnet18", "vgg16")


def overhead(report: Report, models: dict[str, Any], arrays: dict[str, np.ndarray], frames: int) -> None:
    """One device, one frame at a time, one thread."""
    with coedge.connect({"devices": [{"name": "only", "threads": 1}]}) as cluster:
        for name, model in models.items():
            plan = cluster.plan(model, scheme="local")
            whole = unsplit_session(model, 1)
            feeds = {model.inputs[0].name: arrays[name]}
            plain: list[float] = []
            asked: list[float] = []
            for index in range(frames + 3):
                start = time.perf_counter()
                whole.run(None, feeds)
                plain_seconds = time.perf_counter() - start
                start = time.perf_counter()
                cluster.submit(model, arrays[name], plan=plan).result()
                if index >= 3:
                    asked.append(time.perf_counter() - start)
                    plain.append(plain_seconds)
            base = report.sample(f"{name}: InferenceSession.run, s", plain)
            value = report.sample(f"{name}: submit to result, s", asked)
            report.note(f"{name}: InferenceSession.run", base * 1e3, "ms")
            report.at_most(f"{name}: submit to result", value * 1e3, "ms", 1.05 * base * 1e3 + 1.5)
            del whole


def speed_up(report: Report, models: dict[str, Any], arrays: dict[str, np.ndarray], frames: int) -> None:
    """Emulated devices on a 1 Gbit/s network; the ideal is the sum of the speeds over the fastest."""
    for speeds in ((0.5, 0.5), (0.5, 0.3, 0.2), (0.4, 0.2, 0.1, 0.1)):
        devices = [
            {"name": f"d{i}", "speed": speed, "link": {"mbps": 1000, "latency_ms": 0.1}}
            for i, speed in enumerate(speeds)
        ]
        label = "/".join(f"{speed:g}" for speed in speeds)
        with coedge.connect({"devices": devices, "source": "d0"}) as cluster:
            for name, model in models.items():
                if name == "mobilenet_v2" and len(models) > 1:
                    continue  # too light for cooperation per layer to pay; the planner says so
                plans = {scheme: cluster.plan(model, scheme=scheme) for scheme in ("local", "modnn", "coedge")}
                taken: dict[str, list[float]] = {scheme: [] for scheme in plans}
                for index in range(max(frames // 4, 4)):
                    for scheme, plan in plans.items():
                        job = cluster.submit(model, arrays[name], plan=plan)
                        job.result()
                        if index:
                            taken[scheme].append(job.latency_seconds)
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


def streams(report: Report, models: dict[str, Any], arrays: dict[str, np.ndarray], rounds: int) -> None:
    """Unequal emulated devices on a 1 Gbit/s network. Filling and emptying take four rounds that do not count."""
    speeds = (0.4, 0.2, 0.1, 0.05)
    devices = [
        {"name": f"d{i}", "speed": speed, "link": {"mbps": 1000, "latency_ms": 0.1}} for i, speed in enumerate(speeds)
    ]
    with coedge.connect({"devices": devices, "source": "d0"}) as cluster:
        for name, model in models.items():
            mixture = cluster.mixture(model)
            single = cluster.plan(model, coedge.Objective(goal="throughput"))
            assert single.predicted is not None
            for label, plan, in_flight, predicted in (
                ("mixture", mixture, mixture.in_flight, mixture.rate_fps),
                ("one plan", single, credits_of(len(devices)), single.predicted.throughput_fps),
            ):
                frames = itertools.repeat(arrays[name], (rounds + 4) * in_flight + 1)
                jobs = cluster.stream_jobs(model, frames, plan=plan)
                answered = {job.frame: (job.asked_seconds, job.answered_seconds or 0.0) for job in jobs}
                rate = Timeline((), answered, True).steady_fps(in_flight)
                report.note(f"{name} stream, {label}", rate, "frames/s")
                report.note(f"{name} stream, {label}: of the prediction", rate / predicted * 100, "%")


if __name__ == "__main__":
    main()
