"""The state of a lab, read from the system. Nothing is kept in files, which could be out of date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.lab import nodes
from orchestrator.lab.namespace import call_json, namespaces, processes
from orchestrator.lab.spec import LabSpec


@dataclass(frozen=True, slots=True)
class InterfaceTraffic:
    """Traffic of an interface since it was made, in whole Ethernet frames."""

    nbytes: int
    packets: int


@dataclass(frozen=True, slots=True)
class HostState:
    """The state of a device's host.

    Attributes:
        address: its address; empty if the host is unfinished.
        port: its interface of the switch; empty if it is not connected.
        up_bytes_per_second, down_bytes_per_second: rates of its link; None if not shaped.
        sent, received: traffic of its link.
        dropped: frames dropped because a queue was full, in both directions.
        head, node: whether Ray's head and a Ray node run on it.
    """

    name: str
    namespace: str
    address: str
    port: str
    medium: str | None
    up_bytes_per_second: float | None
    down_bytes_per_second: float | None
    sent: InterfaceTraffic
    received: InterfaceTraffic
    dropped: int
    pids: tuple[int, ...]
    head: bool
    node: bool


@dataclass(frozen=True, slots=True)
class MediumState:
    """The state of a shared medium.

    Attributes:
        bytes_per_second: its rate; None if not shaped.
        carried: traffic of all its devices.
        dropped: frames dropped because the queue was full.
    """

    name: str
    interface: str
    devices: tuple[str, ...]
    bytes_per_second: float | None
    carried: InterfaceTraffic
    dropped: int


@dataclass(frozen=True, slots=True)
class LabState:
    """The state of a lab.

    Attributes:
        namespaces: all namespaces of the lab, finished or not.
        fast_weights: whether weights have separate links.
    """

    hosts: tuple[HostState, ...]
    media: tuple[MediumState, ...]
    namespaces: tuple[str, ...]
    fast_weights: bool

    @property
    def head(self) -> HostState | None:
        """Host of Ray's head, or None if it does not run."""
        return next((host for host in self.hosts if host.head), None)

    def is_of(self, spec: LabSpec) -> bool:
        """Return whether the lab is complete and matches a spec, with Ray's head on the right host."""
        wanted = {(device.name, device.address, device.port, device.medium) for device in spec.devices}
        actual = {(host.name, host.address, host.port, host.medium) for host in self.hosts}
        media = {medium.name for medium in spec.media} == {medium.name for medium in self.media}
        head = self.head is not None and self.head.name == spec.head
        return wanted == actual and media and head and self.fast_weights == spec.fast_weights


def read_state(prefix: str, switch: str) -> LabState:
    """Read the state of the lab whose hosts have namespaces with the prefix, and whose switch has the given one."""
    known = [name for name in namespaces() if name.startswith(prefix) or name == switch]
    links = _links(switch) if switch in known else {}
    ports = {link["ifalias"].split()[0]: link for name, link in links.items() if name[0] == "p" and link["ifalias"]}
    buckets = _buckets(switch) if links else {}
    hosts = [_host(name, name.removeprefix(prefix), ports, buckets) for name in known if name != switch]
    hosts.sort(key=lambda host: (len(host.port), host.port, host.name))
    media = []
    for interface, link in links.items():
        if interface[0] == "m" and link["ifalias"]:
            name, bucket = link["ifalias"], buckets.get(interface, {})
            devices = tuple(host.name for host in hosts if host.medium == name)
            carried = InterfaceTraffic(bucket.get("bytes", 0), bucket.get("packets", 0))
            media.append(MediumState(name, interface, devices, _rate(bucket), carried, bucket.get("drops", 0)))
    return LabState(tuple(hosts), tuple(media), tuple(known), "br1" in links)


def _host(namespace: str, name: str, ports: Mapping[str, Any], buckets: Mapping[str, Any]) -> HostState:
    running = processes(namespace)
    links = call_json(["ip", "-n", namespace, "-j", "-s", "address", "show"])
    eth0 = next((link for link in links if link["ifname"] == "eth0"), {})
    addresses = [address["local"] for address in eth0.get("addr_info", ()) if address["family"] == "inet"]
    up = _buckets(namespace).get("eth0", {})
    port = ports.get(name, {})
    down = buckets.get(port.get("ifname", ""), {})
    return HostState(
        name=name,
        namespace=namespace,
        address=addresses[0] if addresses else "",
        port=port.get("ifname", ""),
        medium=next(iter(port.get("ifalias", "").split()[1:]), None),
        up_bytes_per_second=_rate(up),
        down_bytes_per_second=_rate(down),
        sent=_traffic(eth0, "tx"),
        received=_traffic(eth0, "rx"),
        dropped=up.get("drops", 0) + down.get("drops", 0),
        pids=tuple(process.pid for process in running),
        head=nodes.has_head(running),
        node=nodes.has_node(running),
    )


def _links(switch: str) -> dict[str, dict[str, Any]]:
    links = call_json(["ip", "-n", switch, "-j", "-s", "link", "show"])
    return {link["ifname"]: {"ifalias": "", **link} for link in links}


def _buckets(namespace: str) -> dict[str, dict[str, Any]]:
    """Return the token buckets of a namespace, by interface."""
    qdiscs = call_json(["tc", "-n", namespace, "-s", "-j", "qdisc", "show"])
    return {qdisc["dev"]: qdisc for qdisc in qdiscs if qdisc["kind"] == "tbf"}


def _rate(bucket: Mapping[str, Any]) -> float | None:
    return float(bucket["options"]["rate"]) if bucket else None


def _traffic(link: Mapping[str, Any], direction: str) -> InterfaceTraffic:
    counters = link.get("stats64", {}).get(direction, {})
    return InterfaceTraffic(counters.get("bytes", 0), counters.get("packets", 0))
