"""A slower processor, emulated: what took c seconds of CPU here counts as c / speed.

    emulated    |==== kernel, c / speed ====|- own code -|    waits     |==== kernel ====|
    real        |= c =|~~~~~~ rest ~~~~~~~~~~~|-|           waits         |= c =|~ rest ~|

The device has a time of its own. A rest ends when the real time has come up to it, so it never runs ahead for long,
and not at all when others can see it. What it lags behind by, because a sleep ended late or a core was taken, it makes
up in the next rests: n steps take n c / speed, not that plus n wake-ups.

CPU time rather than wall time, so that devices which share the cores of one machine do not slow each other
down as long as the sum of their speeds fits the machine.
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
    """Makes the waits of this thread end on time: Linux lets them end 50 us late, to save wake-ups."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)


class EmulatedProcessor:
    """The time of a device, and work at its speed. For the one thread that works.

    Args:
        speed: 0 < speed <= 1, a fraction of this machine's. None: not emulated, time is real.
        threads: of a kernel. With one, a kernel counts the CPU time of this thread; with more, wall time.
        clock, cpu, sleep: real seconds, seconds of CPU of this thread, and a pause of so many seconds.
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
        """The device's time, in seconds of the monotonic clock. What the thread did since counts."""
        if self.speed is None:
            return self._clock()
        cpu = self._cpu()
        if self._counted is not None:
            self._now += (cpu - self._counted) / self.speed
        self._counted = cpu
        return self._now

    def reach(self, seconds: float) -> None:
        """The device waited, until this time if it is later than its own. What the waiting took does not count."""
        if self.speed is not None:
            self._now = max(self._now, seconds)
            self._counted = self._cpu()

    def rest(self) -> None:
        """Sleeps until the real time is no earlier than the device's."""
        if self.speed is not None and (ahead := self.now() - self._clock()) > 0:
            self._sleep(ahead)
            self._counted = self._cpu()

    def run(self, function: Callable[[], T]) -> T:
        """Runs a kernel, and rests."""
        if self.speed is None:
            return function()
        self.now()
        start = self._kernel_clock()
        result = function()
        self._now += (self._kernel_clock() - start) / self.speed
        self._counted = self._cpu()
        self.rest()
        return result
