"""Test beds: descriptions of clusters to plan for without any device. `configs/testbeds/` has examples.

test bed (YAML)  ─┐
reference times  ─┴─▶ profile_of(testbed, model)     layer times = those of the reference machine / speed
of the model
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from coedge import zoo
from coedge.config.loading import as_changes, load_section
from coedge.config.sections import NAME_PATTERN, PowerConfig, Section, check_media, check_names, check_source
from coedge.core.errors import ConfigError
from coedge.core.units import bytes_per_second_of
from coedge.graph.model import Model
from coedge.profile.profile import DeviceProfile, Link, Medium, Profile, scaled
from coedge.profile.reference_times import ReferenceTimes, reference_models, reference_times


class TestbedLink(Section):
    """The network interface of a device, full duplex. A transfer runs at the rate of its slower end."""

    mbps: float = Field(gt=0, description="Rate of what it sends and receives, in Mbit/s (10^6 bit/s).")
    down_mbps: float | None = Field(
        default=None, gt=0, description="Rate of what it receives, where that differs, in Mbit/s. Null: as `mbps`."
    )
    latency_ms: float = Field(
        default=0.0, ge=0, description="One way to the middle of the network, in ms; those of both ends add up."
    )


class TestbedDevice(Section):
    """A device of a test bed. It need not exist."""

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Name of the device, unique: 1 to 64 of the characters A-Z a-z 0-9 . _ -",
    )
    milliseconds: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="By name of a network of the zoo: ms of one frame on this device alone. Its speed on that network.",
    )
    speed: float | None = Field(
        default=None,
        gt=0,
        validate_default=True,
        description="How fast it computes; the reference machine, one core, is 1. Null: the mean of `milliseconds`.",
    )
    link: TestbedLink = Field(description="Its network interface.")
    power: PowerConfig = Field(default=PowerConfig(), description="Watts that its energy is modelled from.")
    power_source: str = Field(default="assumed", min_length=1, description="Where the watts come from, for people.")
    memory_mb: float | None = Field(
        default=None, gt=0, description="Most memory for a plan, in MB (10^6 bytes). Null: not limited."
    )

    @field_validator("milliseconds")
    @classmethod
    def _of_the_zoo(cls, milliseconds: dict[str, float]) -> dict[str, float]:
        for name in milliseconds:
            if name not in zoo.NAMES:
                context = {"names": ", ".join(zoo.NAMES), "name": name, "at": (name,)}
                raise PydanticCustomError("model", "must be of a network of the zoo: {names}", context)
        return milliseconds

    @field_validator("speed")
    @classmethod
    def _given_somehow(cls, speed: float | None, info: ValidationInfo) -> float | None:
        if speed is None and info.data.get("milliseconds") == {}:
            raise PydanticCustomError("missing", "must be given")
        return speed


class TestbedMedium(Section):
    """A capacity that transfers share, such as a Wi-Fi channel."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the medium, unique: as of a device.")
    devices: tuple[str, ...] = Field(strict=False, min_length=1, description="Names of the devices on it.")
    mbps: float = Field(gt=0, description="Shared rate, in Mbit/s (10^6 bit/s).")


class Testbed(Section):
    """The devices of a test bed, their network, and the source of the inputs."""

    devices: tuple[TestbedDevice, ...] = Field(
        strict=False, min_length=1, description="The devices, in the order of their strips on the image, from the top."
    )
    media: tuple[TestbedMedium, ...] = Field(default=(), strict=False, description="Capacities that devices share.")
    source: str | None = Field(
        default=None, min_length=1, description="Device that inputs come from. Null: the first one."
    )
    joules: Literal["dynamic", "total"] = Field(
        default="dynamic",
        description="Energy that counts: above idle (dynamic), or idle too while a frame runs (total).",
    )

    @field_validator("devices")
    @classmethod
    def _devices_differ(cls, devices: tuple[TestbedDevice, ...]) -> tuple[TestbedDevice, ...]:
        check_names([device.name for device in devices])
        return devices

    @field_validator("media")
    @classmethod
    def _media_join_devices(cls, media: tuple[TestbedMedium, ...], info: ValidationInfo) -> tuple[TestbedMedium, ...]:
        check_media(media, [device.name for device in info.data.get("devices", ())])
        return media

    @field_validator("source")
    @classmethod
    def _source_is_a_device(cls, source: str | None, info: ValidationInfo) -> str | None:
        check_source(source, [device.name for device in info.data.get("devices", ())])
        return source


def load_testbed(source: str | Path | Mapping[str, Any] | Testbed, overrides: Sequence[str] = ()) -> Testbed:
    """Read a test bed and apply overrides. Later overrides take precedence.

    Args:
        source: path of a YAML file, or the values themselves.
        overrides: `key=value` items as in `load_config`, such as `devices.edge.link.mbps=0.5`.

    Raises:
        ConfigError: lists all problems with place, key, value, allowed values and the next step.
    """
    return load_section(Testbed, source, as_changes(overrides))


def profile_of(testbed: Testbed, model: Model, times: ReferenceTimes | None = None) -> Profile:
    """Return the profile of a test bed for a model.

    Args:
        times: layer times of the model on the reference machine; `reference_times(model)` by default. `str(times)`
            tells whether they are measured or estimated.

    Raises:
        ConfigError: a device has a time for a network that was not measured on the reference machine, or the test bed
            is none.
        InputError: the model is none.
    """
    Model.check(model)
    if not isinstance(testbed, Testbed):
        raise ConfigError(f"a test bed is what coedge.load_testbed returns; a {type(testbed).__name__} was given")
    times = times or reference_times(model)
    return Profile(
        model_name=model.name,
        model_hash=model.hash,
        devices=tuple(_device_profile(device, times, model.name) for device in testbed.devices),
        links=tuple(_link(a, b, testbed.media) for a, b in itertools.permutations(testbed.devices, 2)),
        media=tuple(
            Medium(name=m.name, devices=m.devices, bytes_per_second=bytes_per_second_of(m.mbps)) for m in testbed.media
        ),
        source=testbed.source or testbed.devices[0].name,
        joules=testbed.joules,
        codec_ratios=dict(times.codec_ratios),
        estimate_error=times.error,
    )


def speed_on(device: TestbedDevice, name: str | None) -> float:
    """Return how fast a device computes a network; the reference machine has speed 1.

    The speed follows from the device's time for this network if it has one. Otherwise it is the device's `speed`, or
    the geometric mean over the networks that the device has times for.

    Args:
        name: name of the network in the zoo; None for a network that is not in the zoo.
    """
    implied = {}
    for known, milliseconds in device.milliseconds.items():
        if known not in reference_models():
            raise ConfigError(
                f"device {device.name!r}: the reference machine was not measured on {known}, "
                f"so a speed cannot be derived from its {milliseconds:g} ms.\n"
                f"    Next: python -m benchmarks.reference {known}, or give a `speed` instead"
            )
        implied[known] = reference_models()[known].seconds * 1e3 / milliseconds
    if name in implied:
        return implied[name]
    return device.speed or math.exp(sum(map(math.log, implied.values())) / len(implied))


def _device_profile(device: TestbedDevice, times: ReferenceTimes, name: str) -> DeviceProfile:
    speed = speed_on(device, times.like or name)
    return DeviceProfile(
        name=device.name,
        layers=tuple(scaled(time, 1 / speed) for time in times.layers),
        fused=tuple(scaled(time, 1 / speed) for time in times.fused),
        power=device.power,
        power_source=device.power_source,
        memory_bytes=None if device.memory_mb is None else device.memory_mb * 1e6,
        codecs={codec: known.scaled(1 / speed) for codec, known in times.codecs.items()},
    )


def _link(sender: TestbedDevice, receiver: TestbedDevice, media: Sequence[TestbedMedium]) -> Link:
    """Return the link as measured without other traffic. A shared medium limits a single transfer too."""
    rates = [sender.link.mbps, receiver.link.down_mbps or receiver.link.mbps]
    rates += [medium.mbps for medium in media if {sender.name, receiver.name} & set(medium.devices)]
    return Link(
        sender=sender.name,
        receiver=receiver.name,
        bytes_per_second=bytes_per_second_of(min(rates)),
        latency_seconds=(sender.link.latency_ms + receiver.link.latency_ms) / 1e3,
    )
