"""What there is of a lab, as the system tells: nothing is remembered in files, which could be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.lab import nodes
from orchestrator.lab.namespace import call_json, namespaces, processes
from orchestrator.lab.spec import LabSpec


@dataclass(frozen=True, slots=True)
class InterfaceTraffic:
    """What passed an interface, in whole Ethernet frames, since it was made."""

    nbytes: int
    packets: int


@dataclass(frozen=True, slots=True)
class HostState:
    """A device's host.

    Attributes:
        address: empty: it was not finished.
        port: of the switch; empty: not connected.
        up_bytes_per_second, down_bytes_per_second: None: not shaped.
        sent, received: on its link.
        dropped: frames that found a queue full, in either direction.
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
    name: str
    interface: str
    devices: tuple[str, ...]
    bytes_per_second: float | None
    carried: InterfaceTraffic
    dropped: int


@dataclass(frozen=True, slots=True)
class LabState:
    """Attributes:
    namespaces: all of this lab, finished or not.
    fast_weights: whether weights have links of their own.
    """

    hosts: tuple[HostState, ...]
    media: tuple[MediumState, ...]
    namespaces: tuple[str, ...]
    fast_weights: bool

    @property
    def head(self) -> HostState | None:
        """The host of Ray's head, where it runs."""
        return next((host for host in self.hosts if host.head), None)

    def is_of(self, spec: LabSpec) -> bool:
        """Whether it is the finished network of this spec, and Ray's head runs where it should."""
        wanted = {(device.name, device.address, device.port, device.medium) for device in spec.devices}
        there = {(host.name, host.address, host.port, host.medium) for host in self.hosts}
        media = {medium.name for medium in spec.media} == {medium.name for medium in self.media}
        head = self.head is not None and self.head.name == spec.head
        return wanted == there and media and head and self.fast_weights == spec.fast_weights


def read_state(prefix: str, switch: str) -> LabState:
    """Of the lab whose namespaces begin with the prefix, or are the switch."""
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
            on = tuple(host.name for host in hosts if host.medium == name)
            carried = InterfaceTraffic(bucket.get("bytes", 0), bucket.get("packets", 0))
            media.append(MediumState(name, interface, on, _rate(bucket), carried, bucket.get("drops", 0)))
    return LabState(tuple(hosts), tuple(media), tuple(known), "br1" in links)


def _host(namespace: str, name: str, ports: Mapping[str, Any], buckets: Mapping[str, Any]) -> HostState:
    found = processes(namespace)
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
        pids=tuple(process.pid for process in found),
        head=nodes.has_head(found),
        node=nodes.has_node(found),
    )


def _links(switch: str) -> dict[str, dict[str, Any]]:
    links = call_json(["ip", "-n", switch, "-j", "-s", "link", "show"])
    return {link["ifname"]: {"ifalias": "", **link} for link in links}


def _buckets(namespace: str) -> dict[str, dict[str, Any]]:
    """The token buckets of a namespace, by interface."""
    found = call_json(["tc", "-n", namespace, "-s", "-j", "qdisc", "show"])
    return {qdisc["dev"]: qdisc for qdisc in found if qdisc["kind"] == "tbf"}


def _rate(bucket: Mapping[str, Any]) -> float | None:
    return float(bucket["options"]["rate"]) if bucket else None


def _traffic(link: Mapping[str, Any], direction: str) -> InterfaceTraffic:
    counted = link.get("stats64", {}).get(direction, {})
    return InterfaceTraffic(counted.get("bytes", 0), counted.get("packets", 0))
