"""The times at which workers that have ended are started again."""

from __future__ import annotations

from orchestrator.control.membership import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, SETTLED_SECONDS, Attempts


def test_pauses_grow_while_attempts_fail() -> None:
    attempts, now, pauses, last = Attempts(), 100.0, [], 100.0
    while now < 400.0:
        if attempts.due(now):
            pauses.append(now - last)
            last = now
        now += 0.125
    assert pauses[0] == FIRST_PAUSE_SECONDS
    assert pauses == sorted(pauses) and pauses[-1] == LONGEST_PAUSE_SECONDS


def test_a_worker_that_ends_soon_again_is_started_later_and_one_that_has_lived_at_once() -> None:
    attempts, now = Attempts(), 100.0

    def wait() -> float:
        """Return the time from the end of the worker to its start."""
        nonlocal now
        ended = now
        while not attempts.due(now):
            now += 0.125
        attempts.succeeded(now)
        return now - ended

    first = wait()
    now += 1.0
    assert wait() == 2 * first
    now += 1.0
    assert wait() == 4 * first
    now += SETTLED_SECONDS + 1.0
    assert wait() == first
