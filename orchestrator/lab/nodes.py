"""Ray in a lab: the head on one host and a node on every other."""

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
# Ray's minimum. The memory is allocated only when it is used.
OBJECT_STORE_NBYTES = 78_643_200
# Environment of all processes that use Ray in a lab. Only root can enter the namespaces and no route leads there, so a
# token would protect nothing. If the user has a token, Ray's head would require it but its nodes would not send it.
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def start_command(device: LabDevice, head: LabDevice, folder: Path) -> list[str]:
    """Return the `ray start` command of a device, for its namespace.

    Args:
        folder: folder of Ray's files. Its path has to be short, because paths of sockets have at most 107 characters.
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
    """Start Ray on devices in parallel. It keeps running after this process ends.

    Raises:
        ClusterError: Ray did not start on some devices; the message names each with the reason.
    """
    deadline = time.monotonic() + START_SECONDS
    environment = {**os.environ, **ENVIRONMENT}
    started: list[tuple[LabDevice, subprocess.Popen[bytes], IO[bytes]]] = []
    with contextlib.ExitStack() as stack:
        for device in devices:
            # A file, because daemons inherit it: a pipe would not close before they end.
            output: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            command = ["ip", "netns", "exec", namespaces[device.name], *start_command(device, head, folder)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            stack.callback(_end, process)
            started.append((device, process, output))
        problems = [problem for one in started if (problem := _outcome(*one, deadline))]
    if problems:
        raise ClusterError("; ".join(problems))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _outcome(device: LabDevice, process: subprocess.Popen[bytes], output: IO[bytes], deadline: float) -> str:
    """Return the reason why Ray did not start on a device, or an empty string if it did."""
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"Ray did not start on {device.name} within {START_SECONDS:.0f} s"
    if code == 0:
        return ""
    output.seek(0)
    lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    return f"Ray did not start on {device.name}: {lines[-1].strip() if lines else f'exit code {code}'}"


def is_node(process: psutil.Process) -> bool:
    """Return whether a process belongs to Ray itself; such a process has no state to save and is slow to terminate."""
    spec = importlib.util.find_spec("ray")
    folder = str(Path(spec.origin).parent) if spec and spec.origin else "ray"
    command = _command(process)
    return any(word.startswith((folder, "ray::")) for word in command[:3])


def has_head(processes: Sequence[psutil.Process]) -> bool:
    """Return whether Ray's head is among the processes."""
    return _runs(processes, "gcs_server")


def has_node(processes: Sequence[psutil.Process]) -> bool:
    """Return whether a Ray node is among the processes."""
    return _runs(processes, "raylet")


def _runs(processes: Sequence[psutil.Process], program: str) -> bool:
    return any(Path(_command(process)[0]).name == program for process in processes)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:  # it has ended
        return [""]
