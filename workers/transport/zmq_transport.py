"""Messages over ZeroMQ: one PULL socket for what comes in, one PUSH socket per peer for what goes out.

    device 0                    device 1
    PUSH to 1  -------------->  PULL  <---- PUSH of 2, 3, ...
    PULL       <--------------  PUSH to 0

With encryption (CURVE) every transport makes its own key pair, and lets in only the keys of peers that
`connect` was told of. Keys travel over the control plane, inside `Endpoint`.

Processes on one machine may take a short cut: a second PULL socket that no network leads to, with a password and in
the clear, for encrypting takes longer there than the way.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import select
import sys
import threading
import time
from collections.abc import Iterable

import zmq
from zmq.utils import z85

from coedge.core.errors import ClusterError, ConfigError
from workers.transport.message import MalformedMessage, Message, decode, encode
from workers.transport.transport import MAX_TIMEOUT_SECONDS, Endpoint, LocalEndpoint, own_clock, unknown_peer

log = logging.getLogger(__name__)

# Below it a copy is cheaper than telling Python, later and from another thread, that the array is free.
# (Above it malloc maps fresh pages for each copy.)
COPY_BELOW_NBYTES = 131_072
MAX_PART_NBYTES = 2 << 30
LINGER_MS = 500
HANDSHAKE_MS = 10_000
RECONNECT_MS = 20
RECONNECT_MAX_MS = 500
KEEPALIVE_IDLE_SECONDS = 10
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_PROBES = 3
MAX_SELECT_DESCRIPTOR = 1024
# A thread that sleeps wakes 30 to 50 us late: what comes soon is awaited awake, while nobody else wants the core.
SPIN_SECONDS = 0.0001

_ZAP_DOMAIN = b"coedge"
_USER = b"coedge"
_WAKE_ADDRESS = "inproc://wake"
_give_way = getattr(os, "sched_yield", functools.partial(time.sleep, 0))  # not every system has it


class ZmqTransport:
    """A `Transport` over TCP.

    One thread receives; `send`, `connect` and `wake` are for any thread, `close` for when no other call
    runs. Large arrays are sent without a copy, by a background thread, possibly after `send` returned: an
    array that was sent must not be written to before its receiver is known to have it.

    Args:
        host: address of a local interface that peers can reach.
        port: 0 takes a free one; `endpoint` has the real one.
        spin_seconds: how long `receive` stays awake before it sleeps; 0 where other devices need the core.
        local: whether peers on this machine may come in the clear, past the network; only with encryption, and
            where the system has sockets that are no files (Linux).

    Attributes:
        endpoint: to be given to the peers' `connect`.
        dropped: how many malformed messages came.

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
        self._gate: _Authenticator | None = None
        self._secret_key = b""
        public_key = b""
        self._pull = self._context.socket(zmq.PULL)
        self._pulls = [self._pull]
        self._wake = self._context.socket(zmq.PUSH)
        if encrypted:
            public_key, self._secret_key = zmq.curve_keypair()
            self._gate = _Authenticator(self._context, name)
            self._pull.curve_server = True
            self._pull.curve_secretkey = self._secret_key
            self._pull.zap_domain = _ZAP_DOMAIN
            self._pull.zap_enforce_domain = True  # nobody gets in if the gate is not there
        self._public_key = public_key
        address = f"tcp://[{host}]" if ":" in host else f"tcp://{host}"
        self._configure(self._pull, address)
        try:
            self._pull.bind(f"{address}:{port or '*'}")
        except zmq.ZMQError as error:
            self.close()
            raise ClusterError(
                f"Device {name} cannot listen on {host}, port {port}: {error}. "
                "Is the port taken, or the address one of another machine?"
            ) from error
        address = self._pull.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        clock, near = own_clock(), None
        if local and self._gate and clock and sys.platform == "linux":
            near = LocalEndpoint(f"ipc://@coedge-{secrets.token_hex(16)}", secrets.token_urlsafe(32))
            self._pulls.append(self._listen_near(near, self._gate))
        self.endpoint = Endpoint(index, name, address, public_key.decode() or None, clock, near)
        self._wake_token = os.urandom(16)
        self._pull.bind(_WAKE_ADDRESS)
        self._wake.connect(_WAKE_ADDRESS)
        self._descriptors = [pull.fileno() for pull in self._pulls]

    def connect(self, peers: Iterable[Endpoint]) -> None:
        """Open a socket to each new peer, and anew to one whose address or key changed.

        Raises:
            ClusterError: one of the two encrypts and the other does not.
        """
        peers = list(peers)
        for peer in peers:
            if (peer.public_key is None) != (self._gate is None):
                modes = "encrypts", "does not"
                ours, theirs = modes if self._gate else modes[::-1]
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
            if self._gate:
                self._gate.allowed = frozenset(p.public_key for p in self._peers.values() if p.public_key)
            for peer in peers:
                if peer.index not in self._sockets and peer.index != self.endpoint.index:
                    self._open_socket(peer)

    def send(self, peer_index: int, message: Message) -> None:
        """Queue the message for a peer. Never waits: a peer that is away gets it when it is back.

        Raises:
            ClusterError: the peer is unknown, or its process refused the connection for good.
        """
        header, buffers = encode(message)
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
            try:
                socket.send(header, zmq.NOBLOCK | (more if buffers else 0))
                for place, buffer in enumerate(buffers):
                    flags = zmq.NOBLOCK if place == last else zmq.NOBLOCK | more
                    socket.send(buffer, flags, copy=buffer.nbytes < COPY_BELOW_NBYTES)
            except zmq.Again as error:
                self._drop_socket(peer_index)
                peer = self._peers[peer_index]
                raise ClusterError(
                    f"{peer.name} at {peer.address} broke off the handshake with {self.endpoint.name}. "
                    "Is another program at that port, or a worker of another cluster?"
                ) from error

    def receive(self, timeout_seconds: float) -> Message | None:
        """The next message; None if none comes in time, or after `wake`."""
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
            frame = pull.recv(zmq.NOBLOCK, copy=False)
            parts = [frame.buffer]
            while frame.more:
                frame = pull.recv(copy=False)
                parts.append(frame.buffer)
            try:
                return decode(parts[0], parts[1:])
            except MalformedMessage as error:
                if parts[0] == self._wake_token:
                    return None
                self._count_dropped(error)
            if time.monotonic() > deadline:  # a stream of rubbish must not hold the caller beyond its time
                return None

    def wake(self) -> None:
        """Make the current or the next `receive` that finds no message return None. For any thread."""
        with self._lock:
            if not self._closed:
                self._wake.send(self._wake_token, zmq.NOBLOCK)

    def close(self) -> None:
        """Close all sockets; what was sent gets half a second more to leave."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for socket in (*self._pulls, self._wake, *self._sockets.values()):
                socket.close(LINGER_MS)
            self._sockets.clear()
            self._context.term()  # ends the gate's thread, which closes its own socket
            if self._gate:
                self._gate.join()

    def _readable(self) -> zmq.Socket[bytes] | None:
        """A socket with a message. Where both have one they take turns."""
        for place, pull in enumerate(self._pulls):
            if int(pull.get(zmq.EVENTS)) & zmq.POLLIN:
                self._pulls.append(self._pulls.pop(place))
                return pull
        return None

    def _wait(self, seconds: float) -> None:
        """Until something may have come. libzmq itself waits for whole milliseconds only; emulated links need less."""
        sleeps_at = time.monotonic() + min(self._spin_seconds, seconds)
        while time.monotonic() < sleeps_at:
            if self._readable() is not None:
                return
            _give_way()
        if max(self._descriptors) < MAX_SELECT_DESCRIPTOR:
            select.select(self._descriptors, [], [], seconds)
        else:
            zmq.select(self._pulls, [], [], seconds)

    def _listen_near(self, near: LocalEndpoint, gate: _Authenticator) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PULL)
        gate.password = near.password.encode()
        socket.plain_server = True
        socket.zap_domain = _ZAP_DOMAIN
        socket.zap_enforce_domain = True
        self._configure(socket, near.address)
        socket.bind(near.address)
        return socket

    def _open_socket(self, peer: Endpoint) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        address = peer.address
        if peer.local and self.endpoint.local and peer.clock == self.endpoint.clock:
            address = peer.local.address
            socket.plain_username, socket.plain_password = _USER, peer.local.password.encode()
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
        return socket

    def _drop_socket(self, peer_index: int) -> None:
        socket = self._sockets.pop(peer_index, None)
        if socket is not None:
            socket.close(0)

    def _configure(self, socket: zmq.Socket[bytes], address: str) -> None:
        socket.linger = LINGER_MS
        socket.sndhwm = socket.rcvhwm = 0  # memory is bounded by the program's credits
        socket.maxmsgsize = MAX_PART_NBYTES
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

    def _count_dropped(self, error: MalformedMessage) -> None:
        self.dropped += 1
        if self.dropped == 1:
            log.warning("%s dropped a malformed message (further ones: no log): %s", self.endpoint.name, error)


class _Authenticator:
    """Answers the library's question (ZAP, RFC 27) whether a key, or a password, may come in.

    A key that is not known *yet* is not refused, it waits: peers learn of each other at slightly different
    times, and libzmq silently gives up a connection for good after a refusal. A stranger's handshake times
    out.
    """

    POLL_MS = 10
    MAX_WAITING = 1024

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], name: str) -> None:
        self.allowed: frozenset[str] = frozenset()
        self.password = b""
        self._socket = context.socket(zmq.ROUTER)
        self._socket.bind("inproc://zeromq.zap.01")
        self._waiting: list[tuple[float, str, list[bytes]]] = []  # (time it came, key, reply)
        self._thread = threading.Thread(target=self._run, name=f"{name}-gate", daemon=True)
        self._thread.start()
        self.join = self._thread.join

    def _run(self) -> None:
        try:
            while True:
                if self._socket.poll(self.POLL_MS if self._waiting else None):
                    self._ask(self._socket.recv_multipart())
                self._admit()
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close(0)

    def _ask(self, parts: list[bytes]) -> None:
        route, empty, version, request, domain, _address, _identity, mechanism, *credentials = parts
        if domain != _ZAP_DOMAIN:
            return
        reply = [route, empty, version, request, b"200", b"OK", b"", b""]
        if mechanism == b"PLAIN" and len(credentials) == 2:
            # Who has the password was told of this device: there is nobody to wait for.
            if self.password and secrets.compare_digest(credentials[1], self.password):
                self._socket.send_multipart(reply)
        elif mechanism == b"CURVE" and len(credentials) == 1:
            self._waiting.append((time.monotonic(), z85.encode(credentials[0]).decode(), reply))
            del self._waiting[: -self.MAX_WAITING]

    def _admit(self) -> None:
        oldest = time.monotonic() - HANDSHAKE_MS / 1000
        for _, key, reply in self._waiting:
            if key in self.allowed:
                self._socket.send_multipart(reply)
        self._waiting = [item for item in self._waiting if item[0] > oldest and item[1] not in self.allowed]
