"""Threads, child processes and ports of this process, and waiting for a condition.

Threads and processes end a little after the call that ends them, so tests wait for the condition that they check.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

MOST_SECONDS = 30.0  # longest wait for any condition; generous, because the machine may be busy


def until(holds: Callable[[], Any], what: str, seconds: float = MOST_SECONDS) -> None:
    """Wait until a condition holds, and fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.002)


def ended(pid: int) -> bool:
    """Return whether a process has ended; a zombie counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children() -> set[int]:
    """Return the process ids of all descendants of this process."""
    return {p.pid for p in psutil.Process().children(recursive=True)}


def listening() -> set[int]:
    """Return the TCP ports on which this process listens."""
    return {
        c.laddr.port for c in psutil.Process().net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN and c.laddr
    }
