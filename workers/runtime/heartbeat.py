"""Heartbeats: signs of life between devices, and the peers that a device does not hear.

    every detect_seconds / 4    a thread of each device sends a heartbeat to every peer and to the client
    any message                 counts as a sign of life of its sender

A peer is silent if the queue was found empty `detect_seconds` after its last message was taken. Time in which the loop
runs a kernel and takes no messages therefore does not count. A heartbeat to the client names the silent peers.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable

import numpy as np

from workers.transport.message import Message, MessageKind
from workers.transport.transport import Transport

log = logging.getLogger(__name__)

BEATS = 4  # in `detect_seconds`, so that one late heartbeat is no silence


class Hearing:
    """When each peer was heard. One thread writes, any thread reads.

    Args:
        detect_seconds: silence after which a peer counts as silent.
        clock: monotonic, seconds.
    """

    def __init__(self, detect_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.detect_seconds = detect_seconds
        self._clock = clock
        self._heard: dict[int, float] = {}
        self._emptied = clock()

    def expect(self, peers: Iterable[int]) -> None:
        """Begin to listen to peers, now."""
        self._heard = {**self._heard, **dict.fromkeys(peers, self._clock())}

    def forget(self, peer: int) -> None:
        """Stop listening to a peer."""
        self._heard = {other: heard for other, heard in self._heard.items() if other != peer}

    def heard(self, peer: int) -> None:
        """Take note of a message. Peers that are not listened to are ignored."""
        if peer in self._heard:
            self._heard[peer] = self._clock()

    def now(self) -> float:
        """Return the time, for `emptied`."""
        return self._clock()

    def emptied(self, begun: float) -> None:
        """Take note that a `receive` that began at a time found no message.

        The time of its end would not do: the process may have been stopped after it had looked.
        """
        self._emptied = begun

    def silent_seconds(self, peer: int) -> float:
        """Return for how long a peer is known to be silent; 0 for a peer that is not listened to."""
        return max(0.0, self._emptied - self._heard.get(peer, self._emptied))

    @property
    def silent(self) -> tuple[int, ...]:
        """The peers that are silent, ascending."""
        return tuple(sorted(peer for peer in self._heard if self.silent_seconds(peer) > self.detect_seconds))


class Heart:
    """A thread that sends heartbeats until `stop`.

    Args:
        transport: sends them as they are: an emulated link does not delay them.
        peers: the indices of the peers, read at each beat.
        client: index of the client, which is told of silent peers; None: this is the client.
    """

    def __init__(
        self,
        transport: Transport,
        hearing: Hearing,
        peers: Callable[[], Iterable[int]],
        client: Callable[[], int | None],
    ) -> None:
        self._transport, self._hearing, self._peers, self._client = transport, hearing, peers, client
        self._stopping = threading.Event()
        name = f"{transport.endpoint.name}-heart"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._hearing.detect_seconds / BEATS):
            for peer in list(self._peers()):
                silent = self._hearing.silent if peer == self._client() else ()
                arrays = (np.array(silent, np.int32),) if silent else ()
                message = Message(MessageKind.HEARTBEAT, self._transport.endpoint.index, arrays=arrays)
                # A peer that does not take messages is found by its silence.
                with contextlib.suppress(Exception):
                    self._transport.send(peer, message)
