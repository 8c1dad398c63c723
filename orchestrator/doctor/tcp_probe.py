"""Connections between two machines: whether they can be made, and the rate of a short transfer.

The receiver decides when a transfer ends, so a slow link with long queues is measured in the same time:

    sender     "T", seconds as float64     data ...
    receiver                                          after the seconds: nbytes, seconds as float64

As `node_probe`, the code is sent to nodes by value and uses the standard library only.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

# Formats of `struct`. Compiled ones cannot be pickled.
REQUEST, ANSWER = "!cd", "!dd"
BLOCK_NBYTES = 1 << 18
# Time that the answer may take on the way.
ANSWER_SECONDS = 1.0
# Part of a transfer that is not counted, while TCP finds its rate.
WARM_UP = 0.2
LIFE_SECONDS = 60.0


class TcpProbe:
    """A listener on a free port, and connections to those of others."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def listen(self, host: str) -> int:
        """Listen on a free port of an address, for a minute. Return the port.

        Raises:
            OSError: this machine has no such address.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=64)
        self._listener.settimeout(LIFE_SECONDS)
        threading.Thread(target=_accept, args=(self._listener,), name="coedge-doctor-accept", daemon=True).start()
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()

    def reach(self, targets: Mapping[str, tuple[str, int]], seconds: float) -> dict[str, tuple[str, float]]:
        """Connect to others at the same time. Return, by name, the problem, empty if none, and the time to connect."""

        def connect(target: tuple[str, int]) -> tuple[str, float]:
            start = time.monotonic()
            try:
                with socket.create_connection(target, timeout=seconds):
                    return "", time.monotonic() - start
            except TimeoutError:
                return f"no answer within {seconds:g} s", seconds
            except OSError as error:
                return error.strerror or str(error), time.monotonic() - start

        if not targets:
            return {}
        with ThreadPoolExecutor(min(16, len(targets))) as threads:
            return dict(zip(targets, threads.map(connect, targets.values())))

    def rate(self, target: tuple[str, int], seconds: float) -> float:
        """Return the bytes per second of a transfer of `seconds`.

        Raises:
            OSError: nothing arrived, or the connection ended.
        """
        give_up = time.monotonic() + seconds + ANSWER_SECONDS
        block = memoryview(bytes(BLOCK_NBYTES))
        with socket.create_connection(target, timeout=ANSWER_SECONDS) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK_NBYTES)
            connection.sendall(struct.pack(REQUEST, b"T", seconds))
            connection.setblocking(False)
            while (left := give_up - time.monotonic()) > 0:
                readable, writable, _ = select.select([connection], [connection], [], left)
                if readable:
                    return _rate(connection)
                if writable:
                    with contextlib.suppress(BlockingIOError):
                        connection.send(block)
        raise TimeoutError(f"the receiver counted no bytes within {seconds + ANSWER_SECONDS:g} s")


def _rate(connection: socket.socket) -> float:
    connection.settimeout(ANSWER_SECONDS)
    answer, size = b"", struct.calcsize(ANSWER)
    while len(answer) < size and (more := connection.recv(size - len(answer))):
        answer += more
    if len(answer) < size:
        raise ConnectionError("the receiver closed the connection")
    nbytes, seconds = struct.unpack(ANSWER, answer)
    if not nbytes or seconds <= 0:
        raise TimeoutError("nothing of the transfer arrived")
    return float(nbytes / seconds)


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed, or the minute is over
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), name="coedge-doctor-serve", daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError, struct.error):
        connection.settimeout(ANSWER_SECONDS)
        kind, seconds = struct.unpack(REQUEST, connection.recv(struct.calcsize(REQUEST), socket.MSG_WAITALL))
        if kind == b"T":
            connection.sendall(struct.pack(ANSWER, *_count(connection, min(seconds, 5.0))))
            _drain(connection)


def _count(connection: socket.socket, seconds: float) -> tuple[float, float]:
    """Return how many bytes arrive after the warm-up, and in which time."""
    into, start = bytearray(BLOCK_NBYTES), time.monotonic()
    end, counted_from = start + seconds, start + WARM_UP * seconds
    nbytes, total = 0, 0
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            more = connection.recv_into(into)
        except TimeoutError:
            break
        if not more:
            break
        total += more
        if time.monotonic() >= counted_from:
            nbytes += more
    # A link so slow that all bytes came at the beginning is counted from the start.
    return (nbytes, seconds * (1 - WARM_UP)) if nbytes else (total, seconds)


def _drain(connection: socket.socket) -> None:
    """Read on until the sender has the answer: closing with unread data could destroy it on the way."""
    give_up = time.monotonic() + ANSWER_SECONDS
    while (left := give_up - time.monotonic()) > 0:
        connection.settimeout(left)
        if not connection.recv(BLOCK_NBYTES):
            return
