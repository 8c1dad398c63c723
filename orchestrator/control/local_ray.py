"""A Ray of our own on this machine: started within a deadline, ended with all of its processes.

    coedge-join   waits for the start, which has a deadline
    coedge-ray    starts Ray's processes, and stays until Ray is left

On Linux the kernel ends Ray's processes when the thread that started them ends (prctl, PR_SET_PDEATHSIG). A thread that
stays keeps them alive, whichever thread connected.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Set
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from coedge.core.errors import ClusterError, innermost_message
from orchestrator.control.deadline import Overrun, within
from orchestrator.control.ray_session import RaySession

# Names of the threads that join or start a Ray, and that hold one.
JOIN_THREAD, HOLD_THREAD = "coedge-join", "coedge-ray"
# A killed process is gone within moments.
_KILL_SECONDS = 5.0
# Ray waits so many seconds for the port of its head, in compiled code that stops all threads of Python meanwhile.
_PORT_WAIT = "RAY_gcs_server_port_wait_time_s"


class LocalRay:
    """A Ray that this process starts. Make one for each start."""

    def __init__(self) -> None:
        self._left = threading.Event()
        self._session: RaySession | None = None

    def start(self, seconds: float, options: dict[str, Any]) -> None:
        """Start Ray, and connect this process to it.

        Args:
            seconds: deadline. What was started until then is ended.
            options: arguments of `ray.init`.

        Raises:
            ClusterError: Ray did not start, or not in time.
        """
        known = frozenset(psutil.Process().children())
        try:
            within(seconds, lambda: self._start(seconds, options, known), JOIN_THREAD, undo=lambda _: self._undo())
        except BaseException as error:
            self.release()
            _end_processes(known)
            if isinstance(error, Overrun):
                raise ClusterError(
                    f"Ray did not start on this machine within {seconds:g} s; what was started is ended. If the "
                    "machine is busy, raise connect_timeout_seconds; else look at the logs of Ray, "
                    "session_latest/logs in its temporary folder, and at the memory and disk that are free"
                ) from None
            if isinstance(error, Exception):
                raise ClusterError(
                    f"cannot start Ray on this machine: {innermost_message(error)}. Look at the logs of Ray, "
                    "session_latest/logs in its temporary folder"
                ) from error
            raise

    def release(self) -> None:
        """Let the thread end that holds Ray's processes. Ray is left before."""
        self._left.set()

    def clean(self) -> None:
        """Remove the folder of a session that has ended, and those of processes of CoEdge that were killed."""
        if self._session is not None:
            self._session.remove()

    def _start(self, seconds: float, options: dict[str, Any], known: Set[psutil.Process]) -> None:
        started: Future[None] = Future()
        hold = threading.Thread(
            target=self._hold, args=(started, seconds, options, known), name=HOLD_THREAD, daemon=True
        )
        hold.start()
        started.result()

    def _hold(self, started: Future[None], seconds: float, options: dict[str, Any], known: Set[psutil.Process]) -> None:
        import ray

        given = os.environ.get(_PORT_WAIT)
        os.environ[_PORT_WAIT] = given or str(math.ceil(seconds))
        try:
            ray.init(address="local", include_dashboard=False, **options)
        except BaseException as error:
            _end_processes(known)
            started.set_exception(error)
            return
        finally:
            if given is None:
                del os.environ[_PORT_WAIT]
        self._session = RaySession.of_this_process()
        started.set_result(None)
        self._left.wait()

    def _undo(self) -> None:
        """Leave a Ray that started too late."""
        import ray

        ray.shutdown()


def _end_processes(known: Set[psutil.Process]) -> None:
    """Kill the children of this process that run programs of Ray, except those in `known`, with their children."""
    import ray

    programs = str(Path(ray.__file__).parent)
    ended: list[psutil.Process] = []
    for child in psutil.Process().children():
        try:
            if child not in known and any(part.startswith(programs) for part in child.cmdline()):
                ended += [child, *child.children(recursive=True)]
        except psutil.Error:  # it has ended by itself
            continue
    for process in ended:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(ended, _KILL_SECONDS)
