"""Small files of measurements. A file that is missing or invalid counts as no file: the value is measured again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

T = TypeVar("T", bound=BaseModel)


def read_cache(kind: type[T], path: Path) -> T | None:
    """Return the value in a file; None if there is no file or no valid value in it."""
    try:
        return kind.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError):  # missing, not text, or not valid
        return None


def write_cache(value: BaseModel, path: Path) -> None:
    """Write a value. If the folder cannot be written, nothing happens: the next run measures again."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(value.model_dump_json(), encoding="utf-8")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
