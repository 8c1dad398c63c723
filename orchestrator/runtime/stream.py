"""A stream: frames in, answers out in the same order, with as many frames under way as keep the devices busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

from orchestrator.runtime.job import Job

# For each frame that is taken up to so many answers leave: with one, answers that have piled up would never get
# fewer; with all that are there, the devices would run dry while a slow reader takes them.
LEAVE_AT_ONCE = 2


def in_order(frames: Iterable[Any], submit: Callable[[Any], Job], in_flight: int) -> Generator[Job]:
    """Jobs that have ended, in the order of their frames.

    A frame is taken only while fewer than `in_flight` are under way or wait here for their turn. An answer leaves
    when its turn has come, but while `frames` is asked for the next one nothing leaves. Where `frames` or `submit`
    raises, the jobs until then come first, then the error. Whoever stops early cancels what is under way.
    """
    source = iter(frames)
    jobs: deque[Job] = deque()
    failure: Exception | None = None
    try:
        while failure is None:
            try:
                frame = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            try:
                jobs.append(submit(frame))
            except Exception as error:
                failure = error
            for _ in range(LEAVE_AT_ONCE):
                if len(jobs) >= in_flight or (jobs and jobs[0].done()):
                    yield _ended(jobs)
        while jobs:
            yield _ended(jobs)
        if failure is not None:
            raise failure
    finally:
        for job in reversed(jobs):  # the newest first: no credit goes to a frame that is about to be cancelled
            job.cancel()


def _ended(jobs: deque[Job]) -> Job:
    """The oldest one, when it has ended."""
    jobs[0].wait()
    return jobs.popleft()
