"""The devices of a cluster come and go: who is lost, why, and who is back.

    its process ends          Ray reports it at once         a new worker starts on its node, is measured and taken in
    nothing is heard of it    after `detect_seconds`         it is taken in again when it is heard
    a link carries nothing    after `detect_seconds`, as     the device is taken in again when the link carries messages
                              the receiving device tells

A thread looks for all of these. Another thread starts workers again, because that takes seconds.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from coedge.config.cluster_config import ClusterConfig
from orchestrator.control import ray_control
from orchestrator.control.presence import Presence
from orchestrator.control.worker_group import WorkerGroup, introduce, place_again, tell_lost

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.1
# A thread that calls Ray is waited for so long. (Ray's calls would start another Ray after its shutdown.)
CLOSE_SECONDS = 5.0
# A device that was silent is used again once it has been heard for this part of `detect_seconds`.
BACK_PART = 0.5
# A device that is heard takes so long at most to connect to the others.
MEET_SECONDS = 1.0
# Pauses between attempts to start a worker again. They begin anew after a worker that lived for some time.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
SETTLED_SECONDS = 10.0


class Listener(Protocol):
    """Handles changes of the membership, on its threads."""

    def device_lost(self, name: str) -> None:
        """Handle a device that was entered into `group.lost`."""

    def device_started(self, name: str) -> None:
        """Handle a new worker that is connected. Its device counts as lost until this returns."""

    def device_back(self, name: str) -> None:
        """Handle a device that was taken out of `group.lost`."""

    def watch_ended(self, reason: str) -> None:
        """Handle the end of the watch: deaths go unnoticed from now on."""


class Attempts:
    """The times at which the worker of one device is started again."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE_SECONDS
        self._next: float | None = None  # None: the worker lives
        self._started = -math.inf

    def due(self, now: float) -> bool:
        """Return whether to start a worker that has ended now. Every attempt makes the next pause longer."""
        if self._next is None:
            if now - self._started > SETTLED_SECONDS:
                self._pause = FIRST_PAUSE_SECONDS
            self._next = now + self._pause
        if now < self._next:
            return False
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._next = now + self._pause
        return True

    def succeeded(self, now: float) -> None:
        """Take note that the worker lives."""
        self._next, self._started = None, now


class Membership:
    """The watcher of the devices of a group, until `close`.

    Args:
        config: `recover` says whether workers that have ended are started again.
        listener: told of every change.
    """

    def __init__(
        self,
        config: ClusterConfig,
        group: WorkerGroup,
        presence: Presence,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._group, self._presence, self._listener = config, group, presence, listener
        self._clock = clock
        self._told: set[str] = set()  # lost devices that the listener knows of
        self._heard_since: dict[str, float] = {}  # lost devices that can be reached again
        self._introduced: dict[str, float] = {}  # when lost devices were last told of the others
        self._closing = threading.Event()
        self._buried = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="coedge-watch", daemon=True)
        self._starter = threading.Thread(target=self._start_again, name="coedge-rejoin", daemon=True)
        self._watcher.start()
        if config.recover:
            self._starter.start()

    def close(self) -> None:
        """End the threads. One that waits for Ray is not waited for long."""
        self._closing.set()
        self._buried.set()
        self._group.closed.update(dict.fromkeys(self._group.places, "the cluster was closed"))
        for thread in (self._watcher, self._starter):
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(CLOSE_SECONDS)

    def _watch(self) -> None:
        try:
            while not self._closing.is_set():
                serving = {name: reference for name, reference in self._group.serving.items() if reference is not None}
                if serving:
                    for name, reason in ray_control.ended(serving, WATCH_SECONDS).items():
                        if self._group.serving[name] is serving[name]:  # not a new worker's
                            self._group.serving[name] = None
                            self._group.bury(name, reason)
                else:
                    self._closing.wait(WATCH_SECONDS)
                if not self._closing.is_set():
                    self._look()
        except BaseException as error:
            if not self._closing.is_set():
                self._listener.watch_ended(f"the cluster is closed: {error}")

    def _look(self) -> None:
        """Compare who can be reached with who is lost, and tell the changes."""
        group, now = self._group, self._clock()
        living = [name for name in group.by_name if name not in group.dead]
        unreachable = self._presence.unreachable(living, group.home, frozenset(group.lost))
        for name, reason in unreachable.items():
            self._heard_since.pop(name, None)
            if name not in group.lost:
                group.lost[name] = reason
                group.version += 1
        for name in list(group.lost):
            if name not in self._told:
                self._told.add(name)
                self._tell_lost(name)
            elif name not in group.dead and name not in unreachable:
                heard_since = self._heard_since.setdefault(name, now)
                if now - heard_since >= BACK_PART * self._config.detect_seconds:
                    self._take_in(name)
            elif name not in group.dead and self._presence.hears(name) and self._may_be_unknown(name, now):
                self._introduce(name)
        if group.dead:
            self._buried.set()

    def _tell_lost(self, name: str) -> None:
        try:
            # Frames leave the devices first: these fail steps that send to a peer which they were told to forget.
            self._listener.device_lost(name)
            tell_lost(self._group, name)
        except Exception:  # the other devices are still to be watched
            log.exception("could not handle the loss of %s (%s)", name, self._group.lost.get(name))

    def _take_in(self, name: str) -> None:
        self._heard_since.pop(name, None)
        if not self._introduce(name):
            return  # it is tried again after a while
        self._told.discard(name)
        self._group.lost.pop(name, None)
        self._group.version += 1
        try:
            self._listener.device_back(name)
        except Exception:
            log.exception("could not handle the return of %s", name)

    def _may_be_unknown(self, name: str, now: float) -> bool:
        """Return whether others may not know its address: it or they were away when it was told."""
        return now - self._introduced.get(name, -math.inf) >= self._config.detect_seconds

    def _introduce(self, name: str) -> bool:
        """Let a device that is heard and the others know each other's addresses. Return whether it answered."""
        self._introduced[name] = self._clock()
        try:
            introduce(self._group, name, MEET_SECONDS)
        except (Exception, SystemExit):
            log.debug("%s is heard, and did not answer", name, exc_info=True)
            return False
        return True

    def _start_again(self) -> None:
        """Start workers of dead devices again, one at a time, at ever longer intervals."""
        group = self._group
        attempts: dict[str, Attempts] = {}
        reasons: dict[str, str] = {}  # of the losses, without those of failed attempts
        while not self._closing.is_set():
            self._buried.wait()
            self._buried.clear()
            for name in [name for name in group.places if name in group.dead and name in self._told]:
                if self._closing.is_set() or not attempts.setdefault(name, Attempts()).due(self._clock()):
                    continue
                try:
                    place_again(group, self._config, name)
                    self._presence.expect(name)
                    self._listener.device_started(name)
                except (Exception, SystemExit) as error:
                    log.debug("%s could not be started again", name, exc_info=True)
                    reasons.setdefault(name, group.lost[name])
                    group.lost[name] = f"{reasons[name]}. It could not be started again: {_first_line(error)}"
                else:
                    reasons.pop(name, None)
                    attempts[name].succeeded(self._clock())
                    group.dead.discard(name)  # the watcher takes it in when it is heard
                    if group.serving[name] is None:  # it has ended in the meantime
                        group.bury(name, group.lost[name])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
