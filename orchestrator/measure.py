"""Measures a cluster through its workers: the network, and a model's layers on every kind of device."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coedge.config import ClusterConfig, DeviceConfig, PowerConfig
from coedge.model import Model
from coedge.profile import DeviceProfile, Profile, scaled
from coedge.progress import progress
from orchestrator.codec_ratios import codec_ratios
from orchestrator.layer_cache import LayerTimes, load_times, store_times
from orchestrator.links import Latency, Network, Way
from orchestrator.media import Pair
from orchestrator.ray_control import gather
from workers.layer_times import MOST_SWEEPS, model_times
from workers.rehearsal import Played
from workers.spec import MeteredPower, ProbeTimes, WorkerFacts

WARM_PROBES, SMALL_PROBES = 2, 5
TRAIN = 5
PROBE_SECONDS = 20.0
MEASURE_SECONDS = 300.0
CODEC_SECONDS = 0.3
PROGRESS_STEPS, PROGRESS_SECONDS = 100, 0.5
# Emulated devices share cores, and find them cold after each other: they are measured beside each other, as they
# run, where the weights of all leave room. (Large layers do not notice.)
MOST_AT_ONCE, AT_ONCE_NBYTES = 4, 400_000_000


@dataclass(frozen=True, slots=True)
class Member:
    """A device that has joined: its configuration, its actor, what its worker and its energy meter say."""

    config: DeviceConfig
    actor: Any
    facts: WorkerFacts
    metered: MeteredPower | None = None

    @property
    def power(self) -> PowerConfig:
        """Watts as configured; else as metered, as far as a meter tells; else by default."""
        if self.config.power_given or self.metered is None:
            return self.config.power
        return PowerConfig(idle_watts=self.metered.idle_watts, compute_watts=self.metered.compute_watts)

    @property
    def power_source(self) -> str:
        if self.config.power_given:
            return "configured"
        return "default" if self.metered is None else f"{self.metered.source}; of its radio: default"

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def emulated(self) -> bool:
        return self.config.speed is not None

    @property
    def memory_bytes(self) -> float | None:
        """What a plan may use there; None: not limited."""
        return None if self.config.memory_mb is None else self.config.memory_mb * 1e6


class ActorProber:
    """A `Prober` that asks workers: messages take the sockets that rows take."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = members

    def latencies(self, pairs: Sequence[Pair]) -> dict[Pair, Latency]:
        rounds = [self._probe(pairs, 0, 1) for _ in range(WARM_PROBES + SMALL_PROBES)][WARM_PROBES:]
        return {
            pair: Latency(
                statistics.median(r[pair].send_seconds for r in rounds),
                statistics.median(r[pair].flight_seconds for r in rounds),
            )
            for pair in pairs
        }

    def rates(self, pairs: Sequence[Pair], nbytes: int) -> dict[Pair, tuple[float, float]]:
        found = {}
        for pair, times in self._probe(pairs, nbytes, TRAIN).items():
            seconds = max(times.came_seconds[-1] - times.came_seconds[0], 1e-9)
            found[pair] = nbytes * (TRAIN - 1) / seconds, seconds
        return found

    def _probe(self, pairs: Sequence[Pair], nbytes: int, count: int) -> dict[Pair, ProbeTimes]:
        calls = {
            sender: self._members[sender].actor.probe.remote(receiver, nbytes, count, PROBE_SECONDS)
            for sender, receiver in pairs
        }
        times = gather(calls, PROBE_SECONDS + 1, f"reach {', '.join(receiver for _, receiver in pairs)}")
        return {pair: times[pair[0]] for pair in pairs}


def measure_model(
    model: Model, members: Mapping[str, Member], network: Network, source: str, config: ClusterConfig
) -> Profile:
    """The profile of a cluster on a model. Devices of one kind on one host are measured once, and kept on disk."""
    kinds = _kinds(model, members.values())
    times: dict[str, LayerTimes] = {}
    missing: list[_Kind] = []
    for kind in kinds:
        found = load_times(config.cache_path, model.hash, kind.key)
        if found is not None and len(found.layers) == len(model.layers):
            times[kind.key] = found
        else:
            missing.append(kind)
    for measured in _measure_kinds(model, missing, config.profile_budget_seconds):
        times[measured.fingerprint] = measured
        store_times(config.cache_path, measured)
    by_member = {member.name: times[kind.key] for kind in kinds for member in kind.members}
    several = len(members) > 1
    return Profile(
        model_name=model.name,
        model_hash=model.hash,
        source=source,
        devices=tuple(_device_profile(member, by_member[name]) for name, member in members.items()),
        links=network.links,
        media=network.media,
        joules=config.joules,
        codec_ratios=codec_ratios(model, config.cache_path) if several else {},
        client_seconds=_client_seconds(model, network.client),
    )


def _client_seconds(model: Model, way: Way | None) -> float:
    """For the inputs to the source, and the outputs from the sink."""
    if way is None:
        return 0.0
    return sum(
        way.seconds(sum(tensor.region_nbytes(tensor.whole) for tensor in tensors))
        for tensors in (model.inputs, model.outputs)
    )


def _device_profile(member: Member, times: LayerTimes) -> DeviceProfile:
    slower = 1 / (member.config.speed or 1.0)
    return DeviceProfile(
        name=member.name,
        layers=tuple(scaled(time, slower) for time in times.layers),
        fused=tuple(scaled(time, slower) for time in times.fused),
        power=member.power,
        power_source=member.power_source,
        memory_bytes=member.memory_bytes,
        send_seconds=times.send_seconds * slower,
        receive_seconds=times.receive_seconds * slower,
        codecs={codec: speed.scaled(slower) for codec, speed in times.codecs.items()},
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """Devices that take the same times at full speed.

    Attributes:
        key: names the hardware, the software and the way of measuring.
        players: those that are measured: one, or as many at once as share the cores of their host when emulated.
        speed: of emulated devices, their median: what they rest for between kernels grows cold.
    """

    key: str
    members: tuple[Member, ...]
    players: tuple[Member, ...]
    speed: float | None


def _kinds(model: Model, members: Iterable[Member]) -> list[_Kind]:
    groups: dict[tuple[str, bool], list[Member]] = {}
    for member in members:
        groups.setdefault((member.facts.fingerprint, member.emulated), []).append(member)
    kinds = []
    for (fingerprint, emulated), same in groups.items():
        # Who has the most memory measures the most of a dense layer.
        same.sort(key=lambda member: -(member.memory_bytes or math.inf))
        room = int(AT_ONCE_NBYTES / max(model.weight_nbytes, 1))
        count = max(1, min(len(same), MOST_AT_ONCE, room)) if emulated else 1
        speed = statistics.median(member.config.speed or 1.0 for member in same) if emulated else None
        way = f"cpu|{count}|{speed:.2g}" if speed is not None else "wall"
        kinds.append(_Kind(f"{fingerprint}|{way}", tuple(same), tuple(same[:count]), speed))
    return kinds


def _measure_kinds(model: Model, missing: Sequence[_Kind], budget_seconds: float) -> Iterator[LayerTimes]:
    """One kind after another on each host, so that they do not disturb each other; hosts at the same time."""
    by_host: dict[str, list[_Kind]] = {}
    for kind in missing:
        by_host.setdefault(kind.players[0].facts.host, []).append(kind)
    with progress(f"measuring {model.name}", PROGRESS_STEPS * sum(len(kind.players) for kind in missing)) as advance:
        while any(by_host.values()):
            turn = [kinds.pop(0) for kinds in by_host.values() if kinds]
            played = _play(model, turn, budget_seconds, advance)
            firsts = [kind.players[0] for kind in turn]
            packers = {first.name: first.actor.measure_codecs.remote(CODEC_SECONDS) for first in firsts}
            speeds = gather(packers, MEASURE_SECONDS, "measure how fast they pack")
            for kind in turn:
                frames = [frame for player in kind.players for frame in played[player.name]]
                times = model_times(model, frames)
                codecs = speeds[kind.players[0].name]
                yield LayerTimes(fingerprint=kind.key, model_hash=model.hash, codecs=codecs, **asdict(times))


def _play(
    model: Model, kinds: Sequence[_Kind], budget_seconds: float, advance: Callable[[], None]
) -> dict[str, list[Played]]:
    """All players at once, with `PROGRESS_STEPS` calls of `advance` for each."""
    import ray

    players = {player.name: player for kind in kinds for player in kind.players}
    speeds = {player.name: kind.speed for kind in kinds for player in kind.players}
    what = f"measure {model.name}"
    ready = {
        name: player.actor.prepare_layers.remote(
            model.skeleton, player.facts.threads, speeds[name], budget_seconds, player.memory_bytes
        )
        for name, player in players.items()
    }
    gather(ready, MEASURE_SECONDS, what)
    calls = {name: player.actor.play_layers.remote(MOST_SWEEPS) for name, player in players.items()}
    deadline = time.monotonic() + budget_seconds + MEASURE_SECONDS
    shown, pending = 0, list(calls.values())
    while pending and time.monotonic() < deadline:
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=PROGRESS_SECONDS)
        asked = [player.actor.played.remote() for player in players.values()]
        answers, _ = ray.wait(asked, num_returns=len(asked), timeout=PROGRESS_SECONDS)
        with contextlib.suppress(ray.exceptions.RayError):  # who died is named below
            done = PROGRESS_STEPS * (sum(ray.get(answers)) if pending else len(players))
            for _ in range(shown, int(done)):
                advance()
            shown = max(shown, int(done))
    return gather(calls, max(deadline - time.monotonic(), 1.0), what)
