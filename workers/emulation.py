"""A slower processor, emulated: after work that took c seconds of CPU, wait until c / speed have passed.

CPU time rather than wall time, so that devices which share the cores of one machine do not slow each other
down as long as the sum of their speeds fits the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """Runs functions at a fraction of this machine's speed.

    Args:
        speed: 0 < speed <= 1. None: not emulated.
        threads: of a kernel. With one, the CPU time of this thread counts; with more, that of the process.
    """

    def __init__(self, speed: float | None, threads: int) -> None:
        self.speed = speed
        self._cpu = time.thread_time if threads == 1 else time.process_time

    def run(self, function: Callable[[], T]) -> T:
        if self.speed is None:
            return function()
        start, cpu = time.monotonic(), self._cpu()
        result = function()
        end = start + (self._cpu() - cpu) / self.speed
        rest = end - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        return result
