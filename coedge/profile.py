"""What was measured: every device's time per layer and row count, every link's rate and latency, power."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from coedge.config import PowerConfig
from coedge.errors import PlanError
from coedge.json_file import load_json, save_json
from coedge.model import Model
from coedge.program import Work


class LayerTime(BaseModel):
    """Seconds for `rows` rows of a layer: `fixed_seconds + seconds_per_row * rows`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fixed_seconds: float = Field(ge=0)
    seconds_per_row: float = Field(ge=0)

    def seconds(self, rows: float) -> float:
        return self.fixed_seconds + self.seconds_per_row * rows if rows > 0 else 0.0


class DeviceProfile(BaseModel):
    """One device on one model.

    Attributes:
        layers: the time of each layer of the model, run as a stage of its own.
        fused_ratio: time of several layers as one stage, over the sum of theirs: what crossing no border saves.
        memory_bytes: what a plan may use there; None: not limited.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    layers: tuple[LayerTime, ...]
    fused_ratio: float = Field(default=1.0, gt=0)
    power: PowerConfig = PowerConfig()
    memory_bytes: float | None = None

    def compute_seconds(self, work: Iterable[Work]) -> float:
        """Predicted time of a stage on this device."""
        times = [self.layers[item.layer].seconds(item.rows) for item in work]
        return sum(times) * (self.fused_ratio if len(times) > 1 else 1.0)


class Link(BaseModel):
    """From one device to another.

    Attributes:
        bytes_per_second: of one large transfer.
        latency_seconds: of an empty message, one way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sender: str
    receiver: str
    bytes_per_second: float = Field(gt=0)
    latency_seconds: float = Field(ge=0)


class Profile(BaseModel):
    """A cluster as measured on one model. `devices` are in the order in which strips lie on the image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str
    model_hash: str
    devices: tuple[DeviceProfile, ...] = Field(min_length=1)
    links: tuple[Link, ...] = ()
    source: str

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

    def without(self, names: Iterable[str]) -> Profile:
        """The same cluster with some devices left out; itself, if there are none to leave out."""
        gone = set(names)
        if not gone & set(self.names):
            return self
        return Profile(
            model_name=self.model_name,
            model_hash=self.model_hash,
            devices=tuple(device for device in self.devices if device.name not in gone),
            links=tuple(link for link in self.links if not {link.sender, link.receiver} & gone),
            source=self.source,
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


def fit(points: Iterable[tuple[float, float]]) -> LayerTime:
    """The affine time through (rows, seconds), least squares of relative errors, neither part below zero."""
    data = sorted(points)
    if not data:
        return LayerTime(fixed_seconds=0, seconds_per_row=0)
    if len({rows for rows, _ in data}) == 1:
        rows, seconds = data[-1]
        return LayerTime(fixed_seconds=0, seconds_per_row=seconds / rows)
    weights = [1 / max(seconds, 1e-9) ** 2 for _, seconds in data]
    total = sum(weights)
    mean_rows = sum(w * r for w, (r, _) in zip(weights, data)) / total
    mean_seconds = sum(w * s for w, (_, s) in zip(weights, data)) / total
    spread = sum(w * (r - mean_rows) ** 2 for w, (r, _) in zip(weights, data))
    slope = sum(w * (r - mean_rows) * (s - mean_seconds) for w, (r, s) in zip(weights, data)) / spread
    if slope <= 0:
        return LayerTime(fixed_seconds=max(mean_seconds, 0), seconds_per_row=0)
    fixed = mean_seconds - slope * mean_rows
    if fixed < 0:
        slope = sum(w * r * s for w, (r, s) in zip(weights, data)) / sum(w * r * r for w, (r, _) in zip(weights, data))
        fixed = 0.0
    return LayerTime(fixed_seconds=fixed, seconds_per_row=slope)
