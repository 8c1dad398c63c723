"""What the facts of one machine mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from orchestrator.doctor.facts import Folder, Interface, Memory, NodeFacts, Speed
from orchestrator.doctor.finding import Finding, Level, commands_in
from orchestrator.doctor.processor_findings import processor_findings

MB, GB = 1e6, 1e9
# A worker of a small network takes about 200 MB beside the weights.
RED_MEMORY_NBYTES, LOW_MEMORY_NBYTES = 250 * MB, 700 * MB
# Ray ends workers when less than this part of the memory is left (RAY_memory_usage_threshold), and refuses objects when
# less than this part of the disk is (RAY_local_fs_capacity_threshold).
RAY_LEAST_SHARE = 0.05
RED_DISK_NBYTES, LOW_DISK_NBYTES = 200 * MB, 1 * GB
# Part of the speed that was measured before.
RED_SPEED, LOW_SPEED = 0.4, 0.75
# Half of a round trip is the uncertainty of a span's time in a trace.
RED_ROUND_TRIP_SECONDS, LONG_ROUND_TRIP_SECONDS = 0.2, 0.03
# Time of day: certificates and logs suffer; measurements do not, because they use clocks of their own.
MOST_OFFSET_SECONDS = 5.0

# Libraries that must be equal everywhere, and those that had better be.
_MUST, _SHOULD = ("coedge", "Python", "ray"), ("onnxruntime",)

_Make = Callable[..., Finding]


def node_findings(node: NodeFacts, expected: Mapping[str, str | None], address: str) -> Iterator[Finding]:
    """Yield what was found on a node.

    Args:
        expected: versions on this machine.
        address: of the Ray head, or a placeholder.
    """

    def make(check: str, level: Level, text: str, mend: str = "") -> Finding:
        return Finding(check, node.label, level, text, mend)

    if node.problems and node.versions is None and node.memory is None:
        yield _silent(make, node, address)
        return
    if node.versions is not None:
        yield from _versions(make, node, expected)
    if node.memory is not None:
        yield _memory(make, node.memory)
    for folder in node.folders:
        yield _folder(make, folder)
    if node.processor is not None:
        yield from processor_findings(make, node.processor)
    if node.speed is not None:
        yield _speed(make, node.speed)
    if node.clock is not None:
        yield _clock(make, node)
    if node.interface is not None:
        yield from _interface(make, node.interface)
    for check, reason in node.problems.items():
        if check == "nodes":
            yield make("nodes", "red", reason, _restart(node, address))
        else:
            yield make(check, "warning", f"not checked: {reason}")


def _silent(make: _Make, node: NodeFacts, address: str) -> Finding:
    if "token" in node.problems:
        return make(
            "token", "red", node.problems["token"], f"{commands_in(node.problems['token'])}   (on {node.label})"
        )
    reason = next(iter(node.problems.values()))
    if not node.unreachable:
        return make("nodes", "red", f"it answers no question: {reason}", _restart(node, address))
    text = f"cannot connect from here to its Ray at {node.address}:{node.ray_port}: {node.unreachable}"
    if "refused" in node.unreachable:
        return make("ports", "red", f"{text}: its Ray has ended", _restart(node, address))
    mend = f"sudo ufw allow proto tcp from ADDRESS to any port {node.ray_port}   (on {node.label}, or fix Ray's ports)"
    return make("ports", "red", f"{text}: a firewall, or it is switched off", mend)


def _restart(node: NodeFacts, address: str) -> str:
    if not node.address:
        return "python -m pip check"
    return f"ray stop; ray start --address={address}   (on {node.label}; reasons are in Ray's logs/raylet.out there)"


def _versions(make: _Make, node: NodeFacts, expected: Mapping[str, str | None]) -> Iterator[Finding]:
    found = dict(node.versions or {})
    where = "" if node.here else f"   (on {node.label}, in the Python that `ray start` runs in)"
    wrong = False
    for name in (*_MUST, *_SHOULD):
        mine, its = expected.get(name), found.get(name)
        wanted = f"{name}=={mine}" if mine and not mine.startswith("!") else name
        if its is None or its.startswith("!"):
            text = f"{name} is not installed" if its is None else f"{name} cannot be imported: {its[1:]}"
            again = "" if its is None else "--force-reinstall "
            yield make("versions", "red", text, f"pip install {again}{wanted}{where}")
        elif mine and not mine.startswith("!") and its != mine:
            level: Level = "red" if name in _MUST else "warning"
            mend = f"install Python {mine} and start Ray from it" if name == "Python" else f"pip install {wanted}"
            reason = "" if name in _MUST else ": times and last digits of results may differ"
            there, here = ("where Ray runs", "in this process") if node.here else ("there", "here")
            yield make("versions", level, f"{name} is {its} {there} and {mine} {here}{reason}", f"{mend}{where}")
        else:
            continue
        wrong = True
    if not wrong:
        yield make("versions", "ok", ", ".join(f"{name} {found[name]}" for name in (*_MUST, *_SHOULD)))


def _memory(make: _Make, memory: Memory) -> Finding:
    text = f"{_size(memory.available_nbytes)} of {_size(memory.total_nbytes)} available"
    mend = "end other programs (`ps aux --sort=-rss | head`), or use a smaller network or memory_mb of this device"
    share = memory.available_nbytes / max(memory.total_nbytes, 1.0)
    if share < RAY_LEAST_SHARE:
        return make("memory", "red", f"{text}: Ray ends workers when less than {RAY_LEAST_SHARE:.0%} is left", mend)
    if memory.available_nbytes < RED_MEMORY_NBYTES:
        return make("memory", "red", f"{text}: a worker needs {_size(RED_MEMORY_NBYTES)} beside weights", mend)
    return make("memory", "warning" if memory.available_nbytes < LOW_MEMORY_NBYTES else "ok", text)


def _folder(make: _Make, folder: Folder) -> Finding:
    text = f"{_size(folder.free_nbytes)} free for {folder.purpose} in {folder.path}"
    other = (
        "cache_dir: FOLDER   (in the configuration)"
        if folder.purpose == "cache"
        else "ray stop; ray start --temp-dir=FOLDER ...   (or remove old sessions, after `ray stop`)"
    )
    if folder.problem:
        return make("disk", "red", f"{folder.path} for {folder.purpose} cannot be written: {folder.problem}", other)
    share = folder.free_nbytes / max(folder.total_nbytes, 1.0)
    if folder.purpose != "cache" and share < RAY_LEAST_SHARE:
        reason = f"Ray refuses objects when less than {RAY_LEAST_SHARE:.0%} is left"
        return make("disk", "red", f"{text}, {share:.1%} of it: {reason}", other)
    if folder.free_nbytes < RED_DISK_NBYTES:
        return make("disk", "red", f"{text}, less than {_size(RED_DISK_NBYTES)}", other)
    return make("disk", "warning" if folder.free_nbytes < LOW_DISK_NBYTES else "ok", text)


def _speed(make: _Make, speed: Speed) -> Finding:
    text = f"{speed.gflops:.1f} GFLOP/s"
    if speed.throttles:
        text = f"{text}; heat slowed the cores {speed.throttles} times meanwhile"
        return make("speed", "red", text, "give it a heat sink or a fan, and a dust-free inlet")
    if speed.known_gflops is None:
        return make("speed", "ok", f"{text}, measured for the first time")
    share = speed.gflops / speed.known_gflops
    text = f"{text}, {share:.0%} of the best that was measured before ({speed.known_gflops:.1f})"
    if share >= LOW_SPEED:
        return make("speed", "ok", text)
    mend = "end other programs (`top`); sudo cpupower frequency-set -g performance"
    return make("speed", "red" if share < RED_SPEED else "warning", text, mend)


def _clock(make: _Make, node: NodeFacts) -> Finding:
    clock = node.clock
    assert clock is not None
    half = clock.round_trip_seconds / 2
    text = (
        f"{clock.offset_seconds * 1e3:+.1f} ms +- {half * 1e3:.1f} ms against here; "
        f"round trip over Ray {clock.round_trip_seconds * 1e3:.1f} ms"
    )
    if clock.round_trip_seconds > RED_ROUND_TRIP_SECONDS:
        mend = f"use a cable, or end other programs on {node.label} (`top`)"
        return make("clocks", "red", f"{text}: times of a trace are wrong by as much", mend)
    if clock.round_trip_seconds > LONG_ROUND_TRIP_SECONDS:
        return make("clocks", "warning", f"{text}: times of a trace are wrong by as much", "use a cable")
    if abs(clock.offset_seconds) > MOST_OFFSET_SECONDS + half:
        return make("clocks", "warning", f"{text}: logs do not fit together", "sudo timedatectl set-ntp true")
    return make("clocks", "ok", text)


def _interface(make: _Make, interface: Interface) -> Iterator[Finding]:
    rate = "" if interface.mbps is None else f", {interface.mbps:g} Mbit/s"
    text = f"{interface.name}: MTU {interface.mtu}{rate}"
    if interface.mtu < 1280:
        mend = f"sudo ip link set dev {interface.name} mtu 1500"
        yield make("mtu", "red", f"{text}: IPv6 needs 1280, and small packets are slow", mend)
    elif not interface.full_duplex:
        mend = f"sudo ethtool -s {interface.name} autoneg on   (and another cable or port)"
        yield make("mtu", "warning", f"{text}, half duplex: it does not send and receive at once", mend)
    else:
        yield make("mtu", "ok", text)


def _size(nbytes: float) -> str:
    return f"{nbytes / GB:.1f} GB" if nbytes >= GB else f"{nbytes / MB:.0f} MB"
