"""A slowdown: which devices and links take longer than a profile says, and by what factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coedge.profile.profile import DeviceProfile, Link, Medium, Profile, scaled


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Factors of the seconds in a profile. Those below 1 make it faster; what is not named stays as it is.

    Attributes:
        devices: by device, of everything that it computes: kernels, packing, handling of messages.
        links: by (sender, receiver), of the seconds per byte. Latencies stay.
    """

    devices: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def of(self, profile: Profile) -> Profile:
        """Return the profile of the slower cluster.

        A medium becomes slower as the least slowed of the named links on it, and faster as the least quickened.
        """
        return profile.model_copy(
            update={
                "devices": tuple(slower(device, self.devices.get(device.name, 1.0)) for device in profile.devices),
                "links": tuple(self._link(link) for link in profile.links),
                "media": tuple(self._medium(medium, profile) for medium in profile.media),
            }
        )

    def _link(self, link: Link) -> Link:
        factor = self.links.get((link.sender, link.receiver), 1.0)
        return link.model_copy(update={"bytes_per_second": link.bytes_per_second / factor})

    def _medium(self, medium: Medium, profile: Profile) -> Medium:
        factors = [factor for link, factor in self.links.items() if medium in profile.media_between(*link)]
        return medium.model_copy(update={"bytes_per_second": medium.bytes_per_second / _common_factor(factors)})


def slower(device: DeviceProfile, factor: float) -> DeviceProfile:
    """Return the profile of a device that takes `factor` times as long."""
    return device.model_copy(
        update={
            "layers": tuple(scaled(time, factor) for time in device.layers),
            "fused": tuple(scaled(time, factor) for time in device.fused),
            "codecs": {name: speed.scaled(factor) for name, speed in device.codecs.items()},
            "send_seconds": device.send_seconds * factor,
            "receive_seconds": device.receive_seconds * factor,
        }
    )


def _common_factor(factors: Sequence[float]) -> float:
    """Return the factor nearest to 1 of those that are all above or all below 1; otherwise 1."""
    if not factors:
        return 1.0
    return max(min(factors), 1.0) * min(max(factors), 1.0)
