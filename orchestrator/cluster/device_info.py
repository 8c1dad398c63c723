"""The description of a cluster's devices that users see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coedge.profile.profile import Link
from orchestrator.control.worker_group import Place, WorkerGroup


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device as it joined and was measured.

    Attributes:
        state: "ready", "lost", "absent" for a device that has not joined yet (it has no host, address and speed), or
            "closed" for every device of a closed cluster.
        gflops: speed of a 3x3 convolution, emulation included.
        links: the measured link to every other device, by its name.
        speed: emulated fraction of the real speed; None if not emulated.
        source: whether inputs start and outputs end here.
    """

    name: str
    host: str
    address: str
    pid: int
    state: str
    threads: int
    gflops: float
    links: Mapping[str, Link]
    speed: float | None
    source: bool


def describe_devices(group: WorkerGroup, closed: bool) -> list[DeviceInfo]:
    """Return a description of every device of the group."""
    joined = {
        name: DeviceInfo(
            name=name,
            host=worker.facts.host,
            address=worker.facts.endpoint.address,
            pid=worker.facts.pid,
            state="closed" if closed else "lost" if name in group.lost else "ready",
            threads=worker.facts.threads,
            gflops=group.gflops[worker.facts.fingerprint] * (worker.config.speed or 1.0),
            links={link.receiver: link for link in group.links if link.sender == name},
            speed=worker.config.speed,
            source=name == group.source,
        )
        for name, worker in group.by_name.items()
    }
    return [joined.get(name) or _absent(place, closed) for name, place in group.places.items()]


def _absent(place: Place, closed: bool) -> DeviceInfo:
    device = place.config
    state = "closed" if closed else "absent"
    return DeviceInfo(device.name, "", "", 0, state, 0, 0.0, {}, device.speed, False)
