"""Times at which nothing else loads or starts, so that a measurement sees a quiet cluster.

    loading      several at once, none during a measurement
    submitting   one at a time, none during a measurement, but also while plans are loaded
    measuring    waits until loads have ended; frames that are under way go on

The thread that measures may load and submit itself: a trial does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class QuietTime:
    """A gate that admits loads and frames, or one measurement."""

    def __init__(self) -> None:
        self._submitting = threading.RLock()
        self._changed = threading.Condition()
        self._loads = 0
        self._measuring: int | None = None  # id of the thread that measures or waits to
        self._depth = 0

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Wait until nothing is measured, and hold measurements off."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._measuring in (None, me))
            self._loads += 1
        try:
            yield
        finally:
            with self._changed:
                self._loads -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def submitting(self) -> Iterator[None]:
        """Wait until nothing is measured. Hold only for a moment: other frames wait meanwhile."""
        with self._submitting:
            yield

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold new loads off, wait for those under way to end, then hold new frames off. May be nested.

        Not to be entered from `loading` or `submitting`.
        """
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._measuring in (None, me))
            self._measuring, self._depth = me, self._depth + 1
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._loads)
            with self._submitting:
                yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._measuring = None
                self._changed.notify_all()
