"""The client's end of the data plane: sends inputs, takes answers, keeps deadlines and credits.

    submit -> queue of the plan (while all credits are out) -> source device ... sink device -> answer
                  ^                                                  |
                  `---------- resume <- detach (a device is lost) <--'

A frame is answered once or fails with a reason. Its input is kept until then, so that it can be sent again. At most
`credits` frames of each plan are under way at a time, so that a slow plan does not delay the others. The dispatcher
keeps the unfinished frames and the jobs that a caller still holds, nothing else.

One thread receives and checks deadlines. If it cannot go on, every frame fails with the reason and later ones are
refused with it: a caller never waits for a thread that has ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import ClusterError, CoEdgeError, FrameTimeout, step_failed
from orchestrator.control.clock_offset import SAME_CLOCK, ClockOffset
from orchestrator.control.presence import Presence
from orchestrator.runtime.job import DeviceReport, Job
from orchestrator.runtime.loaded_plan import LoadedPlan, describe_step
from workers.transport.message import MalformedMessage, Message, MessageKind, array_to_text
from workers.transport.transport import Transport

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
# The diagnosis of a late frame may take this long after the deadline; the frame then fails without one.
DIAGNOSIS_SECONDS = 2.0
# Answered frames whose reports are waited for.
MOST_REPORTING = 16
CLOSED = "the cluster was closed; connect again"


@dataclass(slots=True)
class ActiveFrame:
    """A frame that waits for credit, is under way, or waits for another plan.

    Attributes:
        course: what the caller of `submit` gave, to find another plan by.
        deadline: on the client's monotonic clock; set when the frame is first sent.
        diagnosing: whether `on_late` was called.
        failure: the answer of `on_late`.
    """

    job: Job
    loaded: LoadedPlan
    arrays: tuple[NDArray[Any], ...]
    timeout_seconds: float
    course: Any = None
    deadline: float = 0.0
    diagnosing: bool = False
    failure: CoEdgeError | None = None

    @property
    def key(self) -> tuple[int, int]:
        """The (epoch, frame) that the messages of the frame carry."""
        return self.loaded.epoch, self.job.frame


class Dispatcher:
    """The sender of frames and receiver of answers. Its receiving thread runs until `close`.

    Args:
        index_of: wire index by device name.
        clocks: clock offset by device name; read at every report, so that refreshed offsets take effect.
        credits: frames of one plan that may be under way at a time.
        on_late: called, on a thread of its own, shortly before a frame's deadline passes, with the deadline
            and the seconds that the frame was given; returns the error that the frame fails with.
        presence: told of every message.
        lost: the lost devices, read at every use. Errors of frames that use one are ignored: such frames are detached
            or failed when the loss is handled.

    Attributes:
        on_failure: called with every frame that ends with an error.
        on_traced: called on the receiving thread with every answered frame that all its devices have reported.
    """

    def __init__(
        self,
        transport: Transport,
        index_of: Mapping[str, int],
        clocks: Mapping[str, ClockOffset],
        credits: int,
        on_late: Callable[[Job, LoadedPlan, float, float], CoEdgeError],
        presence: Presence | None = None,
        lost: Container[str] = (),
    ) -> None:
        self._transport, self._index_of, self._clocks = transport, dict(index_of), clocks
        self._name_of = {index: name for name, index in index_of.items()}
        self._credits, self._on_late = credits, on_late
        self._presence, self._lost = presence, lost
        self.on_traced: Callable[[Job], None] | None = None
        self.on_failure: Callable[[Job, Exception], None] | None = None
        # Answered frames that devices have not reported yet, oldest first; for `on_traced`.
        self._reporting: OrderedDict[tuple[int, int], Job] = OrderedDict()
        self._lock = threading.RLock()
        self._active: dict[tuple[int, int], ActiveFrame] = {}
        self._under_way: Counter[int] = Counter()  # by epoch
        self._queues: dict[int, deque[ActiveFrame]] = {}  # by epoch; no empty queues
        self._detached: dict[int, ActiveFrame] = {}  # by number: frames that wait for another plan
        # Reports may come after the answer; they are dropped when the caller has let go of the job.
        self._traced: weakref.WeakValueDictionary[tuple[int, int], Job] = weakref.WeakValueDictionary()
        self._frames = 0
        self._end_reason: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coedge-client", daemon=True)
        self._thread.start()

    @property
    def end_reason(self) -> str | None:
        """Why frames are refused; None while they are accepted."""
        return self._end_reason

    def submit(
        self,
        loaded: LoadedPlan,
        arrays: tuple[NDArray[Any], ...],
        as_tensors: bool,
        timeout_seconds: float,
        course: Any = None,
    ) -> Job:
        """Send a frame, or queue it while its plan has no credit. After `end` the job fails at once."""
        with self._lock:
            self._frames += 1
            job = Job(self._frames, loaded, as_tensors)
            job.on_cancel = self._cancelled
            if self.on_failure is not None:
                job.on_failure = self.on_failure
            if self._end_reason is not None:
                job.fail(ClusterError(self._end_reason))
                return job
            frame = ActiveFrame(job, loaded, arrays, timeout_seconds, course)
            self._queues.setdefault(loaded.epoch, deque()).append(frame)
            self._dispatch(loaded.epoch)
        return job

    def in_flight(self, epoch: int) -> bool:
        """Return whether a frame of the epoch is under way or queued."""
        with self._lock:
            return self._under_way[epoch] > 0 or epoch in self._queues

    def detach(self, device: str) -> list[ActiveFrame]:
        """Take the unfinished frames whose plans use a device from all devices; return them, oldest first.

        Each of them is then to be resumed or dropped.
        """
        with self._lock:
            queued = [frame for queue in self._queues.values() for frame in queue if device in frame.loaded.devices]
            sent = [frame for frame in self._active.values() if device in frame.loaded.devices]
            for epoch in {frame.loaded.epoch for frame in queued}:
                del self._queues[epoch]
            for frame in sent:
                self._recall(frame)
            frames = sorted((f for f in (*queued, *sent) if not f.job.done()), key=lambda frame: frame.job.frame)
            self._detached.update({frame.job.frame: frame for frame in frames})
        return frames

    def resume(self, frame: ActiveFrame, loaded: LoadedPlan) -> None:
        """Send a detached frame by another plan, before later frames of that plan. One that has ended is left out."""
        with self._lock:
            if self._detached.pop(frame.job.frame, None) is None or frame.job.done():
                return
            frame.loaded, frame.diagnosing, frame.failure = loaded, False, None
            frame.job.move(loaded)
            later = self._queues.get(loaded.epoch, ())
            self._queues[loaded.epoch] = deque(sorted((frame, *later), key=lambda queued: queued.job.frame))
            self._dispatch(loaded.epoch)

    def drop(self, frame: ActiveFrame, error: CoEdgeError) -> None:
        """Fail a detached frame."""
        with self._lock:
            self._detached.pop(frame.job.frame, None)
        frame.job.fail(error)

    def fail(self, reason: Callable[[Job, LoadedPlan], CoEdgeError], device: str | None = None) -> None:
        """Fail all frames, or those whose plans use `device`."""
        with self._lock:
            queued = [frame for queue in self._queues.values() for frame in queue]
            # Queued ones first, so that none of them is sent meanwhile.
            frames = [*queued, *self._active.values(), *self._detached.values()]
        for frame in frames:
            if device is None or device in frame.loaded.devices:
                try:
                    error = reason(frame.job, frame.loaded)
                except Exception as problem:
                    log.warning("no description of why frame %d failed", frame.job.frame, exc_info=True)
                    error = ClusterError(f"frame {frame.job.frame} failed, and so did finding out why: {problem!r}")
                self.drop(frame, error)
                self._forget(frame)

    def end(self, reason: str) -> None:
        """Fail all frames with `reason`, and refuse later ones with it. The first reason stays."""
        with self._lock:
            self._end_reason = reason = self._end_reason or reason
        self.fail(lambda job, loaded: ClusterError(reason))

    def close(self) -> None:
        """Fail all frames, end the receiving thread and close the transport."""
        self.end(CLOSED)
        self._closing.set()
        try:
            with contextlib.suppress(Exception):  # a broken transport; the thread has ended then, or polls
                self._transport.wake()
            self._thread.join()
        finally:
            self._transport.close()

    def _dispatch(self, epoch: int) -> None:
        """Send queued frames of a plan while there are credits. Holds the lock."""
        queue = self._queues.get(epoch)
        while queue and self._under_way[epoch] < self._credits:
            frame = queue.popleft()
            if not frame.job.done():
                self._send(frame)
        if queue is not None and not queue:
            del self._queues[epoch]

    def _send(self, frame: ActiveFrame) -> None:
        key = frame.key
        frame.deadline = frame.deadline or time.monotonic() + frame.timeout_seconds
        frame.job.attempts += 1
        self._active[key], self._traced[key] = frame, frame.job
        self._under_way[key[0]] += 1
        message = Message(
            MessageKind.DATA, self._transport.endpoint.index, *key, frame.loaded.input_channel, frame.arrays
        )
        source = frame.loaded.plan.source
        try:
            self._transport.send(self._index_of[source], message)
        except Exception as error:
            known = isinstance(error, CoEdgeError)
            frame.job.fail(error if known else ClusterError(f"frame {key[1]} could not be sent to {source}: {error!r}"))
            self._release(key)

    def _release(self, key: tuple[int, int]) -> bool:
        """Take the credit of a frame back; return False if it was not under way. Holds the lock."""
        if self._active.pop(key, None) is None:
            return False
        self._under_way[key[0]] -= 1
        if not self._under_way[key[0]]:
            del self._under_way[key[0]]
        return True

    def _cancelled(self, job: Job) -> None:
        with self._lock:
            epoch = job.loaded.epoch
            frame = self._active.get((epoch, job.frame))
            self._detached.pop(job.frame, None)
            queue = self._queues.get(epoch, deque())
            queued = next((other for other in queue if other.job is job), None)
            if queued is not None:
                queue.remove(queued)
            self._dispatch(epoch)  # removes an empty queue
        if frame is not None:
            self._forget(frame)

    def _forget(self, frame: ActiveFrame) -> None:
        """Tell the devices to forget a frame, and give its credit to the next one."""
        with self._lock:
            self._recall(frame)
            self._dispatch(frame.loaded.epoch)

    def _recall(self, frame: ActiveFrame) -> None:
        """Tell the devices to forget a frame that is under way. Holds the lock."""
        if self._release(frame.key):
            message = Message(MessageKind.CANCEL, self._transport.endpoint.index, *frame.key)
            for name in frame.loaded.devices:
                with contextlib.suppress(Exception):  # the device is gone, and the frame with it
                    self._transport.send(self._index_of[name], message)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                message = self._transport.receive(0.0)
                if message is None:
                    if self._presence is not None:
                        self._presence.emptied()
                    message = self._transport.receive(POLL_SECONDS)
                if message is not None:
                    self._take(message)
                self._check_deadlines()
        except BaseException as error:  # whatever ends this thread, callers that wait must learn of it
            if not self._closing.is_set():
                log.error("the client cannot receive any more", exc_info=True)
                self.end(f"the client cannot receive any more ({error!r}), so the cluster is closed; connect again")

    def _take(self, message: Message) -> None:
        try:
            self._handle(message)
        except Exception:  # one bad message must not stop the thread that keeps the deadlines
            log.warning("ignored a message of device %d that makes no sense", message.sender, exc_info=True)

    def _handle(self, message: Message) -> None:
        if self._presence is not None:
            self._presence.came(message)
        key = (message.epoch, message.frame)
        device = self._name_of.get(message.sender)
        if device is None:
            return  # not a device of this cluster
        if message.kind is MessageKind.TRACE:
            self._trace(key, device, message)
            return
        with self._lock:
            frame = self._active.get(key)
        if frame is None or device not in frame.loaded.programs:
            return
        if message.kind is MessageKind.ANSWER and device == frame.loaded.plan.sink:
            frame.job.answer(list(message.arrays))
            with self._lock:
                self._release(key)
                self._dispatch(message.epoch)
            self._await_reports(key, frame.job)
        elif message.kind is MessageKind.ERROR and not any(name in self._lost for name in frame.loaded.devices):
            text = array_to_text(message.arrays[0]) if message.arrays else "unknown error"
            step = self._describe(frame.loaded, device, message.channel)
            frame.job.fail(step_failed(device, step, text, message.frame))
            self._forget(frame)

    def _await_reports(self, key: tuple[int, int], job: Job) -> None:
        """Keep an answered job, which its caller may drop, until its reports are there."""
        if self.on_traced is None:
            return
        if job.traced:
            self.on_traced(job)
            return
        self._reporting[key] = job
        while len(self._reporting) > MOST_REPORTING:
            self._reporting.popitem(last=False)

    def _describe(self, loaded: LoadedPlan, device: str, index: int) -> str:
        steps = loaded.programs[device].steps if device in loaded.programs else ()
        if index >= len(steps):
            return "an unknown step"
        return describe_step(steps[index], loaded.model)

    def _trace(self, key: tuple[int, int], device: str, message: Message) -> None:
        with self._lock:
            job = self._traced.get(key)
        if job is None or job.loaded.epoch != key[0] or device not in job.loaded.devices:
            return
        steps, times, nbytes = message.arrays
        count = len(job.loaded.programs[device].steps)
        fits = steps.ndim == 1 and times.shape == (len(steps), 2) and nbytes.shape == steps.shape
        if not fits or steps.dtype.kind != "i" or not np.isin(steps, np.arange(count)).all():
            raise MalformedMessage(f"a report of frame {message.frame} does not fit the program of {count} steps")
        clock = self._clocks.get(device, SAME_CLOCK).at(time.monotonic())
        reported = job.report(
            key[0], device, DeviceReport(steps, times, nbytes, clock.seconds, clock.uncertainty_seconds)
        )
        if reported and self._reporting.pop(key, None) is not None and self.on_traced is not None:
            self.on_traced(job)

    def _check_deadlines(self) -> None:
        """Start the diagnosis of frames that are about to be late, and fail those that are late."""
        now = time.monotonic()
        with self._lock:
            frames = list(self._active.values())
            late = [frame for frame in self._detached.values() if frame.deadline and now > frame.deadline]
        for frame in late:
            self.drop(frame, _late(frame, "a device was lost, and the others have not begun it"))
        for frame in frames:
            if not frame.diagnosing and now > frame.deadline - min(1.0, frame.timeout_seconds / 4):
                frame.diagnosing = True
                with contextlib.suppress(RuntimeError):  # no more threads: the frame fails without a diagnosis
                    threading.Thread(target=self._diagnose, args=(frame,), name="coedge-diagnosis", daemon=True).start()
            elif now > frame.deadline and (frame.failure or now > frame.deadline + DIAGNOSIS_SECONDS):
                frame.job.fail(frame.failure or _late(frame, "no diagnosis in time"))
                self._forget(frame)

    def _diagnose(self, frame: ActiveFrame) -> None:
        try:
            frame.failure = self._on_late(frame.job, frame.loaded, frame.deadline, frame.timeout_seconds)
        except BaseException as problem:  # Ray ends a thread that calls it after its shutdown
            frame.failure = _late(frame, repr(problem))


def _late(frame: ActiveFrame, problem: str) -> FrameTimeout:
    return FrameTimeout(
        f"frame {frame.job.frame} was not answered within {frame.timeout_seconds:g} s (cause unknown: {problem}). "
        "Raise the timeout (frame_timeout_seconds), or connect again"
    )
