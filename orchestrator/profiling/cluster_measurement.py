"""Measurement of a new cluster: its links, the client's link, power and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coedge.config.cluster_config import ClusterConfig
from coedge.core.errors import ClusterError
from coedge.core.units import bytes_per_second_of
from coedge.profile.network import ClientLink, Network
from coedge.profile.profile import Medium
from orchestrator.control import ray_control
from orchestrator.control.worker_group import RemoteWorker, WorkerGroup, Workers, ask_ready
from orchestrator.profiling.links import measure_network
from orchestrator.profiling.probing import ActorProber
from orchestrator.profiling.speed_cache import store_speed
from workers.runtime.spec import MeteredPower
from workers.transport.message import Message, MessageKind
from workers.transport.transport import Endpoint
from workers.transport.zmq_transport import ZmqTransport

POWER_SECONDS, POWER_TIMEOUT_SECONDS = 1.0, 30.0
# A test of a link sends five messages of the bytes that pass in this time at the rate that was measured.
TEST_LINK_SECONDS, LEAST_TEST_NBYTES, MOST_TEST_NBYTES = 0.02, 4_096, 1_000_000
TEST_TIMEOUT_SECONDS = 10.0
CLIENT_PROBES, CLIENT_NBYTES, CLIENT_SECONDS = 6, 600_000, 20.0


def measure_cluster(config: ClusterConfig, group: WorkerGroup) -> None:
    """Measure the network, power and speed of idle workers, and store the results in `group`.

    Raises:
        ClusterError: devices do not answer or cannot reach each other; the message names them.
    """
    client = _measure_client_link(group.transport, group.by_name[group.source].facts.endpoint)
    _check_media(config, group.places)
    group.network = replace(_measure_network(group.ready, _media(config)), client=client)
    group.by_name = _measure_power(group.by_name)
    group.gflops = _measure_gflops(group.by_name, config.connect_timeout_seconds)
    for worker in group.by_name.values():
        if not worker.emulated:  # `coedge doctor` compares with it
            store_speed(config.cache_path, worker.facts.fingerprint, group.gflops[worker.facts.fingerprint])


def measure_links(config: ClusterConfig, group: WorkerGroup) -> None:
    """Measure the links between the devices that are left again. Frames should not run meanwhile: they slow probes.

    Raises:
        ClusterError: two devices cannot reach each other; the message names them.
    """
    network = ask_ready(group, lambda ready: _measure_network(ready, _media(config)))
    measured = {(link.sender, link.receiver) for link in network.links}
    links = [link for link in group.links if (link.sender, link.receiver) not in measured]
    group.network = replace(network, links=(*network.links, *links), client=group.network.client)


class LostOthers(Mapping[str, str]):
    """The lost devices except one, as they are at every look."""

    def __init__(self, lost: Mapping[str, str], name: str) -> None:
        self._lost, self._name = lost, name

    def __getitem__(self, name: str) -> str:
        if name == self._name:
            raise KeyError(name)
        return self._lost[name]

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in list(self._lost) if name != self._name])

    def __len__(self) -> int:
        return len(list(iter(self)))


def measure_links_of(group: WorkerGroup, name: str) -> None:
    """Measure the links of one device, which may count as lost, to those that are left. Media stay as they are.

    If another device is lost meanwhile, the links to the others are measured again.

    Raises:
        ClusterError: two devices cannot reach each other; the message names them.
    """

    lost = LostOthers(group.lost, name)
    while True:
        workers = Workers({other: worker for other, worker in group.by_name.items() if other not in lost}, lost)
        try:
            network = _measure_network(workers, group.network.media, only=name)
            break
        except ClusterError as error:
            group.bury_all(error)
            if not any(other in lost for other in workers):
                raise
    measured = {(link.sender, link.receiver) for link in network.links}
    links = [link for link in group.links if (link.sender, link.receiver) not in measured]
    group.network = replace(group.network, links=(*network.links, *links))


def measure_device(group: WorkerGroup, name: str, timeout_seconds: float) -> None:
    """Measure the power of a device that was not measured before, and its speed if none of its kind was.

    Raises:
        ClusterError: the device does not answer.
    """
    if group.by_name[name].metered is None:
        group.by_name |= _measure_power({name: group.by_name[name]})
    worker = group.by_name[name]
    if worker.facts.fingerprint not in group.gflops:
        call = worker.actor.measure_gflops.remote(worker.emulated)
        measured = ray_control.gather({name: call}, timeout_seconds, "measure their speed")
        group.gflops[worker.facts.fingerprint] = measured[name]


def slowness(group: WorkerGroup, names: tuple[str, ...]) -> float | None:
    """Return how many times as long a device or a link (sender, receiver) takes as it did when it was measured.

    A link is busy for about 0.1 s. None: the device is emulated or lost, or was not measured.

    Raises:
        ClusterError: a device does not answer.
    """
    ready = group.ready
    if any(name not in ready for name in names):
        return None
    if len(names) == 1:
        worker = ready[names[0]]
        known = group.gflops.get(worker.facts.fingerprint)
        if worker.emulated or known is None:
            return None
        call = {worker.name: worker.actor.measure_gflops.remote(False)}
        return known / float(ready.gather(call, TEST_TIMEOUT_SECONDS, "measure their speed")[worker.name])
    pair = (names[0], names[1])
    before = next((link.bytes_per_second for link in group.links if (link.sender, link.receiver) == pair), None)
    if before is None:
        return None
    nbytes = int(min(max(before * TEST_LINK_SECONDS, LEAST_TEST_NBYTES), MOST_TEST_NBYTES))
    rate, _ = ActorProber(ready).rates([pair], nbytes)[pair]
    return before / rate


def _media(config: ClusterConfig) -> list[Medium]:
    """Return the media of the configuration."""
    return [Medium(name=m.name, devices=m.devices, bytes_per_second=bytes_per_second_of(m.mbps)) for m in config.media]


def _measure_network(workers: Workers, given: Sequence[Medium], only: str | None = None) -> Network:
    """Return the measured links, and the media: those that are given and those detected on other devices."""
    addresses = {name: worker.facts.endpoint.address.rpartition(":")[0] for name, worker in workers.items()}
    return measure_network(addresses, ActorProber(workers), given, only)


def _check_media(config: ClusterConfig, devices: Iterable[str]) -> None:
    """Check that media name devices that have joined. A device that is lost later stays in its media.

    Raises:
        ClusterError: a medium names another device.
    """
    names = list(devices)
    for medium in config.media:
        unknown = [name for name in medium.devices if name not in names]
        if unknown:
            raise ClusterError(
                f"medium {medium.name!r} names {unknown[0]!r}, which is not a device; devices are {', '.join(names)}"
            )


def _measure_client_link(transport: ZmqTransport, source: Endpoint) -> ClientLink:
    """Measure the link between the client and the source. Nothing else may receive on the transport meanwhile.

    Raises:
        ClusterError: the source does not answer.
    """

    def round_trip_seconds(nbytes: int) -> float:
        payload = (np.zeros(nbytes, np.uint8),) if nbytes else ()
        start = time.monotonic()
        transport.send(source.index, Message(MessageKind.PROBE, transport.endpoint.index, arrays=payload))
        while (left := start + CLIENT_SECONDS - time.monotonic()) > 0:
            message = transport.receive(left)
            if message is not None and message.kind is MessageKind.ECHO:
                return time.monotonic() - start
        raise ClusterError(f"{source.name} did not answer at {source.address} within {CLIENT_SECONDS:.0f} s")

    empty, full = (
        statistics.median([round_trip_seconds(nbytes) for _ in range(CLIENT_PROBES)][1:])
        for nbytes in (0, CLIENT_NBYTES)
    )
    return ClientLink(empty / 2, CLIENT_NBYTES / max(full - empty, 1e-6))


def _measure_power(workers: Mapping[str, RemoteWorker]) -> dict[str, RemoteWorker]:
    """Read the energy meters of real devices whose watts are not configured.

    Hosts are measured at the same time, devices of one host in turn.
    """
    real = {name: w for name, w in workers.items() if not w.emulated and not w.config.power_given}
    measured: dict[str, MeteredPower | None] = {}
    while turn := {w.facts.host: name for name, w in real.items() if name not in measured}:
        calls = {name: workers[name].actor.measure_power.remote(POWER_SECONDS) for name in turn.values()}
        measured |= ray_control.gather(calls, POWER_TIMEOUT_SECONDS, "read their energy meters")
    return {name: replace(worker, metered=measured.get(name)) for name, worker in workers.items()}


def _measure_gflops(workers: Mapping[str, RemoteWorker], timeout_seconds: float) -> dict[str, float]:
    """Measure one worker of every kind, so that devices of one host are not measured at the same time."""
    first: dict[str, RemoteWorker] = {}
    for worker in workers.values():
        first.setdefault(worker.facts.fingerprint, worker)
    calls = {worker.name: worker.actor.measure_gflops.remote(worker.emulated) for worker in first.values()}
    measured = ray_control.gather(calls, timeout_seconds, "measure their speed")
    return {kind: measured[worker.name] for kind, worker in first.items()}
