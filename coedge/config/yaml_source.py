"""Settings: plain nested values with the place where each of them was written.

    text of a file ──parse_yaml──▶ Settings ◀──override── "devices.pi-1.speed=0.5"
                                   .value     {"devices": [{"name": "pi-1", "speed": 0.5}]}
                                   .origins   {("devices", 0, "speed"): the override, ...}

This module does not know which keys exist. Ambiguous YAML (a repeated key, a key that is not text) is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from coedge.core.errors import ConfigError

KeyPath = tuple[str | int, ...]

_MAPPING, _SEQUENCE, _TEXT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "merge"))


@dataclass(frozen=True)
class Origin:
    """The place of a value, for example `cluster.yaml:7`, and its text if it is an unquoted scalar."""

    where: str
    written: str | None = None


@dataclass
class Settings:
    """Nested dicts, lists and scalars. `origins` has the origin of each value for which it is known."""

    value: Any
    origins: dict[KeyPath, Origin] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> Origin:
        """Return the origin of the value at `path`, or else of the innermost value around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                known = self.origins[path[:length]]
                return known if length == len(path) else Origin(known.where)
        return Origin("the configuration")

    def override(self, text: str, where: str) -> None:
        """Apply an override `a.b=c`. The value is YAML; a list item is given by its index or its `name`.

        Raises:
            ConfigError: `text` is not an override, or its path does not exist.
        """
        key, equals, value_text = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(
                f"{where}: not an override.\n    Next: write it as key=value, for example ray.address=auto"
            )
        incoming = parse_yaml(value_text, lambda line: where)
        here, path = self.value, KeyPath()
        while True:
            step, parts = _pick(here, parts, path, where) if isinstance(here, list) else (parts[0], parts[1:])
            path = (*path, step)
            if not parts:
                break
            if not isinstance(here, list):
                here.setdefault(step, None)
            if here[step] is None:
                here[step] = {}
                self.origins[path] = Origin(where)
            if not isinstance(here[step], dict | list):
                raise ConfigError(
                    f"{where}: `{dotted(path)}` is a single value, it has no `{parts[0]}`.\n"
                    f"    Next: set {dotted(path)} itself, or correct the key"
                )
            here = here[step]
        here[step] = incoming.value
        for stale in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[stale]
        self.origins |= {(*path, *inner): origin for inner, origin in incoming.origins.items()}


def dotted(path: KeyPath) -> str:
    """Return a key path as it is written in an override."""
    return ".".join(str(step) for step in path)


def plain_copy(value: Any, sequence: type[list[Any]] | type[tuple[Any, ...]]) -> Any:
    """Return a deep copy made of dicts, scalars, and one kind of sequence."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)  # keeps unset keys unset: see `DeviceConfig.power_given`
    if isinstance(value, Mapping):
        return {key: plain_copy(inner, sequence) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return sequence(plain_copy(inner, sequence) for inner in value)
    return str(value) if isinstance(value, Path) else value


def read_yaml(path: str | Path) -> Settings:
    """Read a UTF-8 file whose top level is keys and values.

    Raises:
        ConfigError: the file cannot be read, is empty, or has another top level.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8.\n    Next: save it as UTF-8 text") from None
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL; RuntimeError: no such ~user
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}.\n    Next: give the path of a YAML file") from None
    settings = parse_yaml(text, lambda line: f"{path}:{line}")
    if not isinstance(settings.value, dict):
        kinds = {list: "a list", type(None): "nothing"}
        raise ConfigError(
            f"{settings.origin(()).where}: the file must have keys and values at its top level; "
            f"it has {kinds.get(type(settings.value), 'a single value')}.\n"
            "    Next: write `key: value` lines, for example `devices: []`"
        )
    return settings


def _pick(items: list[Any], parts: list[str], path: KeyPath, where: str) -> tuple[int, list[str]]:
    """Return the index of the item that `parts` begin with, and the remaining parts.

    A number is always an index. A name may contain dots, so the longest run of parts that is a name is taken.
    """
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if parts[0].isdecimal():
        if int(parts[0]) < len(items):
            return int(parts[0]), parts[1:]
    else:
        for length in range(len(parts), 0, -1):
            if ".".join(parts[:length]) in names:
                return names.index(".".join(parts[:length])), parts[length:]
    known = [name for name in names if isinstance(name, str)]
    near = difflib.get_close_matches(parts[0], known, n=1)
    indices = f"0 to {len(items) - 1}" if items else "none, the list is empty"
    raise ConfigError(
        f"{where}: `{dotted(path)}` has no item `{parts[0]}`.\n"
        f"    Allowed: indices {indices}; names {', '.join(known) or 'none'}\n"
        f"    Next: {f'did you mean `{near[0]}`?' if near else 'name an item that exists'}"
    )


def parse_yaml(text: str, where: Callable[[int], str]) -> Settings:
    """Read one YAML document. The value of an empty text is None.

    Args:
        where: returns the name of a place for messages, given a line number from 1.

    Raises:
        ConfigError: lists all repeated or ambiguous keys, or has the first syntax error.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            walk = _Walk(loader, where)
            value = None if root is None else walk.value(root, (), ())
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{where(line)}: a character that YAML forbids.\n    Next: remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(
            f"{where(mark.line + 1 if mark else 1)}: not valid YAML: {words}.\n"
            "    Next: look at this line and the one above: indent with spaces, close brackets and quotes"
        ) from None
    except RecursionError:
        raise ConfigError(f"{where(1)}: nested too deeply.\n    Next: flatten it") from None
    if walk.problems:
        raise ConfigError("\n".join(walk.problems))
    return Settings(value, walk.origins or {(): Origin(where(1))})


class _Walk:
    """A walk over YAML nodes that makes their values (an alias becomes a copy) and records the line of each."""

    def __init__(self, loader: yaml.SafeLoader, where: Callable[[int], str]) -> None:
        self.loader, self.where = loader, where
        self.origins: dict[KeyPath, Origin] = {}
        self.problems: list[str] = []
        self.checked: set[int] = set()

    def refuse(self, node: yaml.Node, fact: str, remedy: str) -> None:
        problem = f"{self.where(node.start_mark.line + 1)}: {fact}.\n    Next: {remedy}"
        if problem not in self.problems:
            self.problems.append(problem)

    def value(self, node: yaml.Node, path: KeyPath, ancestors: tuple[int, ...]) -> Any:
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        self.origins[path] = Origin(self.where(node.start_mark.line + 1), node.value if plain else None)
        if id(node) in ancestors:
            self.refuse(node, f"`{dotted(path)}` contains itself", "remove the alias")
        elif isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        elif isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE:
            inside = (*ancestors, id(node))
            return [self.value(item, (*path, index), inside) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode) and node.tag == _MAPPING:
            return self.mapping(node, path, (*ancestors, id(node)))
        else:
            self.refuse(node, f"`{dotted(path)}` has the tag {node.tag}", "remove the tag")
        return None

    def scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError):  # an unknown tag, or a date such as 2026-99-99
            self.refuse(node, f"`{node.value}` cannot be read as {node.tag}", f'quote it: "{node.value}"')
            return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath, ancestors: tuple[int, ...]) -> dict[str, Any]:
        if id(node) not in self.checked:  # checked before merging, since a key may override a merged one
            self.checked.add(id(node))
            self.check_keys(node, path)
            self.loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key, child in node.value:
            if isinstance(key, yaml.ScalarNode):
                result[key.value] = self.value(child, (*path, key.value), ancestors)
                written = self.origins[(*path, key.value)].written
                self.origins[(*path, key.value)] = Origin(self.where(key.start_mark.line + 1), written)
        return result

    def check_keys(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.refuse(key, f"a key of `{dotted(path) or 'the file'}` is not text", "write a plain key")
            elif key.value in first:
                fact = f"`{dotted((*path, key.value))}` is given twice, first at {self.where(first[key.value])}"
                self.refuse(key, fact, "keep one of them")
            elif key.tag not in (_TEXT, _MERGE):
                fact = f"YAML reads the key `{dotted((*path, key.value))}` as {key.tag[18:]}, not as text"
                self.refuse(key, fact, f'quote it: "{key.value}"')
            first.setdefault(str(key.value), key.start_mark.line + 1)
