"""The terminal: the console for results, and status messages on stderr."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from rich.console import Console

from coedge.core.progress import stderr_console

console = Console()


def busy(text: str) -> Any:
    """Return a context manager that shows a spinner with a text on stderr while its block runs.

    Nothing is shown unless stderr is a terminal.
    """
    return stderr_console().status(text) if sys.stderr.isatty() else contextlib.nullcontext()


def say(text: str) -> None:
    """Print plain text: brackets are not markup, and lines are not wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
