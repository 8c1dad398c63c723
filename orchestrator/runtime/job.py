"""A submitted frame: its answer or error, its latency and its measured timeline."""

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
from coedge.simulation.span import span_of
from coedge.simulation.timeline import Span, Timeline
from orchestrator.runtime.loaded_plan import LoadedPlan

# A timeline waits this long for the devices' reports, which follow the answer.
TRACE_SECONDS = 2.0
# Waits are cut into pieces of this length: Python handles a signal that another thread received only between them.
SIGNAL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """The steps that a device ran for a frame, as measured there.

    Attributes:
        steps: indices into the device's program, shape [n].
        times: start and stop of each step on the device's clock, seconds, shape [n, 2].
        nbytes: bytes sent or received in each step, shape [n].
        offset_seconds: the device's clock minus the client's, to within `uncertainty_seconds`.
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
        loaded: the plan that the frame runs by, as loaded on the devices.
        attempts: how often the frame was sent. It is sent again, by another plan, when a device is lost.
        asked_seconds, answered_seconds: monotonic clock of the client; `answered_seconds` is None while the frame is
            under way.
        on_cancel: called once when the job is cancelled.
        on_failure: called once when the job ends with an error.
    """

    def __init__(self, frame: int, loaded: LoadedPlan, as_tensors: bool) -> None:
        self.frame, self.loaded = frame, loaded
        self.attempts = 0
        self.asked_seconds = time.monotonic()
        self.answered_seconds: float | None = None
        self.on_cancel: Callable[[Job], None] = lambda job: None
        self.on_failure: Callable[[Job, Exception], None] = lambda job, error: None
        self._as_tensors = as_tensors
        self._future: Future[list[NDArray[Any]]] = Future()
        self._lock = threading.Lock()
        self._reports: dict[str, DeviceReport] = {}
        self._traced = threading.Event()  # set when every device has reported

    @property
    def model(self) -> Model:
        return self.loaded.model

    @property
    def plan(self) -> Plan:
        """The plan that the frame runs by."""
        return self.loaded.plan

    def done(self) -> bool:
        """Return whether the frame was answered, failed or was cancelled."""
        return self._future.done()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the frame is done, or for `timeout` seconds. A frame is done by its deadline at the latest."""
        ends = math.inf if timeout is None else time.monotonic() + timeout
        while not self._future.done() and (left := ends - time.monotonic()) > 0:
            wait([self._future], min(left, SIGNAL_SECONDS))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the output and return it in the structure and dtype that the module returns.

        Args:
            timeout: seconds to wait here; the frame itself goes on. None: until the frame's own deadline.

        Raises:
            FrameTimeout: the frame was not answered in time.
            DeviceLost: a device of the plan died or stopped answering.
            StepFailed: a step raised an error on a device.
            Cancelled: the job was cancelled.
            ClusterError: the cluster was closed, or its connection broke.
        """
        self.wait(timeout)
        if not self._future.done():
            raise FrameTimeout(f"frame {self.frame} was not answered within {timeout} s; it goes on")
        outputs = self._future.result()
        return restore(self.model.structure, [output(np.array(o), self._as_tensors) for o in outputs])

    def cancel(self) -> bool:
        """Give the frame up; return False if it was done before."""
        cancelled = self.fail(Cancelled(f"frame {self.frame} was cancelled"))
        if cancelled:
            self.on_cancel(self)
        return cancelled

    @property
    def latency_seconds(self) -> float:
        """Seconds from `submit` to the answer, at the client. Waits, and raises the errors of `result`."""
        self.wait()
        self._future.result()
        assert self.answered_seconds is not None
        return self.answered_seconds - self.asked_seconds

    @property
    def timeline(self) -> Timeline:
        """The measured spans of every device for this frame. Waits for the answer and the devices' reports."""
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
        """End the frame with its outputs; return False if it was done before."""
        with self._lock:
            if self._future.done():
                return False
            self.answered_seconds = time.monotonic()
            self._future.set_result(outputs)
            return True

    def fail(self, error: Exception) -> bool:
        """End the frame with an error; return False if it was done before."""
        with self._lock:
            if self._future.done():
                return False
            self.answered_seconds = time.monotonic()
            self._future.set_exception(error)
            self._traced.set()
        self.on_failure(self, error)
        return True

    def move(self, loaded: LoadedPlan) -> None:
        """Let the frame run by another plan from now on."""
        with self._lock:
            self.loaded = loaded
            self._reports.clear()
            self._traced.clear()

    @property
    def traced(self) -> bool:
        """True if all devices have reported."""
        return self._traced.is_set()

    def report(self, epoch: int, device: str, report: DeviceReport) -> bool:
        """Store the report of a device. Return whether all have reported.

        A report of a plan that the frame no longer runs by is dropped.
        """
        with self._lock:
            if epoch != self.loaded.epoch:
                return False
            self._reports[device] = report
            if self._reports.keys() >= set(self.loaded.devices):
                self._traced.set()
            return self._traced.is_set()

    def _spans(self, device: str, report: DeviceReport) -> list[Span]:
        program, shift = self.loaded.programs[device], report.offset_seconds + self.asked_seconds
        return [
            span_of(program, step, self.model, self.frame, start - shift, stop - shift, nbytes)
            for step, (start, stop), nbytes in zip(
                report.steps.tolist(), report.times.tolist(), report.nbytes.tolist(), strict=True
            )
        ]
