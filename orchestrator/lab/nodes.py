"""Ray in the namespaces: a head, and a node on every other device."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

from coedge.core.errors import ClusterError
from orchestrator.lab.spec import OBJECT_PORT, RAY_PORT, LabDevice

START_SECONDS = 90.0
# Memory is taken when it is used. Ray's least is 75 MiB.
OBJECT_STORE_NBYTES = 78_643_200
# For all that takes part in a lab's Ray. Only root gets into its namespaces, and no route leads there, so that a token
# would guard nothing; and where the user happens to have one, Ray's head takes it by itself, and its nodes do not.
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def start_command(device: LabDevice, head: LabDevice, folder: Path) -> list[str]:
    """`ray start` for a device, to be run in its namespace.

    Args:
        folder: for Ray's files; short, for it holds sockets, whose paths have 107 characters at most.
    """
    role = (
        ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
        if device == head
        else [f"--address={head.address}:{RAY_PORT}"]
    )
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        *role,
        f"--node-ip-address={device.address}",
        f"--object-manager-port={OBJECT_PORT}",
        f"--temp-dir={folder / str(device.index)}",
        f"--object-store-memory={OBJECT_STORE_NBYTES}",
        "--num-cpus=1",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]


def start(devices: Sequence[LabDevice], head: LabDevice, namespaces: dict[str, str], folder: Path) -> None:
    """Starts Ray on devices, all at once; it stays when this process goes.

    Raises:
        ClusterError: naming the devices where it did not start, and why.
    """
    deadline = time.monotonic() + START_SECONDS
    environment = {**os.environ, **ENVIRONMENT}
    started: list[tuple[LabDevice, subprocess.Popen[bytes], IO[bytes]]] = []
    with contextlib.ExitStack() as stack:
        for device in devices:
            # A file, for daemons inherit it: a pipe would end with them only.
            said: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            command = ["ip", "netns", "exec", namespaces[device.name], *start_command(device, head, folder)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
            )
            stack.callback(_end, process)
            started.append((device, process, said))
        problems = [problem for one in started if (problem := _outcome(*one, deadline))]
    if problems:
        raise ClusterError("; ".join(problems))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _outcome(device: LabDevice, process: subprocess.Popen[bytes], said: IO[bytes], deadline: float) -> str:
    """Why Ray did not start on a device; empty: it did."""
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"Ray does not start on {device.name} within {START_SECONDS:.0f} s"
    if code == 0:
        return ""
    said.seek(0)
    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    return f"Ray does not start on {device.name}: {lines[-1].strip() if lines else f'exit code {code}'}"


def is_node(process: psutil.Process) -> bool:
    """Whether a process is of Ray itself, which has nothing to lose in a lab and takes its time to end."""
    found = importlib.util.find_spec("ray")
    folder = str(Path(found.origin).parent) if found and found.origin else "ray"
    command = _command(process)
    return any(word.startswith((folder, "ray::")) for word in command[:3])


def has_head(found: Sequence[psutil.Process]) -> bool:
    return _runs(found, "gcs_server")


def has_node(found: Sequence[psutil.Process]) -> bool:
    return _runs(found, "raylet")


def _runs(found: Sequence[psutil.Process], program: str) -> bool:
    return any(Path(_command(process)[0]).name == program for process in found)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:  # it has ended
        return [""]
