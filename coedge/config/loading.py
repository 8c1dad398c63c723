"""Loading of a configuration: file or values, environment, overrides.

Highest first:  overrides `ray.address=auto`  >  environment `COEDGE_SET="a.b=c;d.e=f"`  >  file  >  defaults
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from coedge.config.cluster_config import ClusterConfig
from coedge.config.refusal import refusal
from coedge.config.sections import Section
from coedge.config.yaml_source import Origin, Settings, plain_copy, read_yaml
from coedge.core.errors import ConfigError

T = TypeVar("T", bound=Section)


def load_config(
    source: str | Path | Mapping[str, Any] | ClusterConfig | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> ClusterConfig:
    """Read a configuration and apply the environment and the overrides; later overrides win.

    Args:
        source: path of a YAML file, or the values themselves. None: only defaults.
        overrides: each `key=value`, with a YAML value: `devices.0.speed=0.5`, `devices.pi-1.speed=0.5`.
        environment: variables in which `COEDGE_SET` is looked up: overrides separated by ";". None: `os.environ`.

    Raises:
        ConfigError: lists all problems, each with its place, key, value, allowed values and next step.
    """
    variable = (os.environ if environment is None else environment).get("COEDGE_SET", "")
    changes = [("environment COEDGE_SET", text.strip()) for text in variable.split(";") if text.strip()]
    return load_section(ClusterConfig, source, [*changes, *as_changes(overrides)])


def as_changes(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Return overrides in the form that `load_section` takes.

    Raises:
        ConfigError: they are not texts.
    """
    given = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise ConfigError(f"overrides are a list of `key=value` texts; given {overrides!r:.100}")
    return [("override", text) for text in given]


def load_section(
    kind: type[T], source: str | Path | Mapping[str, Any] | T | None, changes: Sequence[tuple[str, str]] = ()
) -> T:
    """Read a file or a mapping and apply changes.

    Args:
        kind: the section that the whole configuration is validated as.
        changes: (origin for messages, `key=value`); later ones win.

    Raises:
        ConfigError: lists all problems, each with its place, key, value, allowed values and next step.
    """
    settings = _settings(kind, source)
    problems: list[str] = []
    for origin, text in changes:
        try:
            settings.override(text, f"{origin} {text!r}")
        except ConfigError as error:
            problems.append(str(error))
    try:
        value = TypeAdapter(kind).validate_python(plain_copy(settings.value, tuple), strict=True)
    except ValidationError as error:
        problems += [refusal(details, settings, kind) for details in error.errors()]
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def _settings(kind: type[T], source: str | Path | Mapping[str, Any] | T | None) -> Settings:
    if isinstance(source, str | Path):
        return read_yaml(source)
    if source is None or isinstance(source, Mapping | kind):
        where = "the defaults" if source is None else f"the given {type(source).__name__}"
        return Settings(plain_copy(source or {}, list), {(): Origin(where)})
    raise ConfigError(f"a configuration is a path, a mapping or a {kind.__name__}; given {source!r}")
