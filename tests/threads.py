"""Clusters without Ray and sockets: workers on threads, and the dispatcher of a cluster."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from nets import Array
from waiting import MOST_SECONDS

from coedge.core.errors import CoEdgeError, FrameTimeout
from coedge.execution.program import CLIENT
from coedge.graph.model import Model
from coedge.plan.frame_assignment import frame_assignment
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from orchestrator.runtime.dispatcher import Dispatcher
from orchestrator.runtime.job import Job
from orchestrator.runtime.loaded_plan import LoadedPlan
from orchestrator.runtime.stream import in_order
from workers.runtime.spec import WorkerSpec
from workers.runtime.worker import Worker
from workers.transport.message import Message, MessageKind, decode, encode
from workers.transport.transport import Endpoint, InMemoryHub, InMemoryTransport, Transport

FRAME_SECONDS = 20.0

Connect = Callable[[int, str], Transport]


class Threads:
    """Devices with these names, and a client.

    Attributes:
        workers: by name; each serves on a thread of its own.
    """

    def __init__(self, names: Sequence[str], connect: Connect | None = None, credits: int = 4) -> None:
        connect = connect or functools.partial(_in_memory, InMemoryHub())
        self.workers = {
            name: Worker(WorkerSpec(index, name, "", False, None, threads=1), connect(index, name))
            for index, name in enumerate(names)
        }
        client = connect(len(names), CLIENT)
        endpoints = [*(worker.facts().endpoint for worker in self.workers.values()), client.endpoint]
        for worker in self.workers.values():
            worker.connect(endpoints, {})
        client.connect(endpoints)
        index_of = {name: index for index, name in enumerate(names)}
        self.dispatcher = Dispatcher(client, index_of, {}, credits, self._late)
        self._threads = [threading.Thread(target=worker.serve, daemon=True) for worker in self.workers.values()]
        for thread in self._threads:
            thread.start()
        self._epoch = 0

    def load(self, model: Model, plan: Plan) -> LoadedPlan:
        self._epoch += 1
        loaded = LoadedPlan(self._epoch, model, plan, lower(plan, model))
        for name in loaded.devices:
            parts = model.weight_slices(loaded.programs[name].tiles())
            weights = {
                key: part.of(model.weights[part.name]) for key, part in parts.items() if part.name in model.weights
            }
            self.workers[name].load(loaded.epoch, loaded.programs[name], model.skeleton, weights)
        return loaded

    def unload(self, loaded: LoadedPlan) -> None:
        for name in loaded.devices:
            self.workers[name].unload(loaded.epoch)

    def submit(self, loaded: LoadedPlan, x: Array) -> Job:
        return self.dispatcher.submit(loaded, (x,), False, FRAME_SECONDS)

    def stream(
        self, plans: Sequence[LoadedPlan], parts: Sequence[float], frames: Iterable[Array], in_flight: int
    ) -> Iterator[Job]:
        """Yield the jobs of a stream, as a cluster does."""
        turns = frame_assignment(parts)
        return in_order(frames, lambda x: self.submit(plans[next(turns)], x), in_flight)

    def waiting(self) -> dict[str, Any]:
        """Return the frames under way, by device."""
        return {name: found for name, worker in self.workers.items() if (found := worker.status().waiting)}

    def close(self) -> None:
        for worker in self.workers.values():
            worker.stop()
        for thread in self._threads:
            thread.join(MOST_SECONDS)
        self.dispatcher.close()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _late(self, job: Job, loaded: LoadedPlan, deadline: float, timeout_seconds: float) -> CoEdgeError:
        return FrameTimeout(f"frame {job.frame}: {self.waiting()}")


def _in_memory(hub: InMemoryHub, index: int, name: str) -> Transport:
    return InMemoryTransport(index, name, hub)


class Shuffled:
    """A network that delivers one message at a time, from a random pair of devices.

    Messages of a pair keep their order. The next message leaves only when the receiver of the last one is idle.

    Attributes:
        under_way: per epoch, the frames that the client has sent and that have not ended.
        most_under_way: per epoch, the largest number of such frames at a time.
        brought: every message, with its receiver.
    """

    def __init__(self, seed: int, replays: float = 0.0) -> None:
        self._random, self._replays = random.Random(seed), replays
        self._changed = threading.Condition()
        self._pairs: dict[tuple[int, int], deque[Message]] = defaultdict(deque)
        self._boxes: dict[int, deque[Message]] = {}
        self._resting: dict[int, bool] = {}
        self._open = True
        self.client = -1
        self.under_way: dict[int, set[int]] = defaultdict(set)
        self.most_under_way: dict[int, int] = defaultdict(int)
        self.brought: list[tuple[int, Message]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def connect(self, index: int, name: str) -> Transport:
        if name == CLIENT:
            self.client = index
            self._thread.start()
        self._boxes[index], self._resting[index] = deque(), False
        return _ShuffledTransport(self, index, name)

    def send(self, sender: int, receiver: int, message: Message) -> None:
        header, buffers = encode(message)
        copied = decode(header, [buffer.tobytes() for buffer in buffers])
        with self._changed:
            if sender == self.client and message.kind is MessageKind.DATA:
                self.under_way[message.epoch].add(message.frame)
                most = max(self.most_under_way[message.epoch], len(self.under_way[message.epoch]))
                self.most_under_way[message.epoch] = most
            elif sender == self.client and message.kind is MessageKind.CANCEL:
                self.under_way[message.epoch].discard(message.frame)
            self._pairs[sender, receiver].append(copied)
            self._changed.notify_all()

    def receive(self, index: int, timeout_seconds: float) -> Message | None:
        with self._changed:
            box = self._boxes[index]
            if not box and timeout_seconds > 0:
                self._resting[index] = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: box or not self._open or not self._resting[index], timeout_seconds)
            if not box:
                return None
            self._resting[index] = False
            message = box.popleft()
            if index == self.client and message.kind is MessageKind.ANSWER:
                self.under_way[message.epoch].discard(message.frame)
            return message

    def wake(self, index: int) -> None:
        with self._changed:
            self._resting[index] = False
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while self._open:
                full = [pair for pair, messages in self._pairs.items() if messages]
                if not full:
                    self._changed.wait(0.05)
                    continue
                if self.brought and self._random.random() < self._replays:
                    receiver, message = self._random.choice(self.brought)
                else:
                    pair = self._random.choice(sorted(full))
                    receiver, message = pair[1], self._pairs[pair].popleft()
                    self.brought.append((receiver, message))
                self._resting[receiver] = False
                self._boxes[receiver].append(message)
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._open or self._resting[receiver], MOST_SECONDS)  # noqa: B023


class _ShuffledTransport:
    def __init__(self, network: Shuffled, index: int, name: str) -> None:
        self.endpoint = Endpoint(index, name, f"shuffled://{index}")
        self._network = network

    def connect(self, peers: Iterable[Endpoint]) -> None:
        """Do nothing: all devices know each other."""

    def disconnect(self, peer_index: int) -> None:
        """Do nothing: all devices know each other."""

    def send(self, peer_index: int, message: Message) -> None:
        self._network.send(self.endpoint.index, peer_index, message)

    def receive(self, timeout_seconds: float) -> Message | None:
        return self._network.receive(self.endpoint.index, timeout_seconds)

    def wake(self) -> None:
        self._network.wake(self.endpoint.index)

    def close(self) -> None:
        self._network.close()


@contextlib.contextmanager
def shuffled(names: Sequence[str], seed: int, credits: int, replays: float = 0.0) -> Iterator[tuple[Threads, Shuffled]]:
    network = Shuffled(seed, replays)
    with Threads(names, network.connect, credits) as threads:
        yield threads, network
