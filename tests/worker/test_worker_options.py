"""Workers on in-memory transports with halo-first order and codecs: the same frames as in a cluster, without Ray."""

from __future__ import annotations

import functools
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from nets import Array, Net, difference, image, make_plan, unsplit
from test_lowering_options import everywhere, with_options

from coedge.execution.program import CLIENT, Program, Receive, Send
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.codec import LOSSLESS
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, strips
from coedge.simulation.step_costs import message_nbytes
from workers.runtime.spec import WorkerSpec
from workers.runtime.worker import Worker
from workers.transport.message import Message, MessageKind, array_to_text
from workers.transport.transport import InMemoryHub, InMemoryTransport

NAMES = ("a", "b", "c")
CLIENT_INDEX = len(NAMES)
SECONDS = 30.0  # limit for a message to arrive, on a busy machine


@functools.cache
def model() -> Model:
    net = Net()
    x = net.input([1, 3, 48, 32])
    for channels in (3, 16, 16, 16):
        x = net.op("Relu", net.op("Conv", x, net.weight(16, channels, 3, 3), pads=[1, 1, 1, 1]))
    return capture(net.proto(x), name="rectified")


def plan_of(codec: str, halo_first: bool = True) -> Plan:
    plan = make_plan(model(), [(1, strips({"a": 2, "b": 1, "c": 1}))] * len(model().layers), "a")
    return with_options(plan, halo_first, everywhere(codec, NAMES))


@dataclass
class Devices:
    """Workers that serve, and the client's transport."""

    workers: dict[str, Worker]
    client: InMemoryTransport
    epoch: int = 0
    programs: dict[str, Program] = field(default_factory=dict)
    came: dict[MessageKind, list[Message]] = field(default_factory=lambda: defaultdict(list))

    def load(self, model: Model, plan: Plan) -> None:
        self.epoch += 1
        self.programs = lower(plan, model)
        for name, worker in self.workers.items():
            worker.load(self.epoch, self.programs[name], model.skeleton, model.weights)

    def ask(self, frame: int, array: Array) -> None:
        self.send("a", frame, 0, array)

    def send(self, name: str, frame: int, channel: int, *arrays: Array, sender: int = CLIENT_INDEX) -> None:
        index = list(self.workers).index(name)
        self.client.send(index, Message(MessageKind.DATA, sender, self.epoch, frame, channel, arrays))

    def next(self, kind: MessageKind) -> Message:
        """Return the next message of a kind, and keep others."""
        while not self.came[kind]:
            message = self.client.receive(SECONDS)
            assert message is not None, f"no {kind.name} came"
            assert message.kind in (kind, MessageKind.ANSWER, MessageKind.TRACE), array_to_text(message.arrays[0])
            self.came[message.kind].append(message)
        return self.came[kind].pop(0)


@pytest.fixture
def devices() -> Iterator[Devices]:
    hub = InMemoryHub()
    client = InMemoryTransport(CLIENT_INDEX, CLIENT, hub)
    transports = [InMemoryTransport(index, name, hub) for index, name in enumerate(NAMES)]
    # One device is emulated, so that its packing takes emulated time, too.
    specs = [
        WorkerSpec(index, name, "", False, 0.5 if name == "c" else None, threads=1) for index, name in enumerate(NAMES)
    ]
    workers = {spec.name: Worker(spec, transport) for spec, transport in zip(specs, transports)}
    endpoints = [transport.endpoint for transport in (*transports, client)]
    client.connect(endpoints)
    for worker in workers.values():
        worker.connect(endpoints, {})
    threads = [threading.Thread(target=worker.serve) for worker in workers.values()]
    for thread in threads:
        thread.start()
    yield Devices(workers, client)
    for worker in workers.values():
        worker.stop()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize("codec", LOSSLESS)
def test_frames_are_exact_and_report_the_bytes_of_messages(devices: Devices, codec: str) -> None:
    devices.load(model(), plan_of(codec))
    for frame in range(1, 4):
        x = image((1, 3, 48, 32), seed=frame)
        devices.ask(frame, x)
        assert difference(devices.next(MessageKind.ANSWER).arrays[0], unsplit(model(), [x])[0]) <= 1e-5
    sent: dict[str, dict[int, int]] = {name: {} for name in NAMES}
    while not all(sent.values()):
        report = devices.next(MessageKind.TRACE)
        steps, times, nbytes = report.arrays
        assert (times[:, 0] <= times[:, 1]).all()
        sent[NAMES[report.sender]] = dict(zip(steps.tolist(), nbytes.tolist()))
    for name, program in devices.programs.items():
        received = sum(isinstance(step, Receive) for step in program.steps)
        assert len(sent[name]) == len(program.steps) and received > 1, "a span for every step"
        for index, step in enumerate(program.steps):
            if isinstance(step, Send) and 0 < step.stage < len(model().layers):
                # About half of the values after a ReLU are zero.
                assert 0.2 < sent[name][index] / message_nbytes(program, step, model()) < 0.8
            elif isinstance(step, Send) and step.stage == len(model().layers):
                assert sent[name][index] == message_nbytes(program, step, model()), "the answer is not packed"


def test_malformed_packed_rows_fail_the_frame_and_not_the_worker(devices: Devices) -> None:
    devices.load(model(), plan_of("zero_mask"))
    program = devices.programs["b"]
    receive = next(s for s in program.steps if isinstance(s, Receive) and s.peer == "c")
    shape = (
        model()
        .graph.tensors[program.patches[receive.writes[0]].tensor]
        .region_shape(program.patches[receive.writes[0]].region)
    )
    wrong = [np.zeros(40, np.uint8), np.full(1000, 255, np.uint8), np.zeros(0, np.uint8), np.zeros(shape, np.float32)]
    for frame, array in enumerate(wrong, start=100):
        devices.send("b", frame, receive.channel, array, sender=NAMES.index("c"))
        error = devices.next(MessageKind.ERROR)
        assert error.frame == frame
        assert isinstance(program.steps[error.channel], Receive)
        assert array_to_text(error.arrays[0]).startswith(f"c sent {array.dtype} {list(array.shape)} for")
    x = image((1, 3, 48, 32))
    devices.ask(1, x)
    assert difference(devices.next(MessageKind.ANSWER).arrays[0], unsplit(model(), [x])[0]) <= 1e-5


def test_a_tensor_whose_shape_depends_on_the_image_is_sent(devices: Devices) -> None:
    """The model was captured on an image of zeros, for which the tensor is empty."""
    net = Net()
    found = net.op("Cast", net.op("NonZero", net.op("Relu", net.input([1, 1, 6, 4]))), to=1)
    other = net.op("MatMul", net.const(np.ones((1, 4))), found)
    flowing = capture(net.proto(net.op("Add", "x", net.reduce("ReduceSum", other, [0, 1], keepdims=0))))
    count = len(flowing.layers)
    assert count > 1
    plan = make_plan(flowing, [(1, {"b": strips({"b": 1})["b"]}), (count - 1, strips({"c": 1}))], "a")
    devices.load(flowing, with_options(plan, True, everywhere("zero_mask", NAMES)))
    x = image((1, 1, 6, 4))
    devices.ask(1, x)
    assert difference(devices.next(MessageKind.ANSWER).arrays[0], unsplit(flowing, [x])[0]) <= 1e-5


def test_a_device_that_cannot_unpack_refuses_the_program(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blosc2", None)
    devices.load(model(), plan_of("zero_mask"))
    with pytest.raises(RuntimeError, match="codec 'blosc2' needs a library that this device does not have"):
        devices.load(model(), plan_of("blosc2"))
