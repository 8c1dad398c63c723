"""Streams of frames whose answers are checked one by one, for the chaos test.

Each stream is a thread. It asks in turns of some frames, in the ways that users have:

    automatic    `stream_jobs` by the plans of the cluster
    single       `submit`, with a few jobs under way
    mixture      `stream_jobs` for most frames per second
    given        `stream_jobs` by an even plan over all devices
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import coedge
from coedge import Objective, zoo
from coedge.core.errors import CoEdgeError
from coedge.graph.model import Model
from coedge.plan.plan import even_plan
from orchestrator.cluster.cluster import Cluster
from orchestrator.runtime.job import Job
from workers.runtime.kernels import unsplit_session

Array = NDArray[Any]

# Of the largest value of an answer.
TOLERANCE = 1e-5
POOL = 12
FRAMES_PER_TURN = 40
JOBS_AT_ONCE = 3
# A stream asks for no more frames per second, so that the devices have time for everything else.
FRAMES_PER_SECOND = 12.0
WAYS = (("automatic", "single", "mixture"), ("given",))


@dataclass(frozen=True)
class Network:
    """A model, inputs, and the answer of the unsplit network to each of them."""

    model: Model
    inputs: Sequence[Array]
    expected: Sequence[Array]

    @staticmethod
    def of(name: str, image_size: int, width: float, seed: int) -> Network:
        """Return a network of the zoo with seeded weights and inputs."""
        shape = tuple(zoo.example(name, image_size=image_size).shape)
        chance = np.random.default_rng(seed)
        inputs = [chance.standard_normal(shape, np.float32) for _ in range(POOL)]
        built = zoo.build(name, width=width, num_classes=20, seed=seed)
        model = coedge.capture(built, inputs[0], name=name)
        session = unsplit_session(model, 1)
        expected = [np.asarray(session.run(None, {model.inputs[0].name: x})[0]) for x in inputs]
        return Network(model, inputs, expected)

    def finds(self, answer: Array) -> int | None:
        """Return the number of the input whose answer this is; None if it is wrong."""
        for number, expected in enumerate(self.expected):
            if answer.shape == expected.shape:
                limit = TOLERANCE * float(np.abs(expected).max())
                if float(np.abs(answer - expected).max()) <= limit:
                    return number
        return None


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that was answered.

    Attributes:
        stream: number of its thread.
        way: how it was asked for.
        turn: number of the turn in its stream.
        asked, answered: on the monotonic clock.
        devices: of the plan that it was answered by.
    """

    stream: int
    way: str
    turn: int
    asked: float
    answered: float
    attempts: int
    devices: frozenset[str]


class Tally:
    """What became of all frames. For any thread.

    Attributes:
        lost: number of frames that failed, by reason.
        counts: of frames that were asked, doubled, out of order, wrong.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.frames: list[Frame] = []
        self.lost: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def answered(self, stream: int, way: str, turn: int, job: Job) -> None:
        assert job.answered_seconds is not None
        devices = frozenset((*job.plan.used_devices, job.plan.source, job.plan.sink))
        with self._lock:
            self.frames.append(Frame(stream, way, turn, job.asked_seconds, job.answered_seconds, job.attempts, devices))

    def failed(self, error: BaseException, count: int = 1) -> None:
        if count > 0:
            text = re.sub(r"\d+(\.\d+)?", "N", f"{type(error).__name__}: {error}")[:300]
            with self._lock:
                self.lost[text] += count

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number


class Stream:
    """A thread that asks for frames until `stop`, and checks each answer.

    Attributes:
        since: time of its last answer, or of its start.
    """

    def __init__(
        self, number: int, cluster: Cluster, networks: Sequence[Network], ways: Sequence[str], seed: int, tally: Tally
    ) -> None:
        self.number, self.since = number, time.monotonic()
        self._cluster, self._networks, self._ways, self._tally = cluster, networks, ways, tally
        self._chance = np.random.default_rng(seed)
        self._names = [device.name for device in cluster.devices()]
        self._turns = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"chaos-stream-{number}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for no further frames."""
        self._stopping.set()

    def join(self, seconds: float) -> bool:
        """Wait for the answers under way. Return whether all came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        for way, network in itertools.cycle(itertools.product(self._ways, self._networks)):
            if self._stopping.is_set():
                return
            self._turns += 1
            self._turn(network, way)

    def _turn(self, network: Network, way: str) -> None:
        """Ask for some frames in one way."""
        asked: deque[int] = deque()  # numbers of the inputs whose answers have not come

        def source() -> Iterator[Array]:
            for number in self._chance.integers(0, len(network.inputs), FRAMES_PER_TURN):
                if self._stopping.wait(self._chance.exponential(1 / FRAMES_PER_SECOND)):
                    return
                asked.append(int(number))
                self._tally.count("asked")
                yield network.inputs[number]

        last = 0
        try:
            for job in self._jobs(network.model, way, source()):
                if not asked or job.frame == last:
                    self._tally.count("doubled")
                    continue
                if job.frame < last:
                    self._tally.count("out of order")
                last = job.frame
                self._check(network, way, job, asked.popleft())
        except CoEdgeError as error:
            self._tally.failed(error, len(asked))
        else:
            self._tally.failed(RuntimeError("the stream ended without an answer"), len(asked))
        self.since = time.monotonic()

    def _jobs(self, model: Model, way: str, frames: Iterable[Array]) -> Iterator[Job]:
        if way == "single":
            yield from _few_at_once(frames, lambda x: self._cluster.submit(model, x))
        elif way == "mixture":
            yield from self._cluster.stream_jobs(model, frames, objective=Objective(goal="throughput"))
        elif way == "given":
            plan = even_plan(model, self._names, stage_layers=4, source=self._cluster.config.source)
            yield from self._cluster.stream_jobs(model, frames, plan=plan)
        else:
            yield from self._cluster.stream_jobs(model, frames)

    def _check(self, network: Network, way: str, job: Job, number: int) -> None:
        try:
            answer = np.asarray(job.result())
        except CoEdgeError as error:
            self._tally.failed(error)
        else:
            self._tally.answered(self.number, way, self._turns, job)
            found = network.finds(answer)
            if found != number:
                self._tally.count("wrong" if found is None else "out of order")
        self.since = time.monotonic()


def _few_at_once(frames: Iterable[Array], submit: Callable[[Array], Job]) -> Iterator[Job]:
    """Yield jobs in the order of their frames."""
    jobs: deque[Job] = deque()
    for x in frames:
        jobs.append(submit(x))
        while len(jobs) >= JOBS_AT_ONCE or (jobs and jobs[0].done()):
            yield jobs.popleft()
    yield from jobs
