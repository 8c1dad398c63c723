"""One frame that was asked for: its answer, or why there is none, and what happened on the way."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import Cancelled, FrameTimeout
from coedge.core.values import output, restore
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.simulation.simulator import span_of
from coedge.simulation.timeline import Span, Timeline
from orchestrator.runtime.loaded_plan import LoadedPlan

TRACE_SECONDS = 2.0
SIGNAL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Report:
    """What a device did for a frame.

    Attributes:
        steps: of its program.
        times: (start, stop) of each, seconds of the device's clock.
        nbytes: that travelled in each.
        offset_seconds: the device's clock minus the client's, known to `uncertainty_seconds`.
    """

    steps: NDArray[Any]
    times: NDArray[Any]
    nbytes: NDArray[Any]
    offset_seconds: float
    uncertainty_seconds: float


class Job:
    """The handle that `Cluster.submit` returns.

    Attributes:
        frame: number of the frame, ascending within a cluster.
        loaded: the plan that it runs by, on its devices.
    """

    def __init__(self, frame: int, loaded: LoadedPlan, as_tensors: bool) -> None:
        self.frame, self.loaded = frame, loaded
        self.asked_seconds = time.monotonic()
        self.answered_seconds: float | None = None
        self.on_cancel: Callable[[Job], None] = lambda job: None
        self._as_tensors = as_tensors
        self._future: Future[list[NDArray[Any]]] = Future()
        self._lock = threading.Lock()
        self._reports: dict[str, Report] = {}
        self._traced = threading.Event()  # every device has reported

    @property
    def model(self) -> Model:
        return self.loaded.model

    @property
    def plan(self) -> Plan:
        """What it runs by."""
        return self.loaded.plan

    def done(self) -> bool:
        """Whether there is an answer, or a reason for none."""
        return self._future.done()

    def wait(self, timeout: float | None = None) -> None:
        """Until it is done, which the frame's deadline sees to, or so many seconds."""
        # In short waits: a signal that the system gives to another thread is handled only between them.
        ends = math.inf if timeout is None else time.monotonic() + timeout
        while not self._future.done() and (left := ends - time.monotonic()) > 0:
            wait([self._future], min(left, SIGNAL_SECONDS))

    def result(self, timeout: float | None = None) -> Any:
        """The output, in the structure and dtype that the module returns.

        Args:
            timeout: seconds to wait here; the frame itself goes on. None: as long as the frame has.

        Raises:
            FrameTimeout: not answered in time.
            DeviceLost, StepFailed, Cancelled: why there is no answer.
        """
        self.wait(timeout)
        if not self._future.done():
            raise FrameTimeout(f"frame {self.frame} was not answered within {timeout} s; it goes on")
        outputs = self._future.result()
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
        self.wait()
        self._future.result()
        assert self.answered_seconds is not None
        return self.answered_seconds - self.asked_seconds

    @property
    def timeline(self) -> Timeline:
        """What every device did for this frame, as measured. Waits for the answer and the devices' reports."""
        self.wait()
        self._future.result()
        assert self.answered_seconds is not None
        self._traced.wait(TRACE_SECONDS)
        with self._lock:
            reports = dict(self._reports)
        spans = [span for device, report in reports.items() for span in self._spans(device, report)]
        return Timeline(
            tuple(sorted(spans, key=lambda span: (span.start_seconds, span.device))),
            {self.frame: (0.0, self.answered_seconds - self.asked_seconds)},
            True,
            max((report.uncertainty_seconds for report in reports.values()), default=0.0),
            {device: report.offset_seconds for device, report in reports.items()},
        )

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

    def report(self, device: str, report: Report) -> None:
        """Takes in what a device did."""
        with self._lock:
            self._reports[device] = report
            if self._reports.keys() >= set(self.loaded.devices):
                self._traced.set()

    def _spans(self, device: str, report: Report) -> list[Span]:
        program, shift = self.loaded.programs[device], report.offset_seconds + self.asked_seconds
        return [
            span_of(program, step, self.model, self.frame, start - shift, stop - shift, nbytes)
            for step, (start, stop), nbytes in zip(
                report.steps.tolist(), report.times.tolist(), report.nbytes.tolist(), strict=True
            )
        ]
