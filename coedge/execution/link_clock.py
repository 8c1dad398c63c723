"""The arithmetic of a slow link, in seconds of any clock. Pure: it neither waits nor reads a clock."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class LinkClock:
    """One direction of a link, on which transfers queue first in, first out.

    Attributes:
        bytes_per_second: None is unlimited.
        free_at: when the last transfer so far will have passed, seconds.
    """

    bytes_per_second: float | None
    free_at: float = -math.inf

    def __post_init__(self) -> None:
        if self.bytes_per_second is not None and not self.bytes_per_second > 0:
            raise ValueError(f"a link of {self.bytes_per_second} bytes/s carries nothing; None is unlimited")

    def seconds(self, nbytes: int) -> float:
        """How long `nbytes` occupy the link."""
        return transfer_seconds(nbytes, self.bytes_per_second)

    def occupy(self, ready: float, nbytes: int) -> float:
        """Put `nbytes` that are there from `ready` on into the queue; when will they have passed?"""
        self.free_at = max(self.free_at, ready) + self.seconds(nbytes)
        return self.free_at

    def deliver(self, arrived: float, nbytes: int, sender_bytes_per_second: float | None) -> float:
        """When a message is through this down-link, if its last byte came to it at `arrived`.

        Its first byte came earlier, by the time that its sender needed for all of it:

            sender    |=========|            n / sender rate
            here      |====|                 n / own rate: faster, so it waits for the last byte
            here      |=============|        n / own rate: slower, so it ends later

        Two senders at once share the link: their messages queue, so both take the sum of their times.
        """
        start = arrived - transfer_seconds(nbytes, sender_bytes_per_second)
        return max(arrived, self.occupy(start, nbytes))


def transfer_seconds(nbytes: int, bytes_per_second: float | None) -> float:
    """How long `nbytes` take at this rate. None is unlimited."""
    return 0.0 if bytes_per_second is None else nbytes / bytes_per_second
