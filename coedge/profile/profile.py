"""The profile: the measured times of layers on devices, rates and latencies of links, and power."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from coedge.config.sections import PowerConfig
from coedge.core.errors import PlanError
from coedge.core.json_file import load_json, save_json
from coedge.core.record import Record
from coedge.execution.program import Work
from coedge.graph.model import Model
from coedge.profile.estimate_error import EstimateError


class LayerTime(Record):
    """The time of `rows` rows of a layer: `fixed_seconds + seconds_per_row * rows`."""

    fixed_seconds: float = Field(ge=0)
    seconds_per_row: float = Field(ge=0)

    def seconds(self, rows: float) -> float:
        return self.fixed_seconds + self.seconds_per_row * rows if rows > 0 else 0.0


class CodecSpeed(Record):
    """The speed at which a device packs and unpacks rows with a codec.

    Attributes:
        encode_bytes_per_second, decode_bytes_per_second: raw bytes per second.
        encode_seconds, decode_seconds: fixed time per array.
    """

    encode_bytes_per_second: float = Field(gt=0)
    decode_bytes_per_second: float = Field(gt=0)
    encode_seconds: float = Field(default=0.0, ge=0)
    decode_seconds: float = Field(default=0.0, ge=0)

    def scaled(self, factor: float) -> CodecSpeed:
        """Return the speed of a device that takes `factor` times as long."""
        return CodecSpeed(
            encode_bytes_per_second=self.encode_bytes_per_second / factor,
            decode_bytes_per_second=self.decode_bytes_per_second / factor,
            encode_seconds=self.encode_seconds * factor,
            decode_seconds=self.decode_seconds * factor,
        )


class DeviceProfile(Record):
    """The measurements of one device for one model.

    Attributes:
        layers: time of each layer of the model at the end of a stage.
        fused: time of each layer where the next layer runs in the same stage, which saves the cost of a stage border.
            Empty means the same as `layers`.
        power_source: where the watts come from, for people.
        memory_bytes: memory that a plan may use; None is unlimited.
        codecs: speed of each codec, by name. Codecs without a speed are not used.
        send_seconds, receive_seconds: how long a message occupies the device, besides packing and unpacking.
    """

    name: str
    layers: tuple[LayerTime, ...]
    fused: tuple[LayerTime, ...] = ()
    power: PowerConfig = PowerConfig()
    power_source: str = "configured"
    memory_bytes: float | None = None
    codecs: dict[str, CodecSpeed] = Field(default={})
    send_seconds: float = Field(default=0.0, ge=0)
    receive_seconds: float = Field(default=0.0, ge=0)

    def layer_time(self, index: int, ends_stage: bool = True) -> LayerTime:
        return self.fused[index] if self.fused and not ends_stage else self.layers[index]

    def compute_seconds(self, work: Iterable[Work]) -> float:
        """Return the predicted time of a stage on this device."""
        seconds, last = 0.0, None
        for item in work:
            if last is not None:
                seconds += self.layer_time(last.layer, ends_stage=False).seconds(last.rows)
            last = item
        return seconds if last is None else seconds + self.layer_time(last.layer).seconds(last.rows)


class Link(Record):
    """The link from one device to another.

    Attributes:
        bytes_per_second: rate of one large transfer.
        latency_seconds: time of an empty message, from the end of sending until its receiver begins with it.
    """

    sender: str
    receiver: str
    bytes_per_second: float = Field(gt=0)
    latency_seconds: float = Field(ge=0)


class Medium(Record):
    """A capacity that transfers share, such as a Wi-Fi channel. It carries one transfer at a time.

    Attributes:
        devices: the devices on the medium. A transfer uses it if its sender or its receiver is one of them.
    """

    name: str
    devices: tuple[str, ...]
    bytes_per_second: float = Field(gt=0)


class Profile(Record):
    """The measurements of a cluster for one model.

    Attributes:
        devices: in the order of their strips on the image, from the top.
        joules: `dynamic` counts the energy of computing and transmitting above idle, as the paper does. `total`
            adds the idle power of every device that takes part, while the frame runs.
        codec_ratios: packed bytes over raw bytes, by tensor and codec, measured on sample images.
        client_seconds: time from the client to the source and for the answer's way back.
        estimate_error: error of layer times that were estimated. None: they were measured.
    """

    model_name: str
    model_hash: str
    devices: tuple[DeviceProfile, ...] = Field(min_length=1)
    links: tuple[Link, ...] = ()
    media: tuple[Medium, ...] = ()
    source: str
    joules: Literal["dynamic", "total"] = "dynamic"
    codec_ratios: dict[str, dict[str, float]] = Field(default={})
    client_seconds: float = Field(default=0.0, ge=0)
    estimate_error: EstimateError | None = None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Profile:
        copied = super().model_copy(update=update, deep=deep)
        for name in ("by_name", "_links"):  # the copy would keep the tables of the original
            copied.__dict__.pop(name, None)
        return copied

    @cached_property
    def by_name(self) -> dict[str, DeviceProfile]:
        return {device.name: device for device in self.devices}

    @cached_property
    def _links(self) -> dict[tuple[str, str], Link]:
        return {(link.sender, link.receiver): link for link in self.links}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(device.name for device in self.devices)

    def link(self, sender: str, receiver: str) -> Link:
        """Return the link between two devices.

        Raises:
            PlanError: the link was not measured.
        """
        link = self._links.get((sender, receiver))
        if link is None:
            raise PlanError(f"the profile has no link from {sender!r} to {receiver!r}; measure the cluster again")
        return link

    def media_between(self, sender: str, receiver: str) -> tuple[Medium, ...]:
        """Return the shared media that a transfer between two devices uses."""
        return tuple(medium for medium in self.media if {sender, receiver} & set(medium.devices))

    def without(self, names: Iterable[str]) -> Profile:
        """Return the profile without some devices and their links; the profile itself if it has none of them.

        Media keep their devices: a transfer to a device on a medium occupies it in any case.
        """
        gone = set(names)
        devices = tuple(device for device in self.devices if device.name not in gone)
        links = tuple(link for link in self.links if not {link.sender, link.receiver} & gone)
        if len(devices) == len(self.devices) and len(links) == len(self.links):
            return self
        return self.model_copy(update={"devices": devices, "links": links})

    def from_source(self, source: str) -> Profile:
        """Return the profile with another source; the profile itself if it is the same one."""
        return self if source == self.source else self.model_copy(update={"source": source})

    def check(self, model: Model) -> None:
        """Check that the profile is complete and belongs to a model.

        Raises:
            PlanError: the profile is of another model, or it lacks a layer or a link.
            InputError: the model is none.
        """
        Model.check(model)
        if self.model_hash != model.hash:
            raise PlanError(
                f"the profile is of model {self.model_name!r} ({self.model_hash}), "
                f"not of {model.name!r} ({model.hash}); measure this one: cluster.profile(model)"
            )
        if self.source not in self.by_name:
            raise PlanError(f"the source {self.source!r} is not one of the profile's devices: {', '.join(self.names)}")
        for device in self.devices:
            if len(device.layers) != len(model.layers):
                raise PlanError(
                    f"the profile of {device.name!r} has {len(device.layers)} layers, the model {len(model.layers)}"
                )
        for a in self.names:
            for b in self.names:
                if a != b:
                    self.link(a, b)

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        save_json(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises:
            PlanError: the file is not a profile.
        """
        return load_json(cls, path, "profile")


def scaled(time: LayerTime, factor: float) -> LayerTime:
    """Return the time on a device that takes `factor` times as long."""
    return LayerTime(fixed_seconds=time.fixed_seconds * factor, seconds_per_row=time.seconds_per_row * factor)
