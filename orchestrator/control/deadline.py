"""Deadlines for calls that take none, such as calls into a library that waits in compiled code."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Overrun(TimeoutError):
    """A call was not back within its deadline. It goes on in its thread."""


def within(seconds: float, call: Callable[[], T], name: str, undo: Callable[[T], object] | None = None) -> T:
    """Return what `call` returns, or raise what it raises, if it is back in time.

    The call runs in a daemon thread, which does not keep the process from ending. In an exit handler, where Python
    starts no threads any more, it runs without a deadline.

    Args:
        name: name of the thread.
        undo: called in the thread, with the value, if the call is back after the caller has given up.

    Raises:
        Overrun: the call was not back in time.
    """
    running = _Call(call, undo)
    thread = threading.Thread(target=running.run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # Python 3.12 and later start no threads while the process ends
        return call()
    try:
        in_time = running.ended.wait(seconds)
    except BaseException:  # the user interrupted the wait
        running.give_up()
        raise
    if not in_time and running.give_up():
        raise Overrun(f"{name} was not back within {seconds:g} s")
    if running.error is not None:
        raise running.error
    return running.values[0]


class _Call(Generic[T]):
    """A call in a thread of its own, and whether somebody still waits for it."""

    def __init__(self, call: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self._call, self._undo = call, undo
        self._lock, self._given_up = threading.Lock(), False
        self.ended = threading.Event()
        self.values: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        error: BaseException | None = None
        values: list[T] = []
        try:
            values.append(self._call())
        except BaseException as raised:
            error = raised
        with self._lock:
            self.values, self.error = values, error
            self.ended.set()
            late = self._given_up
        if late and values and self._undo is not None:
            self._undo(values[0])

    def give_up(self) -> bool:
        """Stop waiting. Return whether the call goes on."""
        with self._lock:
            self._given_up = not self.ended.is_set()
            return self._given_up
