"""Values that a worker exchanges with the control plane: its specification, facts, status and measurements."""

from __future__ import annotations

from dataclasses import dataclass

from coedge.core.provider import ON_CPU, Provider
from workers.emulation.paced_transport import LinkSpec
from workers.transport.transport import Endpoint


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The settings of a worker.

    Attributes:
        index: of the device in messages.
        host: address of the interface that peers reach.
        speed: emulated fraction of the real speed. None: not emulated.
        link: emulated network interface. None: not emulated.
        threads: per kernel. None: 1 if emulated, else all physical cores.
        providers: of the sessions, best first.
        detect_seconds: time without a message after which a peer counts as silent. None: peers are not watched.
    """

    index: int
    name: str
    host: str
    encrypted: bool
    speed: float | None = None
    link: LinkSpec | None = None
    threads: int | None = None
    providers: tuple[Provider, ...] = ON_CPU
    detect_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """The facts that a worker tells when a cluster starts.

    Attributes:
        fingerprint: name of the hardware and software that kernel times depend on.
        clock_seconds: the worker's monotonic clock at the time of the answer.
        provider_problem: why the worker cannot use its providers; empty: it can.
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
    """The present state of a worker.

    Attributes:
        running: (epoch, frame, index of the step, seconds so far) of the running step, or None.
        waiting: per (epoch, frame), the channels whose messages have not come.
        weight_nbytes: bytes of the large weights, and of parts of large weights, of all programs.
        epochs: those of the loaded programs.
    """

    running: tuple[int, int, int, float] | None
    waiting: dict[tuple[int, int], tuple[int, ...]]
    weight_nbytes: int = 0
    epochs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """Times of messages that were sent to a peer one behind the other.

    Attributes:
        send_seconds: the sender's time to hand one message to the network.
        flight_seconds: from the hand-over of the last message until its echo was back, without the time between its
            arrival and the sending of the echo.
        came_seconds: arrival of each message, by the peer's clock.
    """

    send_seconds: float
    flight_seconds: float
    came_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MeteredPower:
    """Power of a device, as metered: watts when idle, and watts above that while it computes."""

    idle_watts: float
    compute_watts: float
    source: str
