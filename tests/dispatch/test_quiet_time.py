"""Loads, frames and measurements that keep out of each other's way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from waiting import MOST_SECONDS, until

from orchestrator.runtime.quiet_time import QuietTime


def test_a_measurement_waits_for_loads_and_holds_new_ones_off_while_frames_go_on() -> None:
    quiet, order = QuietTime(), list[str]()
    first_load, measured = threading.Event(), threading.Event()

    def load() -> None:
        with quiet.loading():
            order.append("first load")
            assert first_load.wait(MOST_SECONDS)
            order.append("first load ends")

    def measure() -> None:
        with quiet.measuring(), quiet.measuring():  # nested
            order.append("measured")
            assert measured.wait(MOST_SECONDS)
            with quiet.loading(), quiet.submitting():  # a trial
                order.append("trial")
        order.append("measurement ends")

    def load_later() -> None:
        with quiet.loading():
            order.append("second load")

    with ThreadPoolExecutor(4) as pool:
        begun = [pool.submit(load)]
        until(lambda: order, "the load has begun")
        begun.append(pool.submit(measure))
        until(lambda: quiet._measuring is not None, "the measurement waits")
        begun.append(pool.submit(load_later))
        with quiet.submitting():  # the measurement has not begun: frames still start
            order.append("frame")
        first_load.set()
        until(lambda: "measured" in order, "the measurement begins")
        submitted = pool.submit(_submit, quiet, lambda: order.append("late frame"))
        assert not submitted.done()
        measured.set()
        for future in [*begun, submitted]:
            future.result(MOST_SECONDS)
    assert order[:5] == ["first load", "frame", "first load ends", "measured", "trial"]
    assert sorted(order[5:]) == ["late frame", "measurement ends", "second load"]


def _submit(quiet: QuietTime, then: Callable[[], None]) -> None:
    with quiet.submitting():
        then()


def test_errors_inside_let_the_others_go_on() -> None:
    quiet = QuietTime()
    for admit in (quiet.loading, quiet.submitting, quiet.measuring):
        try:
            with admit():
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    with ThreadPoolExecutor(1) as pool:
        for admit in (quiet.measuring, quiet.loading, quiet.submitting):
            pool.submit(_enter, admit).result(MOST_SECONDS)


def _enter(admit: Callable[[], object]) -> None:
    with admit():  # type: ignore[attr-defined]
        pass
