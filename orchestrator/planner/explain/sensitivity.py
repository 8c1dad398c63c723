"""Profiles with one figure improved: a faster device or link, fewer watts, more memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from coedge.profile.profile import DeviceProfile, Link, Medium, Profile, scaled


def faster_device(profile: Profile, name: str, factor: float) -> Profile:
    """Divide the time that a device takes to compute, to encode and decode, and to handle messages by `factor`."""

    def changed(device: DeviceProfile) -> DeviceProfile:
        return device.model_copy(
            update={
                "layers": tuple(scaled(time, 1 / factor) for time in device.layers),
                "fused": tuple(scaled(time, 1 / factor) for time in device.fused),
                "codecs": {codec: known.scaled(1 / factor) for codec, known in device.codecs.items()},
                "send_seconds": device.send_seconds / factor,
                "receive_seconds": device.receive_seconds / factor,
            }
        )

    return _with_device(profile, name, changed)


def fewer_watts(profile: Profile, name: str, factor: float) -> Profile:
    """Divide all watts of a device by `factor`."""

    def changed(device: DeviceProfile) -> DeviceProfile:
        watts = {key: value / factor for key, value in device.power.model_dump().items() if key.endswith("_watts")}
        return device.model_copy(update={"power": device.power.model_copy(update=watts)})

    return _with_device(profile, name, changed)


def more_memory(profile: Profile, name: str, factor: float | None) -> Profile:
    """Multiply the memory limit of a device by `factor`; None removes the limit."""

    def changed(device: DeviceProfile) -> DeviceProfile:
        limit = None if device.memory_bytes is None or factor is None else device.memory_bytes * factor
        return device.model_copy(update={"memory_bytes": limit})

    return _with_device(profile, name, changed)


def faster_link(profile: Profile, sender: str, receiver: str, factor: float) -> Profile:
    """Multiply the rate of one direction of a link by `factor`. Shared media keep their rate."""

    def changed(link: Link) -> Link:
        if (link.sender, link.receiver) != (sender, receiver):
            return link
        return link.model_copy(update={"bytes_per_second": link.bytes_per_second * factor})

    return profile.model_copy(update={"links": tuple(changed(link) for link in profile.links)})


def faster_medium(profile: Profile, name: str, factor: float) -> Profile:
    """Multiply the rate of a shared medium, and of the links that it limits, by `factor`."""
    medium = next(medium for medium in profile.media if medium.name == name)
    attached = set(medium.devices)

    def changed(link: Link) -> Link:
        limited = {link.sender, link.receiver} & attached and link.bytes_per_second >= medium.bytes_per_second * 0.999
        return link.model_copy(update={"bytes_per_second": link.bytes_per_second * factor}) if limited else link

    wider = medium.model_copy(update={"bytes_per_second": medium.bytes_per_second * factor})
    media = tuple(wider if other.name == name else other for other in profile.media)
    return profile.model_copy(update={"links": tuple(changed(link) for link in profile.links), "media": media})


def faster_links_of(profile: Profile, name: str, factor: float) -> Profile:
    """Multiply the rate of all links of a device, both ways, and of their shared media by `factor`."""

    def changed(link: Link) -> Link:
        if name not in (link.sender, link.receiver):
            return link
        return link.model_copy(update={"bytes_per_second": link.bytes_per_second * factor})

    media: list[Medium] = []
    for medium in profile.media:
        wider = medium.model_copy(update={"bytes_per_second": medium.bytes_per_second * factor})
        media.append(wider if name in medium.devices else medium)
    return profile.model_copy(update={"links": tuple(changed(link) for link in profile.links), "media": tuple(media)})


def lower_latency(profile: Profile, factor: float, of: Iterable[str] | None = None) -> Profile:
    """Divide the latency of links by `factor`. Their rates stay the same.

    Args:
        of: change only links to and from these devices; all links by default.
    """
    devices = set(profile.names if of is None else of)

    def changed(link: Link) -> Link:
        if not {link.sender, link.receiver} & devices:
            return link
        return link.model_copy(update={"latency_seconds": link.latency_seconds / factor})

    return profile.model_copy(update={"links": tuple(changed(link) for link in profile.links)})


def _with_device(profile: Profile, name: str, changed: Callable[[DeviceProfile], DeviceProfile]) -> Profile:
    devices = tuple(changed(device) if device.name == name else device for device in profile.devices)
    return profile.model_copy(update={"devices": devices})
