"""Network namespaces: which there are, what runs in them, and the end of both."""

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
    """Raises ClusterError, one line, where there can be no lab."""
    lacking = [f"{tool} is not installed" for tool in ("ip", "tc") if shutil.which(tool) is None]
    if not sys.platform.startswith("linux"):
        lacking = [f"this is {sys.platform}, not Linux"]
    elif os.geteuid() != 0 or not _capable():
        lacking.append("this user is not root" if os.geteuid() else "this root may not change the network")
    if lacking:
        raise ClusterError(
            f"a lab needs root and iproute2: {', '.join(lacking)}; without it the same file plays its devices in "
            "ordinary processes: coedge run MODEL --cluster FILE"
        )


def _capable() -> bool:
    """Whether root is root here: in a container it need not be."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return all(effective >> bit & 1 for bit in _CAPABILITIES)


def call(command: Sequence[str], timeout_seconds: float = COMMAND_SECONDS) -> str:
    """What a command prints.

    Raises:
        ClusterError: it failed, or took too long.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"no end of `{' '.join(command)}` within {timeout_seconds:.0f} s") from None
    except OSError as error:
        raise ClusterError(f"cannot run `{' '.join(command)}`: {error.strerror}") from None
    if done.returncode:
        problem = done.stderr.strip().replace("\n", "; ") or f"exit code {done.returncode}"
        raise ClusterError(f"`{' '.join(command)}` failed: {problem}")
    return done.stdout


def call_json(command: Sequence[str]) -> list[dict[str, Any]]:
    """What `ip -j` or `tc -j` prints."""
    found = json.loads(call(command) or "[]")
    return [item for item in found if item]


def namespaces() -> list[str]:
    """Those that have a name."""
    return sorted(line.split()[0] for line in call(["ip", "netns", "list"]).splitlines() if line.strip())


def processes(namespace: str) -> list[psutil.Process]:
    """All that run in a namespace, but for this one."""
    found = []
    for pid in map(int, call(["ip", "netns", "pids", namespace]).split()):
        if pid != os.getpid():
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
    return found


def end_processes(names: Sequence[str], at_once: Callable[[psutil.Process], bool]) -> int:
    """Ends all that runs in the namespaces; the number of processes that were asked to.

    Args:
        at_once: processes that are given no time to end by themselves.

    Raises:
        ClusterError: some do not end.
    """
    asked = _signal(names, lambda process: process.terminate())
    psutil.wait_procs([process for process in asked if not at_once(process)], timeout=TERMINATE_SECONDS)
    for _ in range(3):  # what was started in the meantime
        left = _signal(names, lambda process: process.kill())
        if not left:
            return len(asked)
        psutil.wait_procs(left, timeout=KILL_SECONDS)
    left = [process for name in names for process in processes(name)]
    if left:
        pids = ", ".join(f"{process.pid}" for process in left)
        raise ClusterError(f"processes {pids} in the lab do not end; end them, then run `coedge lab down` again")
    return len(asked)


def _signal(names: Sequence[str], send: Callable[[psutil.Process], None]) -> list[psutil.Process]:
    found = [process for name in names for process in processes(name)]
    for process in found:
        try:
            send(process)
        except psutil.NoSuchProcess:
            continue
    return found


def delete(name: str) -> None:
    """Its interfaces go with it."""
    call(["ip", "netns", "delete", name])
