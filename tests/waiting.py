"""What a test sees of this process from outside, and waiting for it: threads and processes end a little after those
who told them to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

MOST_SECONDS = 30.0  # that a test waits for anything: about liveness, on a busy machine


def until(holds: Callable[[], Any], what: str, seconds: float = MOST_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.002)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children() -> set[int]:
    """The processes that this one has, and theirs."""
    return {p.pid for p in psutil.Process().children(recursive=True)}


def listening() -> set[int]:
    """The TCP ports that this process listens on."""
    return {
        c.laddr.port for c in psutil.Process().net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN and c.laddr
    }
