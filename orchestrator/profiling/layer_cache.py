"""Measured layer times on disk, keyed by model and by the hardware and software that they depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from coedge.profile.profile import CodecSpeed, LayerTime
from orchestrator.profiling.cache_file import read_cache, write_cache

# Changes with what is measured (2: rows of a dense layer are its features; 3: codecs).
FORMAT = 3


class LayerTimes(BaseModel):
    """What a model takes at the full speed of one kind of machine: see `ModelTimes`; and how fast it packs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    model_hash: str
    layers: tuple[LayerTime, ...]
    fused: tuple[LayerTime, ...]
    send_seconds: float = Field(ge=0)
    receive_seconds: float = Field(ge=0)
    codecs: dict[str, CodecSpeed]


def load_times(folder: Path, model_hash: str, fingerprint: str) -> LayerTimes | None:
    """What was measured before."""
    found = read_cache(LayerTimes, _path(folder, model_hash, fingerprint))
    return found if found and (found.model_hash, found.fingerprint) == (model_hash, fingerprint) else None


def store_times(folder: Path, times: LayerTimes) -> None:
    write_cache(times, _path(folder, times.model_hash, times.fingerprint))


def _path(folder: Path, model_hash: str, fingerprint: str) -> Path:
    key = hashlib.blake2b(fingerprint.encode(), digest_size=6).hexdigest()
    return folder / f"layers-{model_hash}-{key}.{FORMAT}.json"
