"""The dispatcher when something fails: transports that break, callbacks that raise, diagnoses that never return."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from nets import Array, Net, make_plan, one_stage
from waiting import MOST_SECONDS, until

from coedge.core.errors import ClusterError, CoEdgeError, FrameTimeout, StepFailed
from coedge.core.region import UNIT
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from orchestrator.control.clock_offset import ClockOffset
from orchestrator.runtime.dispatcher import CLOSED, Dispatcher
from orchestrator.runtime.job import Job
from orchestrator.runtime.loaded_plan import LoadedPlan
from workers.transport.message import Message, MessageKind
from workers.transport.transport import Endpoint

CLIENT_INDEX = 1
LONG = 600.0


class ScriptedTransport:
    """A transport whose messages and errors are put in by the test."""

    def __init__(self) -> None:
        self.endpoint = Endpoint(CLIENT_INDEX, "client", "scripted://1")
        self.incoming: queue.SimpleQueue[Message | BaseException | None] = queue.SimpleQueue()
        self.sent: list[tuple[int, Message]] = []
        self.send_error: Exception | None = None
        self.wake_error: Exception | None = None
        self.closed = False

    def connect(self, peers: Iterable[Endpoint]) -> None:
        """The one peer is known."""

    def disconnect(self, peer_index: int) -> None:
        """Peers stay."""

    def send(self, peer_index: int, message: Message) -> None:
        if self.send_error is not None:
            raise self.send_error
        self.sent.append((peer_index, message))

    def receive(self, timeout_seconds: float) -> Message | None:
        try:
            item = self.incoming.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def wake(self) -> None:
        if self.wake_error is not None:
            raise self.wake_error
        self.incoming.put(None)

    def close(self) -> None:
        self.closed = True


@functools.cache
def model() -> Model:
    net = Net()
    return capture(net.proto(net.op("Relu", net.input([1, 1, 2, 2]))), name="relu")


@functools.cache
def loaded(epoch: int = 1) -> LoadedPlan:
    plan = one_stage(model(), {"a": UNIT}, "a")
    return LoadedPlan(epoch, model(), plan, lower(plan, model()))


X = np.ones((1, 1, 2, 2), np.float32)


def late(job: Job, loaded: LoadedPlan, deadline: float, seconds: float) -> CoEdgeError:
    return FrameTimeout(f"frame {job.frame} is late")


class Client:
    """A dispatcher on a scripted transport."""

    def __init__(self, on_late: Callable[..., CoEdgeError] = late, credits: int = 2) -> None:
        self.transport = ScriptedTransport()
        self.clocks: dict[str, ClockOffset] = {}
        self.dispatcher = Dispatcher(self.transport, {"a": 0}, self.clocks, credits, on_late)

    def submit(self, seconds: float = LONG, epoch: int = 1) -> Job:
        return self.dispatcher.submit(loaded(epoch), (X,), False, seconds)

    def message(self, kind: MessageKind, job: Job, *arrays: Array) -> None:
        self.transport.incoming.put(Message(kind, 0, job.loaded.epoch, job.frame, 0, tuple(arrays)))


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.dispatcher.close()


def ends_with(job: Job, kind: type[BaseException], text: str) -> None:
    """Wait with no timeout, on a thread, so that a job that never ends fails the test instead of hanging it."""
    thread = threading.Thread(target=job.wait, daemon=True)
    thread.start()
    thread.join(MOST_SECONDS)
    assert job.done(), f"frame {job.frame} never ends"
    with pytest.raises(kind, match=text):
        job.result()


@pytest.mark.parametrize("sender", [2, 7], ids=["another device of the plan", "a device of no cluster"])
def test_an_answer_counts_only_from_the_sink(sender: int) -> None:
    plan = make_plan(model(), [(1, {"b": UNIT})], "a")
    both = LoadedPlan(1, model(), plan, lower(plan, model()))
    transport = ScriptedTransport()
    dispatcher = Dispatcher(transport, {"a": 0, "b": 2}, {}, 1, late)
    try:
        job = dispatcher.submit(both, (X,), False, LONG)
        for index, value in ((sender, 5 * X), (0, X)):
            transport.incoming.put(Message(MessageKind.ANSWER, index, 1, job.frame, 0, (value,)))
        until(job.done, "the frame is answered")
        np.testing.assert_array_equal(job.result(), X)
    finally:
        dispatcher.close()


@pytest.mark.parametrize("error", [OSError("the socket is gone"), SystemExit(1), RuntimeError("no context")])
def test_a_transport_that_breaks_fails_every_frame_and_refuses_later_ones(client: Client, error: Exception) -> None:
    jobs = [client.submit(epoch=epoch) for epoch in (1, 1, 1, 2)]  # the third waits for credit
    assert not any(job.done() for job in jobs)
    client.transport.incoming.put(error)
    for job in jobs:
        ends_with(job, ClusterError, r"cannot receive any more .*connect again")
    assert client.dispatcher.end_reason is not None and type(error).__name__ in client.dispatcher.end_reason
    refused = client.submit()
    ends_with(refused, ClusterError, type(error).__name__)
    assert not client.dispatcher.in_flight(1) and not client.dispatcher.in_flight(2)


def test_close_after_a_broken_transport_ends_and_closes_it(client: Client) -> None:
    client.transport.wake_error = client.transport.send_error = OSError("gone")
    client.transport.incoming.put(OSError("gone"))
    until(lambda: client.dispatcher.end_reason, "the break is noticed")
    client.dispatcher.close()
    assert client.transport.closed and not client.dispatcher._thread.is_alive()
    assert "gone" in str(client.dispatcher.end_reason), "the first reason stays"


def test_a_message_that_cannot_be_sent_fails_its_frame_and_gives_the_credit_back(client: Client) -> None:
    client.transport.send_error = OSError("no route")
    for _ in range(5):  # more than there are credits
        ends_with(client.submit(), ClusterError, "could not be sent to a: .*no route")
    client.transport.send_error = None
    job = client.submit()
    client.message(MessageKind.ANSWER, job, X)
    job.wait(MOST_SECONDS)
    assert np.array_equal(job.result(0.0), X)


def test_messages_that_raise_do_not_stop_the_deadlines(client: Client) -> None:
    job = client.submit(seconds=0.2)
    client.message(MessageKind.TRACE, job)  # not three arrays
    client.message(MessageKind.TRACE, job, X, X, X)
    client.message(MessageKind.ERROR, job, np.ones((2, 2)))  # not a text
    ends_with(job, (FrameTimeout, StepFailed), "frame")
    assert client.dispatcher.end_reason is None
    answered = client.submit()
    client.message(MessageKind.ANSWER, answered, X)
    answered.wait(MOST_SECONDS)
    assert np.array_equal(answered.result(0.0), X)


def raising(*_: Any) -> CoEdgeError:
    raise KeyError("no such device")


def exiting(*_: Any) -> CoEdgeError:
    raise SystemExit(1)


def hanging(*_: Any) -> CoEdgeError:
    threading.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("on_late", [late, raising, exiting, hanging])
def test_a_late_frame_fails_whatever_its_diagnosis_does(on_late: Callable[..., CoEdgeError]) -> None:
    client = Client(on_late, credits=1)
    try:
        first, second = client.submit(seconds=0.1), client.submit(seconds=0.1)
        for job in (first, second):  # the second is sent when the first has given its credit back
            ends_with(job, FrameTimeout, f"frame {job.frame} ")
        cancelled = [message.frame for _, message in client.transport.sent if message.kind is MessageKind.CANCEL]
        until(lambda: not client.dispatcher.in_flight(1), "the credits are back")
        assert cancelled[0] == first.frame
    finally:
        client.dispatcher.close()


def test_a_loss_whose_description_raises_still_fails_the_frames(client: Client) -> None:
    jobs = [client.submit() for _ in range(3)]

    def reason(job: Job, loaded: LoadedPlan) -> CoEdgeError:
        raise KeyError("pids")

    client.dispatcher.fail(reason, device="a")
    for job in jobs:
        ends_with(job, ClusterError, "so did finding out why.*pids")
    assert not client.dispatcher.in_flight(1)


def test_a_callback_that_raises_does_not_stop_the_receiving_thread(client: Client) -> None:
    job = client.submit()

    def callback(_: Any) -> None:
        raise SystemExit(1)

    job._future.add_done_callback(callback)
    client.message(MessageKind.ANSWER, job, X)
    job.wait(MOST_SECONDS)
    assert np.array_equal(job.result(0.0), X)
    later = client.submit()
    client.message(MessageKind.ANSWER, later, X)
    ends = threading.Thread(target=later.wait, daemon=True)
    ends.start()
    ends.join(MOST_SECONDS)
    assert later.done(), "either answered, or failed with the reason"


def test_closing_fails_frames_and_refuses_later_ones(client: Client) -> None:
    job = client.submit()
    client.dispatcher.close()
    for one in (job, client.submit()):
        ends_with(one, ClusterError, CLOSED)
    assert client.transport.closed


TWO = make_plan(model(), [(1, {"b": UNIT})], "a")


def by_two(epoch: int) -> LoadedPlan:
    """Return a plan with the source a that computes on b."""
    return LoadedPlan(epoch, model(), TWO, lower(TWO, model()))


@pytest.fixture
def pair() -> Iterator[tuple[Dispatcher, ScriptedTransport]]:
    transport = ScriptedTransport()
    dispatcher = Dispatcher(transport, {"a": 0, "b": 2}, {}, 2, late)
    yield dispatcher, transport
    dispatcher.close()


def sent(transport: ScriptedTransport, kind: MessageKind) -> list[tuple[int, int, int]]:
    """Return (peer, epoch, frame) of the messages of a kind."""
    return [(peer, m.epoch, m.frame) for peer, m in transport.sent if m.kind is kind]


def test_frames_of_a_lost_device_are_sent_again_by_another_plan(pair: tuple[Dispatcher, ScriptedTransport]) -> None:
    dispatcher, transport = pair
    jobs = [dispatcher.submit(by_two(1), (i * X,), False, LONG, course="c") for i in range(4)]
    other = dispatcher.submit(loaded(5), (X,), False, LONG)
    frames = dispatcher.detach("b")
    assert [frame.job for frame in frames] == jobs and {frame.course for frame in frames} == {"c"}
    cancelled = [(peer, 1, job.frame) for job in jobs[:2] for peer in (0, 2)]  # the others were not sent yet
    assert sorted(sent(transport, MessageKind.CANCEL)) == sorted(cancelled)
    assert not dispatcher.in_flight(1) and dispatcher.in_flight(5) and dispatcher.detach("b") == []
    transport.incoming.put(Message(MessageKind.ANSWER, 0, 1, jobs[0].frame, 0, (9 * X,)))  # of the old plan: too late
    for frame in reversed(frames):
        dispatcher.resume(frame, loaded(2))
    assert [job.attempts for job in jobs] == [1, 1, 1, 1]  # the last two have the credits, the first two wait
    for job in (*jobs[2:], *jobs[:2]):
        assert job.loaded.epoch == 2
        until(lambda: (0, 2, job.frame) in sent(transport, MessageKind.DATA), "it is sent again")  # noqa: B023
        transport.incoming.put(Message(MessageKind.ANSWER, 0, 2, job.frame, 0, (job.frame * X,)))
        job.wait(MOST_SECONDS)
        np.testing.assert_array_equal(job.result(0.0), job.frame * X)
    again = [m.arrays[0][0, 0, 0, 0] for _, m in transport.sent if m.kind is MessageKind.DATA and m.epoch == 2]
    assert sorted(again) == [0, 1, 2, 3], "the inputs are those of the frames"
    assert not other.done()


def test_a_detached_frame_fails_at_its_deadline_or_with_a_reason_or_is_cancelled(
    pair: tuple[Dispatcher, ScriptedTransport],
) -> None:
    dispatcher, transport = pair
    late_job = dispatcher.submit(by_two(1), (X,), False, 0.1)
    dropped = dispatcher.submit(by_two(1), (X,), False, LONG)
    queued = dispatcher.submit(by_two(1), (X,), False, 0.1)  # its time begins when it is sent
    cancelled = dispatcher.submit(by_two(1), (X,), False, LONG)
    frames = {frame.job: frame for frame in dispatcher.detach("b")}
    dispatcher.drop(frames[dropped], ClusterError("nothing is left"))
    ends_with(dropped, ClusterError, "nothing is left")
    cancelled.cancel()
    ends_with(late_job, FrameTimeout, "a device was lost, and the others have not begun it")
    before = len(transport.sent)
    for job in (late_job, dropped, cancelled):
        dispatcher.resume(frames[job], loaded(2))
    assert len(transport.sent) == before and not queued.done()
    dispatcher.close()
    ends_with(queued, ClusterError, CLOSED)


def test_an_error_of_a_frame_with_a_lost_device_is_left_to_the_recovery() -> None:
    transport, lost = ScriptedTransport(), {"b": "its worker process died"}
    dispatcher = Dispatcher(transport, {"a": 0, "b": 2}, {}, 2, late, lost=lost)
    try:
        job = dispatcher.submit(by_two(1), (X,), False, LONG)
        text = np.frombuffer(b"a does not know b", np.uint8)
        transport.incoming.put(Message(MessageKind.ERROR, 0, 1, job.frame, 0, (text,)))
        transport.incoming.put(None)
        until(transport.incoming.empty, "the error has come")
        assert not job.done()
        lost.clear()
        transport.incoming.put(Message(MessageKind.ERROR, 0, 1, job.frame, 0, (text,)))
        ends_with(job, StepFailed, "a does not know b")
    finally:
        dispatcher.close()


def test_reports_carry_the_clock_offset_as_known_when_they_arrive(client: Client) -> None:
    client.clocks["a"] = ClockOffset(5.0, 0.001, 0.0, drift=1e-9)
    job = client.submit()
    steps = np.arange(len(loaded().programs["a"].steps), dtype=np.int32)
    times = 5.0 + np.tile([1.0, 2.0], (len(steps), 1))
    client.message(MessageKind.ANSWER, job, X)
    client.message(MessageKind.TRACE, job, steps, times, np.zeros(len(steps), np.int64))
    job.wait(MOST_SECONDS)
    timeline = job.timeline
    assert timeline.clock_uncertainty_seconds > 0.001 and timeline.clock_offsets == {"a": 5.0}
    assert all(span.start_seconds == pytest.approx(1.0 - job.asked_seconds) for span in timeline.spans)
