"""Streams without Ray: delivery in any order of messages, back-pressure, early ends, and memory that stays."""

from __future__ import annotations

import functools
import gc
import itertools
import signal
import threading
import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import DEVICES, TOLERANCE, Array, Net, difference, examples, image, make_plan, one_stage, plans, unsplit
from threads import Threads, shuffled
from virtual import LOWER, UPPER, halos
from waiting import until

from coedge.core.errors import Cancelled, StepFailed
from coedge.core.region import UNIT
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.frame_assignment import assign_frames
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from orchestrator.runtime.job import Job
from orchestrator.runtime.loaded_plan import LoadedPlan
from orchestrator.runtime.stream import in_order

SHAPE = (1, 3, 16, 8)


@functools.cache
def pictures() -> tuple[list[Array], list[Array]]:
    """Return different inputs of `halos()`, and the outputs of the unsplit network for them."""
    inputs = [image(SHAPE, seed=seed) for seed in range(16)]
    return inputs, [unsplit(halos(), [x])[0] for x in inputs]


@functools.cache
def tiny() -> Model:
    net = Net()
    x = net.op("Conv", net.input([1, 1, 4, 4]), net.weight(1, 1, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(net.op("Conv", x, net.weight(1, 1, 3, 3), pads=[1, 1, 1, 1])), name="tiny")


def halves(model: Model, upper: str, lower: str, source: str = "a") -> Plan:
    return make_plan(model, [(1, {upper: UPPER, lower: LOWER}) for _ in model.layers], source)


# ---------------------------------------------------------------- delivery


@given(data=st.data())
@examples(25)
def test_whatever_the_order_of_messages_every_frame_is_answered_once_and_in_order(data: st.DataObject) -> None:
    model, (inputs, expected) = halos(), pictures()
    mixed = data.draw(st.lists(plans(model), min_size=1, max_size=3))
    parts = data.draw(st.lists(st.floats(0.1, 1.0), min_size=len(mixed), max_size=len(mixed)))
    credits, in_flight = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
    replays = data.draw(st.sampled_from([0.0, 0.3]))
    with shuffled(DEVICES, data.draw(st.integers(0, 10_000)), credits, replays) as (threads, network):
        loaded = [threads.load(model, plan) for plan in mixed]
        jobs = list(threads.stream(loaded, parts, inputs, in_flight))
        assert [job.loaded for job in jobs] == [loaded[part] for part in assign_frames(parts, len(inputs))]
        assert len(jobs) == len(inputs)
        for job, y in zip(jobs, expected):
            assert difference(job.result(), y) <= TOLERANCE
        assert all(1 <= most <= credits for most in network.most_under_way.values())
        until(lambda: not threads.waiting(), "all frames end on all devices")

        # Messages after the end of their frame, or of their plan, do nothing.
        threads.unload(loaded[0])
        late = list(network.brought)
        for receiver, message in late:
            threads.dispatcher._transport.send(receiver, message)
        again = threads.submit(loaded[-1] if len(loaded) > 1 else threads.load(model, mixed[0]), inputs[3])
        assert difference(again.result(), expected[3]) <= TOLERANCE
        until(lambda: len(network.brought) >= 2 * len(late), "everything has come")
        until(lambda: not threads.waiting(), "nothing begins again")
        assert nothing_left(threads)


@given(seed=st.integers(0, 10_000), taken=st.integers(0, 6), credits=st.integers(1, 3), plan=plans(halos()))
@examples(15)
def test_a_stream_that_is_closed_early_leaves_nothing_behind(seed: int, taken: int, credits: int, plan: Plan) -> None:
    model, (inputs, expected) = halos(), pictures()
    with shuffled(DEVICES, seed, credits) as (threads, network):
        loaded = threads.load(model, plan)
        stream = threads.stream([loaded], [1.0], itertools.cycle(inputs), 6)
        for job, y in zip(itertools.islice(stream, taken), expected):
            assert difference(job.result(), y) <= TOLERANCE
        stream.close()  # type: ignore[attr-defined]
        assert nothing_left(threads) and not any(network.under_way.values())
        until(lambda: not threads.waiting(), "the devices forget the frames")
        assert difference(threads.submit(loaded, inputs[0]).result(), expected[0]) <= TOLERANCE


def nothing_left(threads: Threads) -> bool:
    client = threads.dispatcher
    return not client._active and not client._queues and not client._under_way


def test_a_plan_that_stands_still_delays_only_its_own_frames() -> None:
    model, (inputs, expected) = halos(), pictures()
    with Threads(["a", "b"]) as threads:
        stuck, free = (threads.load(model, one_stage(model, {name: UNIT}, "a")) for name in ("b", "a"))
        threads.workers["b"].stop()
        waiting = [threads.submit(stuck, inputs[0]) for _ in range(20)]
        for x, y in zip(inputs, expected):
            assert difference(threads.submit(free, x).result(), y) <= TOLERANCE
        assert not any(job.done() for job in waiting)
        for job in waiting:
            assert job.cancel()
        assert nothing_left(threads)


# ---------------------------------------------------------------- order, back-pressure and ends


@functools.cache
def _loaded() -> LoadedPlan:
    plan = one_stage(tiny(), {"a": UNIT}, "a")
    return LoadedPlan(1, tiny(), plan, lower(plan, tiny()))


class ManualRuntime:
    """A runtime that takes frames, and ends each when the test says so."""

    def __init__(self, refused: int | None = None) -> None:
        self.jobs: list[Job] = []
        self.cancelled: list[int] = []
        self._refused = refused

    def submit(self, x: int) -> Job:
        assert x == len(self.jobs), "in order, each once"
        if x == self._refused:
            raise ValueError("this one does not fit")
        job = Job(x, _loaded(), False)
        job.on_cancel = lambda job: self.cancelled.append(job.frame)
        self.jobs.append(job)
        return job

    def end(self, frame: int) -> None:
        self.jobs[frame].answer([np.array([frame])])


@given(data=st.data(), in_flight=st.integers(1, 6), frames=st.integers(0, 12))
@examples(60)
def test_answers_leave_in_order_and_frames_are_taken_only_as_they_leave(
    data: st.DataObject, in_flight: int, frames: int
) -> None:
    runtime, left = ManualRuntime(), 0
    # The open frames that end before each frame. Drawn in advance, as another thread decides which are open.
    ends = [data.draw(st.lists(st.integers(0, 5), unique=True)) for _ in range(frames)]

    def source() -> Iterator[int]:
        for frame in range(frames):
            assert len(runtime.jobs) - left < in_flight
            open_jobs = [job.frame for job in runtime.jobs if not job.done()]
            # Some end now, in any order. If there is no room for another frame, the oldest has to end.
            for one in ends[frame]:
                if one < len(open_jobs):
                    runtime.end(open_jobs[one])
            if len(runtime.jobs) - left == in_flight - 1 and left < len(runtime.jobs) and not runtime.jobs[left].done():
                runtime.end(left)
            yield frame

    answers = []
    for job in _finishing(runtime, in_order(source(), runtime.submit, in_flight)):
        answers.append(job.result().item())
        left += 1
        assert len(runtime.jobs) - left < in_flight
    assert answers == list(range(frames))
    assert not runtime.cancelled


def _finishing(runtime: ManualRuntime, stream: Iterator[Job]) -> Iterator[Job]:
    """End the frames that the stream waits for, a moment later, on another thread."""
    stop = threading.Event()

    def finish() -> None:
        while not stop.wait(0.001):
            for job in list(runtime.jobs):
                if not job.done():
                    runtime.end(job.frame)
                    break

    thread = threading.Thread(target=finish)
    thread.start()
    try:
        yield from stream
    finally:
        stop.set()
        thread.join()


def test_where_frames_come_slowly_an_answer_leaves_as_soon_as_the_next_frame_is_there() -> None:
    runtime = ManualRuntime()

    def camera() -> Iterator[int]:
        for frame in range(20):
            yield frame
            if frame >= 4:  # the first ones take long, then all are quick
                for job in runtime.jobs:
                    runtime.end(job.frame)

    behind = [len(runtime.jobs) - 1 - job.frame for job in in_order(camera(), runtime.submit, 10)]
    assert behind[0] == 5 and max(behind[8:]) <= 1


@pytest.mark.parametrize(("refused", "error"), [(None, "the camera is gone"), (3, "this one does not fit")])
def test_answers_to_earlier_frames_come_before_the_error_of_the_source(refused: int | None, error: str) -> None:
    runtime = ManualRuntime(refused)

    def source() -> Iterator[int]:
        yield from range(3)
        if refused is None:
            raise ValueError("the camera is gone")
        yield 3
        raise AssertionError("nothing is taken after an error")

    answers = []
    with pytest.raises(ValueError, match=error):
        for job in _finishing(runtime, in_order(source(), runtime.submit, 8)):
            answers.append(job.result().item())
    assert answers == [0, 1, 2] and not runtime.cancelled


def test_closing_a_stream_early_cancels_the_newest_frames_first() -> None:
    runtime = ManualRuntime()
    stream = in_order(itertools.count(), runtime.submit, 5)
    threading.Timer(0.01, lambda: until(lambda: len(runtime.jobs) == 5, "five are taken") or runtime.end(0)).start()
    assert next(stream).result() == [0]
    stream.close()
    assert runtime.cancelled == [4, 3, 2, 1]
    with pytest.raises(Cancelled):
        runtime.jobs[1].result()


def test_a_frame_that_fails_keeps_its_place() -> None:
    runtime = ManualRuntime()

    def source() -> Iterator[int]:
        for frame in range(4):
            yield frame
            runtime.jobs[frame].fail(StepFailed("no")) if frame == 1 else runtime.end(frame)

    jobs = list(in_order(source(), runtime.submit, 3))
    assert [job.frame for job in jobs] == [0, 1, 2, 3]
    with pytest.raises(StepFailed):
        jobs[1].result()
    assert jobs[2].result() == [2]


# ---------------------------------------------------------------- memory


def held(*roots: Any) -> int:
    """Count the entries of all containers that are reachable from these objects through objects of the project."""
    seen: set[int] = set()
    count, queue = 0, list(roots)
    while queue:
        one = queue.pop()
        if id(one) in seen or isinstance(one, (str, bytes, int, float, np.ndarray, type)):
            continue
        seen.add(id(one))
        ours = type(one).__module__.split(".")[0] in ("coedge", "orchestrator", "workers", "threads")
        if ours or hasattr(one, "__len__"):
            if hasattr(one, "__len__") and not ours:
                count += len(one)
            inside = [o for o in gc.get_referents(one) if not callable(o) or type(o).__module__ == "functools"]
            queue += [*one.values(), *one.keys()] if isinstance(one, Mapping) else inside
    return count


@pytest.mark.deep
def test_ten_thousand_frames_leave_nothing_behind() -> None:
    # A worker remembers the last 4096 frames of each plan: of both, from the 8192nd on.
    model, frames, watched = tiny(), 10_000, 1000
    inputs = [image((1, 1, 4, 4), seed=seed) for seed in range(7)]
    expected = [unsplit(model, [x])[0] for x in inputs]
    entries = []
    with Threads(["a", "b"]) as threads:
        mixed = [threads.load(model, plan) for plan in (halves(model, "a", "b"), one_stage(model, {"b": UNIT}, "a"))]
        stream = threads.stream(mixed, [0.5, 0.5], itertools.islice(itertools.cycle(inputs), frames), 8)
        try:
            for index, job in enumerate(stream, 1):
                assert difference(job.result(), expected[(index - 1) % len(inputs)]) <= TOLERANCE
                if index in (frames - 2 * watched + 400, frames - watched + 400):
                    entries.append(held(threads.dispatcher, *threads.workers.values()))
                if index == frames - watched:
                    tracemalloc.start()
            job = None
            gc.collect()
            nbytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert index == frames and nothing_left(threads)
        until(lambda: not threads.waiting(), "all frames end on all devices")
        assert len(threads.dispatcher._traced) == 0
    assert entries[0] > 4 * 4096, "the count includes the memory of the workers"
    assert entries[1] - entries[0] < 200
    assert nbytes / watched < 500  # a job that is not forgotten takes more than 2 kB


def test_ctrl_c_is_heard_also_where_another_thread_gets_the_signal() -> None:
    """The system may deliver the signal to any thread, and the wait of the main thread then goes on."""
    job = Job(0, _loaded(), False)
    thread = threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            job.wait(timeout=60.0)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert not job.done()
