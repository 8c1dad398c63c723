"""What the facts of the ways between nodes mean: ports, rates, and MTUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coedge.core.units import mbps_of
from orchestrator.doctor.facts import DoctorFacts, NodeFacts, Way
from orchestrator.doctor.finding import Finding

# Rates below this are slower than most radio links.
SLOW_MBPS = 2.0
# Part of the rate of the interfaces that a transfer reaches at least.
LEAST_SHARE = 0.5


def way_findings(facts: DoctorFacts) -> Iterator[Finding]:
    """Yield what was found on the ways from each node to the others, and whether the MTUs differ."""
    nodes = {node.label: node for node in facts.nodes}
    senders = dict.fromkeys(way.sender for way in facts.ways)
    for sender in senders:
        ways = [way for way in facts.ways if way.sender == sender]
        yield from _ports(sender, ways, nodes)
    for sender in senders:
        yield from _rates(sender, [way for way in facts.ways if way.sender == sender and not way.problem], nodes)
    yield from _mtus([node for node in facts.nodes if node.address and node.interface])


def _ports(sender: str, ways: Sequence[Way], nodes: dict[str, NodeFacts]) -> Iterator[Finding]:
    for way in ways:
        if way.problem:
            text = f"cannot connect to {way.receiver} at {way.address}: {way.problem}"
            yield Finding("ports", sender, "red", text, _open(way, nodes))
    good = [way for way in ways if not way.problem]
    if good:
        reached = ", ".join(f"{way.receiver} ({(way.round_trip_seconds or 0) * 1e3:.1f} ms)" for way in good)
        yield Finding("ports", sender, "ok", f"connects to {reached}")


def _open(way: Way, nodes: dict[str, NodeFacts]) -> str:
    sender, receiver = nodes.get(way.sender), nodes.get(way.receiver)
    if way.address.startswith("127.") or "assign" in way.problem:
        return f"ray stop; ray start ... --node-ip-address=ADDRESS   (on {way.receiver}: its address in this network)"
    if "route" in way.problem or "unreachable" in way.problem:
        return f"put both into one network, or `sudo ip route add {way.address} via GATEWAY`   (on {way.sender})"
    first, last = receiver.interface.free_ports if receiver and receiver.interface else (32768, 60999)
    origin = sender.address if sender and sender.address else "ADDRESS"
    return f"sudo ufw allow from {origin} to any port {first}:{last} proto tcp   (on {way.receiver})"


def _rates(sender: str, ways: Sequence[Way], nodes: dict[str, NodeFacts]) -> Iterator[Finding]:
    fine = []
    for way in ways:
        if way.transfer_problem:
            interface = nodes[way.sender].interface if way.sender in nodes else None
            device = interface.name if interface else "INTERFACE"
            text = f"connects to {way.receiver}, but a transfer fails ({way.transfer_problem}): large packets are lost"
            mend = f"sudo ip link set dev {device} mtu 1400   (on {sender} and {way.receiver})"
            yield Finding("links", sender, "red", text, mend)
        if way.bytes_per_second is None:
            continue
        mbps, wired = mbps_of(way.bytes_per_second), _wired_mbps(way, nodes)
        text = f"{mbps:{'.0f' if mbps >= 100 else '.3g'}} Mbit/s to {way.receiver}"
        if mbps < SLOW_MBPS:
            yield Finding("links", sender, "warning", f"{text}: plans will use one device", "use a cable")
        elif wired is not None and mbps < LEAST_SHARE * wired:
            text = f"{text}, but the interfaces have {wired:g}: other traffic, a bad cable, or a slower switch"
            yield Finding("links", sender, "warning", text, f"ethtool -S INTERFACE | grep err   (on {sender})")
        else:
            fine.append(text)
    if fine:
        yield Finding("links", sender, "ok", ", ".join(fine))


def _wired_mbps(way: Way, nodes: dict[str, NodeFacts]) -> float | None:
    """Return the rate of the slower interface, if both are known."""
    rates = [
        node.interface.mbps
        for label in (way.sender, way.receiver)
        if (node := nodes.get(label)) and node.interface and node.interface.mbps
    ]
    return min(rates) if len(rates) == 2 else None


def _mtus(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    mtus = {node.label: node.interface.mtu for node in nodes if node.interface}
    least = min(mtus.values(), default=0)
    larger = {label: mtu for label, mtu in mtus.items() if mtu != least}
    if larger:
        text = "MTUs differ: " + ", ".join(f"{label} {mtu}" for label, mtu in mtus.items())
        yield Finding(
            "mtu", "", "warning", text, f"sudo ip link set dev INTERFACE mtu {least}   (on {', '.join(larger)})"
        )
