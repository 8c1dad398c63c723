"""Settings of a worker's process: the C library's allocator and the interpreter."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt
SWITCH_SECONDS = 0.0005


def tune_process(emulated: bool) -> None:
    """Keep large freed blocks in the process: every frame allocates rows, and fresh pages take time."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 32 * 1024 * 1024)
        libc.mallopt(_TRIM_THRESHOLD, 128 * 1024 * 1024)
    if emulated:
        # A thread that holds messages must not wait 5 ms until a busy thread releases the interpreter.
        sys.setswitchinterval(SWITCH_SECONDS)


def return_freed_memory() -> None:
    """Return freed memory to the system. Only the GNU C library has this function, and only it needs the call.

    Building sessions takes more than twice the weights for a short time.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
