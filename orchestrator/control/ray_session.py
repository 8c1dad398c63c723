"""The folder of a Ray session that CoEdge has started: removed with the session, and later if its process was killed.

Ray keeps the folders of all sessions, with their logs, until the machine is started again.

    session_.../coedge     the process id of the owner and the time of its start
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import psutil

MARK = "coedge"
PATTERN = "session_2*"  # session_latest is a link
# Two processes may read times of a start that differ by this much, because the system's clock is set meanwhile.
CLOCK_SECONDS = 60.0


class RaySession:
    """A marked folder of a session."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_this_process(cls) -> RaySession | None:
        """Mark the folder of the Ray that this process has started; None if it cannot be marked."""
        import ray

        try:
            path = Path(ray._private.worker._global_node.get_session_dir_path())
            (path / MARK).write_text(_identity(psutil.Process()), encoding="utf-8")
        except (AttributeError, OSError):  # another version of Ray, or a full disk
            return None
        return cls(path)

    def remove(self) -> None:
        """Remove the folder, and those of this user whose processes were killed."""
        _remove(self.path)
        for path in self.path.parent.glob(PATTERN):
            with contextlib.suppress(OSError):
                if path.lstat().st_uid == os.getuid() and _is_stale(path):
                    _remove(path)


def _identity(process: psutil.Process) -> str:
    """Return what tells a process from a later one with the same id."""
    return f"{process.pid} {process.create_time():.2f}"


def _is_stale(path: Path) -> bool:
    """Return whether a folder is marked and its owner has ended."""
    mark = path / MARK
    if not mark.exists():
        return False
    try:
        pid, started = mark.read_text(encoding="utf-8").split()
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError):
        return False


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    latest = path.parent / "session_latest"
    with contextlib.suppress(OSError):
        if latest.is_symlink() and not latest.exists():
            latest.unlink()
