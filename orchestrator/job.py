"""One frame that was asked for: its answer, or why there is none, and what happened on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.errors import Cancelled, FrameTimeout
from coedge.model import Model
from coedge.plan import Plan
from coedge.timeline import Span, Timeline
from coedge.values import output, restore

TRACE_SECONDS = 2.0


class Job:
    """The handle that `Cluster.submit` returns.

    Attributes:
        frame: number of the frame, ascending within a cluster.
        plan: what it runs by.
    """

    def __init__(self, frame: int, model: Model, plan: Plan, as_tensors: bool, traced: frozenset[str]) -> None:
        self.frame, self.model, self.plan = frame, model, plan
        self.asked_seconds = time.monotonic()
        self.answered_seconds: float | None = None
        self.on_cancel: Callable[[Job], None] = lambda job: None
        self._as_tensors = as_tensors
        self._future: Future[list[NDArray[Any]]] = Future()
        self._lock = threading.Lock()
        self._awaited = set(traced)
        self._spans: list[Span] = []
        self._uncertainty_seconds = 0.0
        self._clock_offsets: dict[str, float] = {}
        self._traced = threading.Event()
        if not traced:
            self._traced.set()

    def done(self) -> bool:
        """Whether there is an answer, or a reason for none."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Any:
        """The output, in the structure and dtype that the module returns.

        Args:
            timeout: seconds to wait here; the frame itself goes on. None: as long as the frame has.

        Raises:
            FrameTimeout: not answered in time.
            DeviceLost, StepFailed, Cancelled: why there is no answer.
        """
        try:
            outputs = self._future.result(timeout)
        except TimeoutError as error:
            if isinstance(error, FrameTimeout):
                raise
            raise FrameTimeout(f"frame {self.frame} was not answered within {timeout} s; it goes on") from None
        return restore(self.model.structure, [output(np.array(o), self._as_tensors) for o in outputs])

    def cancel(self) -> bool:
        """Gives the frame up; False: it had ended before."""
        cancelled = self.fail(Cancelled(f"frame {self.frame} was cancelled"))
        if cancelled:
            self.on_cancel(self)
        return cancelled

    @property
    def latency_seconds(self) -> float:
        """From asked to answered, at the client. Raises what `result` raises where there is no answer."""
        self._future.result()
        assert self.answered_seconds is not None
        return self.answered_seconds - self.asked_seconds

    @property
    def timeline(self) -> Timeline:
        """What every device did for this frame, as measured. Waits for the answer and the devices' reports."""
        self._future.result()
        assert self.answered_seconds is not None
        self._traced.wait(TRACE_SECONDS)
        with self._lock:
            spans = tuple(sorted(self._spans, key=lambda span: (span.start_seconds, span.device)))
        answered = {self.frame: (0.0, self.answered_seconds - self.asked_seconds)}
        return Timeline(spans, answered, True, self._uncertainty_seconds, dict(self._clock_offsets))

    def answer(self, outputs: list[NDArray[Any]]) -> bool:
        with self._lock:
            if self._future.done():
                return False
            self.answered_seconds = time.monotonic()
            self._future.set_result(outputs)
            return True

    def fail(self, error: Exception) -> bool:
        with self._lock:
            if self._future.done():
                return False
            self.answered_seconds = time.monotonic()
            self._future.set_exception(error)
            self._traced.set()
            return True

    def add_spans(self, device: str, spans: list[Span], offset_seconds: float, uncertainty_seconds: float) -> bool:
        """A device's report; True when it was the last one."""
        with self._lock:
            self._spans += spans
            self._clock_offsets[device] = offset_seconds
            self._uncertainty_seconds = max(self._uncertainty_seconds, uncertainty_seconds)
            self._awaited.discard(device)
            if not self._awaited:
                self._traced.set()
            return not self._awaited
