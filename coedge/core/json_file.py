"""Saving and loading of pydantic models as JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from coedge.core.errors import PlanError, reason_of

Value = TypeVar("Value", bound=BaseModel)


def save_json(value: BaseModel, path: str | Path) -> None:
    """Write a value to a file as JSON.

    Raises:
        PlanError: the file cannot be written.
    """
    text = value.model_dump_json(indent=1)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except (OSError, ValueError, TypeError) as error:
        raise PlanError(f"cannot write {path!s:.200}: {reason_of(error)}") from error


def load_json(kind: type[Value], path: str | Path, what: str) -> Value:
    """Load a value from a file.

    Args:
        what: name of the kind in messages: "plan", "profile".

    Raises:
        PlanError: the file cannot be read, or does not hold a value of this kind.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} is not a {what}: it is not a text file") from error
    except (OSError, ValueError, TypeError) as error:
        raise PlanError(f"cannot read the {what} {path!s:.200}: {reason_of(error)}") from error
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PlanError(f"{path} is not a {what}: {where}: {first['msg']}") from error
