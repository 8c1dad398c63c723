"""The occupancy of a link, in seconds of any clock. Pure: it neither waits nor reads a clock."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class LinkClock:
    """One direction of a link. Transfers queue first in, first out.

    Attributes:
        bytes_per_second: rate of the link; None is unlimited.
        free_at: when the last transfer in the queue ends, seconds.
    """

    bytes_per_second: float | None
    free_at: float = -math.inf

    def __post_init__(self) -> None:
        if self.bytes_per_second is not None and not self.bytes_per_second > 0:
            raise ValueError(
                f"a link of {self.bytes_per_second} bytes/s carries nothing; give a rate above 0, or None for no limit"
            )

    def seconds(self, nbytes: int) -> float:
        """Return how long `nbytes` occupy the link."""
        return transfer_seconds(nbytes, self.bytes_per_second)

    def occupy(self, ready: float, nbytes: int) -> float:
        """Queue a transfer that is ready at time `ready`, and return when it ends."""
        self.free_at = max(self.free_at, ready) + self.seconds(nbytes)
        return self.free_at

    def deliver(self, arrived: float, nbytes: int, sender_bytes_per_second: float | None) -> float:
        """Queue a message on this down-link, and return when it has passed.

        The last byte reaches the link at `arrived`. The first byte reached it earlier, by the time that the sender
        needed for the message:

            sender    |=========|            n / sender rate
            here      |====|                 n / own rate: a faster link waits for the last byte
            here      |=============|        n / own rate: a slower link ends later

        Messages of two senders queue, so together they take the sum of their times.
        """
        start = arrived - transfer_seconds(nbytes, sender_bytes_per_second)
        return max(arrived, self.occupy(start, nbytes))


def transfer_seconds(nbytes: int, bytes_per_second: float | None) -> float:
    """Return how long `nbytes` take at this rate. None is unlimited."""
    return 0.0 if bytes_per_second is None else nbytes / bytes_per_second
