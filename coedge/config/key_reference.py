"""Descriptions of configuration keys: type, default and text, for reference pages and error messages."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from types import NoneType
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from coedge.config.cluster_config import ClusterConfig


def describe_keys(kind: type[BaseModel] = ClusterConfig) -> list[dict[str, str]]:
    """Return one row (key, type, default, description) per key. N in a key stands for an index or a name."""
    return list(_rows(kind, ""))


def _rows(section: type[BaseModel], prefix: str) -> Iterator[dict[str, str]]:
    for name, field in section.model_fields.items():
        inner, is_list = section_of(field), get_origin(field.annotation) is tuple
        default = "[]" if is_list else "{}" if inner else field.default
        yield {
            "key": prefix + name,
            "type": allowed_values(field),
            "default": "required" if field.is_required() else default if inner or is_list else json.dumps(default),
            "description": description_of(section, name),
        }
        if inner:
            yield from _rows(inner, f"{prefix}{name}.N." if is_list else f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a field holds, alone or in a list. None: the field holds plain values."""
    types = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def description_of(section: type[BaseModel], name: str) -> str:
    """Return the description of a field, or its entry under `Attributes:` in the docstring of its class."""
    # An entry goes on in the lines below it that are indented further.
    entry = re.search(rf"^( +){name}: (.+(?:\n\1 +.+)*)", inspect.getdoc(section) or "", re.MULTILINE)
    return section.model_fields[name].description or (" ".join(entry.group(2).split()) if entry else "")


def allowed_values(field: FieldInfo) -> str:
    """Describe the values that a field takes, for example `number > 0, <= 1, or null`."""
    words = {float: "number", int: "whole number", str: "text", bool: "true or false"}
    kinds = get_args(field.annotation) or (field.annotation,)
    if get_origin(field.annotation) is Literal:
        return " or ".join(str(kind) for kind in kinds)
    if section_of(field):
        return "list of sections" if get_origin(field.annotation) is tuple else "section"
    if get_origin(field.annotation) is tuple:
        return f"list, each {words[kinds[0]]}"
    if get_origin(field.annotation) is dict:
        return f"names, each with a {allowed_values(FieldInfo.from_annotation(kinds[1]))}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [(sign, getattr(rule, key, None)) for rule in field.metadata for key, sign in signs.items()]
    bounds = ", ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)
    kind = next(words[kind] for kind in kinds if kind in words)
    return f"{kind} {bounds}".rstrip() + (", or null" if NoneType in kinds else "")
