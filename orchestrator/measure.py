"""Measures a cluster: links between all pairs of devices, and a model's layers on every kind of device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coedge.config import DeviceConfig
from coedge.model import Model
from coedge.profile import DeviceProfile, Link, Profile, scaled
from coedge.progress import progress
from orchestrator.layer_cache import LayerTimes, load_times, store_times
from orchestrator.ray_control import gather
from workers.spec import WorkerFacts

SMALL_PROBES = 5
FIRST_NBYTES, LAST_NBYTES = 32_768, 4_194_304
ENOUGH_SECONDS = 0.02
PROBE_SECONDS = 20.0
MEASURE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Member:
    """A device that has joined: its configuration, its actor, and what its worker says of itself."""

    config: DeviceConfig
    actor: Any
    facts: WorkerFacts

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


def measure_links(members: Mapping[str, Member]) -> tuple[Link, ...]:
    """Rate and latency of every ordered pair, one at a time, over the sockets that halos take.

    Raises:
        ClusterError: naming a pair that cannot talk to each other.
    """
    pairs = [(a, b) for a in members for b in members if a != b]
    links = []
    with progress("measuring links", len(pairs)) as advance:
        for sender, receiver in pairs:
            links.append(_measure_link(members[sender], receiver))
            advance()
    return tuple(links)


def _measure_link(sender: Member, receiver: str) -> Link:
    def probe(nbytes: int, count: int) -> float:
        call = sender.actor.probe.remote(receiver, nbytes, count, PROBE_SECONDS)
        times = gather({sender.name: call}, PROBE_SECONDS * count, f"reach {receiver}")[sender.name]
        return float(statistics.median(times))

    probe(0, 2)
    there_and_back = probe(0, SMALL_PROBES)
    nbytes = FIRST_NBYTES
    seconds = probe(nbytes, 2)
    while seconds - there_and_back < ENOUGH_SECONDS and nbytes < LAST_NBYTES:
        nbytes *= 4
        seconds = probe(nbytes, 2)
    extra = max(seconds - there_and_back, 1e-6)
    return Link(
        sender=sender.name, receiver=receiver,
        bytes_per_second=nbytes / extra, latency_seconds=there_and_back / 2,
    )  # fmt: skip


def measure_model(
    model: Model,
    members: Mapping[str, Member],
    links: tuple[Link, ...],
    source: str,
    cache: Path,
    budget_seconds: float = 20.0,
) -> Profile:
    """The profile of a cluster on a model. Devices of one kind on one host are measured once."""
    kinds: dict[str, list[Member]] = {}
    for member in members.values():
        kinds.setdefault(f"{member.facts.fingerprint}|{'cpu' if member.emulated else 'wall'}", []).append(member)
    times: dict[str, LayerTimes] = {}
    missing: dict[str, Member] = {}
    for kind, alike in kinds.items():
        found = load_times(cache, model.hash, kind)
        if found is not None and len(found.layers) == len(model.layers):
            times[kind] = found
        else:
            missing[kind] = max(alike, key=lambda member: member.memory_bytes or math.inf)
    with progress(f"measuring {model.name}", len(missing)) as advance:
        for kind, measured in _measure_kinds(model, missing, budget_seconds, advance).items():
            times[kind] = measured
            store_times(cache, measured)
    by_member = {member.name: times[kind] for kind, alike in kinds.items() for member in alike}
    return Profile(
        model_name=model.name,
        model_hash=model.hash,
        source=source,
        links=links,
        devices=tuple(
            DeviceProfile(
                name=member.name,
                layers=tuple(scaled(t, 1 / (member.config.speed or 1.0)) for t in by_member[member.name].layers),
                fused=tuple(scaled(t, 1 / (member.config.speed or 1.0)) for t in by_member[member.name].fused),
                power=member.config.power,
                memory_bytes=member.memory_bytes,
            )
            for member in members.values()
        ),
    )


def _measure_kinds(
    model: Model, missing: Mapping[str, Member], budget_seconds: float, advance: Callable[[], None]
) -> dict[str, LayerTimes]:
    """One after another on each host, so that they do not disturb each other; hosts at the same time."""
    by_host: dict[str, list[str]] = {}
    for kind, member in missing.items():
        by_host.setdefault(member.facts.host, []).append(kind)
    measured: dict[str, LayerTimes] = {}
    while any(by_host.values()):
        turn = {kinds.pop(0) for kinds in by_host.values() if kinds}
        calls = {}
        for kind in turn:
            member = missing[kind]
            calls[member.name] = member.actor.measure_layers.remote(
                model.skeleton, member.facts.threads, member.emulated, budget_seconds, member.memory_bytes
            )
        results = gather(calls, MEASURE_SECONDS, f"measure {model.name}")
        for kind in turn:
            layers, fused = results[missing[kind].name]
            measured[kind] = LayerTimes(
                fingerprint=kind, model_hash=model.hash, layers=tuple(layers), fused=tuple(fused)
            )
            advance()
    return measured
