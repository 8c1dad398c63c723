"""The whole network in one session of one device: what somebody with that device alone would run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from coedge.core.provider import ON_CPU, Provider
from workers.emulation.processor import EmulatedProcessor
from workers.runtime.kernels import session

Array = NDArray[Any]
T = TypeVar("T")


class UnsplitSession:
    """A session of its own, beside those of plans.

    Args:
        proto: the network as its author exported it, serialised ONNX.
        threads: of the session.
        speed: emulated fraction of the real speed, applied as to the kernels of a plan. None: not emulated.
    """

    def __init__(self, proto: bytes, threads: int, speed: float | None, providers: Sequence[Provider] = ON_CPU) -> None:
        self._session = session(proto, threads, providers=providers)
        self._names = [given.name for given in self._session.get_inputs()]
        self._threads, self._speed = threads, speed

    def run(self, arrays: Sequence[Array]) -> tuple[float, list[Array]]:
        """Seconds from the input being there to the output being there, and the outputs."""
        given = dict(zip(self._names, arrays, strict=True))
        return timed(lambda: self._session.run(None, given), self._threads, self._speed)


def timed(function: Callable[[], T], threads: int, speed: float | None) -> tuple[float, T]:
    """What a device of this speed takes for a kernel that runs on this thread, wall seconds; and what it gives."""
    processor = EmulatedProcessor(speed, threads)
    start = time.monotonic()
    found = processor.run(function)
    return time.monotonic() - start, found
