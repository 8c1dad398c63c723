"""The workers of a cluster as the client sees them: placed on devices, connected, ready or lost."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from coedge.config.cluster_config import ClusterConfig
from coedge.config.sections import DeviceConfig, PowerConfig
from coedge.core.errors import ClusterError, DeviceLost
from coedge.core.units import bytes_per_second_of
from coedge.core.version import VERSION
from coedge.execution.program import CLIENT
from coedge.profile.network import Network
from coedge.profile.profile import Link
from orchestrator.control import ray_control
from orchestrator.control.clock_offset import ClockOffset
from orchestrator.control.clock_refresh import measure_clocks
from workers.emulation.paced_transport import LinkSpec
from workers.runtime.spec import MeteredPower, WorkerFacts, WorkerSpec, WorkerStatus
from workers.transport.transport import Endpoint
from workers.transport.zmq_transport import ZmqTransport

log = logging.getLogger(__name__)

SET_LINK_SECONDS = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteWorker:
    """A device that has joined.

    Attributes:
        actor: handle of its worker actor.
        facts: description that the worker gave of itself.
        metered: power by the device's energy meter; None if it has none or was not asked.
    """

    config: DeviceConfig
    actor: Any
    facts: WorkerFacts
    metered: MeteredPower | None = None

    @property
    def power(self) -> PowerConfig:
        """Watts of the configuration if given, else of the energy meter, else the default."""
        if self.config.power_given or self.metered is None:
            return self.config.power
        return PowerConfig(idle_watts=self.metered.idle_watts, compute_watts=self.metered.compute_watts)

    @property
    def power_source(self) -> str:
        """Origin of `power`, for people."""
        if self.config.power_given:
            return "configured"
        return "default" if self.metered is None else f"{self.metered.source}; of its radio: default"

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def emulated(self) -> bool:
        """Return whether the speed is emulated."""
        return self.config.speed is not None

    @property
    def memory_bytes(self) -> float | None:
        """Memory that plans may use on the device; None if not limited."""
        return self.config.memory_bytes


@dataclass(frozen=True, slots=True)
class Place:
    """The place where the worker of a device runs, or is to run.

    Attributes:
        spec: settings that the worker is started with.
        address: of its Ray node; empty if the node was never there.
    """

    config: DeviceConfig
    spec: WorkerSpec
    address: str


class Workers(dict[str, RemoteWorker]):
    """Workers by device name, some of which may be lost while they are asked.

    Args:
        lost: reason by name of every lost device; it changes meanwhile.
    """

    def __init__(self, workers: Mapping[str, RemoteWorker], lost: Mapping[str, str]) -> None:
        super().__init__(workers)
        self.lost = lost

    def gather(
        self, references: Mapping[str, Any], timeout_seconds: float, what: str, waited_seconds: float = 0.0
    ) -> dict[str, Any]:
        """Wait for the answers of devices; see `ray_control.gather`."""
        return ray_control.gather(references, timeout_seconds, what, waited_seconds, self.lost)


@dataclass
class WorkerGroup:
    """The workers of one cluster.

    Attributes:
        by_name: the devices that have joined.
        places: of all devices, by name, also of those whose node was not there yet.
        home: the device where inputs start and outputs end as long as it is not lost.
        transport: the client's end of the data plane.
        links_emulated: the emulated links by wire index; empty if links are real.
        clocks: clock offset by device name; `clock_refresh` replaces them.
        serving: by device name, the reference of the call that ends only with the worker.
        gflops: measured speed by fingerprint of the machine, without emulation.
        lost: reason by name of every device that cannot be used now.
        dead: the lost devices whose worker process has ended. The others may be heard again.
        version: number of changes of `lost` so far.
        closed: a reason by device name once the cluster is being closed; devices that are started are not waited for.
    """

    by_name: dict[str, RemoteWorker]
    home: str
    transport: ZmqTransport
    links_emulated: dict[int, LinkSpec]
    clocks: dict[str, ClockOffset]
    serving: dict[str, Any]
    network: Network = field(default_factory=lambda: Network(()))
    gflops: dict[str, float] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    version: int = 0
    closed: dict[str, str] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The device where inputs start and outputs end: `home`, or another one while that is lost."""
        lost = self.lost
        return next((name for name in (self.home, *self.by_name) if name not in lost), self.home)

    @property
    def ready(self) -> Workers:
        """The devices that are not lost."""
        lost = self.lost
        return Workers({name: worker for name, worker in self.by_name.items() if name not in lost}, lost)

    def bury(self, name: str, reason: str) -> None:
        """Enter a device whose worker process has ended."""
        self.dead.add(name)
        self.lost[name] = reason
        self.version += 1

    def bury_all(self, error: BaseException) -> None:
        """Enter the devices of a `WorkersDied` error that are not known to be lost. Other errors are ignored."""
        if isinstance(error, ray_control.WorkersDied):
            for name, reason in error.reasons.items():
                if name not in self.lost:
                    self.bury(name, reason)

    @property
    def links(self) -> tuple[Link, ...]:
        """The measured links."""
        return self.network.links

    @property
    def actors(self) -> dict[str, Any]:
        """Actor handle by device name."""
        return {name: worker.actor for name, worker in self.by_name.items()}

    @property
    def pids(self) -> dict[str, int]:
        """Process id of the worker by device name."""
        return {name: worker.facts.pid for name, worker in self.by_name.items()}

    @property
    def index_of(self) -> dict[str, int]:
        """Wire index by device name, of all places."""
        return {name: place.spec.index for name, place in self.places.items()}

    def statuses(self, names: Iterable[str], timeout_seconds: float) -> dict[str, WorkerStatus]:
        """Return the status of those devices that answer in time. Never raises: it serves the diagnosis of failures."""
        import ray

        answers: dict[str, WorkerStatus] = {}
        if not ray_control.is_connected():
            return answers
        with contextlib.suppress(Exception, SystemExit):  # no Ray, no statuses
            references = {self.by_name[name].actor.status.remote(): name for name in names if name not in self.lost}
            ready, _ = ray.wait(list(references), num_returns=len(references), timeout=timeout_seconds)
            for reference in ready:
                with contextlib.suppress(Exception):  # the device has died
                    answers[references[reference]] = ray.get(reference, timeout=timeout_seconds)
        return answers


def place_workers(config: ClusterConfig) -> WorkerGroup:
    """Place a worker on every device, and connect the workers and this client. Ray must be running.

    A device whose Ray node is not there counts as lost, and the cluster starts without it. If workers are not started
    again (`recover`), that is an error.

    Raises:
        ClusterError: a device does not answer or does not fit, or there is none; the message names it.
    """
    actors: dict[str, Any] = {}
    try:
        return _place_workers(config, actors)
    except BaseException:
        ray_control.stop_actors(list(actors.values()))
        raise


def _place_workers(config: ClusterConfig, actors: dict[str, Any]) -> WorkerGroup:
    timeout = config.connect_timeout_seconds
    placed, absent = ray_control.place_devices(config)
    own_node = ray_control.own_node()
    devices = config.devices or [device for device, _ in placed]
    names = [device.name for device in devices]
    local = [device.name for device, node in placed if node["NodeID"] == own_node]
    home = config.source or (local or names)[0]
    if home not in names:
        raise ClusterError(f"the source {home!r} is not a device; devices are {', '.join(names)}")
    if absent and not (config.recover and placed):
        raise ClusterError("\n".join(absent.values()))
    for reason in absent.values():
        log.warning("the cluster starts without a device: %s", reason)
    # If only this machine takes part, nothing has to leave the loopback interface.
    local_only = len(local) == len(names) and len(ray_control.alive_nodes(timeout)) == 1
    nodes = {device.name: node for device, node in placed}
    places = {}
    for index, device in enumerate(devices):
        address = nodes[device.name]["NodeManagerAddress"] if device.name in nodes else ""
        spec = _spec(index, device, "127.0.0.1" if local_only else address, config)
        places[device.name] = Place(device, spec, address)
    for name, node in nodes.items():
        actors[name] = ray_control.create_actor(places[name].spec, node["NodeID"], timeout)
    facts = ray_control.gather({name: actor.facts.remote() for name, actor in actors.items()}, timeout, "start")
    _check_facts(facts)
    host = "127.0.0.1" if local_only else ray_control.own_address()
    transport = ZmqTransport(len(places), CLIENT, host, encrypted=config.encryption, local=True)
    try:
        endpoints: list[Endpoint] = [*(fact.endpoint for fact in facts.values()), transport.endpoint]
        specs = [place.spec for place in places.values()]
        links = {spec.index: spec.link or LinkSpec() for spec in specs} if any(spec.link for spec in specs) else {}
        # Each worker gets the passwords of its own for the local sockets, and no others.
        calls = {
            name: actor.connect.remote([other.for_peer(facts[name].endpoint) for other in endpoints], links)
            for name, actor in actors.items()
        }
        ray_control.gather(calls, timeout, "connect to each other")
        transport.connect(endpoints)
        return WorkerGroup(
            by_name={name: RemoteWorker(places[name].config, actors[name], facts[name]) for name in actors},
            home=home,
            transport=transport,
            links_emulated=links,
            clocks=measure_clocks({name: (fact.host, actors[name]) for name, fact in facts.items()}),
            serving={name: actor.serve.remote() for name, actor in actors.items()},
            lost=dict(absent),
            dead=set(absent),
            places=places,
        )
    except BaseException:
        transport.close()
        raise


def place_again(group: WorkerGroup, config: ClusterConfig, name: str) -> None:
    """Start a worker in the place of one that has ended or never was, and connect it. The device stays lost meanwhile.

    Raises:
        ClusterError: its Ray node is not there, or the new worker does not answer or does not fit.
    """
    ray_control.check_connected()
    place, old, timeout = group.places[name], group.by_name.get(name), config.connect_timeout_seconds
    node = ray_control.node_of(place.config, place.address, timeout)
    if old is not None:
        with contextlib.suppress(Exception):  # what is left of the old worker, if its node was unreachable
            ray_control.stop_actors([old.actor], 0.0)
    host = place.spec.host if place.spec.host == "127.0.0.1" else node["NodeManagerAddress"]
    spec = replace(place.spec, host=host)
    actor = ray_control.create_actor(spec, node["NodeID"], timeout)
    try:
        facts = {name: ray_control.gather({name: actor.facts.remote()}, timeout, "start", lost=group.closed)[name]}
        _check_facts(facts)
        own = facts[name].endpoint
        known = [*_living_endpoints(group, name), own, group.transport.endpoint]
        calls = {name: actor.connect.remote([other.for_peer(own) for other in known], group.links_emulated)}
        others = _told_of(group.ready, own)
        ray_control.gather(calls, timeout, "connect to the others", lost=group.closed)
        with contextlib.suppress(ClusterError):  # one that does not answer is told when it is back
            ray_control.gather(others, timeout, "connect to it", lost=group.lost)
        group.transport.connect([own])
        group.clocks |= measure_clocks({name: (facts[name].host, actor)})
        metered = None if old is None else old.metered
        group.by_name[name] = RemoteWorker(place.config, actor, facts[name], metered)
        group.places[name] = Place(place.config, spec, node["NodeManagerAddress"])
        group.serving[name] = actor.serve.remote()
    except BaseException:
        ray_control.stop_actors([actor], 0.0)
        raise


def introduce(group: WorkerGroup, name: str, timeout_seconds: float) -> None:
    """Tell a device that was away what it has missed: the addresses of workers that were started again, and links.

    The others are told of it, too. One that does not answer is left to the watcher.

    Raises:
        ClusterError: the device does not answer.
    """
    worker = group.by_name[name]
    own = worker.facts.endpoint
    references = {name: worker.actor.connect.remote([e.for_peer(own) for e in _living_endpoints(group, name)], {})}
    others = _told_of(group.ready, own)
    ray_control.gather(references, timeout_seconds, "connect again", lost=group.closed)
    for index, link in group.links_emulated.items():
        ray_control.gather({name: worker.actor.set_link.remote(index, link)}, timeout_seconds, "set its links")
    with contextlib.suppress(ClusterError):
        ray_control.gather(others, timeout_seconds, "connect again", lost=group.lost)


def _living_endpoints(group: WorkerGroup, name: str) -> list[Endpoint]:
    """Return the addresses of the other devices whose workers live, lost or not."""
    living = (other for other, reference in group.serving.items() if other != name and reference is not None)
    return [group.by_name[other].facts.endpoint for other in living]


def _told_of(workers: Mapping[str, RemoteWorker], endpoint: Endpoint) -> dict[str, Any]:
    """Give some devices the address of one. Return the references of the calls."""
    return {
        other: worker.actor.connect.remote([endpoint.for_peer(worker.facts.endpoint)], {})
        for other, worker in workers.items()
        if worker.facts.endpoint.index != endpoint.index
    }


def tell_lost(group: WorkerGroup, name: str) -> None:
    """Tell the other devices not to wait for one that is lost. Their answers are not waited for.

    Lost devices are told, too: one that is started again may be measuring its links.
    """
    ended = name in group.dead
    for other, worker in group.by_name.items():
        if other != name and group.serving[other] is not None:
            with contextlib.suppress(Exception):
                worker.actor.peer_lost.remote(name, ended)


def ask_ready(group: WorkerGroup, ask: Callable[[Workers], T]) -> T:
    """Return what `ask` returns for the devices that are left.

    If some of them are lost meanwhile, `ask` is called again for the others. A loss that `ask` notices before the
    watcher does is entered into `group.lost`.

    Args:
        ask: called with workers by device name, one or more times.

    Raises:
        DeviceLost: no device is left.
        ClusterError: `ask` raised it and no device was lost meanwhile.
    """
    while True:
        ready = group.ready
        if not ready:
            raise DeviceLost("all devices of the cluster are lost. Connect again")
        try:
            return ask(ready)
        except ClusterError as error:
            group.bury_all(error)
            if not ready.keys() & group.lost.keys():
                raise


def set_link(group: WorkerGroup, name: str, link: LinkSpec) -> None:
    """Give a device another emulated link. Every device that is left is told, because each paces its own messages.

    Raises:
        DeviceLost: the device is lost.
        ClusterError: links are not emulated, or a device does not answer.
    """
    index = group.index_of[name]
    if group.links_emulated:
        group.links_emulated[index] = link  # for devices that are started again

    def tell(ready: Workers) -> None:
        if name not in ready:
            raise DeviceLost(f"{name} is lost: {group.lost[name]}. Connect again")
        calls = {other: worker.actor.set_link.remote(index, link) for other, worker in ready.items()}
        ready.gather(calls, SET_LINK_SECONDS, f"set the link of {name}")

    ask_ready(group, tell)


def _check_facts(facts: Mapping[str, WorkerFacts]) -> None:
    """Raise ClusterError if a device runs another version, or cannot use its providers."""
    other = {name: fact.version for name, fact in facts.items() if fact.version != VERSION}
    if other:
        raise ClusterError(
            f"the client runs coedge {VERSION}, but {', '.join(f'{n} runs {v}' for n, v in other.items())}; "
            "install the same version everywhere"
        )
    unfit = [f"device {name}: {fact.provider_problem}" for name, fact in facts.items() if fact.provider_problem]
    if unfit:
        raise ClusterError("\n".join(f"{text} of `providers` of this device" for text in unfit))


def _spec(index: int, device: DeviceConfig, host: str, config: ClusterConfig) -> WorkerSpec:
    link = None
    if device.link.mbps is not None or device.link.latency_ms:
        rate = None if device.link.mbps is None else bytes_per_second_of(device.link.mbps)
        link = LinkSpec(rate, device.link.latency_ms / 1000)
    return WorkerSpec(
        index,
        device.name,
        host,
        config.encryption,
        device.speed,
        link,
        device.threads,
        device.session_providers,
        config.detect_seconds,
    )
