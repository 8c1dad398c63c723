"""Measurement of a model's layer times on every kind of device of a cluster."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from coedge.config.cluster_config import ClusterConfig
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.profile.network import ClientLink, Network
from coedge.profile.profile import DeviceProfile, Profile, scaled
from orchestrator.control.worker_group import RemoteWorker, Workers
from orchestrator.profiling.codec_ratios import codec_ratios
from orchestrator.profiling.layer_cache import LayerTimes, load_times, store_times
from workers.calibration.calibration_run import StepTimings
from workers.calibration.layer_times import MOST_SWEEPS, model_times

MEASURE_SECONDS = 300.0
CODEC_SECONDS = 0.3
PROGRESS_STEPS, PROGRESS_SECONDS = 100, 0.5
# Emulated devices share cores and caches. They are measured at the same time, as they run, if the weights of all fit
# in memory. (Caches make no difference to the times of large layers.)
MOST_AT_ONCE, AT_ONCE_NBYTES = 4, 400_000_000


def measure_model(model: Model, workers: Workers, network: Network, source: str, config: ClusterConfig) -> Profile:
    """Return the profile of a cluster on a model. Devices of one kind are measured once; times are kept on disk.

    Raises:
        WorkersDied: a worker died; measure again without it.
        ClusterError: a device failed or did not answer; the message names it.
    """
    kinds = _kinds(model, workers.values())
    times: dict[str, LayerTimes] = {}
    missing: list[_DeviceKind] = []
    for kind in kinds:
        found = load_times(config.cache_path, model.hash, kind.key)
        if found is not None and len(found.layers) == len(model.layers):
            times[kind.key] = found
        else:
            missing.append(kind)
    for measured in _measure_kinds(model, missing, workers, config.profile_budget_seconds):
        times[measured.fingerprint] = measured
        store_times(config.cache_path, measured)
    by_worker = {worker.name: times[kind.key] for kind in kinds for worker in kind.workers}
    several = len(workers) > 1
    return Profile(
        model_name=model.name,
        model_hash=model.hash,
        source=source,
        devices=tuple(_device_profile(worker, by_worker[name]) for name, worker in workers.items()),
        links=network.links,
        media=network.media,
        joules=config.joules,
        codec_ratios=codec_ratios(model, config.cache_path) if several else {},
        client_seconds=_client_seconds(model, network.client),
    )


def _client_seconds(model: Model, link: ClientLink | None) -> float:
    """Return the time of the inputs to the source and of the outputs to the client."""
    if link is None:
        return 0.0
    return sum(
        link.seconds(sum(tensor.region_nbytes(tensor.whole) for tensor in tensors))
        for tensors in (model.inputs, model.outputs)
    )


def _device_profile(worker: RemoteWorker, times: LayerTimes) -> DeviceProfile:
    slower = 1 / (worker.config.speed or 1.0)
    return DeviceProfile(
        name=worker.name,
        layers=tuple(scaled(time, slower) for time in times.layers),
        fused=tuple(scaled(time, slower) for time in times.fused),
        power=worker.power,
        power_source=worker.power_source,
        memory_bytes=worker.memory_bytes,
        send_seconds=times.send_seconds * slower,
        receive_seconds=times.receive_seconds * slower,
        codecs={codec: speed.scaled(slower) for codec, speed in times.codecs.items()},
    )


@dataclass(frozen=True, slots=True)
class _DeviceKind:
    """Devices with the same layer times at full speed.

    Attributes:
        key: identifies the hardware, the software and the way of measuring.
        measuring: the devices that are measured: one, or several emulated ones that share the cores of their host.
        speed: median speed of emulated devices. They are measured with its pauses, in which caches grow cold.
    """

    key: str
    workers: tuple[RemoteWorker, ...]
    measuring: tuple[RemoteWorker, ...]
    speed: float | None


def _kinds(model: Model, workers: Iterable[RemoteWorker]) -> list[_DeviceKind]:
    groups: dict[tuple[str, bool], list[RemoteWorker]] = {}
    for worker in workers:
        groups.setdefault((worker.facts.fingerprint, worker.emulated), []).append(worker)
    kinds = []
    for (fingerprint, emulated), same in groups.items():
        # The device with the most memory can measure the largest part of a dense layer.
        same.sort(key=lambda worker: -(worker.memory_bytes or math.inf))
        room = int(AT_ONCE_NBYTES / max(model.weight_nbytes, 1))
        count = max(1, min(len(same), MOST_AT_ONCE, room)) if emulated else 1
        speed = statistics.median(worker.config.speed or 1.0 for worker in same) if emulated else None
        method = f"cpu|{count}|{speed:.2g}" if speed is not None else "wall"
        kinds.append(_DeviceKind(f"{fingerprint}|{method}", tuple(same), tuple(same[:count]), speed))
    return kinds


def _measure_kinds(
    model: Model, missing: Sequence[_DeviceKind], workers: Workers, budget_seconds: float
) -> Iterator[LayerTimes]:
    """Measure hosts at the same time, and the kinds of one host in turn, so that they do not disturb each other."""
    by_host: dict[str, list[_DeviceKind]] = {}
    for kind in missing:
        by_host.setdefault(kind.measuring[0].facts.host, []).append(kind)
    with progress(f"measuring {model.name}", PROGRESS_STEPS * sum(len(kind.measuring) for kind in missing)) as advance:
        while any(by_host.values()):
            turn = [kinds.pop(0) for kinds in by_host.values() if kinds]
            measured = _measure(model, turn, workers, budget_seconds, advance)
            firsts = [kind.measuring[0] for kind in turn]
            codec_calls = {first.name: first.actor.measure_codecs.remote(CODEC_SECONDS) for first in firsts}
            speeds = workers.gather(codec_calls, MEASURE_SECONDS, "measure their codecs")
            for kind in turn:
                frames = [frame for worker in kind.measuring for frame in measured[worker.name]]
                times = model_times(model, frames)
                codecs = speeds[kind.measuring[0].name]
                yield LayerTimes(fingerprint=kind.key, model_hash=model.hash, codecs=codecs, **asdict(times))


def _measure(
    model: Model, kinds: Sequence[_DeviceKind], workers: Workers, budget_seconds: float, advance: Callable[[], None]
) -> dict[str, list[StepTimings]]:
    """Measure the devices of all kinds at the same time, with `PROGRESS_STEPS` calls of `advance` for each."""
    import ray

    measuring = {worker.name: worker for kind in kinds for worker in kind.measuring}
    speeds = {worker.name: kind.speed for kind in kinds for worker in kind.measuring}
    what = f"measure {model.name}"
    ready = {
        name: worker.actor.prepare_sweeps.remote(
            model.skeleton, worker.facts.threads, speeds[name], budget_seconds, worker.memory_bytes
        )
        for name, worker in measuring.items()
    }
    workers.gather(ready, MEASURE_SECONDS, what)
    calls = {name: worker.actor.measure_sweeps.remote(MOST_SWEEPS) for name, worker in measuring.items()}
    start = time.monotonic()
    deadline = start + budget_seconds + MEASURE_SECONDS
    shown, pending = 0, list(calls.values())
    while pending and time.monotonic() < deadline and not workers.lost.keys() & calls.keys():
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=PROGRESS_SECONDS)
        asked = [worker.actor.progress.remote() for worker in measuring.values()]
        answers, _ = ray.wait(asked, num_returns=len(asked), timeout=PROGRESS_SECONDS)
        with contextlib.suppress(ray.exceptions.RayError):  # `gather` names a device that died
            done = PROGRESS_STEPS * (sum(ray.get(answers, timeout=PROGRESS_SECONDS)) if pending else len(measuring))
            for _ in range(shown, int(done)):
                advance()
            shown = max(shown, int(done))
    now = time.monotonic()
    return workers.gather(calls, max(deadline - now, 1.0), what, waited_seconds=now - start)
