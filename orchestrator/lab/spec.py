"""What a lab is made of, as a cluster configuration says: hosts, addresses, rates, shared media. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from coedge.config.cluster_config import ClusterConfig
from coedge.config.sections import DeviceConfig
from coedge.core.errors import ConfigError
from coedge.core.units import bytes_per_second_of

SUBNET = "10.77.0"
RAY_PORT, OBJECT_PORT = 6379, 8076  # of Ray's head; of every node, for large objects
MOST_DEVICES = 250


@dataclass(frozen=True, slots=True)
class LabDevice:
    """A host.

    Attributes:
        index: from 0; its address and its port on the switch follow from it.
        bytes_per_second: of its link, each direction, in Ethernet frames. None: not shaped.
        medium: that its link is on, if any.
    """

    name: str
    index: int
    bytes_per_second: float | None = None
    medium: str | None = None

    @property
    def address(self) -> str:
        return f"{SUBNET}.{self.index + 1}"

    @property
    def port(self) -> str:
        """The interface of the switch that leads to it."""
        return f"p{self.index}"

    @property
    def fast_port(self) -> str:
        """The same of its second link, for weights, where the lab has such."""
        return f"w{self.index}"


@dataclass(frozen=True, slots=True)
class LabMedium:
    """A capacity that links share: what their devices send or receive passes its interface once."""

    name: str
    index: int
    bytes_per_second: float
    devices: tuple[str, ...]

    @property
    def interface(self) -> str:
        """Of the switch, where all that is on it passes one queue."""
        return f"m{self.index}"


@dataclass(frozen=True, slots=True)
class LabSpec:
    """All hosts of a lab, in the order of the configuration.

    Attributes:
        head: the device that Ray's head runs on: the source.
        fast_weights: what Ray moves between its object stores has links of its own, which are not shaped.
    """

    devices: tuple[LabDevice, ...]
    media: tuple[LabMedium, ...]
    head: str
    fast_weights: bool = False

    def device(self, name: str) -> LabDevice:
        return next(device for device in self.devices if device.name == name)

    def members(self, medium: LabMedium) -> tuple[LabDevice, ...]:
        return tuple(device for device in self.devices if device.medium == medium.name)


def spec_of(config: ClusterConfig, fast_weights: bool = False) -> LabSpec:
    """The lab of a configuration.

    Raises:
        ConfigError: it names no devices, or hosts that are there already, or a device is on two media.
    """
    if not config.devices:
        raise ConfigError("a lab has a host for each device, but the configuration names none; list them in `devices`")
    if len(config.devices) > MOST_DEVICES:
        raise ConfigError(f"a lab has at most {MOST_DEVICES} devices, this configuration has {len(config.devices)}")
    if config.ray.address is not None:
        raise ConfigError(f"a lab starts a Ray of its own; remove `ray.address` ({config.ray.address})")
    for device in config.devices:
        if device.node is not None:
            raise ConfigError(f"a lab makes the hosts itself; remove `devices.{device.name}.node` ({device.node})")
    on: dict[str, str] = {}
    for medium in config.media:
        for name in medium.devices:
            if on.setdefault(name, medium.name) != medium.name:
                both = f"{on[name]} and {medium.name}"
                raise ConfigError(f"device {name} is on {both}, but in a lab a link is on one medium; take one away")
    return LabSpec(
        devices=tuple(
            LabDevice(device.name, index, _rate(device), on.get(device.name))
            for index, device in enumerate(config.devices)
        ),
        media=tuple(
            LabMedium(medium.name, index, bytes_per_second_of(medium.mbps), tuple(dict.fromkeys(medium.devices)))
            for index, medium in enumerate(config.media)
        ),
        head=config.source or config.devices[0].name,
        fast_weights=fast_weights,
    )


def _rate(device: DeviceConfig) -> float | None:
    return None if device.link.mbps is None else bytes_per_second_of(device.link.mbps)


def overrides(addresses: Iterable[tuple[str, str]], head_address: str) -> list[str]:
    """What turns the configuration of a lab into that of the cluster that runs in it.

    Rates are the kernel's there, so no worker paces a second time. Latencies stay with the workers.

    Args:
        addresses: (name, address) of every device.
    """
    changes = [f"ray.address={head_address}:{RAY_PORT}"]
    for name, address in addresses:
        changes += [f"devices.{name}.node={address}", f"devices.{name}.link.mbps=null"]
    return changes


_UNITS = {
    f"{prefix}{unit}": factor * per
    for unit, per in (("b/s", 1.0), ("bit/s", 1 / 8), ("bps", 1 / 8))
    for prefix, factor in (("", 1.0), ("k", 1e3), ("m", 1e6), ("g", 1e9))
}


def parse_rate(text: str) -> float | None:
    """Bytes per second of `500KB/s`, `8Mbit/s`, `8mbps`, `1 GB/s`; None for `none`. Decimal prefixes; b is a byte
    in `b/s`, whatever its case.

    Raises:
        ConfigError: it is no rate.
    """
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([a-z/]+)", text.strip().lower().replace(" ", ""))
    if not match or match[2] not in _UNITS or float(match[1]) <= 0:
        raise ConfigError(f"{text!r} is no rate; give one such as 500KB/s, 8Mbit/s or 1GB/s, or none")
    return float(match[1]) * _UNITS[match[2]]


def show_rate(bytes_per_second: float | None) -> str:
    """As `parse_rate` reads it, with at most four digits."""
    if bytes_per_second is None:
        return "none"
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if bytes_per_second >= factor:
            return f"{bytes_per_second / factor:.4g}{prefix}B/s"
    return f"{bytes_per_second:.4g}B/s"
