"""What a worker is told about itself, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass

from coedge.core.provider import ON_CPU, Provider
from workers.emulation.paced_transport import LinkSpec
from workers.transport.transport import Endpoint


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One device, as its worker is to play it.

    Attributes:
        host: address of the interface that peers reach.
        speed: emulated fraction of the real speed. None: not emulated.
        link: emulated network interface. None: not emulated.
        threads: per kernel. None: 1 if emulated, else all physical cores.
        providers: of its sessions, best first.
    """

    index: int
    name: str
    host: str
    encrypted: bool
    speed: float | None = None
    link: LinkSpec | None = None
    threads: int | None = None
    providers: tuple[Provider, ...] = ON_CPU


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """Who answered.

    Attributes:
        fingerprint: names the hardware and software that kernel times depend on.
        clock_seconds: the worker's monotonic clock, when it answered.
        provider_problem: why it cannot run with its providers; empty: it can.
    """

    endpoint: Endpoint
    host: str
    pid: int
    version: str
    threads: int
    fingerprint: str
    clock_seconds: float
    provider_problem: str = ""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker is doing.

    Attributes:
        running: (epoch, frame, index of the step, seconds so far), or None.
        waiting: per (epoch, frame), the channels whose messages have not come.
        weight_nbytes: of the large weights, and parts of such, that it holds for all of its programs.
    """

    running: tuple[int, int, int, float] | None
    waiting: dict[tuple[int, int], tuple[int, ...]]
    weight_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """What became of messages that were sent to a peer one behind the other.

    Attributes:
        send_seconds: of the sender's time, for handing one of them to the network.
        flight_seconds: of the last one, from when it was handed over until its echo was back, without the time from
            when it came until the peer began to send the echo.
        came_seconds: when each of them came, by the peer's clock.
    """

    send_seconds: float
    flight_seconds: float
    came_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MeteredPower:
    """What an energy meter told of a device: watts when idle, watts above that while it computes."""

    idle_watts: float
    compute_watts: float
    source: str
