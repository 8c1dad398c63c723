"""The scheduler of a device, in virtual time: no sockets, threads or clock."""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples, image, unsplit, zoo_kernels, zoo_model
from test_dataflow_machine import PROGRAM, program, read

from coedge.execution.program import CLIENT, Answer, Compute, Receive, Send
from coedge.execution.scheduler import REMEMBERED_FRAMES, Ended, Failed, Scheduler, StepSpan, Task
from coedge.plan.lowering import lower
from coedge.plan.plan import even_plan
from workers.runtime.kernels import received

SHORT = program(Receive(0, CLIENT, -1, (0,)), Answer((read(0),)))


def bring(scheduler: Scheduler, epoch: int, frame: int, channel: int) -> Ended | None:
    task = scheduler.came(epoch, frame, channel)
    assert isinstance(task, Task) and isinstance(task.step, Receive)
    return scheduler.done(task, [None] * len(task.step.writes))


def finish(scheduler: Scheduler, task: Task, start: float = 0.0, stop: float = 0.0) -> Ended | None:
    made = [None] * len(task.step.writes) if isinstance(task.step, Compute) else []
    return scheduler.done(task, made, start, stop)


@pytest.fixture
def scheduler() -> Scheduler:
    scheduler = Scheduler()
    scheduler.load(1, PROGRAM)
    scheduler.load(2, SHORT)
    return scheduler


def test_the_oldest_frame_of_all_programs_goes_first(scheduler: Scheduler) -> None:
    for epoch, frame in ((1, 5), (2, 6), (2, 4)):
        bring(scheduler, epoch, frame, 0)
    order = []
    while (task := scheduler.next()) is not None:
        order.append((task.epoch, task.frame, task.step_index))
        finish(scheduler, task)
    assert order == [(2, 4, 1), (1, 5, 1), (1, 5, 2), (2, 6, 1)]
    assert scheduler.waiting == {(1, 5): (2,)}
    assert not scheduler.idle


def test_an_ended_frame_reports_its_spans_and_is_not_started_again(scheduler: Scheduler) -> None:
    task = scheduler.came(2, 9, 0)
    assert isinstance(task, Task)
    assert scheduler.done(task, ["rows"], 1.0, 1.5, 64) is None
    answer = scheduler.next()
    assert answer is not None and scheduler.values(answer) == {0: "rows"}
    assert finish(scheduler, answer, 2.0, 3.0) == Ended(2, 9, [StepSpan(0, 1.0, 1.5, 64), StepSpan(1, 2.0, 3.0, 0)])
    assert scheduler.came(2, 9, 0) is None
    assert scheduler.idle and scheduler.next() is None
    bring(scheduler, 1, 9, 0)  # the same number, of another program


def test_a_repeated_message_is_ignored(scheduler: Scheduler) -> None:
    bring(scheduler, 1, 1, 0)
    assert scheduler.came(1, 1, 0) is None
    assert scheduler.waiting == {(1, 1): (2,)}


def test_a_channel_that_no_program_has_fails_the_frame(scheduler: Scheduler) -> None:
    bring(scheduler, 1, 1, 0)
    failed = scheduler.came(1, 1, 77)
    assert isinstance(failed, Failed)
    assert failed[:3] == (1, 1, len(PROGRAM.steps)) and "channel 77" in failed.reason
    assert scheduler.idle and scheduler.came(1, 1, 2) is None


@pytest.mark.parametrize("how", ["fails", "is cancelled", "is unloaded"])
def test_the_result_of_a_running_step_is_dropped_with_its_frame(scheduler: Scheduler, how: str) -> None:
    bring(scheduler, 1, 3, 0)
    task = scheduler.next()
    assert task is not None
    if how == "fails":
        assert scheduler.failed(task, "out of memory") == Failed(1, 3, 1, "out of memory")
    elif how == "is cancelled":
        scheduler.cancel(1, 3)
    else:
        scheduler.unload(1)
    assert finish(scheduler, task) is None
    assert scheduler.failed(task, "again") is None
    assert scheduler.came(1, 3, 2) is None
    assert scheduler.idle and scheduler.next() is None


def test_unknown_frames_and_programs_are_ignored(scheduler: Scheduler) -> None:
    scheduler.unload(99)
    scheduler.cancel(99, 1)
    scheduler.cancel(1, 50)
    assert scheduler.came(99, 1, 0) is None
    assert scheduler.came(1, 50, 0) is None, "it was cancelled before it came"
    assert scheduler.programs == {1: PROGRAM, 2: SHORT}


def test_a_limited_number_of_ended_frames_is_remembered(scheduler: Scheduler) -> None:
    for frame in range(REMEMBERED_FRAMES + 10):
        bring(scheduler, 2, frame, 0)
        task = scheduler.next()
        assert task is not None and isinstance(finish(scheduler, task), Ended)
    (loaded,) = [loaded for epoch, loaded in scheduler._loaded.items() if epoch == 2]
    assert len(loaded.ended) == REMEMBERED_FRAMES and not loaded.spans
    assert scheduler.came(2, REMEMBERED_FRAMES + 9, 0) is None


@given(st.data(), st.integers(2, 4))
@examples(15)
def test_devices_in_virtual_time_answer_every_frame_of_every_plan_exactly(data: st.DataObject, devices: int) -> None:
    """Steps and messages take any time. Messages keep their order per pair of devices. One frame may be cancelled."""
    model, kernels = zoo_model("squeezenet"), zoo_kernels("squeezenet")
    tensors = model.graph.tensors
    plans = {1: even_plan(model, devices, stage_layers=6), 2: even_plan(model, devices, stage_layers=99)}
    programs = {epoch: lower(plan, model) for epoch, plan in plans.items()}
    names = sorted(programs[1].keys() | programs[2].keys())
    schedulers = {name: Scheduler() for name in names}
    for epoch, found in programs.items():
        for name, part in found.items():
            schedulers[name].load(epoch, part)
    shape = tuple(tensors[model.graph.inputs[0]].shape)
    frames = {frame: data.draw(st.sampled_from([1, 2]), "epoch") for frame in range(1, 4)}
    images = {frame: image(shape, seed=frame) for frame in frames}
    cancelled = unwanted = data.draw(st.sampled_from([None, *frames]), "cancelled")
    pipes: dict[tuple[str, str], deque[tuple[int, int, int, list[np.ndarray]]]] = defaultdict(deque)
    for frame, epoch in frames.items():
        for name, part in programs[epoch].items():
            for step in part.steps:
                if isinstance(step, Receive) and step.peer == CLIENT:
                    pipes[CLIENT, name].append((epoch, frame, step.channel, [images[frame]]))
    answers: dict[int, np.ndarray] = {}
    ended: list[tuple[str, int]] = []
    now, asleep = 0, False
    while True:
        moves = [("pipe", pair) for pair in pipes if pipes[pair]] + [("fire", (name, "")) for name in names]
        moves = moves[data.draw(st.integers(0, len(moves) - 1), "first") :] + moves
        asleep = True
        for kind, (sender, receiver) in moves:
            name, now = receiver or sender, now + 1
            scheduler = schedulers[name]
            if kind == "pipe" and pipes[sender, receiver]:
                epoch, frame, channel, arrays = pipes[sender, receiver].popleft()
                task = scheduler.came(epoch, frame, channel)
                assert not isinstance(task, Failed)
                if task is None:
                    continue
                made = received(task.step, task.program.patches, tensors, arrays)  # type: ignore[arg-type]
            else:
                task = scheduler.next()
                if task is None:
                    continue
                made = kernels.perform(task.program.patches, task.step, scheduler.values(task))
            asleep = False
            if isinstance(task.step, Send):
                pipes[name, task.step.peer].append((task.epoch, task.frame, task.step.channel, made))
            elif isinstance(task.step, Answer):
                assert task.frame not in answers
                answers[task.frame] = made[0]
            end = scheduler.done(task, made, now, now + 0.5)
            if end is not None:
                ended.append((name, end.frame))
                assert [span.start for span in end.spans] == sorted(span.start for span in end.spans)
                assert sorted(span.step_index for span in end.spans) == list(range(len(task.program.steps)))
        if cancelled is not None and data.draw(st.integers(0, 9), "now?") == 0:
            for scheduler in schedulers.values():
                scheduler.cancel(frames[cancelled], cancelled)
            asleep = False
            cancelled = None
        if asleep and not any(pipes.values()):
            break
    for frame, answer in answers.items():
        assert np.abs(answer - unsplit(model, [images[frame]])[0]).max() <= 1e-5
    assert len(ended) == len(set(ended))
    assert answers.keys() >= frames.keys() - {unwanted}
    assert all(scheduler.idle for scheduler in schedulers.values())
