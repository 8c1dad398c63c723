"""Error messages for values that a configuration cannot have: place, key, fact, allowed values, next step."""

from __future__ import annotations

import difflib
import json
import reprlib
from contextlib import suppress
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from coedge.config.key_reference import allowed_values, describe_keys, description_of, section_of
from coedge.config.yaml_source import KeyPath, Origin, Settings, dotted, plain_copy

# By pydantic's error type, filled in with the error's context. Types are pydantic's interface, its messages are not.
_FACTS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a section, with keys and values",
    "extra_forbidden": "there is no such key",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be greater than or equal to {ge}",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "invalid_key": "a key must be text",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be less than or equal to {le}",
    "literal_error": "must be one of the allowed values",
    "missing": "must be given",
    "model_type": "must be a section, with keys and values",
    "string_pattern_mismatch": "is empty, too long, or has characters that are not allowed",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "too_short": "must have at least one item",
    "tuple_type": "must be a list",
}


def refusal(details: ErrorDetails, settings: Settings, root: type[BaseModel]) -> str:
    """Return the message for one pydantic error.

    Args:
        settings: the values that were validated, with their origins.
        root: the section that the whole configuration is validated as.
    """
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    path: KeyPath = (*details["loc"], *context.get("at", ()))
    origin = settings.origin(path)
    section, key = _section_and_key(path, root)
    field = section.model_fields.get(str(key))
    fact = _FACTS[kind].format_map(_limits(context)) if kind in _FACTS else details["msg"]
    if kind != "missing":
        fact += f"; given {origin.written or reprlib.repr(plain_copy(context.get('name', given), list))}"
    if field is None or kind == "model_type":
        inner = section_of(field) if field else None
        allowed = "keys " + ", ".join((inner or section).model_fields)
    else:
        allowed = f"{allowed_values(field)}. {description_of(section, str(key))}"
    remedy = _remedy(kind, context.get("name", given), context.get("names", ""), origin, section, str(key), root)
    return f"{origin.where}: {dotted(path)}: {fact}.\n    Allowed: {allowed}\n    Next: {remedy}"


def _limits(context: dict[str, Any]) -> dict[str, Any]:
    """Return the context of an error with numbers written shortly: 1 for 1.0."""
    return {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}


def _section_and_key(path: KeyPath, root: type[BaseModel]) -> tuple[type[BaseModel], str | int]:
    """Return the section that a path leads into, and the key there.

    The key of an item of a list or mapping of plain values is that of the list or mapping.
    """
    section = root
    for step in path[:-1]:
        field = section.model_fields.get(str(step))
        if field is not None and section_of(field) is None:
            return section, step
        section = (field and section_of(field)) or section
    return section, path[-1]


def _remedy(
    kind: str, given: Any, names: str, origin: Origin, section: type[BaseModel], key: str, root: type[BaseModel]
) -> str:
    field = section.model_fields.get(key)
    known = _remedy_of_kind(kind, given, origin, key, holds_sections=bool(field and section_of(field)))
    if known:
        return known
    if field is None:  # a key of this name in another section is as likely as one with a similar spelling
        elsewhere = [row["key"] for row in describe_keys(root) if row["key"].endswith(f".{key}")]
        near = difflib.get_close_matches(key, section.model_fields, n=1) + elsewhere
    else:
        options = [*names.split(", "), *(str(option) for option in get_args(field.annotation))]
        near = difflib.get_close_matches(str(given), options, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    if field is None or field.is_required() or section_of(field):
        return "correct it" if field else "remove it, or use one of these keys"
    return f"correct it, or remove it for the default, {json.dumps(field.default)}"


def _remedy_of_kind(kind: str, given: Any, origin: Origin, key: str, holds_sections: bool) -> str | None:
    if kind == "missing":
        return f"add `{key}: ...`"
    if kind == "string_type" and origin.written:
        return f'YAML reads it as {json.dumps(given, default=str)}; quote it: "{origin.written}"'
    if kind in ("float_type", "int_type") and isinstance(given, str):
        with suppress(ValueError):
            number = yaml.safe_dump(float(given)).split()[0].removesuffix(".0")
            if number not in (".nan", ".inf", "-.inf"):
                return f"YAML reads it as text; write {number} without quotes"
    if kind == "model_type" and given is None:
        return "put keys under it, or remove it"
    if kind == "tuple_type":
        return f"write a list, {'with one item `- name: ...` for each' if holds_sections else 'such as [a, b]'}"
    return None
