"""The loop of a worker under errors and faulty peers: it reports them and goes on, or ends with the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from nets import Net, difference, image, make_plan, unsplit
from waiting import MOST_SECONDS, until

from coedge.core.errors import ClusterError
from coedge.execution import scheduler
from coedge.execution.program import CLIENT, Program, Receive, Send
from coedge.execution.scheduler import MAX_BEGUN_FRAMES
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import strips
from workers.runtime.kernels import Kernels
from workers.runtime.spec import WorkerSpec
from workers.runtime.work_loop import WorkLoop
from workers.runtime.worker import Worker
from workers.transport.message import Message, MessageKind, array_to_text
from workers.transport.transport import DeliveryFailed, InMemoryHub, InMemoryTransport

NAMES = ("a", "b", "c", CLIENT)
A, B, C, CLIENT_INDEX = range(4)
SHAPE = (1, 3, 16, 12)
EPOCH = 1


class FaultyTransport(InMemoryTransport):
    """Raises the errors that a test sets.

    Attributes:
        refuse: called with each message to be sent and its peer; it may raise.
        failures: raised by `receive`, one at a time.
    """

    refuse: Callable[[int, Message], None] = staticmethod(lambda peer, message: None)
    failures: list[Exception]

    def __init__(self, index: int, name: str, hub: InMemoryHub) -> None:
        super().__init__(index, name, hub)
        self.failures = []

    def send(self, peer_index: int, message: Message) -> None:
        self.refuse(peer_index, message)
        super().send(peer_index, message)

    def receive(self, timeout_seconds: float) -> Message | None:
        if self.failures:
            raise self.failures.pop(0)
        return super().receive(timeout_seconds)


@dataclass
class Device:
    """The worker of device b, on a thread of its own, between transports that the test holds."""

    worker: Worker
    transport: FaultyTransport
    peers: dict[int, InMemoryTransport]
    model: Model
    programs: dict[str, Program]
    error: list[BaseException] = field(default_factory=list)
    thread: threading.Thread | None = None

    @property
    def loop(self) -> WorkLoop:
        return self.worker._loop

    @property
    def program(self) -> Program:
        return self.programs["b"]

    def start(self) -> None:
        def serve() -> None:
            try:
                self.worker.serve()
            except BaseException as error:
                self.error.append(error)

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def ended(self) -> BaseException:
        """Wait until `serve` ends and return its error."""
        assert self.thread is not None
        self.thread.join(MOST_SECONDS)
        assert not self.thread.is_alive()
        (error,) = self.error
        return error

    def receives(self, peer: str) -> list[Receive]:
        return [step for step in self.program.steps if isinstance(step, Receive) and step.peer == peer]

    def rows(self, receive: Receive) -> tuple[np.ndarray, ...]:
        patches = [self.program.patches[index] for index in receive.writes]
        tensors = self.model.graph.tensors
        return tuple(np.ones(tensors[p.tensor].region_shape(p.region), tensors[p.tensor].dtype) for p in patches)

    def send(self, sender: int, receive: Receive, frame: int, named: int | None = None) -> None:
        """Send the rows of a step. `named`: the sender in the header."""
        index = sender if named is None else named
        message = Message(MessageKind.DATA, index, EPOCH, frame, receive.channel, self.rows(receive))
        self.peers[sender].send(B, message)

    def send_frame(self, frame: int) -> None:
        for step in self.program.steps:
            if isinstance(step, Receive):
                self.send(NAMES.index(step.peer), step, frame)

    def reports(self, kind: MessageKind, frame: int) -> Message:
        """Wait for the client's message of a kind about a frame."""
        while True:
            message = self.peers[CLIENT_INDEX].receive(MOST_SECONDS)
            assert message is not None, f"no {kind.name} of frame {frame} came"
            if (message.kind, message.frame) == (kind, frame):
                return message

    def check_works(self, frame: int) -> None:
        """Run a frame and wait for the device's report of its spans."""
        self.send_frame(frame)
        self.reports(MessageKind.TRACE, frame)


@pytest.fixture
def device() -> Iterator[Device]:
    """Devices a and b have half of the rows of two convolutions each; c has none."""
    net = Net()
    x = net.op("Conv", net.input(SHAPE), net.weight(3, 3, 3, 3), pads=[1, 1, 1, 1])
    model = capture(net.proto(net.op("Conv", x, net.weight(3, 3, 3, 3), pads=[1, 1, 1, 1])))
    programs = lower(make_plan(model, [(1, strips({"a": 1, "b": 1}))] * len(model.layers), "a"), model)
    hub = InMemoryHub()
    transport = FaultyTransport(B, "b", hub)
    peers = {index: InMemoryTransport(index, name, hub) for index, name in enumerate(NAMES) if index != B}
    endpoints = [transport.endpoint, *(peer.endpoint for peer in peers.values())]
    worker = Worker(WorkerSpec(B, "b", "", False, threads=1), transport)
    worker.connect(endpoints, {})
    worker.load(EPOCH, programs["b"], model.skeleton, model.weights)
    for peer in peers.values():
        peer.connect(endpoints)
    made = Device(worker, transport, peers, model, programs)
    made.start()
    yield made
    worker.stop(MOST_SECONDS)
    assert made.thread is not None
    made.thread.join(MOST_SECONDS)
    assert not made.thread.is_alive()


class TestErrors:
    def test_a_step_that_raises_fails_its_frame_and_the_worker_goes_on(
        self, device: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Kernels, "run", lambda *_: 1 / 0)
            device.send_frame(1)
            error = device.reports(MessageKind.ERROR, 1)
        assert array_to_text(error.arrays[0]) == "ZeroDivisionError: division by zero"
        device.check_works(2)

    def test_a_step_whose_result_does_not_fit_fails_its_frame(
        self, device: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Kernels, "run", lambda *_: [])
            device.send_frame(1)
            device.reports(MessageKind.ERROR, 1)
        device.check_works(2)

    def test_rows_that_cannot_be_sent_fail_the_frame_and_the_worker_goes_on(self, device: Device) -> None:
        def refuse(peer: int, message: Message) -> None:
            if message.kind is MessageKind.DATA and message.frame == 1:
                raise ClusterError("a broke off the handshake")

        device.transport.refuse = refuse
        device.send_frame(1)
        error = device.reports(MessageKind.ERROR, 1)
        assert "a broke off the handshake" in array_to_text(error.arrays[0])
        assert isinstance(device.program.steps[error.channel], Send)
        device.check_works(2)

    def test_held_rows_that_were_not_sent_fail_their_frame_and_the_worker_goes_on(self, device: Device) -> None:
        index, send = next((i, step) for i, step in enumerate(device.program.steps) if isinstance(step, Send))
        rows = Message(MessageKind.DATA, B, EPOCH, 7, send.channel)
        device.transport.failures.append(DeliveryFailed(A, rows, ClusterError("the peer is gone")))
        device.transport.wake()
        error = device.reports(MessageKind.ERROR, 7)
        assert error.channel == index
        assert "the peer is gone" in array_to_text(error.arrays[0])
        device.check_works(8)

    def test_an_echo_that_cannot_be_sent_does_not_end_the_worker(self, device: Device) -> None:
        def refuse(peer: int, message: Message) -> None:
            if message.kind is MessageKind.ECHO:
                raise ClusterError("c broke off the handshake")

        device.transport.refuse = refuse
        device.peers[C].send(B, Message(MessageKind.PROBE, C))
        device.transport.failures.append(DeliveryFailed(C, Message(MessageKind.ECHO, B), ClusterError("gone")))
        device.check_works(1)

    @pytest.mark.parametrize("kind", [MessageKind.TRACE, MessageKind.ERROR])
    def test_a_worker_that_cannot_report_ends_with_the_reason(
        self, device: Device, kind: MessageKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(peer: int, message: Message) -> None:
            if message.kind is kind:
                raise ClusterError("the client does not take messages")

        if kind is MessageKind.ERROR:
            monkeypatch.setattr(Kernels, "run", lambda *_: 1 / 0)
        device.transport.refuse = refuse
        device.send_frame(3)
        error = device.ended()
        assert isinstance(error, ClusterError)
        assert str(error) == "b cannot report frame 3 to the client: the client does not take messages"

    def test_a_held_answer_that_was_not_sent_ends_the_worker(self, device: Device) -> None:
        answer = Message(MessageKind.ANSWER, B, EPOCH, 1)
        device.transport.failures.append(DeliveryFailed(CLIENT_INDEX, answer, ClusterError("the client is gone")))
        device.transport.wake()
        with pytest.raises(ClusterError, match=r"b cannot reach the client: .*the client is gone"):
            raise device.ended()

    def test_a_broken_transport_ends_the_worker_and_what_waits_for_it(self, device: Device) -> None:
        device.transport.failures.append(OSError("no such device"))
        device.transport.wake()
        with pytest.raises(OSError, match="no such device"):
            raise device.ended()
        with pytest.raises(RuntimeError, match="the worker of b has ended"):
            device.worker.probe("a", 0, 1, MOST_SECONDS)

    def test_a_probe_ends_when_the_transport_breaks(self, device: Device) -> None:
        results: list[BaseException] = []

        def probe() -> None:
            try:
                device.worker.probe("c", 0, 1, MOST_SECONDS)
            except BaseException as error:
                results.append(error)

        thread = threading.Thread(target=probe)
        thread.start()
        probes = device.peers[C].receive(MOST_SECONDS)
        assert probes is not None and probes.kind is MessageKind.PROBE
        device.transport.failures.append(OSError("no such device"))
        device.transport.wake()
        thread.join(MOST_SECONDS)
        assert [str(error) for error in results] == ["no such device"]


class TestFaultyPeers:
    def test_rows_of_another_peer_than_the_program_names_are_refused(self, device: Device) -> None:
        """Rows of c do not take the place of those of a, whose rows arrive later."""
        (receive, *_) = device.receives("a")
        for _ in range(3):
            device.send(C, receive, frame=1)
        device.send(CLIENT_INDEX, receive, frame=1)
        until(lambda: device.loop.refused == 4, "the messages are refused")
        assert device.loop.waiting == {}, "no frame has begun"
        device.check_works(1)

    def test_a_peer_outside_the_program_cannot_fail_a_frame_by_a_wrong_channel(self, device: Device) -> None:
        (receive, *_) = device.receives("a")
        device.send(A, receive, frame=1)
        wrong = Message(MessageKind.DATA, C, EPOCH, 1, 2**32 - 1)
        device.peers[C].send(B, wrong)
        until(lambda: device.loop.refused == 1, "the message is refused")
        assert list(device.loop.waiting) == [(EPOCH, 1)]

    @pytest.mark.parametrize("sender", [A, C])
    def test_a_cancel_of_a_device_is_ignored_and_one_of_the_client_is_not(self, device: Device, sender: int) -> None:
        (receive, *_) = device.receives("a")
        device.send(A, receive, frame=1)
        until(lambda: device.loop.waiting, "the frame has begun")
        device.peers[sender].send(B, Message(MessageKind.CANCEL, sender, EPOCH, 1))
        until(lambda: device.loop.refused == 1, "the message is refused")
        assert list(device.loop.waiting) == [(EPOCH, 1)]
        device.peers[CLIENT_INDEX].send(B, Message(MessageKind.CANCEL, CLIENT_INDEX, EPOCH, 1))
        until(lambda: not device.loop.waiting, "the frame is cancelled")

    @pytest.mark.parametrize(
        "arrays", [(np.zeros(2),), (), (np.zeros(3),), (np.zeros((1, 2)),), (np.zeros(2), np.zeros(2))]
    )
    def test_echoes_that_nobody_asked_for_or_of_another_form_are_dropped(
        self, device: Device, arrays: tuple[np.ndarray, ...]
    ) -> None:
        for channel in range(100):
            device.peers[A].send(B, Message(MessageKind.ECHO, A, channel=channel, arrays=arrays))
        device.check_works(1)
        assert not device.loop._prober._echoes

    def test_an_echo_of_another_peer_than_the_probed_one_does_not_count(self, device: Device) -> None:
        times: list[tuple[float, ...]] = []
        thread = threading.Thread(
            target=lambda: times.append(device.worker.probe("a", 0, 1, MOST_SECONDS).came_seconds)
        )
        thread.start()
        probe = device.peers[A].receive(MOST_SECONDS)
        assert probe is not None
        for sender, came in ((C, 1.0), (A, 2.0)):
            echo = Message(MessageKind.ECHO, sender, channel=probe.channel, arrays=(np.array([came, 0.0]),))
            device.peers[sender].send(B, echo)
        thread.join(MOST_SECONDS)
        assert times == [(2.0,)]

    def test_a_flood_of_frames_of_one_peer_begins_a_bounded_number(self, device: Device) -> None:
        """Begun frames still run. After one has ended, the next one begins."""
        (first, *_) = device.receives("a")
        for frame in range(1000, 1000 + 4 * MAX_BEGUN_FRAMES):
            device.send(A, first, frame)
        until(lambda: len(device.loop.waiting) == MAX_BEGUN_FRAMES, "frames have begun")
        assert set(device.loop.waiting) == {(EPOCH, 1000 + n) for n in range(MAX_BEGUN_FRAMES)}
        frame = 1000
        for step in device.program.steps:
            if isinstance(step, Receive) and step is not first:
                device.send(A, step, frame)
        device.reports(MessageKind.TRACE, frame)
        device.send_frame(9999)
        device.reports(MessageKind.TRACE, 9999)

    def test_the_bytes_of_the_frames_that_one_peer_begins_are_bounded(
        self, device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A few frames begin whatever their size. Bytes of frames that ended do not count."""
        (first, *_) = device.receives("a")
        nbytes = sum(rows.nbytes for rows in device.rows(first))
        monkeypatch.setattr(scheduler, "FEW_BEGUN_FRAMES", 2)
        monkeypatch.setattr(scheduler, "MAX_BEGUN_NBYTES", 5 * nbytes)
        for frame in range(100):
            device.send(A, first, frame)
        until(lambda: device.loop._scheduler.refused == 95, "the messages have come")
        assert set(device.loop.waiting) == {(EPOCH, frame) for frame in range(5)}
        assert [record.message for record in caplog.records if "dropped rows" in record.message] == [
            "b dropped rows of frame 5 from device 0, which has begun too many frames (further ones are not logged)"
        ]
        for frame in range(4):
            for step in device.program.receives:
                if step is not first:
                    device.send(NAMES.index(step.peer), step, frame)
            device.reports(MessageKind.TRACE, frame)
        for frame in range(200, 210):
            device.send(A, first, frame)
        until(lambda: device.loop._scheduler.refused == 95 + 6, "the messages have come")
        assert set(device.loop.waiting) == {(EPOCH, frame) for frame in (4, 200, 201, 202, 203)}

    @pytest.mark.parametrize("size", [1, 1_000_000])
    def test_rows_of_another_size_than_the_program_states_are_not_kept(self, device: Device, size: int) -> None:
        (first, *_) = device.receives("a")
        for frame in range(20):
            rows = np.zeros(size, np.float32)
            device.peers[A].send(B, Message(MessageKind.DATA, A, EPOCH, frame, first.channel, (rows,)))
            assert "expected" in array_to_text(device.reports(MessageKind.ERROR, frame).arrays[0])
        assert device.loop.waiting == {}
        device.check_works(9999)

    @pytest.mark.parametrize("kind", [MessageKind.DATA, MessageKind.PROBE, MessageKind.CANCEL, MessageKind.ANSWER])
    def test_a_peer_that_never_stops_sending_does_not_keep_the_worker_from_its_frames(
        self, device: Device, kind: MessageKind
    ) -> None:
        """The transport always has a message of c."""
        receive, probe_count = device.transport.receive, 0

        def flooded(timeout_seconds: float) -> Message | None:
            nonlocal probe_count
            probe_count += 1
            message = receive(0.0) if probe_count % 2 else None
            return message or Message(kind, C, epoch=probe_count, frame=probe_count, channel=probe_count)

        device.transport.receive = flooded  # type: ignore[method-assign]
        device.transport.wake()
        device.check_works(1)
        device.transport.receive = receive  # type: ignore[method-assign]


def test_a_load_that_fails_leaves_what_was_loaded_before(device: Device) -> None:
    before = device.worker.status().weight_nbytes
    with pytest.raises(RuntimeError, match="was never given model"):
        device.worker.load(2, device.programs["b"].__class__("b", "another", (), ()), None, {})
    assert device.worker.status().weight_nbytes == before
    device.check_works(1)


def test_frames_are_exact(device: Device) -> None:
    """Device a is a worker here, too."""
    other = Worker(WorkerSpec(A, "a", "", False, threads=1), device.peers[A])
    other.connect([device.transport.endpoint, *(peer.endpoint for peer in device.peers.values())], {})
    other.load(EPOCH, device.programs["a"], device.model.skeleton, device.model.weights)
    thread = threading.Thread(target=other.serve)
    thread.start()
    try:
        x = image(SHAPE)
        device.peers[CLIENT_INDEX].send(A, Message(MessageKind.DATA, CLIENT_INDEX, EPOCH, 5, 0, (x,)))
        answer = device.reports(MessageKind.ANSWER, 5)
        assert difference(answer.arrays[0], unsplit(device.model, [x])[0]) <= 1e-5
    finally:
        other.stop(MOST_SECONDS)
        thread.join(MOST_SECONDS)
