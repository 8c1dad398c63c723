"""The cluster configuration: the devices, how they are joined, and the default objective."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from coedge.config.sections import (
    DeviceConfig,
    MediumConfig,
    RayConfig,
    Section,
    check_media,
    check_names,
    check_source,
)
from coedge.core.cache_folder import user_cache_folder
from coedge.core.objective import Objective


class ClusterConfig(Section):
    """A cluster: everything that `coedge.connect` needs to know."""

    devices: tuple[DeviceConfig, ...] = Field(
        default=(), strict=False, description="The devices. Empty: every alive Ray node is a device."
    )
    ray: RayConfig = Field(default=RayConfig(), description="The Ray cluster that control runs on.")
    source: str | None = Field(
        default=None, min_length=1, description="Device that inputs come from. Null: the one that asks."
    )
    media: tuple[MediumConfig, ...] = Field(
        default=(),
        strict=False,
        description="Capacities that devices share. Plans and predictions take them into account. Emulated links do "
        "not: each belongs to one device. Shared media between real hosts are also found by measuring.",
    )
    joules: Literal["dynamic", "total"] = Field(
        default="dynamic",
        description="What counts as energy. dynamic: computing and transmitting, above idle. total: also the idle "
        "watts of the devices that take part, while the frame runs.",
    )
    encryption: bool = Field(default=True, description="Encrypt what devices send each other.")
    connect_timeout_seconds: float = Field(default=60.0, gt=0, description="Seconds to wait for all devices to join.")
    frame_timeout_seconds: float = Field(default=30.0, gt=0, description="Seconds to wait for the answer to one frame.")
    detect_seconds: float = Field(
        default=2.0, ge=0.2, description="Seconds of silence after which a device counts as lost."
    )
    recover: bool = Field(
        default=True,
        description="Run the frames of a lost device again on the others, start workers again that have ended, and "
        "start without devices whose Ray node is absent. False: frames fail, workers stay lost, every node must be "
        "there.",
    )
    adapt: bool = Field(
        default=True,
        description="Let plans follow lasting changes of links and devices, as frames show them. False: only after "
        "`measure_links`.",
    )
    profile_budget_seconds: float = Field(
        default=20.0, gt=0, description="Approximate seconds for measuring a model on one kind of machine."
    )
    trial_frames: int = Field(
        default=3,
        ge=0,
        description='Frames that each of the best plans runs before "auto" chooses. They correct the profile, too. '
        "0: it predicts.",
    )
    cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Folder for profiles. Null: the user's cache folder: ~/.cache/coedge on Linux, or as "
        "XDG_CACHE_HOME says.",
    )
    event_log: str | None = Field(
        default=None,
        min_length=1,
        description="File to which decisions are appended, a JSON object a line. Null: they are only kept in memory.",
    )
    objective: Objective = Field(default=Objective(), description="What plans minimise, and their limits.")
    scheme: str = Field(default="auto", min_length=1, description='Planning scheme. "auto": the best of all.')

    @field_validator("devices")
    @classmethod
    def _devices_differ(cls, devices: tuple[DeviceConfig, ...]) -> tuple[DeviceConfig, ...]:
        check_names([device.name for device in devices])
        return devices

    @field_validator("media")
    @classmethod
    def _media_join_devices(cls, media: tuple[MediumConfig, ...], info: ValidationInfo) -> tuple[MediumConfig, ...]:
        check_media(media, [device.name for device in info.data.get("devices", ())])
        return media

    @field_validator("source")
    @classmethod
    def _source_is_a_device(cls, source: str | None, info: ValidationInfo) -> str | None:
        check_source(source, [device.name for device in info.data.get("devices", ())])
        return source

    @property
    def cache_path(self) -> Path:
        """The folder for profiles. It may not exist yet."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        return user_cache_folder()
