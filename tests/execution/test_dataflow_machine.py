"""The dataflow machine chooses the next step for any order of messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples, zoo_model

from coedge.core.region import Region
from coedge.execution.dataflow_machine import DataflowMachine
from coedge.execution.program import CLIENT, Answer, Compute, Part, Patch, Program, Read, Receive, Send, Tile
from coedge.plan.lowering import lower
from coedge.plan.plan import even_plan

ROWS = Region(0, 4, 0, 4)
TILE = Tile(nodes=(), inputs=("x",), outputs=("y",), fixed_cols=())


def read(*patches: int) -> Read:
    return Read("x", ROWS, tuple(Part(p, ROWS) for p in patches))


def program(*steps: object, patches: int = 4) -> Program:
    return Program("pi", "hash", tuple(Patch("x", ROWS) for _ in range(patches)), steps)  # type: ignore[arg-type]


#   receive 0 (the image) -> compute 1 -> send 2
#   receive 3 (a halo)    ---------------> compute 4 (reads both) -> answer 5
PROGRAM = program(
    Receive(0, CLIENT, -1, (0,)),
    Compute(0, TILE, (read(0),), (1,), ()),
    Send(1, "other", 1, (Part(1, ROWS),)),
    Receive(2, "other", 1, (2,)),
    Compute(1, TILE, (read(1), read(2)), (3,), ()),
    Answer((read(3),)),
)


def run_all(machine: DataflowMachine, frame: int) -> list[int]:
    """Run the ready steps of one frame and return their indices."""
    steps = []
    while (ready := machine.next()) is not None:
        assert ready[0] == frame
        finish(machine, *ready)
        steps.append(ready[1])
    return steps


def finish(machine: DataflowMachine, frame: int, index: int) -> bool:
    step = machine.program.steps[index]
    assert set(machine.values(frame, index)) == set(step.reads)
    written = [f"{frame}:{p}" for p in step.writes] if isinstance(step, Compute) else []
    return machine.done(frame, index, written)


def held(machine: DataflowMachine, frame: int) -> set[int]:
    return set(machine._frames[frame].values)


def test_a_step_runs_when_its_patches_are_present() -> None:
    machine = DataflowMachine(PROGRAM)
    machine.begin(7)
    assert machine.next() is None
    assert [r.channel for r in machine.waiting(7)] == [0, 2]
    assert machine.arrived(7, 0, ["image"])
    assert machine.next() == (7, 1)
    assert machine.values(7, 1) == {0: "image"}
    assert machine.next() is None, "a step is handed out once"
    assert not machine.done(7, 1, ["first"])
    assert machine.next() == (7, 2)
    assert machine.values(7, 2) == {1: "first"}
    assert not machine.done(7, 2)
    assert machine.next() is None
    assert [r.channel for r in machine.waiting(7)] == [2]
    assert machine.arrived(7, 2, ["halo"])
    assert machine.next() == (7, 4)
    assert machine.values(7, 4) == {1: "first", 2: "halo"}
    assert not machine.done(7, 4, ["second"])
    assert machine.next() == (7, 5)
    assert machine.values(7, 5) == {3: "second"}
    assert machine.done(7, 5), "the last step ends the frame"
    assert machine.idle and machine.frames == () and machine.waiting(7) == []


def test_steps_that_are_ready_together_run_in_program_order() -> None:
    machine = DataflowMachine(PROGRAM)
    machine.begin(1)
    machine.arrived(1, 2, ["halo"])
    machine.arrived(1, 0, ["image"])
    assert run_all(machine, 1) == [1, 2, 4, 5]


def test_the_oldest_frame_goes_first() -> None:
    machine = DataflowMachine(PROGRAM)
    for frame in (5, 3, 9):
        machine.begin(frame)
    assert machine.frames == (3, 5, 9)
    for frame in (9, 5):
        machine.arrived(frame, 0, ["image"])
    assert machine.next() == (5, 1)
    machine.arrived(3, 0, ["image"])
    assert machine.next() == (3, 1), "an older frame goes first as soon as it can"
    assert machine.next() == (9, 1), "and while the older ones wait, the younger one computes"
    assert machine.next() is None


def test_messages_that_no_step_waits_for_are_refused() -> None:
    machine = DataflowMachine(PROGRAM)
    assert not machine.arrived(1, 0, ["image"]), "before the frame began"
    machine.begin(1)
    assert not machine.arrived(1, 99, ["image"]), "an unknown channel"
    assert not machine.arrived(1, 1, ["image"]), "a channel that this device sends on"
    assert not machine.arrived(1, 0, []), "too few arrays"
    assert not machine.arrived(1, 0, ["image", "more"]), "too many arrays"
    assert machine.arrived(1, 0, ["image"])
    assert not machine.arrived(1, 0, ["again"]), "twice"
    assert machine.next() == (1, 1)
    assert machine.values(1, 1) == {0: "image"}
    machine.done(1, 1, ["first"])
    machine.arrived(1, 2, ["halo"])
    run_all(machine, 1)
    assert machine.idle
    assert not machine.arrived(1, 2, ["late"]), "after the frame ended"
    assert machine.idle and machine.next() is None


def test_beginning_a_frame_twice_has_no_effect() -> None:
    machine = DataflowMachine(PROGRAM)
    machine.begin(1)
    machine.arrived(1, 0, ["image"])
    machine.begin(1)
    assert machine.next() == (1, 1)
    assert machine.values(1, 1) == {0: "image"}
    assert machine.next() is None


def test_a_device_without_steps_never_has_a_frame() -> None:
    machine = DataflowMachine(program())
    machine.begin(1)
    assert machine.idle and machine.next() is None


def test_a_patch_is_released_after_its_last_reader() -> None:
    machine = DataflowMachine(PROGRAM)
    machine.begin(1)
    machine.arrived(1, 0, ["image"])
    finish(machine, *machine.next())  # type: ignore[misc]
    assert held(machine, 1) == {1}, "the image is let go, what was made of it is held"
    finish(machine, *machine.next())  # type: ignore[misc]
    assert held(machine, 1) == {1}, "sent, but still to be read"
    machine.arrived(1, 2, ["halo"])
    finish(machine, *machine.next())  # type: ignore[misc]
    assert held(machine, 1) == {3}


def test_a_patch_without_readers_is_not_kept() -> None:
    machine = DataflowMachine(program(Receive(0, CLIENT, -1, (0, 1)), Answer((read(0),))))
    machine.begin(1)
    machine.arrived(1, 0, ["read", "never read"])
    assert held(machine, 1) == {0}


def test_dropping_a_frame_does_not_affect_others() -> None:
    machine = DataflowMachine(PROGRAM)
    for frame in (1, 2):
        machine.begin(frame)
        machine.arrived(frame, 0, ["image"])
    assert machine.next() == (1, 1)
    machine.drop(1)
    machine.drop(1)
    machine.drop(77)
    assert machine.frames == (2,)
    assert not machine.done(1, 1, ["too late"]), "a step that was running when its frame was dropped"
    assert not machine.arrived(1, 2, ["halo"])
    machine.arrived(2, 2, ["halo"])
    assert run_all(machine, 2) == [1, 2, 4, 5]
    assert machine.idle
    machine.begin(1)  # and it may be run again
    machine.arrived(1, 0, ["image"])
    machine.arrived(1, 2, ["halo"])
    assert run_all(machine, 1) == [1, 2, 4, 5]


@given(st.data(), st.integers(1, 4), st.integers(2, 5))
@examples(60)
def test_any_interleaving_ends_every_frame_exactly_once(data: st.DataObject, frames: int, count: int) -> None:
    """All devices of a real plan, with messages of all frames in any order, some of them twice."""
    model = zoo_model("squeezenet")
    programs = lower(even_plan(model, count, stage_layers=4), model)
    machines = {name: DataflowMachine(p) for name, p in programs.items()}
    mail: list[tuple[str, int, int, int]] = []
    for frame in range(frames):
        for name, p in programs.items():
            machines[name].begin(frame)
            mail += [
                (name, frame, s.channel, len(s.writes)) for s in p.steps if isinstance(s, Receive) and s.peer == CLIENT
            ]
    answers: list[int] = []
    ended: list[tuple[str, int]] = []
    ran: set[tuple[str, int, int]] = set()
    while True:
        busy = [name for name, machine in machines.items() if any(f.ready for f in machine._frames.values())]
        choices = len(mail) + len(busy)
        if not choices:
            break
        chosen = data.draw(st.integers(0, choices - 1)) if choices > 1 else 0
        if chosen < len(mail):
            name, frame, channel, size = mail.pop(chosen)
            assert machines[name].arrived(frame, channel, [None] * size)
            assert not machines[name].arrived(frame, channel, [None] * size)
            continue
        name = busy[chosen - len(mail)]
        ready = machines[name].next()
        assert ready is not None
        frame, index = ready
        assert (name, frame, index) not in ran
        ran.add((name, frame, index))
        step = programs[name].steps[index]
        if isinstance(step, Send):
            mail.append((step.peer, frame, step.channel, len(step.parts)))
        elif isinstance(step, Answer):
            answers.append(frame)
        if finish(machines[name], frame, index):
            ended.append((name, frame))
    assert sorted(answers) == list(range(frames))
    working = [name for name, p in programs.items() if p.steps]
    assert sorted(ended) == sorted((name, frame) for name in working for frame in range(frames))
    assert all(machine.idle for machine in machines.values())


def test_a_step_reads_a_patch_once_even_in_two_parts() -> None:
    both = Read("x", ROWS, (Part(0, Region(0, 2, 0, 4)), Part(0, Region(2, 4, 0, 4))))
    assert Answer((both, read(1, 0))).reads == (0, 1)
    assert Send(0, "other", 0, (Part(2, ROWS), Part(2, ROWS), Part(1, ROWS))).reads == (2, 1)
    assert Receive(0, CLIENT, -1, (0,)).reads == ()


def test_too_few_results_of_a_step_are_an_error() -> None:
    machine = DataflowMachine(PROGRAM)
    machine.begin(1)
    machine.arrived(1, 0, ["image"])
    frame, index = machine.next()  # type: ignore[misc]
    with pytest.raises(ValueError):
        machine.done(frame, index, [])
