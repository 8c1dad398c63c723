"""Commands that make a lab's network: a token bucket per direction of a link, and one per shared medium. Pure.

    device a                     switch                          device b
    eth0 ==up==> p0 -> [medium's queue] -> bridge -> p1 ==down==> eth0

A bucket (`tc` tbf) has room for one frame and for the bytes that pass while a timer is late. A message of 10 KB thus
finds tokens for only a few of its frames and waits for the rest, as on a wire. Unlike on a wire, the first frame does
not wait. The queue holds one second of the rate, like a switch with deep buffers. Dropped packets would be sent again
and counted twice, whereas the planner's cost model assumes that messages queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.lab.spec import OBJECT_PORT, SUBNET, LabDevice, LabMedium, LabSpec

FRAME_NBYTES = 1514  # an Ethernet frame as the kernel counts it: without checksum, preamble and gap
TIMER_SECONDS = 100e-6
QUEUE_SECONDS, MIN_QUEUE_NBYTES = 1.0, 4_000_000
MIN_RATE = 1_000.0  # bytes per second; at lower rates a frame takes longer than a second

Command = list[str]


def burst_nbytes(bytes_per_second: float) -> int:
    """Return the size of a token bucket."""
    return FRAME_NBYTES + round(bytes_per_second * TIMER_SECONDS)


def shape(namespace: str, interface: str, bytes_per_second: float | None) -> Command:
    """Return the command that sets the rate of outgoing traffic of an interface, even while it is in use.

    Args:
        bytes_per_second: None removes the limit; the command fails if there is none.
    """
    where = ["tc", "-n", namespace, "qdisc"]
    if bytes_per_second is None:
        return [*where, "del", "dev", interface, "root"]
    queue = max(MIN_QUEUE_NBYTES, round(bytes_per_second * QUEUE_SECONDS))
    bucket = ["rate", f"{round(bytes_per_second * 8)}bit", "burst", f"{burst_nbytes(bytes_per_second)}b"]
    return [*where, "replace", "dev", interface, "root", "handle", "1:", "tbf", *bucket, "limit", f"{queue}b"]


def add_medium(switch: str, medium: LabMedium) -> list[Command]:
    """Return the commands that make the interface of a medium, which all its traffic passes."""
    return [
        ["ip", "-n", switch, "link", "add", medium.interface, "type", "ifb"],
        ["ip", "-n", switch, "link", "set", medium.interface, "alias", medium.name, "addrgenmode", "none", "up"],
        shape(switch, medium.interface, medium.bytes_per_second),
    ]


def put_on_medium(switch: str, device: LabDevice, medium: LabMedium, members: Sequence[LabDevice]) -> list[Command]:
    """Return the commands that redirect a device's traffic over the medium.

    They redirect what it sends, and what it receives from devices that are not on the medium. Packets from other
    devices on the medium have passed it already, so each packet is counted once.

    Args:
        members: all devices on the medium.
    """

    def rule(side: str, priority: int, *match: str) -> Command:
        where = ["tc", "-n", switch, "filter", "add", "dev", device.port, side, "prio", str(priority)]
        return [*where, "protocol", "ip", "u32", "match", *match]

    redirect = ["action", "mirred", "egress", "redirect", "dev", medium.interface]
    passed = [
        [*rule("egress", 1, "ip", "src", f"{member.address}/32"), "flowid", "1:1"]
        for member in members
        if member.name != device.name
    ]
    return [
        ["tc", "-n", switch, "qdisc", "add", "dev", device.port, "clsact"],
        [*rule("ingress", 1, "u32", "0", "0"), *redirect],
        *passed,
        [*rule("egress", 2, "u32", "0", "0"), *redirect],
    ]


def add_switch(switch: str, bridges: Sequence[str] = ("br0",)) -> list[Command]:
    """Return the commands that make the switch: a namespace with bridges.

    No interface sends traffic by itself: IPv6 addresses and multicast are off.
    """
    commands = [["ip", "netns", "add", switch], ["ip", "-n", switch, "link", "set", "lo", "up"]]
    for name in bridges:
        commands += [
            ["ip", "-n", switch, "link", "add", name, "type", "bridge", "stp_state", "0", "mcast_snooping", "0"],
            ["ip", "-n", switch, "link", "set", name, "addrgenmode", "none", "up"],
        ]
    return commands


def add_host(switch: str, namespace: str, device: LabDevice) -> list[Command]:
    """Return the commands that make a device's namespace and its link to the switch."""
    alias = " ".join(filter(None, (device.name, device.medium)))  # `read_state` reads it
    port = ["ip", "-n", switch, "link", "set", device.port, "alias", alias]
    commands = [
        ["ip", "netns", "add", namespace],
        ["ip", "-n", switch, "link", "add", device.port, "type", "veth", "peer", "name", "eth0", "netns", namespace],
        [*port, "addrgenmode", "none", "master", "br0", "up"],
        ["ip", "-n", namespace, "link", "set", "lo", "up"],
        ["ip", "-n", namespace, "link", "set", "eth0", "addrgenmode", "none", "up"],
        ["ip", "-n", namespace, "address", "add", f"{device.address}/24", "dev", "eth0"],
    ]
    if device.bytes_per_second is not None:
        commands += [
            shape(namespace, "eth0", device.bytes_per_second),
            shape(switch, device.port, device.bytes_per_second),
        ]
    return commands


def add_fast_link(switch: str, namespace: str, device: LabDevice) -> list[Command]:
    """Return the commands that make a second link over a second bridge, which is not shaped.

    It leads to the same addresses and carries only packets of the object stores' port.
    """
    table = "77"
    matches = [["dport", str(OBJECT_PORT)], ["sport", str(OBJECT_PORT)]]
    port, peer = device.fast_port, ["type", "veth", "peer", "name", "eth1", "netns", namespace]
    return [
        ["ip", "-n", switch, "link", "add", port, *peer],
        ["ip", "-n", switch, "link", "set", port, "addrgenmode", "none", "master", "br1", "up"],
        ["ip", "-n", namespace, "link", "set", "eth1", "addrgenmode", "none", "up"],
        ["ip", "-n", namespace, "route", "add", f"{SUBNET}.0/24", "dev", "eth1", "src", device.address, "table", table],
        *(["ip", "-n", namespace, "rule", "add", "ipproto", "tcp", *match, "table", table] for match in matches),
    ]


def network(spec: LabSpec, switch: str, namespaces: dict[str, str]) -> list[Command]:
    """Return the commands that make the whole network, in order.

    Args:
        namespaces: namespace of every device, by name.
    """
    commands = add_switch(switch, ("br0", "br1") if spec.fast_weights else ("br0",))
    for medium in spec.media:
        commands += add_medium(switch, medium)
    for device in spec.devices:
        commands += add_host(switch, namespaces[device.name], device)
        if spec.fast_weights:
            commands += add_fast_link(switch, namespaces[device.name], device)
    for medium in spec.media:
        members = spec.members(medium)
        for device in members:
            commands += put_on_medium(switch, device, medium, members)
    return commands
