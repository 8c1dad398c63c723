"""The facts of an examination. None stands for what a machine does not have, or was not asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is written to.

    Attributes:
        purpose: "Ray's files" or "cache".
        problem: why it cannot be written; empty: it can.
    """

    purpose: str
    path: str
    free_nbytes: float
    total_nbytes: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface.

    Attributes:
        mbps: rate of the plugged link. None: unknown, as for Wi-Fi.
        free_ports: first and last port that the system gives to listeners without a port of their own.
    """

    name: str
    mtu: int
    mbps: float | None = None
    full_duplex: bool = True
    free_ports: tuple[int, int] = (32768, 60999)


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor and its load.

    Attributes:
        load: mean number of runnable processes in the last minute.
        governors: of the CPU frequency, without repetitions; empty: there is none.
        driver: of the CPU frequency.
        most_mhz, allowed_mhz: highest clock, and the limit that is set.
        throttles: number of times that heat has slowed the cores since the start.
        board_flags: what a Raspberry Pi tells about its supply and heat (`vcgencmd get_throttled`).
    """

    cores: int
    load: float
    governors: tuple[str, ...] = ()
    driver: str = ""
    most_mhz: float | None = None
    allowed_mhz: float | None = None
    throttles: int | None = None
    board_flags: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory, with the limit of a container."""

    available_nbytes: float
    total_nbytes: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured speed of a typical kernel.

    Attributes:
        known_gflops: best speed that was measured before on the same kind of machine. None: never.
        throttles: number of times that heat slowed the cores meanwhile.
    """

    gflops: float
    known_gflops: float | None = None
    throttles: int = 0


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of a node against ours.

    Attributes:
        offset_seconds: of the time of day. It is known to within half of `round_trip_seconds`.
        round_trip_seconds: shortest of some questions over Ray.
    """

    offset_seconds: float
    round_trip_seconds: float


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node tells. A check that failed is not here but in `problems`.

    Attributes:
        label: name for people, unique.
        address: by which Ray and the other workers know it. Empty: it takes part in no cluster.
        here: whether it is this machine.
        versions: by library. None: it is not installed. "!" and a reason: it cannot be imported.
        problems: reason by check, such as "speed": "no answer within 8 s".
        unreachable: for a silent node, why this machine cannot connect to the port of its Ray; empty: it can.
        ray_port: of its Ray.
    """

    label: str
    address: str = ""
    here: bool = False
    versions: Mapping[str, str | None] | None = None
    memory: Memory | None = None
    folders: tuple[Folder, ...] = ()
    processor: Processor | None = None
    interface: Interface | None = None
    speed: Speed | None = None
    clock: Clock | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    unreachable: str = ""
    ray_port: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """The way from one node to another, by their labels.

    Attributes:
        problem: why no connection was made; empty: it was.
        round_trip_seconds: time to connect.
        bytes_per_second: None: not measured.
        transfer_problem: why a transfer failed although the connection was made; empty: it did not fail.
    """

    sender: str
    receiver: str
    address: str
    problem: str = ""
    round_trip_seconds: float | None = None
    bytes_per_second: float | None = None
    transfer_problem: str = ""


@dataclass(frozen=True, slots=True)
class DoctorFacts:
    """Everything that the examination found out.

    Attributes:
        nodes: this machine first.
        versions: by library, of this process. Those of a node are those that its Ray runs with.
        address: of the Ray head. None: no cluster is asked for, or the configuration starts Ray itself.
        configuration_problem, head_problem, join_problem: reason; empty: none.
        missing: name and node of every device whose node is not in the cluster.
        gone: addresses of nodes that left the cluster or died.
        known: addresses and hostnames of the nodes that are alive.
    """

    nodes: tuple[NodeFacts, ...]
    versions: Mapping[str, str | None] = field(default_factory=dict)
    address: str | None = None
    configuration: str | None = None
    configuration_problem: str = ""
    head_problem: str = ""
    join_problem: str = ""
    missing: tuple[tuple[str, str], ...] = ()
    gone: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
