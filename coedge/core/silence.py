"""Silence for the libraries that this thread calls. Other threads and other modules are heard all the same.

`warnings.catch_warnings`, `contextlib.redirect_stderr` and `logging.disable` act on the whole process, so they silence
whatever runs beside a long call. Here, a warning or a line on stderr is dropped only if this thread is in the context
and the module that wrote it belongs to a named package. Loggers are silenced by name.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

# What these modules say, they say in the name of their caller, such as `copy` and the decorator `deprecated`.
_PASSED_OVER = sys.stdlib_module_names | {"typing_extensions"}
# After `ray.init`, `print` is a function of this module.
_PASSED_OVER_MODULES = frozenset(("ray.experimental.tqdm_ray",))


class _Silenced(threading.local):
    """The packages that are silenced in this thread."""

    packages: tuple[str, ...] = ()


_here = _Silenced()
_lock = threading.RLock()


@contextlib.contextmanager
def silenced_warnings(*packages: str) -> Iterator[None]:
    """Drop warnings that modules of some packages give in this thread."""
    before = _here.packages
    _here.packages = (*before, *packages)
    _put_filter_first()
    try:
        yield
    finally:
        _here.packages = before


@contextlib.contextmanager
def silenced(packages: Sequence[str], loggers: Iterable[str]) -> Iterator[None]:
    """Drop warnings and lines on stderr of some packages in this thread, and what loggers say below ERROR.

    Args:
        loggers: names of loggers; those below them are silent, too. They are silent in all threads.
    """
    with silenced_warnings(*packages), _stderr.watched(), _levels.raised(loggers):
        yield


def _by_silenced_package(frame: FrameType | None) -> bool:
    """Return whether the code of a frame belongs to a package that is silenced in this thread."""
    packages = _here.packages
    if not packages:
        return False
    while frame is not None and _passed_over(str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    if frame is None:
        return False
    name = frame.f_globals.get("__name__")
    # Code that a library has generated has no module.
    return name is None or any(name == package or name.startswith(f"{package}.") for package in packages)


def _passed_over(module: str) -> bool:
    return module.partition(".")[0] in _PASSED_OVER or module in _PASSED_OVER_MODULES


class _WarningMatcher:
    """In the place of the regular expression of a warning filter: matches by the caller, not by the text."""

    def match(self, text: str) -> bool:
        return _by_silenced_package(sys._getframe(1))


_FILTER: Any = ("ignore", _WarningMatcher(), Warning, None, 0)


def _put_filter_first() -> None:
    """Put the filter before all others. It stays there: it matches nothing outside of `silenced_warnings`."""
    filters: Any = warnings.filters
    with _lock:
        if not filters or filters[0] is not _FILTER:
            filters.insert(0, _FILTER)
            for index in range(len(filters) - 1, 0, -1):
                if filters[index] is _FILTER:
                    del filters[index]


class _Stderr:
    """A stream that passes on what it gets, except from silenced packages."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text) if _by_silenced_package(sys._getframe(1)) else int(self.stream.write(text) or 0)

    def writelines(self, lines: Iterable[str]) -> None:
        if not _by_silenced_package(sys._getframe(1)):
            self.stream.writelines(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _StderrGuard:
    """Puts an `_Stderr` before sys.stderr while any thread wants it."""

    def __init__(self) -> None:
        self._users = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with _lock:
            self._users += 1
            if sys.stderr is not None and not isinstance(sys.stderr, _Stderr):
                sys.stderr = _Stderr(sys.stderr)
        try:
            yield
        finally:
            with _lock:
                self._users -= 1
                if not self._users and isinstance(sys.stderr, _Stderr):  # else somebody has redirected it meanwhile
                    sys.stderr = sys.stderr.stream


class _Levels:
    """Levels of loggers, raised to ERROR while any thread wants it."""

    def __init__(self) -> None:
        self._users: Counter[str] = Counter()
        self._before: dict[str, int] = {}

    @contextlib.contextmanager
    def raised(self, names: Iterable[str]) -> Iterator[None]:
        with _lock:
            all_names = _with_levels_of_their_own(names)
            for name in all_names:
                logger = logging.getLogger(name)
                if not self._users[name]:
                    self._before[name] = logger.level
                    logger.setLevel(max(logger.level, logging.ERROR))
                self._users[name] += 1
        try:
            yield
        finally:
            with _lock:
                for name in all_names:
                    self._users[name] -= 1
                    if not self._users[name]:
                        logging.getLogger(name).setLevel(self._before.pop(name))


def _with_levels_of_their_own(names: Iterable[str]) -> list[str]:
    """Return the names, and the loggers below them that do not take the level of those."""
    names = list(names)
    below = [
        name
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level and name.startswith(tuple(f"{top}." for top in names))
    ]
    return list(dict.fromkeys([*names, *below]))


_stderr, _levels = _StderrGuard(), _Levels()
