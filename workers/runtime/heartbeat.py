"""Heartbeats: signs of life between devices, and the peers that a device does not hear.

    every detect_seconds / 4    a thread of each device sends a heartbeat to every peer and to the client
    any message                 counts as a sign of life of its sender

A peer is silent if the queue was found empty `detect_seconds` after its last message was taken. Time in which the loop
runs a kernel and takes no messages therefore does not count. A heartbeat to the client names the silent peers. It also
says for how much longer the device may be silent because it builds sessions, which keeps its threads from running.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from workers.transport.message import Message, MessageKind
from workers.transport.transport import Transport

log = logging.getLogger(__name__)

# An empty queue says nothing about messages that the transport has not passed on yet, as after a stop of the process.
SETTLE_SECONDS = 0.05
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
        self._emptied = self._begun = clock()

    def expect(self, peers: Iterable[int]) -> None:
        """Begin to listen to peers, now."""
        self._heard = {**self._heard, **dict.fromkeys(peers, self._clock())}

    def forget(self, peer: int) -> None:
        """Stop listening to a peer."""
        self._heard = {other: heard for other, heard in self._heard.items() if other != peer}

    @property
    def beat_seconds(self) -> float:
        """Time between two heartbeats."""
        return self.detect_seconds / BEATS

    def now(self) -> float:
        """Return the time on the clock of this object."""
        return self._clock()

    def heard(self, peer: int) -> float:
        """Take note of a message, and return the seconds since the one before. Others than the peers are ignored."""
        before, now = self._heard.get(peer), self._clock()
        if before is None:
            return 0.0
        self._heard[peer] = now
        return now - before

    def emptied(self) -> None:
        """Take note that no message waits: all that came `SETTLE_SECONDS` ago or earlier were taken."""
        now = self._clock()
        if now - self._begun >= SETTLE_SECONDS:
            self._emptied, self._begun = self._begun, now

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
        self._lock, self._patience = threading.Lock(), 0.0
        name = f"{transport.endpoint.name}-heart"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    @contextlib.contextmanager
    def silent_for(self, seconds: float) -> Iterator[None]:
        """Tell the client that this device may be silent for so much longer, until the context ends."""
        self._add(seconds)
        try:
            yield
        finally:
            self._add(-seconds)

    def _add(self, seconds: float) -> None:
        with self._lock:
            self._patience = max(0.0, self._patience + seconds)
        if (client := self._client()) is not None:
            self._beat(client)

    def _run(self) -> None:
        while not self._stopping.wait(self._hearing.beat_seconds):
            for peer in list(self._peers()):
                self._beat(peer)

    def _beat(self, peer: int) -> None:
        silent = self._hearing.silent if peer == self._client() else ()
        arrays = (np.array(silent, np.int32),) if silent else ()
        with contextlib.suppress(Exception), self._lock:  # a peer that does not take messages is found by its silence
            index, channel = self._transport.endpoint.index, round(1e3 * self._patience)
            self._transport.send(peer, Message(MessageKind.HEARTBEAT, index, channel=channel, arrays=arrays))
