"""A device's own time, with clocks that the test controls."""

from __future__ import annotations

import ctypes
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.emulation.processor import EmulatedProcessor, sharpen_timers


class FakeMachine:
    """Real time and CPU time of one thread. A sleep takes `late` seconds too long."""

    def __init__(self, late: float = 0.0) -> None:
        self.real = 100.0
        self.cpu = 5.0
        self.late = late

    def sleep(self, seconds: float) -> None:
        self.real += seconds + self.late

    def work(self, seconds: float, taken_away: float = 0.0) -> None:
        """Use some seconds of CPU time, and some of real time in which another process has the core."""
        self.cpu += seconds
        self.real += seconds + taken_away

    def processor(self, speed: float | None, threads: int = 1) -> EmulatedProcessor:
        processor = EmulatedProcessor(speed, threads, lambda: self.real, lambda: self.cpu, self.sleep)
        processor.reach(self.real)
        return processor


def test_a_kernel_takes_its_cpu_time_over_the_speed() -> None:
    machine = FakeMachine()
    machine.processor(0.25).run(lambda: machine.work(1.0))
    assert machine.real == pytest.approx(104.0)


def test_a_device_that_is_not_emulated_does_not_rest() -> None:
    machine = FakeMachine()
    processor = machine.processor(None)
    processor.run(lambda: machine.work(1.0))
    processor.rest()
    assert machine.real == 101.0 == processor.now()


def test_late_ends_of_sleeps_do_not_add_up() -> None:
    machine = FakeMachine(late=0.1)
    processor = machine.processor(0.5)
    for _ in range(100):
        processor.run(lambda: machine.work(1.0))
    assert machine.real == pytest.approx(100 + 200 + 0.1)


def test_time_without_a_core_is_made_up_for() -> None:
    machine = FakeMachine()
    processor = machine.processor(0.5)
    processor.run(lambda: machine.work(1.0, taken_away=1.5))  # 2.5 s instead of 2, so there is no rest
    assert machine.real == pytest.approx(102.5) and processor.now() == pytest.approx(102.0)
    processor.run(lambda: machine.work(1.0))
    assert machine.real == pytest.approx(104.0) == processor.now()


def test_work_between_kernels_counts_at_the_speed_of_the_device() -> None:
    machine = FakeMachine()
    processor = machine.processor(0.1)
    machine.work(0.5)
    assert processor.now() == pytest.approx(105.0)
    processor.rest()
    assert machine.real == pytest.approx(105.0)


def test_cpu_time_of_a_wait_does_not_count() -> None:
    machine = FakeMachine()
    processor = machine.processor(0.1)
    machine.work(0.5, taken_away=20.0)  # polling a socket is not work of the device
    processor.reach(110.0)
    assert processor.now() == 110.0
    processor.reach(103.0)  # earlier than the device's time
    assert processor.now() == 110.0


def test_kernels_of_several_threads_count_wall_time() -> None:
    machine = FakeMachine()
    machine.processor(0.5, threads=2).run(lambda: machine.work(3.0, taken_away=-1.5))  # two threads on a core each
    assert machine.real == pytest.approx(103.0)


@given(
    st.sampled_from([0.1, 0.3, 1.0]),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=20),
    st.floats(0, 0.2),
)
def test_a_device_is_never_ahead_of_real_time_after_a_kernel(
    speed: float, steps: list[tuple[float, float, bool]], late: float
) -> None:
    machine = FakeMachine(late)
    processor = machine.processor(speed)
    spent = 0.0
    for seconds, taken, kernel in steps:
        if kernel:
            processor.run(lambda seconds=seconds, taken=taken: machine.work(seconds, taken))
            assert processor.now() <= machine.real + 1e-9
        else:
            machine.work(seconds, taken)
        spent += seconds
    assert processor.now() == pytest.approx(100.0 + spent / speed)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has timer slack")
def test_the_timer_slack_of_one_thread_is_set_and_that_of_others_is_not() -> None:
    get_slack, library, slacks = 30, ctypes.CDLL(None), []
    before = library.prctl(get_slack, 0, 0, 0, 0)

    def sharpen() -> None:
        sharpen_timers()
        slacks.append(library.prctl(get_slack, 0, 0, 0, 0))

    thread = threading.Thread(target=sharpen)
    thread.start()
    thread.join()
    assert slacks == [1] and library.prctl(get_slack, 0, 0, 0, 0) == before
