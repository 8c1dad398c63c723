"""A slower processor, emulated: c seconds of CPU time on this machine count as c / speed.

    emulated    |==== kernel, c / speed ====|- own code -|    waits     |==== kernel ====|
    real        |= c =|~~~~~~ rest ~~~~~~~~~~~|-|           waits         |= c =|~ rest ~|

The device has its own time. A rest ends when the real time has reached the device's time. The device rests before it
sends, so peers never see it ahead of the real time. If the device lags behind, because a sleep ended late or another
process had the core, the next rests are shorter: n steps take n c / speed, without n times the wake-up of the thread.

CPU time counts rather than wall time. Devices that share the cores of one machine therefore do not slow each other
down, as long as the sum of their speeds fits the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SET_TIMER_SLACK = 29  # PR_SET_TIMERSLACK of Linux


def sharpen_timers() -> None:
    """Make the waits of this thread end on time. By default Linux may end them 50 us late, to save wake-ups."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)


class EmulatedProcessor:
    """The time of a device, and kernels at its speed. One thread uses it.

    Args:
        speed: fraction of this machine's speed, 0 < speed <= 1. None: not emulated, the time is real.
        threads: of a kernel. With one thread the CPU time of this thread counts, with more the wall time.
        clock, cpu, sleep: real seconds, CPU seconds of this thread, and a function that sleeps for some seconds.
    """

    def __init__(
        self,
        speed: float | None,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.speed = speed
        self._clock, self._cpu, self._sleep = clock, cpu, sleep
        self._kernel_clock = cpu if threads == 1 else clock
        self._now = clock()
        self._counted: float | None = None  # CPU seconds that are in `_now`

    def now(self) -> float:
        """Return the device's time, in seconds of the monotonic clock. Work since the last call is added to it."""
        if self.speed is None:
            return self._clock()
        cpu = self._cpu()
        if self._counted is not None:
            self._now += (cpu - self._counted) / self.speed
        self._counted = cpu
        return self._now

    def reach(self, seconds: float) -> None:
        """Set the device's time to `seconds` if that is later, after a wait. CPU time of the wait does not count."""
        if self.speed is not None:
            self._now = max(self._now, seconds)
            self._counted = self._cpu()

    def rest(self) -> None:
        """Sleep until the real time is no earlier than the device's."""
        if self.speed is not None and (ahead := self.now() - self._clock()) > 0:
            self._sleep(ahead)
            self._counted = self._cpu()

    def run(self, function: Callable[[], T]) -> T:
        """Run a kernel, and rest."""
        if self.speed is None:
            return function()
        self.now()
        start = self._kernel_clock()
        result = function()
        self._now += (self._kernel_clock() - start) / self.speed
        self._counted = self._cpu()
        self.rest()
        return result
