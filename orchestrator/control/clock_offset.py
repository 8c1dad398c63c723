"""Clock offsets of devices, their uncertainty, and its growth with age.

A round trip that leaves at `before` and is back at `after` and that reads the device's clock in between shows the
offset to within half of the round trip: clock - (before + after) / 2 +- (after - before) / 2. Afterwards the clocks
drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Two quartz oscillators of 50 parts per million each, the usual tolerance.
DRIFT = 100e-6


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """A device's monotonic clock minus the client's.

    Attributes:
        seconds: the offset.
        uncertainty_seconds: the true offset is within this of `seconds`.
        measured_seconds: client's monotonic clock when both were true.
        drift: seconds per second by which the offset may change; 0 if both read the same clock.
    """

    seconds: float
    uncertainty_seconds: float
    measured_seconds: float
    drift: float = DRIFT

    def at(self, now: float) -> ClockOffset:
        """Return the offset as known at another time of the client's clock: the uncertainty grows with the age."""
        grown = self.uncertainty_seconds + self.drift * abs(now - self.measured_seconds)
        return ClockOffset(self.seconds, grown, now, self.drift)

    def updated(self, newer: ClockOffset) -> ClockOffset:
        """Combine with a newer measurement: the true offset lies in both intervals.

        If the intervals do not meet, a clock was stopped in between (a suspended host), and the newer one holds.
        """
        older = self.at(newer.measured_seconds)
        low = max(older.seconds - older.uncertainty_seconds, newer.seconds - newer.uncertainty_seconds)
        high = min(older.seconds + older.uncertainty_seconds, newer.seconds + newer.uncertainty_seconds)
        if low > high:
            return newer
        return ClockOffset((low + high) / 2, (high - low) / 2, newer.measured_seconds, newer.drift)


SAME_CLOCK = ClockOffset(0.0, 0.0, 0.0, drift=0.0)


def measure_offset(read: Callable[[], float], now: Callable[[], float], round_trips: int) -> ClockOffset:
    """Measure an offset by the fastest of some round trips.

    Args:
        read: asks the device for its clock, seconds.
        now: the client's clock, seconds.
    """
    best = None
    for _ in range(round_trips):
        before = now()
        clock = read()
        after = now()
        # The clocks drift during the round trip, too.
        found = ClockOffset(clock - (before + after) / 2, (0.5 + DRIFT) * (after - before), after)
        best = found if best is None else best.updated(found)
    assert best is not None
    return best
