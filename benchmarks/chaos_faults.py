"""Faults of the chaos test: a thread harms the worker processes of a cluster by a seeded schedule.

    death        SIGKILL
    silence      SIGSTOP, then SIGCONT after some seconds
    slow link    another emulated link, and the usual one again after some seconds

One device at least is unharmed at any moment, and a device is not harmed again before it is back. Some faults come in
pairs. Everything that was stopped goes on at the end, whatever ends it.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from coedge.core.errors import CoEdgeError, DeviceLost
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.device_info import DeviceInfo

KINDS = {"death": 0.4, "silence": 0.4, "slow link": 0.2}
PAIRS = 0.2
SHORTEST_SECONDS, LONGEST_SECONDS = 0.2, 6.0
SLOW_MBPS = (2.0, 40.0)
LOOK_SECONDS = 0.02
# A device that was harmed is back within this time, or is counted as one that is not.
BACK_SECONDS = 90.0
# A device that goes on may be reported for so long after the end of its silence.
AFTER_SECONDS = 1.0


@dataclass
class Fault:
    """A fault and what came of it. Times are on the monotonic clock.

    Attributes:
        seconds: how long a silence or a slow link lasts.
        source: whether the device had the inputs.
        noticed: when the device was first seen as lost; None if never.
        over: when the device was back; infinite before.
    """

    kind: str
    device: str
    at: float
    seconds: float
    source: bool
    pid: int
    noticed: float | None = None
    over: float = math.inf

    @property
    def ends(self) -> float:
        """When the cause ends."""
        return self.at if self.kind == "death" else self.at + self.seconds


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault of the schedule. `place` from 0 to 1 chooses one of the devices that may be harmed then."""

    pause_seconds: float
    kind: str
    seconds: float
    place: float


def schedule(count: int, seed: int, pause_seconds: float) -> Iterator[Planned]:
    """Yield faults. The same seed gives the same ones."""
    chance = random.Random(seed)
    for _ in range(count):
        pause = 0.0 if chance.random() < PAIRS else chance.expovariate(1 / pause_seconds)
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        yield Planned(pause, kind, chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS), chance.random())


class Harm:
    """A thread that does the faults of a schedule, until all are done and over, or `stop`.

    Attributes:
        faults: those done so far.
        false_alarms: (time, reason) of devices that were seen as lost and had not been harmed.
        missing: faults whose devices were not back in time.
        problems: errors of `set_link`.
    """

    def __init__(self, cluster: Cluster, planned: Iterator[Planned], seed: int) -> None:
        self.faults: list[Fault] = []
        self.false_alarms: list[tuple[float, str]] = []
        self.missing: list[Fault] = []
        self.problems: list[str] = []
        self.done = threading.Event()
        self.failure: BaseException | None = None
        self._cluster, self._planned = cluster, planned
        self._chance = random.Random(seed + 1)
        self._harmed: dict[str, Fault] = {}  # by device; no slow links
        self._stopped: dict[str, Fault] = {}  # silences that last
        self._slow: dict[str, threading.Thread] = {}
        self._lost: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-harm", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Do no further faults, and let everything go on that was stopped."""
        self._stopping.set()
        self._thread.join()

    @property
    def quiet(self) -> bool:
        """Return whether nothing is harmed now."""
        return not self._harmed and not self._slow

    def _run(self) -> None:
        try:
            for planned in self._planned:
                self._wait(planned)
                if self._stopping.is_set():
                    return
                self._do(planned)
            while not self.quiet and not self._stopping.wait(LOOK_SECONDS):
                self._look()
        except BaseException as error:
            self.failure = error
        finally:
            for fault in self._stopped.values():
                _signal(fault.pid, signal.SIGCONT)
            self.done.set()

    def _wait(self, planned: Planned) -> None:
        """Wait for the time of the next fault, and for enough devices that are unharmed."""
        due = time.monotonic() + planned.pause_seconds
        while not self._stopping.is_set():
            free = self._look()
            if time.monotonic() >= due and len(free) > (0 if planned.kind == "slow link" else 1):
                return
            self._stopping.wait(LOOK_SECONDS)

    def _look(self) -> list[DeviceInfo]:
        """Follow the state of all devices. Return those that may be harmed."""
        now, devices = time.monotonic(), self._cluster.devices()
        lost = {device.name for device in devices if device.state != "ready"}
        for name in lost - self._lost:
            fault = self._harmed.get(name)
            if fault is None:
                self.false_alarms.append((now, self._reason(name)))
            elif fault.noticed is None:
                fault.noticed = now
        self._lost = lost
        for name, fault in list(self._stopped.items()):
            if now >= fault.ends:
                del self._stopped[name]
                _signal(fault.pid, signal.SIGCONT)
                fault.seconds = now - fault.at
        for device in devices:
            fault = self._harmed.get(device.name)
            if fault is not None and self._over(fault, device, now):
                fault.over = now
                del self._harmed[device.name]
            elif fault is not None and now > fault.ends + BACK_SECONDS and fault not in self.missing:
                self.missing.append(fault)
        self._slow = {name: thread for name, thread in self._slow.items() if thread.is_alive()}
        return [device for device in devices if device.name not in self._harmed and device.state == "ready"]

    def _reason(self, name: str) -> str:
        try:
            self._cluster.worker(name)
        except CoEdgeError as error:
            return str(error)
        return f"{name} was lost for a moment"

    def _over(self, fault: Fault, device: DeviceInfo, now: float) -> bool:
        if device.state != "ready" or device.name in self._stopped:
            return False
        if fault.kind == "death":
            return fault.noticed is not None and device.pid != fault.pid
        return now > fault.ends + AFTER_SECONDS

    def _do(self, planned: Planned) -> None:
        free = [device for device in self._look() if planned.kind != "slow link" or device.name not in self._slow]
        if len(free) < (1 if planned.kind == "slow link" else 2):
            return  # it was lost a moment ago
        device = free[int(planned.place * len(free))]
        fault = Fault(planned.kind, device.name, time.monotonic(), planned.seconds, device.source, device.pid)
        if planned.kind == "slow link":
            thread = threading.Thread(target=self._slow_down, args=(fault,), name="chaos-slow", daemon=True)
            self._slow[device.name] = thread
            thread.start()
        else:
            self._harmed[device.name] = fault
            if planned.kind == "silence":
                self._stopped[device.name] = fault
            _signal(device.pid, signal.SIGKILL if planned.kind == "death" else signal.SIGSTOP)
        self.faults.append(fault)

    def _slow_down(self, fault: Fault) -> None:
        """Give a device a slow link for some seconds."""
        usual = next(device.link for device in self._cluster.config.devices if device.name == fault.device)
        assert usual.mbps is not None
        self._set_link(fault.device, self._chance.uniform(*SLOW_MBPS))
        self._stopping.wait(fault.seconds)
        self._set_link(fault.device, usual.mbps)
        fault.over = time.monotonic()

    def _set_link(self, name: str, mbps: float) -> None:
        """Set a link, of a device that is lost meanwhile when it is back."""
        ends = time.monotonic() + BACK_SECONDS
        while not self._stopping.is_set():
            try:
                self._cluster.set_link(name, mbps)
                return
            except DeviceLost as error:
                problem: CoEdgeError = error
            except CoEdgeError as error:
                self.problems.append(str(error))
                problem = error
            if time.monotonic() > ends:
                self.problems.append(f"the link of {name} could not be set for {BACK_SECONDS:g} s: {problem}")
                return
            self._stopping.wait(0.2)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
