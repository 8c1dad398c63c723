"""Denormal numbers taken as zero, on one thread for a while.

A denormal float32 is smaller than 1.2e-38. Processors take up to a hundred times longer to compute with one, and
trained networks contain them: in a text detector, 1.3 % of the weights. The two bits of the processor that replace
them by zero belong to a thread. ONNX Runtime sets them too (`session.set_denormal_as_zero`), but for the first session
of a process only, and on the thread that creates it, where they stay set.

The bits are part of the floating-point environment of the C library. A thread that is created while they are set
inherits them: the pool of a session that is created inside `flushed` has them for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from typing import Any

# By machine: the offset of the control register in `fenv_t` of Linux's C libraries, bytes, and the bits for results
# (flush to zero) and for operands (denormals are zero).
_REGISTERS = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
_FENV_NBYTES = 64


_Buffer = ctypes.c_char * _FENV_NBYTES


def _functions() -> tuple[Any, Any] | None:
    """Return `fegetenv` and `fesetenv` of the C library; None where the layout of the environment is not known."""
    if sys.platform != "linux" or platform.machine() not in _REGISTERS:
        return None
    for library in (None, "libm.so.6"):
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(library)
            return libc.fegetenv, libc.fesetenv
    return None


_environment = _functions()
# Whether `flushed` has an effect here. Elsewhere, sessions ask ONNX Runtime for it.
SUPPORTED = _environment is not None
_OFFSET, _BITS = _REGISTERS.get(platform.machine(), (0, 0))


class flushed:
    """Take denormal numbers as zero on this thread inside the `with` block. It takes 2 microseconds."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        if _environment is not None:
            get, set_ = _environment
            self._before = _Buffer()
            get(self._before)
            after = _Buffer.from_buffer_copy(self._before)
            ctypes.c_uint32.from_buffer(after, _OFFSET).value |= _BITS
            set_(after)

    def __exit__(self, *_: object) -> None:
        if _environment is not None:
            _environment[1](self._before)
