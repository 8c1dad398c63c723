"""Transports: the protocol by which devices exchange messages, and a transport within one process for tests."""

from __future__ import annotations

import hmac
import os
import queue
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from coedge.core.errors import ClusterError
from workers.transport.message import Message, decode, encode

MAX_TIMEOUT_SECONDS = 86_400.0  # every platform can wait this long
# Messages for one peer that may wait at their sender, or those of one peer on an emulated link. A frame has at most a
# few messages per stage, so peers that keep to the credits of their plans stay far below. So do their bytes: the first
# feature map of VGG-16 has 13 MB.
MAX_UNDELIVERED = 1024
MAX_UNDELIVERED_NBYTES = 512 << 20


class DeliveryFailed(ClusterError):
    """A message that `send` took over could not be delivered.

    Attributes:
        peer_index: the peer that it was for.
        message: the message.
    """

    def __init__(self, peer_index: int, message: Message, cause: BaseException) -> None:
        super().__init__(f"a message to peer {peer_index} was not sent: {cause}")
        self.peer_index, self.message = peer_index, message


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A Unix socket on which processes of the same machine and user reach a device.

    Its messages are not encrypted, because they do not leave the kernel.

    Attributes:
        address: `ipc:///folder/socket`. Only the user of the device can enter the folder.
        secret: with `sender_key`, the password of that sender; without, the secret of the receiver, from which the
            passwords of all senders follow. It travels over the control plane, as keys do.
        sender_key: public key of the only peer that may use this endpoint. None: the receiver's own view.
    """

    address: str
    secret: str = field(repr=False)
    sender_key: str | None = None

    def for_sender(self, public_key: str) -> LocalEndpoint:
        """Return the endpoint with the password of one sender, which proves that the sender has this public key.

        Raises:
            ClusterError: the endpoint is meant for another sender.
        """
        if self.sender_key == public_key:
            return self
        if self.sender_key is not None:
            raise ClusterError("This endpoint has the password of another device. Connect with one made for this one.")
        password = hmac.new(self.secret.encode(), public_key.encode(), "sha256").hexdigest()
        return LocalEndpoint(self.address, password, public_key)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address at which a device receives messages.

    Attributes:
        address: `tcp://host:port`.
        public_key: CURVE key in Z85 (40 characters). None: the device does not encrypt.
        clock: name of the device's monotonic clock and network. Processes with the same name share both. None:
            unknown.
        local: the local socket, for processes with the same clock. None: there is none.
    """

    index: int
    name: str
    address: str
    public_key: str | None = None
    clock: str | None = None
    local: LocalEndpoint | None = None

    def for_peer(self, peer: Endpoint) -> Endpoint:
        """Return this endpoint as `peer` may know it: with that peer's password for the local socket and no other."""
        if self.local is None:
            return self
        return replace(self, local=self.local.for_sender(peer.public_key) if peer.public_key else None)


class Transport(Protocol):
    """Sends messages to peers and receives theirs, in order for each pair of devices.

    One thread receives. `send` and `wake` may be called from any thread.
    """

    @property
    def endpoint(self) -> Endpoint:
        """The address at which peers reach this transport."""

    def connect(self, peers: Iterable[Endpoint]) -> None:
        """Add these peers, or replace the addresses of known ones. Other known peers stay."""

    def disconnect(self, peer_index: int) -> None:
        """Forget a peer and the messages that wait for it. A peer that is not known is ignored."""

    def send(self, peer_index: int, message: Message) -> None:
        """Hand over the message without waiting. Its arrays must not change until they have been sent.

        Raises:
            ClusterError: the peer is not known, or does not take messages.
        """

    def receive(self, timeout_seconds: float) -> Message | None:
        """Return the next message; None if none comes in time, or after `wake`.

        Raises:
            DeliveryFailed: an earlier message could not be sent. The transport goes on.
            ClusterError: the transport is closed or broken.
        """

    def wake(self) -> None:
        """Make the current or the next `receive` that finds no message return None."""

    def close(self) -> None:
        """Release threads and sockets. Safe to call twice."""


def own_clock() -> str | None:
    """Return the name of this process's monotonic clock: the boot and the time namespace that it counts from.

    The name includes the network namespace. Messages between two network namespaces cross a real network, as between
    hosts, and its time comes on top of an emulated latency.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')} {os.readlink('/proc/self/ns/net')}"
    except OSError:
        return None


def unknown_peer(endpoint: Endpoint, peer_index: int, peers: Mapping[int, Endpoint]) -> ClusterError:
    """Return the error for a message to a peer that was not passed to `connect`."""
    known = ", ".join(f"{index} ({peers[index].name})" for index in sorted(peers)) or "none"
    return ClusterError(
        f"Device {endpoint.name} cannot send to peer {peer_index}: only these are known: {known}. "
        "Call connect() with its endpoint first."
    )


def not_taken(endpoint: Endpoint, peer: Endpoint, waiting: str) -> ClusterError:
    """Return the error for a message to a peer that does not take messages."""
    return ClusterError(
        f"{peer.name} at {peer.address} broke off the handshake with {endpoint.name}, or {waiting} wait for it. "
        "Is it stuck, or is another program or a worker of another cluster at that port?"
    )


def too_large(nbytes: int, max_nbytes: int) -> ClusterError:
    """Return the error for an array that peers would refuse."""
    return ClusterError(
        f"an array of {nbytes / 1e6:.0f} MB is too large for a message: at most {max_nbytes / 1e6:.0f} MB can be sent "
        "at once. Split the layers around it over more devices."
    )


class InMemoryHub:
    """The queues that the in-memory transports of one test share, one per address."""

    def __init__(self) -> None:
        self.queues: dict[str, queue.SimpleQueue[Message | None]] = {}


class InMemoryTransport:
    """A transport within one process. It encodes and decodes messages, as a network transport does."""

    def __init__(self, index: int, name: str, hub: InMemoryHub) -> None:
        self.endpoint = Endpoint(index, name, f"memory://{index}", clock=own_clock())
        self._hub = hub
        self._peers: dict[int, Endpoint] = {}
        self._queue = hub.queues[self.endpoint.address] = queue.SimpleQueue()

    def connect(self, peers: Iterable[Endpoint]) -> None:
        self._peers.update({peer.index: peer for peer in peers})

    def disconnect(self, peer_index: int) -> None:
        self._peers.pop(peer_index, None)

    def send(self, peer_index: int, message: Message) -> None:
        """Copy the arrays and send them. A message to a closed transport is lost, as on a network."""
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
