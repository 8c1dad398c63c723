"""Sections of a configuration file: links, power, devices, media and Ray, each a frozen pydantic model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from coedge.config.yaml_source import KeyPath
from coedge.core.errors import CoEdgeError, ConfigError
from coedge.core.provider import KNOWN, Provider, with_fallback
from coedge.core.record import Record

# "@" marks names that are not devices; "/" and blanks would break addresses and logs.
NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"


class Section(Record):
    """A part of a configuration file. Unknown keys and values of another type are refused."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    refused_as: ClassVar[type[CoEdgeError]] = ConfigError


class LinkConfig(Section):
    """Emulation of a device's network interface. Messages that it sends are paced; no privileges are needed."""

    mbps: float | None = Field(default=None, gt=0, description="Rate in Mbit/s (10^6 bit/s). Null: not emulated.")
    latency_ms: float = Field(default=0.0, ge=0, description="Added one-way delay in ms. 0: none.")


class PowerConfig(Section):
    """Power that energy is modelled from. By default a joule is one busy second."""

    idle_watts: float = Field(default=0.0, ge=0, description="Watts drawn all the time. Modelled.")
    compute_watts: float = Field(default=1.0, ge=0, description="Watts above idle while computing. Modelled.")
    transmit_watts: float = Field(default=1.0, ge=0, description="Watts above idle while sending. Modelled.")
    receive_watts: float = Field(default=0.0, ge=0, description="Watts above idle while receiving. Modelled.")


class ProviderConfig(Section):
    """An execution provider of ONNX Runtime. A provider without options may be written as its name alone."""

    name: str = Field(description=f"One of {', '.join(KNOWN)}.")
    options: dict[str, str] = Field(default={}, description="Options of the provider, as ONNX Runtime names them.")

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
        """Convert numbers and booleans to text, which is what ONNX Runtime takes."""
        if not isinstance(options, Mapping):
            return options
        return {key: str(value) if isinstance(value, bool | int | float) else value for key, value in options.items()}

    def __hash__(self) -> int:
        return hash((self.name, *sorted(self.options.items())))


class DeviceConfig(Section):
    """A device: one worker on one Ray node."""

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
        description="Execution providers, best first. The CPU runs the operators that no other provider takes. "
        "Empty: only the CPU.",
    )

    @field_validator("providers")
    @classmethod
    def _providers_differ(cls, providers: tuple[ProviderConfig, ...]) -> tuple[ProviderConfig, ...]:
        check_names([provider.name for provider in providers], "providers")
        return providers

    @property
    def session_providers(self) -> tuple[Provider, ...]:
        """The providers that sessions are made with. They always include the CPU."""
        return with_fallback(Provider(p.name, tuple(sorted(p.options.items()))) for p in self.providers)

    @property
    def memory_bytes(self) -> float | None:
        """Memory that plans may use on the device; None if not limited."""
        return None if self.memory_mb is None else self.memory_mb * 1e6

    @property
    def power_given(self) -> bool:
        """True if the configuration gives the watts, rather than leaving them to the defaults."""
        return "power" in self.model_fields_set


class MediumConfig(Section):
    """A capacity that transfers share, such as the air of a Wi-Fi."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the medium, unique: as of a device.")
    devices: tuple[str, ...] = Field(
        min_length=1,
        strict=False,
        description="Devices on the medium. Everything that they send or receive uses its capacity.",
    )
    mbps: float = Field(gt=0, description="Rate of all transfers on it together, in Mbit/s (10^6 bit/s).")


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


def check_names(names: Sequence[str], key: str = "devices") -> None:
    """Check in a validator that the names of a list of sections are unique.

    Raises:
        PydanticCustomError: a name occurs twice; the error points to its second occurrence.
    """
    for index, name in enumerate(names):
        if (first := names.index(name)) != index:
            context = {"first": first, "name": name, "key": key, "at": (index, "name")}
            raise PydanticCustomError("name", "is also the name of {key}.{first} ({name})", context)


def check_device(name: str, names: Sequence[str], at: KeyPath = ()) -> None:
    """Check in a validator that a device of this name exists.

    Args:
        at: path of the name, below the field that is validated.

    Raises:
        PydanticCustomError: the name is not in `names`.
    """
    if name not in names:
        context = {"names": ", ".join(names), "name": name, "at": at}
        raise PydanticCustomError("source", "must be a device: {names}", context)


class NamedMedium(Protocol):
    """A medium, as far as its names are concerned."""

    @property
    def name(self) -> str: ...

    @property
    def devices(self) -> Sequence[str]: ...


def check_media(media: Sequence[NamedMedium], names: Sequence[str]) -> None:
    """Check in a validator that the names of media are unique and that their devices exist.

    Args:
        names: the devices; empty if they are not known.

    Raises:
        PydanticCustomError: they are not, or do not.
    """
    check_names([medium.name for medium in media], "media")
    for index, medium in enumerate(media):
        for position, name in enumerate(medium.devices if names else ()):
            check_device(name, names, (index, "devices", position))


def check_source(source: str | None, names: Sequence[str]) -> None:
    """Check in a validator that the source is a device, if it is given and the devices are known.

    Raises:
        PydanticCustomError: it is none.
    """
    if source is not None and names:
        check_device(source, names)
