"""The client's end of the wire: sends inputs, takes answers, keeps deadlines and credits.

    submit -> (queue of its plan, while the credits are out) -> source device ... sink device -> answer

A frame is answered once or fails with a reason. Of each plan at most `credits` frames are under way at a time, so
that a slow one does not keep the others from theirs. What is kept here is of frames under way and of jobs that
somebody holds, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import ClusterError, CoEdgeError, FrameTimeout, StepFailed
from orchestrator.runtime.job import Job, Report
from orchestrator.runtime.loaded_plan import LoadedPlan, describe_step
from workers.transport.message import MalformedMessage, Message, MessageKind, array_to_text
from workers.transport.transport import Transport

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
CLOSED = "the cluster was closed"


@dataclass(slots=True)
class _Flight:
    job: Job
    loaded: LoadedPlan
    arrays: tuple[NDArray[Any], ...]
    timeout_seconds: float
    deadline: float = 0.0
    late: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """What the messages of the frame carry."""
        return self.loaded.epoch, self.job.frame


class Dispatcher:
    """Runs a receiving thread until `close`.

    Args:
        index_of: of every device on the wire.
        clocks: per device, (its clock minus ours, uncertainty), seconds.
        credits: frames of one plan that may be under way.
        on_late: called, on a thread of its own, shortly before a frame's deadline passes, with the deadline
            and the seconds that the frame was given; returns the error.
    """

    def __init__(
        self,
        transport: Transport,
        index_of: Mapping[str, int],
        clocks: Mapping[str, tuple[float, float]],
        credits: int,
        on_late: Callable[[Job, LoadedPlan, float, float], CoEdgeError],
    ) -> None:
        self._transport, self._index_of, self._clocks = transport, dict(index_of), dict(clocks)
        self._name_of = {index: name for name, index in index_of.items()}
        self._credits, self._on_late = credits, on_late
        self._lock = threading.RLock()
        self._flying: dict[tuple[int, int], _Flight] = {}
        self._under_way: Counter[int] = Counter()  # of each epoch
        self._queues: dict[int, deque[_Flight]] = {}  # of each epoch that has frames in it
        # A report may come after its answer; of a job that nobody holds any more, nobody reads it.
        self._traced: weakref.WeakValueDictionary[tuple[int, int], Job] = weakref.WeakValueDictionary()
        self._frames = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coedge-client", daemon=True)
        self._thread.start()

    def submit(
        self, loaded: LoadedPlan, arrays: tuple[NDArray[Any], ...], as_tensors: bool, timeout_seconds: float
    ) -> Job:
        with self._lock:
            self._frames += 1
            job = Job(self._frames, loaded, as_tensors)
            job.on_cancel = self._cancelled
            if self._closing.is_set():
                job.fail(ClusterError(CLOSED))
                return job
            self._queues.setdefault(loaded.epoch, deque()).append(_Flight(job, loaded, arrays, timeout_seconds))
            self._dispatch(loaded.epoch)
        return job

    def in_flight(self, epoch: int) -> bool:
        with self._lock:
            return self._under_way[epoch] > 0 or epoch in self._queues

    def fail(self, reason: Callable[[Job, LoadedPlan], CoEdgeError], device: str | None = None) -> None:
        """Fails all frames under way, or those whose plans use a device."""
        with self._lock:
            waiting = [flight for queue in self._queues.values() for flight in queue]
            flights = [*waiting, *self._flying.values()]  # no credit goes to a frame that is about to fail
        for flight in flights:
            if device is None or device in flight.loaded.devices:
                flight.job.fail(reason(flight.job, flight.loaded))
                self._drop(flight)

    def close(self) -> None:
        """Fails all frames under way, and those that are submitted from now on."""
        with self._lock:
            self._closing.set()
        self.fail(lambda job, loaded: ClusterError(CLOSED))
        self._transport.wake()
        self._thread.join()
        self._transport.close()

    def _dispatch(self, epoch: int) -> None:
        """Sends queued frames of a plan as far as there are credits. Holds the lock."""
        queue = self._queues.get(epoch)
        while queue and self._under_way[epoch] < self._credits:
            flight = queue.popleft()
            if not flight.job.done():
                self._send(flight)
        if queue is not None and not queue:
            del self._queues[epoch]

    def _send(self, flight: _Flight) -> None:
        key = flight.key
        flight.deadline = time.monotonic() + flight.timeout_seconds
        self._flying[key], self._traced[key] = flight, flight.job
        self._under_way[key[0]] += 1
        message = Message(
            MessageKind.DATA, self._transport.endpoint.index, *key, flight.loaded.input_channel, flight.arrays
        )
        try:
            self._transport.send(self._index_of[flight.loaded.plan.source], message)
        except CoEdgeError as error:
            flight.job.fail(error)
            self._land(key)
        flight.arrays = ()  # the transport has them

    def _land(self, key: tuple[int, int]) -> bool:
        """Takes the credit of a frame back; False: it was not under way. Holds the lock."""
        if self._flying.pop(key, None) is None:
            return False
        self._under_way[key[0]] -= 1
        if not self._under_way[key[0]]:
            del self._under_way[key[0]]
        return True

    def _cancelled(self, job: Job) -> None:
        with self._lock:
            key = (job.loaded.epoch, job.frame)
            flight = self._flying.get(key)
            queue = self._queues.get(job.loaded.epoch, deque())
            waiting = next((other for other in queue if other.job is job), None)
            if waiting is not None:
                queue.remove(waiting)
            self._dispatch(job.loaded.epoch)  # lets go of a queue that is empty
        if flight is not None:
            self._drop(flight)

    def _drop(self, flight: _Flight) -> None:
        """Tells the devices to forget a frame, and gives its credit to the next."""
        with self._lock:
            if self._land(flight.key):
                message = Message(MessageKind.CANCEL, self._transport.endpoint.index, *flight.key)
                for name in flight.loaded.devices:
                    with contextlib.suppress(CoEdgeError):  # it is gone, and so is the frame there
                        self._transport.send(self._index_of[name], message)
            self._dispatch(flight.loaded.epoch)

    def _run(self) -> None:
        while not self._closing.is_set():
            message = self._transport.receive(POLL_SECONDS)
            if message is not None:
                try:
                    self._handle(message)
                except Exception:  # deadlines are kept here, whatever the network brings
                    log.warning("a message from device %d made no sense", message.sender, exc_info=True)
            self._check_deadlines()

    def _handle(self, message: Message) -> None:
        key = (message.epoch, message.frame)
        device = self._name_of.get(message.sender)
        if device is None:
            return  # a stranger
        if message.kind is MessageKind.TRACE:
            self._trace(key, device, message)
            return
        with self._lock:
            flight = self._flying.get(key)
        if flight is None or device not in flight.loaded.programs:
            return
        if message.kind is MessageKind.ANSWER and device == flight.loaded.plan.sink:
            flight.job.answer(list(message.arrays))
            with self._lock:
                self._land(key)
                self._dispatch(message.epoch)
        elif message.kind is MessageKind.ERROR:
            text = array_to_text(message.arrays[0]) if message.arrays else "unknown error"
            step = self._describe(flight.loaded, device, message.channel)
            flight.job.fail(StepFailed(f"{device} failed in {step}, frame {message.frame}: {text}"))
            self._drop(flight)

    def _describe(self, loaded: LoadedPlan, device: str, index: int) -> str:
        steps = loaded.programs[device].steps if device in loaded.programs else ()
        if index >= len(steps):
            return "an unknown step"
        return describe_step(steps[index], loaded.model)

    def _trace(self, key: tuple[int, int], device: str, message: Message) -> None:
        with self._lock:
            job = self._traced.get(key)
        if job is None or device not in job.loaded.devices:
            return
        steps, times, nbytes = message.arrays
        count = len(job.loaded.programs[device].steps)
        fits = steps.ndim == 1 and times.shape == (len(steps), 2) and nbytes.shape == steps.shape
        if not fits or steps.dtype.kind != "i" or not np.isin(steps, np.arange(count)).all():
            raise MalformedMessage(f"a report of frame {message.frame} does not fit the program of {count} steps")
        job.report(device, Report(steps, times, nbytes, *self._clocks.get(device, (0.0, 0.0))))

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [
                f for f in self._flying.values() if not f.late and now > f.deadline - min(1.0, f.timeout_seconds / 4)
            ]
            for flight in late:
                flight.late = True
        for flight in late:
            threading.Thread(target=self._expire, args=(flight,), daemon=True).start()

    def _expire(self, flight: _Flight) -> None:
        try:
            error = self._on_late(flight.job, flight.loaded, flight.deadline, flight.timeout_seconds)
        except BaseException as problem:  # Ray exits a thread that asks it when it is gone
            error = FrameTimeout(f"frame {flight.job.frame} was not answered in time ({problem!r})")
        rest = flight.deadline - time.monotonic()
        if rest > 0:
            self._closing.wait(rest)
        if flight.job.fail(error):
            self._drop(flight)
