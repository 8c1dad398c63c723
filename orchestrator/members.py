"""The devices of a cluster, from placing their workers to knowing how fast they are, and which are lost."""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from coedge.config import ClusterConfig, DeviceConfig
from coedge.errors import ClusterError
from coedge.profile import Link, Medium
from coedge.program import CLIENT
from coedge.version import VERSION
from orchestrator import ray_control
from orchestrator.links import Network, Way, measure_network
from orchestrator.measure import ActorProber, Member
from workers.message import Kind, Message
from workers.paced_transport import LinkSpec
from workers.spec import MeteredPower, WorkerSpec, WorkerStatus
from workers.transport import Endpoint
from workers.zmq_transport import ZmqTransport

CLOCK_ROUND_TRIPS = 5
POWER_SECONDS, POWER_TIMEOUT_SECONDS = 1.0, 30.0
SET_LINK_SECONDS = 10.0
CLIENT_PROBES, CLIENT_NBYTES, CLIENT_SECONDS = 6, 600_000, 20.0


@dataclass
class Members:
    """Everybody who has joined.

    Attributes:
        transport: the client's end of the wire.
        clocks: per device, (its monotonic clock minus ours, uncertainty), seconds.
        gflops: per kind of machine (its fingerprint), at full speed.
        serving: per device, the call that ends only with its worker.
        lost: per device that is not there any more, why.
    """

    by_name: dict[str, Member]
    source: str
    transport: ZmqTransport
    clocks: dict[str, tuple[float, float]]
    serving: dict[str, Any]
    network: Network = field(default_factory=lambda: Network(()))
    gflops: dict[str, float] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def links(self) -> tuple[Link, ...]:
        return self.network.links

    @property
    def actors(self) -> dict[str, Any]:
        return {name: member.actor for name, member in self.by_name.items()}

    @property
    def pids(self) -> dict[str, int]:
        return {name: member.facts.pid for name, member in self.by_name.items()}

    @property
    def index_of(self) -> dict[str, int]:
        """Of every device on the wire."""
        return {name: member.facts.endpoint.index for name, member in self.by_name.items()}

    def statuses(self, names: Iterable[str], timeout_seconds: float) -> dict[str, WorkerStatus]:
        """What those do who answer in time."""
        import ray

        references = {self.by_name[name].actor.status.remote(): name for name in names if name not in self.lost}
        if not references:
            return {}
        ready, _ = ray.wait(list(references), num_returns=len(references), timeout=timeout_seconds)
        found = {}
        for reference in ready:
            with contextlib.suppress(Exception):
                found[references[reference]] = ray.get(reference)
        return found


def measure_links(config: ClusterConfig, members: Members) -> None:
    """Measures the links between those that are there again; between frames, or frames and probes take turns.

    Raises:
        ClusterError: two of them cannot talk to each other.
    """
    there = {name: member for name, member in members.by_name.items() if name not in members.lost}
    network = _measure_network(config, there)
    links = [link for link in members.links if {link.sender, link.receiver} & set(members.lost)]
    members.network = replace(network, links=(*network.links, *links), client=members.network.client)


def set_link(members: Members, name: str, link: LinkSpec) -> None:
    """Gives a device another emulated link.

    Raises:
        ClusterError: links are not emulated, or somebody does not answer.
    """
    index = members.index_of[name]
    calls = {n: a.set_link.remote(index, link) for n, a in members.actors.items() if n not in members.lost}
    ray_control.gather(calls, SET_LINK_SECONDS, f"set the link of {name}")


def join(config: ClusterConfig) -> Members:
    """Places a worker on every device, lets them know each other, and measures.

    Raises:
        ClusterError: naming the devices that do not answer, or what does not fit.
    """
    actors: dict[str, Any] = {}
    try:
        return _join(config, actors)
    except BaseException:
        ray_control.stop_actors(list(actors.values()))
        raise


def _join(config: ClusterConfig, actors: dict[str, Any]) -> Members:
    timeout = config.connect_timeout_seconds
    placed = ray_control.place_devices(config)
    own_node = ray_control.own_node()
    names = [device.name for device, _ in placed]
    local = [device.name for device, node in placed if node["NodeID"] == own_node]
    source = config.source or (local or names)[0]
    if source not in names:
        raise ClusterError(f"the source {source!r} is not a device; devices are {', '.join(names)}")
    # Nobody but this machine takes part: nothing has to leave the loopback interface.
    local_only = len(local) == len(names) and len(ray_control.alive_nodes()) == 1
    specs = {}
    for index, (device, node) in enumerate(placed):
        host = "127.0.0.1" if local_only else node["NodeManagerAddress"]
        specs[device.name] = _spec(index, device, host, config.encryption)
        actors[device.name] = ray_control.create_actor(specs[device.name], node["NodeID"])
    facts = ray_control.gather({name: actor.facts.remote() for name, actor in actors.items()}, timeout, "start")
    other = {name: fact.version for name, fact in facts.items() if fact.version != VERSION}
    if other:
        raise ClusterError(
            f"this is coedge {VERSION}, but {', '.join(f'{n} runs {v}' for n, v in other.items())}; "
            "install the same version everywhere"
        )
    unfit = [f"device {name}: {fact.provider_problem}" for name, fact in facts.items() if fact.provider_problem]
    if unfit:
        raise ClusterError("\n".join(f"{text} of `providers` of this device" for text in unfit))
    host = "127.0.0.1" if local_only else ray_control.own_address()
    transport = ZmqTransport(len(placed), CLIENT, host, encrypted=config.encryption, short_cut=True)
    try:
        endpoints: list[Endpoint] = [*(fact.endpoint for fact in facts.values()), transport.endpoint]
        emulated = any(spec.link for spec in specs.values())
        links = {spec.index: spec.link or LinkSpec() for spec in specs.values()} if emulated else {}
        calls = {name: actor.connect.remote(endpoints, links) for name, actor in actors.items()}
        ray_control.gather(calls, timeout, "connect to each other")
        transport.connect(endpoints)
        members = Members(
            by_name={device.name: Member(device, actors[device.name], facts[device.name]) for device, _ in placed},
            source=source,
            transport=transport,
            clocks={name: _clock(name, actor) for name, actor in actors.items()},
            serving={name: actor.serve.remote() for name, actor in actors.items()},
        )
        client = _measure_client(transport, facts[source].endpoint)
        members.network = replace(_measure_network(config, members.by_name), client=client)
        members.by_name = _measure_power(members.by_name)
        members.gflops = _measure_gflops(members.by_name, timeout)
        return members
    except BaseException:
        transport.close()
        raise


def _spec(index: int, device: DeviceConfig, host: str, encrypted: bool) -> WorkerSpec:
    link = None
    if device.link.mbps is not None or device.link.latency_ms:
        rate = None if device.link.mbps is None else device.link.mbps * 1e6 / 8
        link = LinkSpec(rate, device.link.latency_ms / 1000)
    return WorkerSpec(index, device.name, host, encrypted, device.speed, link, device.threads, device.session_providers)


def _clock(name: str, actor: Any) -> tuple[float, float]:
    """(the device's monotonic clock minus ours, uncertainty), by the fastest of a few round trips."""
    best = (0.0, float("inf"))
    for _ in range(CLOCK_ROUND_TRIPS):
        before = time.monotonic()
        fact = ray_control.gather({name: actor.facts.remote()}, 10.0, "tell the time")[name]
        after = time.monotonic()
        if fact.host == platform.node():
            return 0.0, 0.0  # one host has one monotonic clock
        if (after - before) / 2 < best[1]:
            best = (fact.clock_seconds - (before + after) / 2, (after - before) / 2)
    return best


def _measure_network(config: ClusterConfig, members: Mapping[str, Member]) -> Network:
    """The links, and the media: those of the configuration, and what is found between others."""
    for medium in config.media:
        unknown = [name for name in medium.devices if name not in members]
        if unknown:
            raise ClusterError(
                f"medium {medium.name!r} is of {unknown[0]!r}, which is not a device; devices are {', '.join(members)}"
            )
    given = [Medium(name=m.name, devices=m.devices, bytes_per_second=m.mbps * 1e6 / 8) for m in config.media]
    addresses = {name: member.facts.endpoint.address.rpartition(":")[0] for name, member in members.items()}
    return measure_network(addresses, ActorProber(members), given)


def _measure_client(transport: ZmqTransport, source: Endpoint) -> Way:
    """Between us and the source. Nobody else receives on this transport yet.

    Raises:
        ClusterError: no answer.
    """

    def there_and_back(nbytes: int) -> float:
        payload = (np.zeros(nbytes, np.uint8),) if nbytes else ()
        start = time.monotonic()
        transport.send(source.index, Message(Kind.PROBE, transport.endpoint.index, arrays=payload))
        while (left := start + CLIENT_SECONDS - time.monotonic()) > 0:
            message = transport.receive(left)
            if message is not None and message.kind is Kind.ECHO:
                return time.monotonic() - start
        raise ClusterError(f"{source.name} did not answer at {source.address} within {CLIENT_SECONDS:.0f} s")

    empty, full = (
        statistics.median([there_and_back(nbytes) for _ in range(CLIENT_PROBES)][1:]) for nbytes in (0, CLIENT_NBYTES)
    )
    return Way(empty / 2, CLIENT_NBYTES / max(full - empty, 1e-6))


def _measure_power(members: Mapping[str, Member]) -> dict[str, Member]:
    """By the meters of real devices whose watts are not configured; hosts at once, devices of a host in turn."""
    asked = {name: m for name, m in members.items() if not m.emulated and not m.config.power_given}
    measured: dict[str, MeteredPower | None] = {}
    while turn := {m.facts.host: name for name, m in asked.items() if name not in measured}:
        calls = {name: members[name].actor.measure_power.remote(POWER_SECONDS) for name in turn.values()}
        measured |= ray_control.gather(calls, POWER_TIMEOUT_SECONDS, "read their energy meters")
    return {name: replace(member, metered=measured.get(name)) for name, member in members.items()}


def _measure_gflops(members: Mapping[str, Member], timeout_seconds: float) -> dict[str, float]:
    """One member of every kind, so that devices which share a host are not measured at once."""
    first: dict[str, Member] = {}
    for member in members.values():
        first.setdefault(member.facts.fingerprint, member)
    calls = {member.name: member.actor.measure_gflops.remote(member.emulated) for member in first.values()}
    measured = ray_control.gather(calls, timeout_seconds, "measure their speed")
    return {kind: measured[member.name] for kind, member in first.items()}
