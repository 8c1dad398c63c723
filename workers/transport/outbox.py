"""The outbox of one peer: how many bytes wait in its socket. libzmq limits the number of messages only."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Tracker(Protocol):
    """The state of an array that ZeroMQ sends without a copy."""

    @property
    def done(self) -> bool:
        """Return whether ZeroMQ has sent the array or dropped it."""


class Outbox:
    """Counts the bytes of arrays that were handed over and have not been sent.

    Attributes:
        nbytes: of these arrays, when `has_room` or `add` was called last.
    """

    def __init__(self, max_nbytes: int) -> None:
        self.nbytes = 0
        self._max_nbytes = max_nbytes
        self._waiting: deque[tuple[Tracker, int]] = deque()

    def has_room(self, nbytes: int) -> bool:
        """Return whether so many bytes more may wait. An empty outbox has room for any number."""
        while self._waiting and self._waiting[0][0].done:  # a connection sends in order
            self.nbytes -= self._waiting.popleft()[1]
        return not self._waiting or self.nbytes + nbytes <= self._max_nbytes

    def add(self, tracker: Tracker, nbytes: int) -> None:
        """Count an array that was handed over."""
        self._waiting.append((tracker, nbytes))
        self.nbytes += nbytes
