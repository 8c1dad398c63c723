"""The loop of a worker: it receives messages and does the steps that its scheduler names, on one thread.

    receive -> scheduler -> kernel or send -> receive -> ...

An error never ends the loop unnoticed:

    in a step                      the frame fails; the client gets an error message that names the step
    a held message was not sent    likewise, for the step that sent it
    an echo was not sent           logged; the device that measures misses the echo
    the client cannot be told      the loop ends with the error, and `Worker.serve` with it
    the transport is broken        likewise
"""

from __future__ import annotations

import functools
import logging
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import ClusterError, innermost_message
from coedge.execution.program import CLIENT, RAW, Program
from coedge.execution.scheduler import Ended, Failed, Scheduler, Task
from workers.emulation.processor import EmulatedProcessor
from workers.runtime.messenger import Messenger
from workers.runtime.model_store import ModelStore
from workers.runtime.prober import EchoProber
from workers.runtime.spec import ProbeTimes
from workers.transport.message import MalformedMessage, Message, MessageKind, text_to_array
from workers.transport.transport import DeliveryFailed

Array = NDArray[Any]
T = TypeVar("T")
log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
# Messages handled between two steps: a peer that sends without pause must not keep the device from its steps.
MAX_RECEIVED = 256


class WorkLoop:
    """Runs the programs of one device. `run` is for one thread, the other methods for any.

    Attributes:
        running: (epoch, frame, index of the step, time of its start) of the step that runs now, or None.
        refused: number of messages that came from another peer than the program names, or than may send them.
    """

    def __init__(self, name: str, messenger: Messenger, processor: EmulatedProcessor, store: ModelStore) -> None:
        self.running: tuple[int, int, int, float] | None = None
        self.refused = 0
        self._name, self._messenger, self._processor, self._store = name, messenger, processor, store
        self._scheduler = Scheduler()
        self._prober = EchoProber(messenger, processor)
        self._senders: dict[int, dict[int, str]] = {}  # by epoch: the peer of each channel
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._stopping = self._ended = False

    @property
    def waiting(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """Per (epoch, frame) under way, the channels whose messages have not come."""
        return self._scheduler.waiting

    def load(self, epoch: int, program: Program) -> None:
        """Accept frames of a program, whose kernels are in the store."""
        self._senders[epoch] = {step.channel: step.peer for step in program.receives}
        self._scheduler.load(epoch, program)

    def unload(self, epoch: int) -> None:
        """Forget a program and its frames."""
        self._scheduler.unload(epoch)
        self._senders.pop(epoch, None)

    def call(self, function: Callable[[], T], timeout_seconds: float) -> T:
        """Run a function on the loop thread, between two steps, and return its result.

        Raises:
            TimeoutError: it did not end in time.
            RuntimeError: the loop has ended.
        """
        future: Future[T] = Future()
        self._calls.put((function, future))
        if self._ended:
            self._refuse_calls()
        else:
            self._messenger.wake()
        return future.result(timeout_seconds)

    def probe(self, peer: str, nbytes: int, count: int, timeout_seconds: float) -> ProbeTimes:
        """Measure the link to a peer; see `EchoProber.probe`."""
        probe = functools.partial(self._prober.probe, peer, nbytes, count, timeout_seconds, self._receive)
        return self.call(probe, timeout_seconds + 1)

    def give_up(self, peer: str) -> None:
        """End a measurement of the link to a peer that is lost."""
        self._prober.give_up(peer)
        self._messenger.wake()

    def stop(self) -> None:
        """Make `run` return after the step that runs now."""
        self._stopping = True
        self._messenger.wake()

    def run(self) -> None:
        """Receive and work until `stop`.

        Raises:
            ClusterError: the client cannot be reached, or the transport is broken.
        """
        try:
            while not self._stopping:
                for _ in range(MAX_RECEIVED):
                    if not self._receive(0.0):
                        break
                self._run_calls()
                if not self._fire():
                    self._receive(IDLE_SECONDS)
        finally:
            self._ended = True
            self._refuse_calls()

    def _receive(self, timeout_seconds: float) -> bool:
        """Handle the next message; False: none came."""
        try:
            message = self._messenger.receive(timeout_seconds)
        except DeliveryFailed as error:
            self._handle_failed_delivery(error)
            return True
        if message is None:
            return False
        self._handle(message)
        return True

    def _run_calls(self) -> None:
        while not self._calls.empty():
            function, future = self._calls.get()
            self._processor.reach(time.monotonic())
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _refuse_calls(self) -> None:
        ended = RuntimeError(f"the worker of {self._name} has ended")
        while True:
            try:
                _, future = self._calls.get_nowait()
            except queue.Empty:
                return
            future.set_exception(ended)

    def _handle(self, message: Message) -> None:
        if message.kind is MessageKind.DATA:
            self._take_rows(message)
        elif message.kind is MessageKind.CANCEL:
            if self._messenger.is_from_client(message):
                self._scheduler.cancel(message.epoch, message.frame)
            else:
                self._refuse(message)
        elif message.kind is MessageKind.PROBE:
            self._prober.answer(message)
        elif message.kind is MessageKind.ECHO:
            self._prober.take_echo(message)

    def _take_rows(self, message: Message) -> None:
        senders = self._senders.get(message.epoch)
        if senders is None:
            return  # rows of a program that was unloaded
        named = senders.get(message.channel)
        # A peer of the program that uses a wrong channel fails the frame, with a reason. Others cannot.
        peers = (named,) if named is not None else senders.values()
        if message.sender not in [self._messenger.index_of(peer) for peer in peers]:
            self._refuse(message)
            return
        refused = self._scheduler.refused
        outcome = self._scheduler.came(message.epoch, message.frame, message.channel)
        if refused == 0 < self._scheduler.refused:
            log.warning(
                "%s dropped rows of frame %d from device %d, which has begun too many frames (further ones are not "
                "logged)",
                self._name, message.frame, message.sender,
            )  # fmt: skip
        if isinstance(outcome, Task):
            self._do(outcome, message.arrays)
        else:
            self._report(outcome)

    def _refuse(self, message: Message) -> None:
        self.refused += 1
        if self.refused == 1:
            log.warning(
                "%s refused a %s message of device %d, which may not send it (further ones are not logged)",
                self._name, message.kind.name, message.sender,
            )  # fmt: skip

    def _fire(self) -> bool:
        """Do the next step; False: no step is ready."""
        task = self._scheduler.next()
        if task is None:
            return False
        self._do(task)
        return True

    def _do(self, task: Task, arrays: Sequence[Array] = ()) -> None:
        """Do a step; `arrays` came in the message of a `Receive`."""
        self.running = (task.epoch, task.frame, task.step_index, time.monotonic())
        start = self._processor.now()
        outcome: Ended | Failed | None
        try:
            made = self._perform(task, arrays)
            sent = made if task.step.kind == "send" else arrays
            nbytes = sum(array.nbytes for array in sent)
            outcome = self._scheduler.done(task, made, start, self._processor.now(), nbytes)
        except MalformedMessage as error:
            outcome = self._scheduler.failed(task, str(error))
        except Exception as error:  # the frame fails, and the device goes on with others
            outcome = self._scheduler.failed(task, innermost_message(error))
        finally:
            self.running = None
        self._report(outcome)

    def _perform(self, task: Task, arrays: Sequence[Array]) -> list[Array]:
        step, kernels = task.step, self._store.kernels_of(task.epoch)
        if step.kind == "receive":
            perform = functools.partial(kernels.unpack, step, task.program.patches, arrays)
        else:
            perform = functools.partial(kernels.perform, task.program.patches, step, self._scheduler.values(task))
        works = step.kind == "compute" or step.codec != RAW
        made = self._processor.run(perform) if works else perform()
        if step.kind == "send":
            self._messenger.send(step.peer, MessageKind.DATA, made, task.epoch, task.frame, step.channel)
        elif step.kind == "answer":
            self._messenger.send(CLIENT, MessageKind.ANSWER, made, task.epoch, task.frame)
        return made

    def _report(self, outcome: Ended | Failed | None) -> None:
        """Tell the client that this device has ended a frame, or failed it.

        Raises:
            ClusterError: the client cannot be told.
        """
        if outcome is None:
            return
        arrays: tuple[Array, ...]
        if isinstance(outcome, Ended):
            spans = outcome.spans
            steps = np.array([span.step_index for span in spans], np.int32)
            times = np.array([(span.start, span.stop) for span in spans], np.float64).reshape(-1, 2)
            nbytes = np.array([span.nbytes for span in spans], np.int64)
            kind, channel, arrays = MessageKind.TRACE, 0, (steps, times, nbytes)
        else:
            kind, channel, arrays = MessageKind.ERROR, outcome.step_index, (text_to_array(outcome.reason),)
        try:
            self._messenger.send(CLIENT, kind, arrays, outcome.epoch, outcome.frame, channel)
        except ClusterError as error:
            raise ClusterError(f"{self._name} cannot report frame {outcome.frame} to the client: {error}") from error

    def _handle_failed_delivery(self, error: DeliveryFailed) -> None:
        """Fail the frame of rows that were not sent.

        Raises:
            ClusterError: the message was for the client.
        """
        message = error.message
        if error.peer_index == self._messenger.index_of(CLIENT):
            raise ClusterError(f"{self._name} cannot reach the client: {error}") from error
        if message.kind is not MessageKind.DATA:
            log.warning("%s: %s", self._name, error)
            return
        program = self._scheduler.programs.get(message.epoch)
        if program is None:
            return
        steps = enumerate(program.steps)
        sends = (index for index, step in steps if step.kind == "send" and step.channel == message.channel)
        self._scheduler.cancel(message.epoch, message.frame)
        self._report(Failed(message.epoch, message.frame, next(sends, len(program.steps)), str(error)))
