"""Messages over ZeroMQ: one PULL socket for incoming messages, one PUSH socket per peer for outgoing ones.

    device 0                    device 1
    PUSH to 1  -------------->  PULL  <---- PUSH of 2, 3, ...
    PULL       <--------------  PUSH to 0

With encryption (CURVE) every transport makes its own key pair and admits only the keys of peers that `connect` was
given. Keys travel over the control plane, inside `Endpoint`. A message is accepted only if the device index in its
header belongs to the key of its connection. Without encryption nothing proves who sent a message.

Processes of one machine and user may use a second PULL socket, a Unix socket in a private folder. Its messages are not
encrypted, because on one machine encryption takes longer than the transfer. Passwords prove who connects to it.

Undelivered messages are bounded at both ends, in number and in bytes:

    at the receiver    `MAX_RECEIVED_AHEAD` messages of each connection, and arrays of at most `MAX_ARRAY_NBYTES`. The
                       receiver stops reading a connection that has more messages, and closes one with a larger array.
    at the sender      `MAX_UNDELIVERED` messages for each peer, and `MAX_UNDELIVERED_NBYTES` in large arrays. Then
                       `send` fails.

libzmq offers no limit for the number of parts of one message. Only peers whose keys were admitted can abuse that.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import select
import threading
import time
from collections.abc import Iterable

import zmq

from coedge.core.errors import ClusterError, ConfigError
from workers.transport.authenticator import HANDSHAKE_MS, ZAP_DOMAIN, Authenticator
from workers.transport.local_socket import SocketFolder, is_reachable
from workers.transport.message import MalformedMessage, Message, decode, encode
from workers.transport.outbox import Outbox
from workers.transport.transport import (
    MAX_TIMEOUT_SECONDS,
    MAX_UNDELIVERED,
    MAX_UNDELIVERED_NBYTES,
    Endpoint,
    LocalEndpoint,
    not_taken,
    own_clock,
    too_large,
    unknown_peer,
)

log = logging.getLogger(__name__)

# Below it a copy is cheaper than telling Python, later and from another thread, that the array is free.
# (Above it malloc maps fresh pages for each copy.)
COPY_BELOW_NBYTES = 131_072
# The kernel's socket buffers hold further messages, so a few suffice to keep a connection busy.
MAX_RECEIVED_AHEAD = 4
MAX_ARRAY_NBYTES = 256 << 20  # a float32 feature map of 1024 x 1024 with 64 channels
CURVE_NBYTES = 64  # encryption makes a part longer by 33 bytes
LINGER_MS = 500
RECONNECT_MS = 20
RECONNECT_MAX_MS = 500
KEEPALIVE_IDLE_SECONDS = 10
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_PROBES = 3
MAX_SELECT_DESCRIPTOR = 1024
# A sleeping thread wakes 30 to 50 us late, so `receive` first polls for this long, while no other thread needs the
# core.
SPIN_SECONDS = 0.0001

_USER_ID = "User-Id"  # of ZeroMQ: what the authenticator calls the connection's peer
_WAKE_ADDRESS = "inproc://wake"
_yield_core = getattr(os, "sched_yield", functools.partial(time.sleep, 0))  # not every system has it


class ZmqTransport:
    """A `Transport` over TCP.

    One thread receives. `send`, `connect` and `wake` may be called from any thread, `close` when no other call runs.
    Large arrays are sent without a copy, by a background thread, possibly after `send` returned. An array that was
    sent must not be written to before its receiver is known to have it.

    Args:
        host: address of a local interface that peers can reach.
        port: 0 takes a free one; `endpoint` has the real one.
        spin_seconds: how long `receive` polls before it sleeps; 0 where other devices need the core.
        local: whether peers on this machine may use a Unix socket without encryption. It needs `encrypted` and Linux.

    Attributes:
        endpoint: the argument for the peers' `connect`.
        dropped: number of messages that were malformed or whose sender was not the one in their header.

    Raises:
        ClusterError: the port cannot be bound.
        ConfigError: no peer can connect to `host`.
    """

    def __init__(
        self,
        index: int,
        name: str,
        host: str = "127.0.0.1",
        port: int = 0,
        encrypted: bool = True,
        spin_seconds: float = SPIN_SECONDS,
        local: bool = False,
    ) -> None:
        if host in ("", "*", "0.0.0.0", "::"):
            raise ConfigError(
                f"Device {name}: {host!r} stands for every interface, so peers cannot connect to it. "
                "Give the address of the interface that the peers reach."
            )
        self.dropped = 0
        self._spin_seconds = spin_seconds
        self._context = zmq.Context()
        self._lock = threading.Lock()  # guards the peers, their sockets, the wake socket and closing
        self._closed = False
        self._peers: dict[int, Endpoint] = {}
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._outboxes: dict[int, Outbox] = {}
        self._authenticator: Authenticator | None = None
        self._folder: SocketFolder | None = None
        self._public_key, self._secret_key = zmq.curve_keypair() if encrypted else (b"", b"")
        self._pull = self._context.socket(zmq.PULL)
        self._pulls = [self._pull]
        self._wake = self._context.socket(zmq.PUSH)
        self._wake_token = os.urandom(16)
        self._pull.bind(_WAKE_ADDRESS)
        self._wake.connect(_WAKE_ADDRESS)
        clock = own_clock()
        local_endpoint = self._local_endpoint(name) if local and encrypted and clock and zmq.has("ipc") else None
        if encrypted:
            self._authenticator = Authenticator(self._context, name, local_endpoint, self.wake)
            self._pull.curve_server = True
            self._pull.curve_secretkey = self._secret_key
            _require_authentication(self._pull)
        try:
            address = self._bind(name, host, port)
            if local_endpoint is not None:
                self._pulls.append(self._bind_locally(local_endpoint))
        except BaseException:
            self.close()
            raise
        self.endpoint = Endpoint(index, name, address, self._public_key.decode() or None, clock, local_endpoint)
        self._descriptors = [pull.fileno() for pull in self._pulls]

    def connect(self, peers: Iterable[Endpoint]) -> None:
        """Open a socket to each new peer, and a new one to each peer whose address or key changed.

        Raises:
            ClusterError: one of the two encrypts and the other does not, or the address of a peer is wrong.
        """
        peers = list(peers)
        for peer in peers:
            if (peer.public_key is None) != (self._authenticator is None):
                modes = "encrypts", "does not"
                ours, theirs = modes if self._authenticator else modes[::-1]
                raise ClusterError(
                    f"Device {self.endpoint.name} {ours}, its peer {peer.name} {theirs}. "
                    "Give all devices the same encryption setting."
                )
        with self._lock:
            self._check_open()
            for peer in peers:
                if self._peers.get(peer.index) != peer:
                    self._peers[peer.index] = peer
                    self._drop_socket(peer.index)
            self._admit_peers()
            for peer in peers:
                if peer.index not in self._sockets and peer.index != self.endpoint.index:
                    self._open_socket(peer)

    def disconnect(self, peer_index: int) -> None:
        """Forget a peer and the messages that wait for it. Its messages are refused from now on."""
        with self._lock:
            if not self._closed and self._peers.pop(peer_index, None) is not None:
                self._drop_socket(peer_index)
                self._admit_peers()

    def send(self, peer_index: int, message: Message) -> None:
        """Queue the message for a peer without waiting. A peer that is away gets it when it is back.

        Raises:
            ClusterError: the peer is unknown, or an array has more than `MAX_ARRAY_NBYTES`, or the peer's process
                refused the connection for good, or too many messages or bytes wait for it. Messages that wait for
                such a peer are discarded.
        """
        header, buffers = encode(message)
        largest = max((buffer.nbytes for buffer in buffers), default=0)
        if largest > MAX_ARRAY_NBYTES:
            raise too_large(largest, MAX_ARRAY_NBYTES)
        with self._lock:
            self._check_open()
            socket = self._sockets.get(peer_index)
            if socket is None:
                peer = self._peers.get(peer_index)
                if peer is None:
                    raise unknown_peer(self.endpoint, peer_index, self._peers)
                socket = self._open_socket(peer)
            more = zmq.SNDMORE
            last = len(buffers) - 1
            outbox = self._outboxes[peer_index]
            large = sum(buffer.nbytes for buffer in buffers if buffer.nbytes >= COPY_BELOW_NBYTES)
            if large and not outbox.has_room(large):
                self._drop_socket(peer_index)
                raise not_taken(self.endpoint, self._peers[peer_index], f"{outbox.nbytes / 1e6:.0f} MB")
            try:
                socket.send(header, zmq.NOBLOCK | (more if buffers else 0))
                for place, buffer in enumerate(buffers):
                    flags = zmq.NOBLOCK if place == last else zmq.NOBLOCK | more
                    if buffer.nbytes < COPY_BELOW_NBYTES:
                        socket.send(buffer, flags)
                    else:
                        outbox.add(socket.send(buffer, flags, copy=False, track=True), buffer.nbytes)
            except zmq.Again as error:
                self._drop_socket(peer_index)
                raise not_taken(self.endpoint, self._peers[peer_index], f"{MAX_UNDELIVERED} messages") from error

    def receive(self, timeout_seconds: float) -> Message | None:
        """Return the next message; None if none comes in time, or after `wake`.

        Raises:
            ClusterError: the transport is closed, or peers cannot be authenticated any more.
        """
        self._check_open()
        deadline = time.monotonic() + min(max(timeout_seconds, 0.0), MAX_TIMEOUT_SECONDS)
        while True:
            pull = self._readable()  # cheaper than a `zmq.Again`, and most calls find nothing
            if pull is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._wait(left)
                continue
            try:
                first = frame = pull.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:  # libzmq announces the user id of a new connection like a message
                continue
            parts = [frame.buffer]
            while frame.more:
                frame = pull.recv(copy=False)
                parts.append(frame.buffer)
            try:
                message = decode(parts[0], parts[1:])
                self._check_sender(first, message)
                return message
            except MalformedMessage as error:
                if parts[0] == self._wake_token:
                    self._check_open()
                    return None
                self._count_dropped(error)
            if time.monotonic() > deadline:  # invalid messages must not hold the caller longer than it asked for
                return None

    def wake(self) -> None:
        """Make the current or the next `receive` that finds no message return None. For any thread."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(zmq.Again):  # enough tokens wait already
                    self._wake.send(self._wake_token, zmq.NOBLOCK)

    def close(self) -> None:
        """Close all sockets. Messages that were sent get half a second more to leave."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for socket in (*self._pulls, self._wake, *self._sockets.values()):
                socket.close(LINGER_MS)
            self._sockets.clear()
            self._outboxes.clear()
        if self._folder:
            self._folder.close()
        self._context.term()  # ends the authenticator's thread, which closes its own socket
        if self._authenticator:
            self._authenticator.join()

    def _readable(self) -> zmq.Socket[bytes] | None:
        """Return a socket that has a message, or None. Sockets that both have one take turns."""
        for place, pull in enumerate(self._pulls):
            if int(pull.get(zmq.EVENTS)) & zmq.POLLIN:
                self._pulls.append(self._pulls.pop(place))
                return pull
        return None

    def _wait(self, seconds: float) -> None:
        """Wait until a message may have come. (libzmq waits for whole milliseconds; emulated links need less.)"""
        sleeps_at = time.monotonic() + min(self._spin_seconds, seconds)
        while time.monotonic() < sleeps_at:
            if self._readable() is not None:
                return
            _yield_core()
        if max(self._descriptors) < MAX_SELECT_DESCRIPTOR:
            select.select(self._descriptors, [], [], seconds)
        else:
            zmq.select(self._pulls, [], [], seconds)

    def _bind(self, name: str, host: str, port: int) -> str:
        """Listen on the network; the address."""
        address = f"tcp://[{host}]" if ":" in host else f"tcp://{host}"
        self._configure(self._pull, address)
        try:
            self._pull.bind(f"{address}:{port or '*'}")
        except zmq.ZMQError as error:
            raise ClusterError(
                f"Device {name} cannot listen on {host}, port {port}: {error}. "
                "Is the port taken, or the address one of another machine?"
            ) from error
        return self._pull.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def _local_endpoint(self, name: str) -> LocalEndpoint | None:
        """Make the folder of the local socket. None where that fails: then local peers use the network address."""
        try:
            self._folder = SocketFolder()
        except OSError as error:
            log.warning("%s has no local socket: %s", name, error)
            return None
        return LocalEndpoint(self._folder.address, secrets.token_urlsafe(32))

    def _bind_locally(self, local_endpoint: LocalEndpoint) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PULL)
        socket.plain_server = True
        _require_authentication(socket)
        self._configure(socket, local_endpoint.address)
        try:
            socket.bind(local_endpoint.address)
        except zmq.ZMQError as error:
            socket.close(0)
            raise ClusterError(f"cannot listen on {local_endpoint.address}: {error}") from error
        return socket

    def _open_socket(self, peer: Endpoint) -> zmq.Socket[bytes]:
        address = peer.address
        local_endpoint = peer.local if self.endpoint.local and peer.clock == self.endpoint.clock else None
        password = local_endpoint.for_sender(self._public_key.decode()).secret if local_endpoint else ""
        socket = self._context.socket(zmq.PUSH)
        if local_endpoint and is_reachable(local_endpoint.address):
            address = local_endpoint.address
            socket.plain_username, socket.plain_password = self._public_key, password.encode()
        elif peer.public_key:
            socket.curve_serverkey = peer.public_key.encode()
            socket.curve_publickey = self._public_key
            socket.curve_secretkey = self._secret_key
        self._configure(socket, address)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            socket.close(0)
            raise ClusterError(f"The address of {peer.name} is wrong: {address!r} ({error}).") from error
        self._sockets[peer.index] = socket
        self._outboxes[peer.index] = Outbox(MAX_UNDELIVERED_NBYTES)
        return socket

    def _admit_peers(self) -> None:
        """Let the keys of the known peers connect, and no others. Holds the lock."""
        if self._authenticator:
            self._authenticator.allowed = frozenset(p.public_key for p in self._peers.values() if p.public_key)

    def _drop_socket(self, peer_index: int) -> None:
        socket = self._sockets.pop(peer_index, None)
        if socket is not None:
            socket.close(0)

    def _configure(self, socket: zmq.Socket[bytes], address: str) -> None:
        socket.linger = LINGER_MS
        socket.sndhwm, socket.rcvhwm = MAX_UNDELIVERED, MAX_RECEIVED_AHEAD  # of each connection
        socket.maxmsgsize = MAX_ARRAY_NBYTES + CURVE_NBYTES
        socket.ipv6 = "[" in address
        socket.handshake_ivl = HANDSHAKE_MS
        socket.reconnect_ivl = RECONNECT_MS
        socket.reconnect_ivl_max = RECONNECT_MAX_MS
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = KEEPALIVE_IDLE_SECONDS
        socket.tcp_keepalive_intvl = KEEPALIVE_INTERVAL_SECONDS
        socket.tcp_keepalive_cnt = KEEPALIVE_PROBES

    def _check_open(self) -> None:
        if self._closed:
            raise ClusterError(f"The transport of device {self.endpoint.name} is closed.")
        if self._authenticator and self._authenticator.failure is not None:
            raise ClusterError(
                f"Device {self.endpoint.name} cannot authenticate peers any more: {self._authenticator.failure!r}. "
                "Restart its worker."
            ) from self._authenticator.failure

    def _check_sender(self, frame: zmq.Frame, message: Message) -> None:
        """Check that the connection of a message belongs to the device that its header names.

        Raises:
            MalformedMessage: it does not.
        """
        if self._authenticator is None:
            return
        peer = self._peers.get(message.sender)
        if peer is None or peer.public_key != frame.get(_USER_ID):
            named = "a device that is not known" if peer is None else peer.name
            raise MalformedMessage(f"it names device {message.sender} ({named}) as its sender and comes from another")

    def _count_dropped(self, error: MalformedMessage) -> None:
        self.dropped += 1
        if self.dropped == 1:
            log.warning("%s dropped an invalid message (further ones are not logged): %s", self.endpoint.name, error)


def _require_authentication(socket: zmq.Socket[bytes]) -> None:
    socket.zap_domain = ZAP_DOMAIN
    socket.zap_enforce_domain = True  # without the authenticator no peer can connect
