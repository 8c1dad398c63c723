"""Admission of connections: which public key may connect, and under which name its messages arrive."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable

import zmq
from zmq.utils import z85

from workers.transport.transport import LocalEndpoint

log = logging.getLogger(__name__)

ZAP_DOMAIN = b"coedge"
HANDSHAKE_MS = 10_000
_ZAP_ADDRESS = "inproc://zeromq.zap.01"


class Authenticator:
    """A thread that answers libzmq's authentication requests (ZAP, RFC 27).

    The user id of an admitted connection is the peer's public key in Z85. libzmq attaches it to every message of the
    connection, so the receiver knows the sender.

    - CURVE (network): the handshake proves that the peer has the secret key.
    - PLAIN (local socket): the user name is the public key, the password is the one that `LocalEndpoint.for_sender`
      derives for that key.

    A request with a key that is not allowed *yet* is not refused but waits. Peers learn of each other at slightly
    different times, and libzmq silently gives up a connection for good after a refusal. The handshake of a stranger
    times out.

    Args:
        local: the local socket's own endpoint, with the receiver's secret. None: there is no local socket.
        on_failure: called from the thread if it cannot go on.

    Attributes:
        allowed: public keys that may connect.
        failure: why the thread ended before `context` did; None: it runs, or ended with the context.
    """

    POLL_MS = 10
    MAX_WAITING = 1024

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        name: str,
        local: LocalEndpoint | None,
        on_failure: Callable[[], None],
    ) -> None:
        self.allowed: frozenset[str] = frozenset()
        self.failure: BaseException | None = None
        self._local, self._on_failure = local, on_failure
        self._socket = context.socket(zmq.ROUTER)
        self._socket.bind(_ZAP_ADDRESS)
        self._waiting: list[tuple[float, str, list[bytes]]] = []  # (time of arrival, key, reply)
        self._thread = threading.Thread(target=self._run, name=f"{name}-authenticator", daemon=True)
        self._thread.start()
        self.join = self._thread.join

    def _run(self) -> None:
        try:
            while True:
                if self._socket.poll(self.POLL_MS if self._waiting else None):
                    self._take_request(self._socket.recv_multipart())
                self._admit()
        except zmq.ContextTerminated:
            pass
        except BaseException as error:  # no peer can connect any more: the receiving thread reports it
            self.failure = error
            self._on_failure()
        finally:
            self._socket.close(0)

    def _take_request(self, parts: list[bytes]) -> None:
        """Queue a request. A malformed one is dropped."""
        try:
            route, empty, version, request, domain, _address, _identity, mechanism, *credentials = parts
            if domain != ZAP_DOMAIN:
                return
            key = self._public_key(mechanism, credentials)
        except ValueError as error:
            log.warning("an authentication request is malformed: %s", error)
            return
        if key is not None:
            reply = [route, empty, version, request, b"200", b"OK", key.encode(), b""]
            self._waiting.append((time.monotonic(), key, reply))
            del self._waiting[: -self.MAX_WAITING]

    def _public_key(self, mechanism: bytes, credentials: list[bytes]) -> str | None:
        """Return the public key that the credentials prove; None if they prove none.

        Raises:
            ValueError: the credentials are malformed.
        """
        if mechanism == b"CURVE":
            (key,) = credentials
            return z85.encode(key).decode()
        if mechanism == b"PLAIN" and self._local is not None:
            user, password = credentials
            expected = self._local.for_sender(user.decode()).secret
            return user.decode() if secrets.compare_digest(password, expected.encode()) else None
        return None

    def _admit(self) -> None:
        """Answer the waiting requests whose keys are allowed, and forget those that waited too long."""
        oldest = time.monotonic() - HANDSHAKE_MS / 1000
        waiting, self._waiting = self._waiting, []
        allowed = self.allowed
        for came, key, reply in waiting:
            if key in allowed:
                self._socket.send_multipart(reply)
            elif came > oldest:
                self._waiting.append((came, key, reply))
