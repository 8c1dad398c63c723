"""Folders for Unix sockets, readable by one user, and their removal after a process was killed.

    coedge-socket-x7f3k2/      mode 0700, in the temporary folder, locked (flock) while its process lives
        inbox                  the socket

The kernel releases the lock when the process ends in any way. A folder with a socket and without a lock is therefore
left over from a killed process. The next process that makes or closes a folder removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import weakref
from pathlib import Path

PREFIX = "coedge-socket-"
SOCKET = "inbox"
# `sun_path` of the socket address, without its final zero byte: 108 bytes on Linux, 104 elsewhere.
MAX_PATH_NBYTES = 103
IPC = "ipc://"


class SocketFolder:
    """A private folder for one Unix socket. `close`, and the end of the interpreter, remove it.

    Attributes:
        address: `ipc://` address of the socket.

    Raises:
        OSError: the folder cannot be made, or its path is too long for a socket.
    """

    def __init__(self) -> None:
        remove_stale_folders()
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        descriptor = os.open(path, os.O_RDONLY)
        self._remove = weakref.finalize(self, _remove, path, descriptor, os.getpid())
        socket = path / SOCKET
        if len(os.fsencode(socket)) > MAX_PATH_NBYTES:
            self.close()
            raise OSError(f"{socket} is longer than the {MAX_PATH_NBYTES} bytes that a socket's path may have")
        if not _lock(descriptor):
            self.close()
            raise OSError(f"{path} is locked by another process")
        self.address = f"{IPC}{socket}"

    def close(self) -> None:
        """Remove the folder and the socket in it, and those of killed processes. Safe to call twice."""
        self._remove()
        remove_stale_folders()


def is_reachable(address: str) -> bool:
    """Return whether this process sees the socket. A process of another user or mount namespace does not."""
    try:
        return stat.S_ISSOCK(os.stat(address.removeprefix(IPC)).st_mode)
    except OSError:
        return False


def remove_stale_folders() -> None:
    """Remove the folders of this user whose processes were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            # A process locks its folder before it binds the socket: a folder without one may be new.
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or not (path / SOCKET).exists():
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if _lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a folder until its descriptor is closed; False: another process holds it."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: Path, descriptor: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not remove the folder of its parent
        shutil.rmtree(path, ignore_errors=True)
    os.close(descriptor)
