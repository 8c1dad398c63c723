"""What was measured: every device's time per layer and row count, every link's rate and latency, power."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from coedge.config.sections import PowerConfig
from coedge.core.errors import PlanError
from coedge.core.json_file import load_json, save_json
from coedge.execution.program import Work
from coedge.graph.model import Model


class LayerTime(BaseModel):
    """Seconds for `rows` rows of a layer: `fixed_seconds + seconds_per_row * rows`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fixed_seconds: float = Field(ge=0)
    seconds_per_row: float = Field(ge=0)

    def seconds(self, rows: float) -> float:
        return self.fixed_seconds + self.seconds_per_row * rows if rows > 0 else 0.0


class CodecSpeed(BaseModel):
    """How fast a device packs rows for the wire, and unpacks them.

    Attributes:
        encode_bytes_per_second, decode_bytes_per_second: raw bytes.
        encode_seconds, decode_seconds: of an array, besides its bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encode_bytes_per_second: float = Field(gt=0)
    decode_bytes_per_second: float = Field(gt=0)
    encode_seconds: float = Field(default=0.0, ge=0)
    decode_seconds: float = Field(default=0.0, ge=0)

    def scaled(self, factor: float) -> CodecSpeed:
        """On a device that takes `factor` times as long."""
        return CodecSpeed(
            encode_bytes_per_second=self.encode_bytes_per_second / factor,
            decode_bytes_per_second=self.decode_bytes_per_second / factor,
            encode_seconds=self.encode_seconds * factor,
            decode_seconds=self.decode_seconds * factor,
        )


class DeviceProfile(BaseModel):
    """One device on one model.

    Attributes:
        layers: the time of each layer of the model where its stage ends with it.
        fused: the time of each layer where the next one runs in the same stage: crossing no border saves
            something. Empty: as `layers`.
        power_source: where the watts come from, for people: joules are only as good as that.
        memory_bytes: what a plan may use there; None: not limited.
        codecs: by name of the codec; a codec that is not here was not measured and is not used.
        send_seconds, receive_seconds: how long a message occupies it at either end, besides packing and unpacking.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    layers: tuple[LayerTime, ...]
    fused: tuple[LayerTime, ...] = ()
    power: PowerConfig = PowerConfig()
    power_source: str = "configured"
    memory_bytes: float | None = None
    codecs: dict[str, CodecSpeed] = {}
    send_seconds: float = Field(default=0.0, ge=0)
    receive_seconds: float = Field(default=0.0, ge=0)

    def layer_time(self, index: int, ends_stage: bool = True) -> LayerTime:
        return self.fused[index] if self.fused and not ends_stage else self.layers[index]

    def compute_seconds(self, work: Iterable[Work]) -> float:
        """Predicted time of a stage on this device."""
        seconds, last = 0.0, None
        for item in work:
            if last is not None:
                seconds += self.layer_time(last.layer, ends_stage=False).seconds(last.rows)
            last = item
        return seconds if last is None else seconds + self.layer_time(last.layer).seconds(last.rows)


class Link(BaseModel):
    """From one device to another.

    Attributes:
        bytes_per_second: of one large transfer.
        latency_seconds: of an empty message, from when its sender is done with it until its receiver begins with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sender: str
    receiver: str
    bytes_per_second: float = Field(gt=0)
    latency_seconds: float = Field(ge=0)


class Medium(BaseModel):
    """A capacity that transfers share, such as the air of a Wi-Fi: a transfer takes part of it, one at a time,
    where its sender or its receiver is on it.

    Attributes:
        devices: who is on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    devices: tuple[str, ...]
    bytes_per_second: float = Field(gt=0)


class Profile(BaseModel):
    """A cluster as measured on one model. `devices` are in the order in which strips lie on the image.

    Attributes:
        joules: `dynamic` counts what computing and transmitting draws above idle, as the paper does; `total`
            adds the idle watts of every device that takes part, while the frame runs.
        codec_ratios: per tensor and codec, packed over raw bytes, measured on sample images.
        client_seconds: from when somebody asks until the input is at the source, and for the answer's way back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str
    model_hash: str
    devices: tuple[DeviceProfile, ...] = Field(min_length=1)
    links: tuple[Link, ...] = ()
    media: tuple[Medium, ...] = ()
    source: str
    joules: Literal["dynamic", "total"] = "dynamic"
    codec_ratios: dict[str, dict[str, float]] = {}
    client_seconds: float = Field(default=0.0, ge=0)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Profile:
        copied = super().model_copy(update=update, deep=deep)
        for name in ("by_name", "_links"):  # a copy would keep what was cached of another profile
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
        """The link between two devices.

        Raises:
            PlanError: it was not measured.
        """
        found = self._links.get((sender, receiver))
        if found is None:
            raise PlanError(f"the profile has no link from {sender!r} to {receiver!r}; measure the cluster again")
        return found

    def media_between(self, sender: str, receiver: str) -> tuple[Medium, ...]:
        """The shared media that a transfer between two devices takes part of."""
        return tuple(medium for medium in self.media if {sender, receiver} & set(medium.devices))

    def without(self, names: Iterable[str]) -> Profile:
        """The same cluster with some devices left out; itself, if there are none to leave out."""
        gone = set(names)
        if not gone & set(self.names):
            return self
        return self.model_copy(
            update={
                "devices": tuple(device for device in self.devices if device.name not in gone),
                "links": tuple(link for link in self.links if not {link.sender, link.receiver} & gone),
            }
        )

    def check(self, model: Model) -> None:
        """Raises PlanError where the profile is of another model, or incomplete."""
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
        save_json(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Raises PlanError where the file is not a profile."""
        return load_json(cls, path, "profile")


def scaled(time: LayerTime, factor: float) -> LayerTime:
    """The time on a device that takes `factor` times as long."""
    return LayerTime(fixed_seconds=time.fixed_seconds * factor, seconds_per_row=time.seconds_per_row * factor)
