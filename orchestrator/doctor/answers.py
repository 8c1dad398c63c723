"""Questions that are asked at the same time, each with its answer or with the reason why there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from orchestrator.control.ray_control import explain

K = TypeVar("K")

FETCH_SECONDS = 2.0


@dataclass(slots=True)
class Answers(Generic[K]):
    """Values and problems, by question."""

    values: dict[K, Any] = field(default_factory=dict)
    problems: dict[K, str] = field(default_factory=dict)


class TimeLeft:
    """The time that is left of an examination.

    Args:
        seconds: for everything.
    """

    def __init__(self, seconds: float) -> None:
        self._end, self.seconds = time.monotonic() + seconds, seconds

    def at_most(self, seconds: float) -> float:
        """Return the time that a check may take, at most `seconds`."""
        return max(0.0, min(seconds, self._end - time.monotonic()))


def reason_of_failure(error: BaseException) -> str:
    """Return the kind and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def ask_here(calls: Mapping[K, Callable[[], Any]], seconds: float) -> Answers[K]:
    """Call functions, each in a daemon thread of its own. Those that are late go on there."""
    answers: Answers[K] = Answers()
    lock = threading.Lock()

    def run(key: K, call: Callable[[], Any]) -> None:
        try:
            value = call()
        except BaseException as error:
            with lock:
                answers.problems.setdefault(key, reason_of_failure(error))
        else:
            with lock:
                answers.values[key] = value

    end = time.monotonic() + seconds
    threads = {
        key: threading.Thread(target=run, args=(key, call), name="coedge-doctor", daemon=True)
        for key, call in calls.items()
    }
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    with lock:
        late = calls.keys() - answers.values.keys() - answers.problems.keys()
        return Answers(dict(answers.values), answers.problems | {key: _late(seconds) for key in late})


def ask_nodes(calls: Mapping[K, Callable[[], Any]], seconds: float) -> Answers[K]:
    """Call functions that return references of Ray, and wait for all of them together."""
    import ray

    answers: Answers[K] = Answers()
    keys: dict[Any, K] = {}
    for key, call in calls.items():
        try:
            keys[call()] = key
        except Exception as error:  # the actor has died
            answers.problems[key] = reason_of_failure(error)
    ready, late = ray.wait(list(keys), num_returns=len(keys), timeout=seconds) if keys else ([], [])
    for reference in ready:
        try:
            answers.values[keys[reference]] = ray.get(reference, timeout=FETCH_SECONDS)
        except Exception as error:
            answers.problems[keys[reference]] = explain(error)
    answers.problems |= {keys[reference]: _late(seconds) for reference in late}
    return answers


def _late(seconds: float) -> str:
    return f"no answer within {seconds:.2g} s" if seconds > 0 else "the time of the examination is over"
