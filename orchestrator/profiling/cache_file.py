"""Small files of measurements. They are never trusted, and never missed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

T = TypeVar("T", bound=BaseModel)


def read_cache(kind: type[T], path: Path) -> T | None:
    """What was kept; None: nothing, or nothing that can be read."""
    try:
        return kind.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError):  # not there, not text, or not valid
        return None


def write_cache(value: BaseModel, path: Path) -> None:
    """Keeps it. A folder that cannot be written costs the next run a measurement, no more."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(value.model_dump_json(), encoding="utf-8")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
