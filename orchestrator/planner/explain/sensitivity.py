"""Profiles with one figure changed: what a faster device, a faster link or more memory would be worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from coedge.profile.profile import DeviceProfile, Link, Medium, Profile, scaled


def faster_device(profile: Profile, name: str, factor: float) -> Profile:
    """All that a device computes, packs and handles takes 1 / factor of the time."""

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
    """A device draws 1 / factor of its watts, for whatever reason."""

    def changed(device: DeviceProfile) -> DeviceProfile:
        watts = {key: value / factor for key, value in device.power.model_dump().items() if key.endswith("_watts")}
        return device.model_copy(update={"power": device.power.model_copy(update=watts)})

    return _with_device(profile, name, changed)


def more_memory(profile: Profile, name: str, factor: float | None) -> Profile:
    """A plan may use so many times as much there; None: all it wants."""

    def changed(device: DeviceProfile) -> DeviceProfile:
        limit = None if device.memory_bytes is None or factor is None else device.memory_bytes * factor
        return device.model_copy(update={"memory_bytes": limit})

    return _with_device(profile, name, changed)


def faster_link(profile: Profile, sender: str, receiver: str, factor: float) -> Profile:
    """One direction of one link. What the air between them carries in all stays as it is."""

    def changed(link: Link) -> Link:
        if (link.sender, link.receiver) != (sender, receiver):
            return link
        return link.model_copy(update={"bytes_per_second": link.bytes_per_second * factor})

    return profile.model_copy(update={"links": tuple(changed(link) for link in profile.links)})


def faster_medium(profile: Profile, name: str, factor: float) -> Profile:
    """A shared medium, and with it the links that are as slow as they are because of it."""
    medium = next(medium for medium in profile.media if medium.name == name)
    on_it = set(medium.devices)

    def changed(link: Link) -> Link:
        limited = {link.sender, link.receiver} & on_it and link.bytes_per_second >= medium.bytes_per_second * 0.999
        return link.model_copy(update={"bytes_per_second": link.bytes_per_second * factor}) if limited else link

    wider = medium.model_copy(update={"bytes_per_second": medium.bytes_per_second * factor})
    media = tuple(wider if other.name == name else other for other in profile.media)
    return profile.model_copy(update={"links": tuple(changed(link) for link in profile.links), "media": media})


def faster_links_of(profile: Profile, name: str, factor: float) -> Profile:
    """All links of a device in both directions, and for its transfers the media that they take part of."""

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
    """Messages take 1 / factor of the time on their way, beside the time on the wire.

    Args:
        of: only those to and from these devices.
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
