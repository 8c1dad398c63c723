"""How messages get from device to device: the protocol, and a transport within one process for tests."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coedge.core.errors import ClusterError
from workers.transport.message import Message, decode, encode

MAX_TIMEOUT_SECONDS = 86_400.0  # what every platform's clock can wait for


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """Where processes on the same clock reach a device without a network: what never leaves the kernel need not be
    encrypted.

    Attributes:
        address: `ipc://@name`, a socket that is no file and ends with its process.
        password: lets peers in. It travels as the keys do.
    """

    address: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a device receives.

    Attributes:
        address: `tcp://host:port`.
        public_key: CURVE key in Z85 (40 characters). None: the device talks in the clear.
        clock: names the monotonic clock of the device: processes that name the same share it, and a network. None:
            not known.
        local: for those. None: there is none.
    """

    index: int
    name: str
    address: str
    public_key: str | None = None
    clock: str | None = None
    local: LocalEndpoint | None = None


class Transport(Protocol):
    """Sends messages to peers and receives theirs, in order for each pair of devices.

    One thread receives. `send` and `wake` may be called from any thread.
    """

    @property
    def endpoint(self) -> Endpoint:
        """Where peers reach this transport."""

    def connect(self, peers: Iterable[Endpoint]) -> None:
        """Make these peers known, or their new addresses. Peers that are known already stay."""

    def send(self, peer_index: int, message: Message) -> None:
        """Hand the message over without waiting. Its arrays must not change until they have been sent.

        Raises:
            ClusterError: the peer is not known.
        """

    def receive(self, timeout_seconds: float) -> Message | None:
        """The next message; None if none comes in time, or after `wake`."""

    def wake(self) -> None:
        """Make the current or the next `receive` that finds no message return None."""

    def close(self) -> None:
        """Release threads and sockets. Safe to call twice."""


def own_clock() -> str | None:
    """The name of this process's monotonic clock: the boot that it counts from, and its time namespace.

    And its network namespace: between two of them messages pass a real network, which comes on top of an emulated
    latency, as between hosts.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')} {os.readlink('/proc/self/ns/net')}"
    except OSError:
        return None


def unknown_peer(endpoint: Endpoint, peer_index: int, peers: Mapping[int, Endpoint]) -> ClusterError:
    """The error for a message to a peer that `connect` was never told of."""
    known = ", ".join(f"{index} ({peers[index].name})" for index in sorted(peers)) or "none"
    return ClusterError(
        f"Device {endpoint.name} cannot send to peer {peer_index}: only these are known: {known}. "
        "Call connect() with its endpoint first."
    )


class InMemoryHub:
    """What the in-memory transports of one test share: a queue for each address."""

    def __init__(self) -> None:
        self.queues: dict[str, queue.SimpleQueue[Message | None]] = {}


class InMemoryTransport:
    """A transport within one process. Messages are encoded and decoded on their way, as on a network."""

    def __init__(self, index: int, name: str, hub: InMemoryHub) -> None:
        self.endpoint = Endpoint(index, name, f"memory://{index}", clock=own_clock())
        self._hub = hub
        self._peers: dict[int, Endpoint] = {}
        self._queue = hub.queues[self.endpoint.address] = queue.SimpleQueue()

    def connect(self, peers: Iterable[Endpoint]) -> None:
        self._peers.update({peer.index: peer for peer in peers})

    def send(self, peer_index: int, message: Message) -> None:
        """Copies the arrays. What is sent to a closed transport is lost, as on a network."""
        peer = self._peers.get(peer_index)
        if peer is None:
            raise unknown_peer(self.endpoint, peer_index, self._peers)
        header, buffers = encode(message)
        mailbox = self._hub.queues.get(peer.address)
        if mailbox is not None:
            mailbox.put(decode(header, [buffer.tobytes() for buffer in buffers]))

    def receive(self, timeout_seconds: float) -> Message | None:
        try:
            return self._queue.get(timeout=min(max(timeout_seconds, 0.0), MAX_TIMEOUT_SECONDS))
        except queue.Empty:
            return None

    def wake(self) -> None:
        self._queue.put(None)

    def close(self) -> None:
        self._hub.queues.pop(self.endpoint.address, None)
