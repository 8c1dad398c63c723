"""The lab of a cluster configuration: hosts, addresses, rates and shared media. Pure values and functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coedge.config.cluster_config import ClusterConfig
from coedge.config.sections import DeviceConfig
from coedge.core.errors import ConfigError
from coedge.core.units import bytes_per_second_of

SUBNET = "10.77.0"
# Ports of Ray's head, and of the object store of every node.
RAY_PORT, OBJECT_PORT = 6379, 8076
MAX_DEVICES = 250


@dataclass(frozen=True, slots=True)
class LabDevice:
    """The host of a device.

    Attributes:
        index: position in the configuration, from 0; it determines the address and the port on the switch.
        bytes_per_second: rate of its link per direction, counting whole Ethernet frames; None if it is not shaped.
        medium: shared medium of its link, if any.
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
        """Interface of the switch that leads to the host."""
        return f"p{self.index}"

    @property
    def fast_port(self) -> str:
        """Interface of the switch for the second link, which carries weights."""
        return f"w{self.index}"


@dataclass(frozen=True, slots=True)
class LabMedium:
    """A capacity shared by links. A packet that a device on it sends or receives passes its interface once."""

    name: str
    index: int
    bytes_per_second: float
    devices: tuple[str, ...]

    @property
    def interface(self) -> str:
        """Interface of the switch with the queue of the medium."""
        return f"m{self.index}"


@dataclass(frozen=True, slots=True)
class LabSpec:
    """The hosts and media of a lab, in the order of the configuration.

    Attributes:
        head: device that runs Ray's head: the source.
        fast_weights: whether traffic between Ray's object stores has separate links that are not shaped.
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
    """Return the lab of a configuration.

    Raises:
        ConfigError: the configuration names no devices, existing hosts or an existing Ray, or puts a device on two
            media.
    """
    if not config.devices:
        raise ConfigError("a lab has a host for each device, but the configuration names none; list them in `devices`")
    if len(config.devices) > MAX_DEVICES:
        raise ConfigError(f"a lab has at most {MAX_DEVICES} devices, this configuration has {len(config.devices)}")
    if config.ray.address is not None:
        raise ConfigError(f"a lab starts its own Ray; remove `ray.address` ({config.ray.address})")
    for device in config.devices:
        if device.node is not None:
            raise ConfigError(f"a lab makes its own hosts; remove `devices.{device.name}.node` ({device.node})")
    medium_of: dict[str, str] = {}
    for medium in config.media:
        for name in medium.devices:
            if medium_of.setdefault(name, medium.name) != medium.name:
                both = f"{medium_of[name]} and {medium.name}"
                raise ConfigError(f"device {name} is on {both}, but in a lab a link is on one medium; remove one")
    return LabSpec(
        devices=tuple(
            LabDevice(device.name, index, _rate(device), medium_of.get(device.name))
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
    """Return the overrides that turn the configuration of a lab into that of the cluster in it.

    The kernel limits the rates, so workers do not pace by rate as well. Workers still emulate latencies.

    Args:
        addresses: (name, address) of every device.
    """
    changes = [f"ray.address={head_address}:{RAY_PORT}"]
    for name, address in addresses:
        changes += [f"devices.{name}.node={address}", f"devices.{name}.link.mbps=null"]
    return changes
