"""Measuring the clock offsets of remote devices, at the start and from time to time while the cluster lives.

A round trip over Ray takes about a millisecond. At the drift of `clock_offset.DRIFT` the uncertainty grows by one
more millisecond between two refreshes.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestrator.control import ray_control
from orchestrator.control.clock_offset import SAME_CLOCK, ClockOffset, measure_offset

log = logging.getLogger(__name__)

FIRST_ROUND_TRIPS, ROUND_TRIPS = 5, 3
REFRESH_SECONDS = 10.0
ANSWER_SECONDS = 10.0


def measure_clocks(actors: Mapping[str, tuple[str, Any]]) -> dict[str, ClockOffset]:
    """Measure the offset of every device, given its (host, actor).

    Raises:
        ClusterError: a device does not answer.
    """
    offsets = {}
    for name, (host, actor) in actors.items():
        if host == platform.node():
            offsets[name] = SAME_CLOCK  # one host has one monotonic clock
        else:
            offsets[name] = measure_offset(_reader(name, actor), time.monotonic, FIRST_ROUND_TRIPS)
    return offsets


class ClockRefresh:
    """A thread that measures clock offsets again until `close`. It does not start if all devices share our clock.

    Args:
        clocks: offsets by device name, replaced in place.
        readers: by device name, a function that returns the device's clock, seconds.
        alive: whether a device is still to be asked.
    """

    def __init__(
        self,
        clocks: dict[str, ClockOffset],
        readers: Mapping[str, Callable[[], float]],
        alive: Callable[[str], bool],
        every_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._clocks, self._alive, self._every_seconds = clocks, alive, every_seconds
        # A device that has not joined yet runs on another host, if it joins.
        self._readers = {name: read for name, read in readers.items() if name not in clocks or clocks[name].drift}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coedge-clocks", daemon=True)
        if self._readers:
            self._thread.start()

    def refresh(self) -> None:
        """Measure every device once. A device that does not answer keeps its old offset, whose uncertainty grows."""
        for name, read in self._readers.items():
            if self._alive(name) and name in self._clocks and not self._stopping.is_set():
                try:
                    newer = measure_offset(read, time.monotonic, ROUND_TRIPS)
                except (Exception, SystemExit):
                    log.debug("the clock of %s was not measured again", name, exc_info=True)
                else:
                    self._clocks[name] = self._clocks[name].updated(newer)

    def close(self) -> None:
        """Stop the thread. It is not waited for: it may be in a call to a device that has stopped."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_seconds):
            self.refresh()


def clock_readers(names: Iterable[str], actor_of: Callable[[str], Any]) -> dict[str, Callable[[], float]]:
    """Return, by device name, a function that asks the present worker of the device for its clock."""

    def reader_of(name: str) -> Callable[[], float]:
        return lambda: _reader(name, actor_of(name))()

    return {name: reader_of(name) for name in names}


def _reader(name: str, actor: Any) -> Callable[[], float]:
    def read() -> float:
        return float(ray_control.gather({name: actor.clock.remote()}, ANSWER_SECONDS, "tell the time")[name])

    return read
