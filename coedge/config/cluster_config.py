"""The cluster configuration: which devices, how they are joined, what is wanted.

Highest first:  overrides `ray.address=auto`  >  environment `COEDGE_SET="a.b=c;d.e=f"`  >  file  >  defaults
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from coedge.config.yaml_source import KeyPath, Origin, Settings, dotted, read_yaml
from coedge.core.errors import ConfigError
from coedge.core.objective import Objective
from coedge.core.provider import KNOWN, Provider, with_fallback

# Narrow on purpose: "@" begins names that are not devices, "/" and blanks would break addresses and logs.
NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"


class Section(BaseModel):
    """Part of a configuration file: what is misspelt, or of another type, is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LinkConfig(Section):
    """Emulation of a device's network interface: what it sends is paced, without privileges."""

    mbps: float | None = Field(default=None, gt=0, description="Rate in Mbit/s (10^6 bit/s). Null: as it is.")
    latency_ms: float = Field(default=0.0, ge=0, description="Added one-way delay in ms. 0: none.")


class PowerConfig(Section):
    """Power that energy is modelled from. By default a joule is one busy second."""

    idle_watts: float = Field(default=0.0, ge=0, description="Watts drawn all the time. Modelled.")
    compute_watts: float = Field(default=1.0, ge=0, description="Watts above idle while computing. Modelled.")
    transmit_watts: float = Field(default=1.0, ge=0, description="Watts above idle while sending. Modelled.")
    receive_watts: float = Field(default=0.0, ge=0, description="Watts above idle while receiving. Modelled.")


class ProviderConfig(Section):
    """An execution provider of ONNX Runtime. Without options its name alone will do."""

    name: str = Field(description=f"One of {', '.join(KNOWN)}.")
    options: dict[str, str] = Field(default={}, description="Its options, in ONNX Runtime's words.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in KNOWN:
            context = {"names": ", ".join(KNOWN), "name": name}
            raise PydanticCustomError("provider", "is no execution provider of ONNX Runtime", context)
        return name

    @field_validator("options", mode="before")
    @classmethod
    def _as_text(cls, options: Any) -> Any:
        """ONNX Runtime takes text; in YAML `2` and `true` are none."""
        if not isinstance(options, Mapping):
            return options
        return {key: str(value) if isinstance(value, bool | int | float) else value for key, value in options.items()}

    def __hash__(self) -> int:
        return hash((self.name, *sorted(self.options.items())))


class DeviceConfig(Section):
    """One device: a worker on a Ray node."""

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Name of the device, unique: 1 to 64 of the characters A-Z a-z 0-9 . _ -",
    )
    node: str | None = Field(
        default=None, min_length=1, description="Ray node: IP address, hostname or node id. Null: any."
    )
    speed: float | None = Field(
        default=None, gt=0, le=1, description="Emulated fraction of the real speed. Null: not emulated."
    )
    link: LinkConfig = Field(default=LinkConfig(), description="Emulation of its network interface.")
    power: PowerConfig = Field(
        default=PowerConfig(),
        description="Watts that its energy is modelled from. Left out: measured where the device has a meter.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="Threads. Null: 1 if `speed` is given, else all physical cores."
    )
    memory_mb: float | None = Field(
        default=None, gt=0, description="Most memory for a plan, in MB (10^6 bytes). Null: all."
    )
    providers: tuple[ProviderConfig, ...] = Field(
        default=(),
        strict=False,
        description="What its kernels run on, best first; the CPU runs what the others do not take. Empty: the CPU.",
    )

    @field_validator("providers")
    @classmethod
    def _providers_differ(cls, providers: tuple[ProviderConfig, ...]) -> tuple[ProviderConfig, ...]:
        check_names([provider.name for provider in providers], "providers")
        return providers

    @property
    def session_providers(self) -> tuple[Provider, ...]:
        """As sessions are made with them: the CPU, which is always there, is among them."""
        return with_fallback(Provider(p.name, tuple(sorted(p.options.items()))) for p in self.providers)

    @property
    def power_given(self) -> bool:
        """Whether the watts were written down, rather than left to the defaults."""
        return "power" in self.model_fields_set


class MediumConfig(Section):
    """A capacity that transfers share, such as the air of a Wi-Fi."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the medium, unique: as of a device.")
    devices: tuple[str, ...] = Field(
        min_length=1,
        strict=False,
        description="Devices that are on it: all that they send or receive takes part of it.",
    )
    mbps: float = Field(gt=0, description="Rate of everything on it together, in Mbit/s (10^6 bit/s).")


class RayConfig(Section):
    """The Ray cluster that control runs on."""

    address: str | None = Field(
        default=None, description='Ray head to join, "auto" or "host:port". Null: start one here.'
    )
    namespace: str = Field(default="coedge", min_length=1, description="Ray namespace of the actors.")

    @field_validator("address")
    @classmethod
    def _auto_or_host_and_port(cls, address: str | None) -> str | None:
        host, _, port = (address or "auto").rpartition(":")
        good_host = re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host)
        good_port = re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535
        if address not in (None, "auto") and not (good_host and good_port):
            raise PydanticCustomError("address", 'must be "auto" or "host:port"')
        return address


Named = TypeVar("Named", DeviceConfig, MediumConfig)


class ClusterConfig(Section):
    """Everything that `coedge.connect` needs to know."""

    devices: tuple[DeviceConfig, ...] = Field(
        default=(), strict=False, description="The devices. Empty: every alive Ray node is a device."
    )
    ray: RayConfig = Field(default=RayConfig(), description="The Ray cluster that control runs on.")
    source: str | None = Field(
        default=None, min_length=1, description="Device that inputs come from. Null: the one that asks."
    )
    media: tuple[MediumConfig, ...] = Field(
        default=(),
        strict=False,
        description="Capacities that devices share. Plans and predictions count with them; emulated links, which are "
        "each a device's own, do not. Shared media between real hosts are also found by measuring.",
    )
    joules: Literal["dynamic", "total"] = Field(
        default="dynamic",
        description="What counts as energy. dynamic: computing and transmitting, above idle. total: also the idle "
        "watts of the devices that take part, while the frame runs.",
    )
    encryption: bool = Field(default=True, description="Encrypt what devices send each other.")
    connect_timeout_seconds: float = Field(default=60.0, gt=0, description="Seconds to wait for all devices to join.")
    frame_timeout_seconds: float = Field(default=30.0, gt=0, description="Seconds to wait for the answer to one frame.")
    profile_budget_seconds: float = Field(
        default=20.0, gt=0, description="Seconds that measuring a model on one kind of machine may take, about."
    )
    trial_frames: int = Field(
        default=0, ge=0, description='Frames that each of the best plans runs before "auto" chooses. 0: it predicts.'
    )
    cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Folder for profiles. Null: ~/.cache/coedge, or as XDG_CACHE_HOME says.",
    )
    objective: Objective = Field(default=Objective(), description="What plans minimise and keep to.")
    scheme: str = Field(default="auto", min_length=1, description='Planning scheme. "auto": the best of all.')

    @field_validator("devices", "media")
    @classmethod
    def _names_differ(cls, items: tuple[Named, ...], info: ValidationInfo) -> tuple[Named, ...]:
        check_names([item.name for item in items], str(info.field_name))
        return items

    @field_validator("media")
    @classmethod
    def _media_are_of_devices(cls, media: tuple[MediumConfig, ...], info: ValidationInfo) -> tuple[MediumConfig, ...]:
        names = [device.name for device in info.data.get("devices", ())]
        for index, medium in enumerate(media):
            for place, name in enumerate(medium.devices if names else ()):
                check_device(name, names, (index, "devices", place))
        return media

    @field_validator("source")
    @classmethod
    def _source_is_a_device(cls, source: str | None, info: ValidationInfo) -> str | None:
        names = [device.name for device in info.data.get("devices", ())]
        if source is not None and names:
            check_device(source, names)
        return source

    @property
    def cache_path(self) -> Path:
        """The folder for profiles; it need not exist yet."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        base = os.environ.get("XDG_CACHE_HOME", "")  # the XDG rules: a relative path counts as unset
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "coedge"


def check_names(names: Sequence[str], key: str = "devices") -> None:
    """For validators of a list of named sections: refuses a name that is there twice, at the second."""
    for index, name in enumerate(names):
        if (first := names.index(name)) != index:
            context = {"first": first, "name": name, "key": key, "at": (index, "name")}
            raise PydanticCustomError("name", "is also the name of {key}.{first} ({name})", context)


def check_device(name: str, names: Sequence[str], at: KeyPath = ()) -> None:
    """For validators: refuses the name of a device that there is not.

    Args:
        at: where it is, below the field that is validated.
    """
    if name not in names:
        context = {"names": ", ".join(names), "name": name, "at": at}
        raise PydanticCustomError("source", "must be a device: {names}", context)


T = TypeVar("T", bound=Section)


def load_config(
    source: str | Path | Mapping[str, Any] | ClusterConfig | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> ClusterConfig:
    """Read a configuration and lay environment and overrides over it; later overrides win.

    Args:
        source: path of a YAML file, or the values themselves. None: only defaults.
        overrides: each `key=value`, with a YAML value: `devices.0.speed=0.5`, `devices.pi-1.speed=0.5`.
        environment: where `COEDGE_SET` is looked up: overrides with ";" between them. None: `os.environ`.

    Raises:
        ConfigError: with all problems; each names its place, key, value, what is allowed, and what to do.
    """
    variable = (os.environ if environment is None else environment).get("COEDGE_SET", "")
    changes = [("environment COEDGE_SET", text.strip()) for text in variable.split(";") if text.strip()]
    return load_section(ClusterConfig, source, [*changes, *as_changes(overrides)])


def as_changes(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Overrides as `load_section` takes them."""
    return [("override", text) for text in ([overrides] if isinstance(overrides, str) else overrides)]


def load_section(
    kind: type[T], source: str | Path | Mapping[str, Any] | T | None, changes: Sequence[tuple[str, str]] = ()
) -> T:
    """What a file or a mapping says, with changes laid over it.

    Args:
        kind: what the whole of it is.
        changes: (where it comes from, `key=value`); later ones win.

    Raises:
        ConfigError: with all problems; each names its place, key, value, what is allowed, and what to do.
    """
    if isinstance(source, str | Path):
        settings = read_yaml(source)
    elif source is None or isinstance(source, Mapping | kind):
        where = "the defaults" if source is None else f"the given {type(source).__name__}"
        settings = Settings(_plain(source or {}, list), {(): Origin(where)})
    else:
        raise ConfigError(f"a configuration is a path, a mapping or a {kind.__name__}; given {source!r}")
    problems: list[str] = []
    for origin, text in changes:
        try:
            settings.override(text, f"{origin} {text!r}")
        except ConfigError as error:
            problems.append(str(error))
    try:
        value = kind.model_validate(_plain(settings.value, tuple), strict=True)
    except ValidationError as error:
        problems += [_explain(details, settings, kind) for details in error.errors()]
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def describe_keys(kind: type[BaseModel] = ClusterConfig) -> list[dict[str, str]]:
    """A row (key, type, default, description) per key, for reference pages. N: an index or a name."""
    return list(_rows(kind, ""))


def _rows(section: type[BaseModel], prefix: str) -> Iterator[dict[str, str]]:
    for name, field in section.model_fields.items():
        inner, is_list = _section_of(field), get_origin(field.annotation) is tuple
        default = "[]" if is_list else "{}" if inner else field.default
        yield {
            "key": prefix + name,
            "type": _allowed(field),
            "default": "required" if field.is_required() else default if inner or is_list else json.dumps(default),
            "description": _description(section, name),
        }
        if inner:
            yield from _rows(inner, f"{prefix}{name}.N." if is_list else f"{prefix}{name}.")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    types = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _description(section: type[BaseModel], name: str) -> str:
    """The field's own words, or those under `Attributes:` in the docstring of its class."""
    line = re.search(rf"^ +{name}: (.+)$", inspect.getdoc(section) or "", re.MULTILINE)
    return section.model_fields[name].description or (line.group(1) if line else "")


def _allowed(field: FieldInfo) -> str:
    """What a field takes, in words: `number > 0, <= 1, or null`."""
    words = {float: "number", int: "whole number", str: "text", bool: "true or false"}
    kinds = get_args(field.annotation) or (field.annotation,)
    if get_origin(field.annotation) is Literal:
        return " or ".join(str(kind) for kind in kinds)
    if _section_of(field):
        return "list of sections" if get_origin(field.annotation) is tuple else "section"
    if get_origin(field.annotation) is tuple:
        return f"list, each {words[kinds[0]]}"
    if get_origin(field.annotation) is dict:
        return f"names, each with a {_allowed(FieldInfo.from_annotation(kinds[1]))}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [(sign, getattr(rule, key, None)) for rule in field.metadata for key, sign in signs.items()]
    bounds = ", ".join(f"{sign} {bound:g}" for sign, bound in found if bound is not None)
    kind = next(words[kind] for kind in kinds if kind in words)
    return f"{kind} {bounds}".rstrip() + (", or null" if NoneType in kinds else "")


def _plain(value: Any, sequence: type[list[Any]] | type[tuple[Any, ...]]) -> Any:
    """A deep copy out of dicts, scalars, and one kind of sequence."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)  # what was left out stays left out: see `power_given`
    if isinstance(value, Mapping):
        return {key: _plain(inner, sequence) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return sequence(_plain(inner, sequence) for inner in value)
    return str(value) if isinstance(value, Path) else value


_FACTS = {
    "extra_forbidden": "there is no such key",
    "invalid_key": "a key must be text",
    "dict_type": "must be a section, with keys and values",
    "missing": "must be given",
    "model_type": "must be a section, with keys and values",
    "too_short": "must have at least one item",
    "string_pattern_mismatch": "is empty, too long, or has characters that are not allowed",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}


def _explain(details: ErrorDetails, settings: Settings, root: type[BaseModel]) -> str:
    """One pydantic error as place, key, fact, what is allowed, and what to do next."""
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    path: KeyPath = (*details["loc"], *context.get("at", ()))
    origin = settings.origin(path)
    section, key = _place(path, root)
    field = section.model_fields.get(str(key))
    fact = _FACTS.get(kind, re.sub("^(Input|String) should", "must", details["msg"]))
    if kind != "missing":
        fact += f"; given {origin.written or reprlib.repr(_plain(context.get('name', given), list))}"
    if field is None or kind == "model_type":
        inner = _section_of(field) if field else None
        allowed = "keys " + ", ".join((inner or section).model_fields)
    else:
        allowed = f"{_allowed(field)}. {_description(section, str(key))}"
    remedy = _remedy(kind, context.get("name", given), context.get("names", ""), origin, section, str(key), root)
    return f"{origin.where}: {dotted(path)}: {fact}.\n    Allowed: {allowed}\n    Next: {remedy}"


def _place(path: KeyPath, root: type[BaseModel]) -> tuple[type[BaseModel], str | int]:
    """The section that a path leads into, and its key there: of a list or mapping of plain values, the list's."""
    section = root
    for step in path[:-1]:
        field = section.model_fields.get(str(step))
        if field is not None and _section_of(field) is None:
            return section, step
        section = (field and _section_of(field)) or section
    return section, path[-1]


def _remedy(
    kind: str, given: Any, names: str, origin: Origin, section: type[BaseModel], key: str, root: type[BaseModel]
) -> str:
    field = section.model_fields.get(key)
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
        items = "with one item `- name: ...` for each" if field and _section_of(field) else "such as [a, b]"
        return f"write a list, {items}"
    if field is None:  # a key of this name in another section is as near as one that is spelt alike
        elsewhere = [row["key"] for row in describe_keys(root) if row["key"].endswith(f".{key}")]
        near = difflib.get_close_matches(key, section.model_fields, n=1) + elsewhere
    else:
        options = [*names.split(", "), *(str(option) for option in get_args(field.annotation))]
        near = difflib.get_close_matches(str(given), options, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    if field is None or field.is_required() or _section_of(field):
        return "correct it" if field else "remove it, or use one of these keys"
    return f"correct it, or remove it for the default, {json.dumps(field.default)}"
