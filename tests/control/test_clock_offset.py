"""Clock offsets of remote devices: measured by round trips, uncertain with age, refreshed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples
from waiting import until

from orchestrator.control.clock_offset import DRIFT, SAME_CLOCK, ClockOffset, measure_offset
from orchestrator.control.clock_refresh import ClockRefresh


class Wire:
    """A client's clock and a device's, which drifts; both move only with round trips of given lengths."""

    def __init__(self, offset: float, drift: float, trips: list[tuple[float, float]]) -> None:
        self.time, self.offset, self.drift, self.trips = 100.0, offset, drift, list(trips)

    def now(self) -> float:
        return self.time

    def true_offset(self) -> float:
        return self.offset + self.drift * (self.time - 100.0)

    def read(self) -> float:
        there, back = self.trips.pop(0)
        self.time += there
        clock = self.time + self.true_offset()
        self.time += back
        return clock


seconds = st.floats(0.0, 0.05)
trips = st.lists(st.tuples(seconds, seconds), min_size=3, max_size=3)


@given(offset=st.floats(-1e4, 1e4), first=trips, second=trips, pause=st.floats(0, 1e4), drift=st.floats(-DRIFT, DRIFT))
@examples(100)
def test_the_true_offset_is_always_within_the_uncertainty(
    offset: float, first: list[tuple[float, float]], second: list[tuple[float, float]], pause: float, drift: float
) -> None:
    wire = Wire(offset, drift, [*first, *second])

    def contains(known: ClockOffset) -> bool:
        known = known.at(wire.time)
        return abs(known.seconds - wire.true_offset()) <= known.uncertainty_seconds + 1e-8

    known = measure_offset(wire.read, wire.now, len(first))
    assert contains(known)
    assert known.uncertainty_seconds <= min(there + back for there, back in first) / 2 + DRIFT * wire.time
    wire.time += pause
    assert contains(known)
    newer = measure_offset(wire.read, wire.now, len(second))
    updated = known.updated(newer)
    assert contains(updated)
    assert updated.uncertainty_seconds <= newer.uncertainty_seconds + 1e-12
    assert updated.uncertainty_seconds <= known.at(updated.measured_seconds).uncertainty_seconds + 1e-12


def test_uncertainty_grows_with_age_by_the_drift() -> None:
    known = ClockOffset(2.0, 0.001, 50.0)
    assert known.at(50.0) == known
    assert known.at(60.0) == ClockOffset(2.0, pytest.approx(0.001 + 10 * DRIFT), 60.0)
    assert SAME_CLOCK.at(1e9).uncertainty_seconds == 0.0


def test_a_clock_that_was_stopped_takes_the_newer_offset() -> None:
    newer = ClockOffset(-3600.0, 0.001, 20.0)
    assert ClockOffset(0.0, 0.001, 10.0).updated(newer) == newer


def test_a_refresh_replaces_offsets_of_devices_that_answer() -> None:
    old = ClockOffset(0.0, 1e3, 0.0)
    clocks = {"here": SAME_CLOCK, "remote": old, "silent": old, "lost": old}

    def silent() -> float:
        raise TimeoutError("no answer")

    def lost() -> float:
        raise AssertionError("a lost device is not asked")

    readers = {"here": lost, "remote": lambda: 7.0, "silent": silent, "lost": lost}
    refresh = ClockRefresh(clocks, readers, lambda name: name != "lost", every_seconds=0.001)
    try:
        until(lambda: clocks["remote"].uncertainty_seconds < 1.0, "the offset is measured again")
    finally:
        refresh.close()
    assert clocks["silent"] is old and clocks["lost"] is old and clocks["here"] is SAME_CLOCK
    until(lambda: not refresh._thread.is_alive(), "the thread ends")


def test_devices_that_share_our_clock_need_no_thread() -> None:
    refresh = ClockRefresh({"a": SAME_CLOCK}, {"a": lambda: 0.0}, lambda name: True)
    assert not refresh._thread.is_alive()
    refresh.close()
