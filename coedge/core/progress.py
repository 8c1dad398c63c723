"""A progress bar on stderr for work that takes longer than two seconds."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar while the block runs, and yield a function to call after each of `total` steps.

    Nothing is shown unless stderr is a terminal and rich is installed.
    """
    if not sys.stderr.isatty() or total < 1:
        yield lambda: None
        return
    try:
        from rich.progress import Progress
    except ImportError:
        yield lambda: None
        return
    with Progress(console=stderr_console(), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


@functools.cache
def stderr_console() -> Console:
    """Return the one console on stderr: bars and spinners that are shown at the same time have to share it."""
    from rich.console import Console

    return Console(stderr=True)
