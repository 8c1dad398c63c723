"""Base class of the pydantic models that users make: wrong fields are errors of this project.

    Objective(goal="fast")       InputError: Objective: goal must be 'latency', 'energy' or 'throughput'; given 'fast'
    TypeAdapter(Objective)       pydantic's own error, for loaders that know the place of each value in a file

Making a record takes no longer than making a model of pydantic.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from coedge.core.errors import CoEdgeError, InputError


class Record(BaseModel):
    """A frozen value with named fields. Unknown fields and values of another type are refused.

    Attributes:
        refused_as: the error that wrong fields raise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    refused_as: ClassVar[type[CoEdgeError]] = InputError

    def __init__(self, /, **data: Any) -> None:
        try:
            self.__pydantic_validator__.validate_python(data, self_instance=self)
        except ValidationError as error:
            raise self._refusal(error) from None

    # Records inside records are validated without this function, so that errors have their whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, *args: Any, **options: Any) -> Self:
        try:
            return super().model_validate(*args, **options)
        except ValidationError as error:
            raise cls._refusal(error) from None

    @classmethod
    def model_validate_json(cls, *args: Any, **options: Any) -> Self:
        try:
            return super().model_validate_json(*args, **options)
        except ValidationError as error:
            raise cls._refusal(error) from None

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError:
            raise self.refused_as(
                f"{type(self).__name__}: {name} cannot be set\n"
                f"    Next: make another one with .model_copy(update={{{name!r}: ...}})"
            ) from None

    @classmethod
    def _refusal(cls, error: ValidationError) -> CoEdgeError:
        """Return the error of this project that has every problem, with its field and the next step."""
        lines = (f"{cls.__name__}: {problem(one)}\n    Next: {cls._remedy(one)}" for one in error.errors())
        return cls.refused_as("\n".join(lines))

    @classmethod
    def _remedy(cls, details: ErrorDetails) -> str:
        path = details["loc"]
        name = str(path[0]) if path else ""
        if details["type"] == "missing":
            return f"add {path[-1]}=..." if len(path) == 1 else f"add {path[-1]!r} to {_dotted(path[:-1])}"
        if details["type"] == "extra_forbidden" and len(path) == 1:
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            return f"did you mean {near[0]}?" if near else f"use its fields: {', '.join(cls.model_fields)}"
        if details["type"] == "extra_forbidden":
            return "remove it, or correct its name"
        field = cls.model_fields.get(name)
        if field is None or field.is_required():
            return "correct it"
        return f"correct it, or leave out {name} for its default, {reprlib.repr(field.default)}"


def problem(details: ErrorDetails) -> str:
    """Return one error of pydantic as `field must be ...; given ...`."""
    context = details.get("ctx", {})
    path = _dotted((*details["loc"], *context.get("at", ()))) or "the value"
    if details["type"] == "missing":
        return f"{path} must be given"
    if details["type"] == "extra_forbidden":
        return f"there is no field {path}"
    words = re.sub(r"^\w+ should", "must", details["msg"])
    return f"{path} {words}; given {reprlib.repr(context.get('name', details['input']))}"


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(step) for step in path)
