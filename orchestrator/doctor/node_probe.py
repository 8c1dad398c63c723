"""The questions to one machine. The code is sent to a node by value, so it also runs where coedge is missing or old:
it uses the standard library and psutil, which Ray brings along.

Answers are plain values, because classes of this project may not exist on the node.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CPUS = Path("/sys/devices/system/cpu")
INTERFACES = Path("/sys/class/net")
LIBRARIES = ("ray", "onnxruntime")
VCGENCMD_SECONDS = 2.0


class NodeProbe:
    """The questions that an examination asks on a machine. Each is a method, so that each has a deadline of its own."""

    def versions(self) -> dict[str, str | None]:
        """Return the version of each library. None: not installed; "!" and a reason: it cannot be imported."""
        import importlib
        import importlib.metadata

        found: dict[str, str | None] = {"coedge": None, "Python": platform.python_version()}
        try:
            found["coedge"] = str(importlib.import_module("coedge.core.version").VERSION)
        except ModuleNotFoundError:
            pass
        except Exception as error:
            found["coedge"] = f"!{type(error).__name__}: {error}"
        for name in LIBRARIES:
            try:
                found[name] = importlib.metadata.version(name)
                importlib.import_module(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
            except Exception as error:
                found[name] = f"!{type(error).__name__}: {error}"
        return found

    def memory(self) -> dict[str, float]:
        """Return the bytes of memory, available and in total."""
        import psutil

        memory = psutil.virtual_memory()
        available, total = float(memory.available), float(memory.total)
        limit, used = (_number(Path("/sys/fs/cgroup") / f"memory.{name}") for name in ("max", "current"))
        if limit is not None and limit < total:
            total, available = limit, min(available, limit - (used or 0.0))
        return {"available_nbytes": available, "total_nbytes": total}

    def folder(self, purpose: str, path: str) -> dict[str, Any]:
        """Return the room in a folder, or where it will be made, and whether it can be written."""
        where = Path(path).absolute()
        while not where.exists() and where != where.parent:
            where = where.parent
        room = os.statvfs(where)
        problem = ""
        try:
            with tempfile.TemporaryFile(dir=where if where.is_dir() else where.parent) as file:
                file.write(b"room")
        except OSError as error:
            problem = error.strerror or str(error)
        sizes = {"free_nbytes": room.f_bavail * room.f_frsize, "total_nbytes": room.f_blocks * room.f_frsize}
        return {"purpose": purpose, "path": path, "problem": problem, **sizes}

    def processor(self) -> dict[str, Any]:
        """Return cores, load, the settings of the CPU frequency and signs of throttling."""
        import psutil

        clocks = sorted(CPUS.glob("cpu[0-9]*/cpufreq"))
        governors = {text for clock in clocks if (text := _text(clock / "scaling_governor"))}
        first = clocks[0] if clocks else CPUS / "cpufreq"
        most, allowed = (_number(first / name) for name in ("cpuinfo_max_freq", "scaling_max_freq"))
        return {
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            "load": float(psutil.getloadavg()[0]),
            "governors": tuple(sorted(governors)),
            "driver": _text(first / "scaling_driver"),
            "most_mhz": None if most is None else most / 1e3,
            "allowed_mhz": None if allowed is None else allowed / 1e3,
            "throttles": _throttles(),
            "board_flags": _board_flags(),
        }

    def interface(self, address: str) -> dict[str, Any] | None:
        """Return the network interface that has an address; without one, that of the default route.

        None: no interface has it.
        """
        import psutil

        wanted = address or _own_address()
        for name, addresses in psutil.net_if_addrs().items():
            if any(one.address.partition("%")[0] == wanted for one in addresses):
                state = psutil.net_if_stats()[name]
                return {
                    "name": name,
                    "mtu": state.mtu,
                    "mbps": float(state.speed) if _has_rate(name) and 0 < state.speed < 65535 else None,
                    "full_duplex": state.duplex != psutil.NIC_DUPLEX_HALF,
                    "free_ports": _free_ports(),
                }
        return None

    def speed(self) -> dict[str, Any]:
        """Measure the speed of a typical kernel on all physical cores. It needs coedge."""
        import psutil

        from workers.calibration.layer_times import measure_gflops
        from workers.runtime.worker import fingerprint

        threads, before = psutil.cpu_count(logical=False) or os.cpu_count() or 1, _throttles() or 0
        gflops = measure_gflops(threads, cpu_time=False)
        return {
            "gflops": gflops, "fingerprint": fingerprint(threads), "throttles": (_throttles() or 0) - before,
        }  # fmt: skip

    def clock(self) -> float:
        """Return the time of day, seconds."""
        return time.time()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:  # no such file, or "max"
        return None


def _throttles() -> int | None:
    """Return how often heat has slowed the cores. A package counts once, although each of its cores shows the count."""
    counts = [_number(path) for path in CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    known = [count for count in counts if count is not None]
    return int(max(known)) if known else None


def _board_flags() -> int | None:
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=VCGENCMD_SECONDS, check=True
        )
        return int(done.stdout.strip().partition("=")[2], 16)
    except (OSError, subprocess.SubprocessError, ValueError):  # not a Raspberry Pi
        return None


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # no packet is sent
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _has_rate(interface: str) -> bool:
    """Return whether an interface is hardware. Linux makes up a rate for virtual ones."""
    return not INTERFACES.exists() or (INTERFACES / interface / "device").exists()


def _free_ports() -> tuple[int, int]:
    first, _, last = _text(Path("/proc/sys/net/ipv4/ip_local_port_range")).partition("\t")
    return (int(first), int(last)) if first.isdecimal() and last.strip().isdecimal() else (32768, 60999)
