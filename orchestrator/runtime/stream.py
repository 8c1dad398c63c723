"""Streams: frames in, answers out in the same order, with enough frames under way to keep the devices busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

from orchestrator.runtime.job import Job

# At most this many answers leave for each frame that is taken. With one, a backlog of answers would never shrink; with
# all, the devices would be idle while a slow reader takes them.
LEAVE_AT_ONCE = 2


def in_order(frames: Iterable[Any], submit: Callable[[Any], Job], in_flight: int) -> Generator[Job]:
    """Yield jobs that are done, in the order of their frames.

    A frame is taken only while fewer than `in_flight` jobs are under way or wait here for their turn. Nothing leaves
    while `frames` is asked for the next frame. If `frames` or `submit` raises, the earlier jobs come first, then the
    error. Closing the generator early cancels the jobs under way.
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
                    yield _oldest(jobs)
        while jobs:
            yield _oldest(jobs)
        if failure is not None:
            raise failure
    finally:
        for job in reversed(jobs):  # newest first: otherwise a credit would start a frame that is cancelled next
            job.cancel()


def _oldest(jobs: deque[Job]) -> Job:
    """Wait for the oldest job, and remove and return it."""
    jobs[0].wait()
    return jobs.popleft()
