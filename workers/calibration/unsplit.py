"""The unsplit network in one session of one device, as a reference for plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from coedge.core.onnx_session import Session
from coedge.core.provider import ON_CPU, Provider
from workers.emulation.processor import EmulatedProcessor

Array = NDArray[Any]
T = TypeVar("T")


class UnsplitSession:
    """A session of the entire network, separate from those of plans.

    Args:
        proto: the network as it was exported, serialised ONNX.
        threads: of the session.
        speed: emulated fraction of the real speed, applied as to the kernels of a plan. None: not emulated.
    """

    def __init__(self, proto: bytes, threads: int, speed: float | None, providers: Sequence[Provider] = ON_CPU) -> None:
        self._session = Session(proto, threads, providers=providers)
        self._names = self._session.inputs
        self._threads, self._speed = threads, speed

    def run(self, arrays: Sequence[Array]) -> tuple[float, list[Array]]:
        """Return the seconds from the input to the output, and the outputs."""
        given = dict(zip(self._names, arrays, strict=True))
        return timed(lambda: self._session.run(None, given), self._threads, self._speed)


def timed(function: Callable[[], T], threads: int, speed: float | None) -> tuple[float, T]:
    """Run a function on this thread as a kernel of a device of this speed; return wall seconds and its result."""
    processor = EmulatedProcessor(speed, threads)
    start = time.monotonic()
    result = processor.run(function)
    return time.monotonic() - start, result
