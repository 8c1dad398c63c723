"""Network namespaces: list and delete them, and list and stop the processes in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from coedge.core.errors import ClusterError

COMMAND_SECONDS = 10.0
TERMINATE_SECONDS, KILL_SECONDS = 3.0, 5.0
_CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


def check_possible() -> None:
    """Check that this machine and user can have a lab.

    Raises:
        ClusterError: a tool or a permission is missing; the message has one line.
    """
    missing = [f"{tool} is not installed" for tool in ("ip", "tc") if shutil.which(tool) is None]
    if not sys.platform.startswith("linux"):
        missing = [f"this is {sys.platform}, not Linux"]
    elif os.geteuid() != 0 or not _capable():
        missing.append("this user is not root" if os.geteuid() else "this root user may not change the network")
    if missing:
        raise ClusterError(
            f"a lab needs root and iproute2: {', '.join(missing)}. To emulate the devices in ordinary processes "
            "instead, use the same file without a lab: coedge run MODEL --cluster FILE"
        )


def _capable() -> bool:
    """Return whether root has the capabilities that a lab needs; in a container it may not."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return all(effective >> bit & 1 for bit in _CAPABILITIES)


def call(command: Sequence[str], timeout_seconds: float = COMMAND_SECONDS) -> str:
    """Run a command and return its output.

    Raises:
        ClusterError: the command failed or took too long.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{' '.join(command)}` did not end within {timeout_seconds:.0f} s") from None
    except OSError as error:
        raise ClusterError(f"cannot run `{' '.join(command)}`: {error.strerror}") from None
    if done.returncode:
        problem = done.stderr.strip().replace("\n", "; ") or f"exit code {done.returncode}"
        raise ClusterError(f"`{' '.join(command)}` failed: {problem}")
    return done.stdout


def call_json(command: Sequence[str]) -> list[dict[str, Any]]:
    """Run `ip -j` or `tc -j` and return its items."""
    return [item for item in json.loads(call(command) or "[]") if item]


def namespaces() -> list[str]:
    """Return the names of all named network namespaces."""
    return sorted(line.split()[0] for line in call(["ip", "netns", "list"]).splitlines() if line.strip())


def processes(namespace: str) -> list[psutil.Process]:
    """Return the processes in a namespace except this one."""
    running = []
    for pid in map(int, call(["ip", "netns", "pids", namespace]).split()):
        if pid != os.getpid():
            try:
                running.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
    return running


def end_processes(names: Sequence[str], at_once: Callable[[psutil.Process], bool]) -> int:
    """Stop all processes in the namespaces and return how many were asked to terminate.

    Args:
        at_once: returns whether a process is killed without time to end by itself.

    Raises:
        ClusterError: processes do not end.
    """
    asked = _signal(names, lambda process: process.terminate())
    psutil.wait_procs([process for process in asked if not at_once(process)], timeout=TERMINATE_SECONDS)
    for _ in range(3):  # again for processes that were started meanwhile
        left = _signal(names, lambda process: process.kill())
        if not left:
            return len(asked)
        psutil.wait_procs(left, timeout=KILL_SECONDS)
    left = [process for name in names for process in processes(name)]
    if left:
        pids = ", ".join(f"{process.pid}" for process in left)
        raise ClusterError(f"processes {pids} in the lab do not end; stop them, then run `coedge lab down` again")
    return len(asked)


def _signal(names: Sequence[str], send: Callable[[psutil.Process], None]) -> list[psutil.Process]:
    running = [process for name in names for process in processes(name)]
    for process in running:
        try:
            send(process)
        except psutil.NoSuchProcess:
            continue
    return running


def delete(name: str) -> None:
    """Delete a namespace and its interfaces."""
    call(["ip", "netns", "delete", name])
