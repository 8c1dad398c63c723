"""Measured layer times on disk, keyed by the model and by hardware and software that times depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from coedge.profile.profile import CodecSpeed, LayerTime
from orchestrator.profiling.cache_file import read_cache, write_cache

# Part of the file name; raised when the meaning of the content changes.
FORMAT = 3


class LayerTimes(BaseModel):
    """Times of a model at the full speed of one kind of machine (see `ModelTimes`), and its codec speeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    model_hash: str
    layers: tuple[LayerTime, ...]
    fused: tuple[LayerTime, ...]
    send_seconds: float = Field(ge=0)
    receive_seconds: float = Field(ge=0)
    codecs: dict[str, CodecSpeed]


def load_times(folder: Path, model_hash: str, fingerprint: str) -> LayerTimes | None:
    """Return the stored times; None if there are none."""
    cached = read_cache(LayerTimes, _path(folder, model_hash, fingerprint))
    return cached if cached and (cached.model_hash, cached.fingerprint) == (model_hash, fingerprint) else None


def store_times(folder: Path, times: LayerTimes) -> None:
    """Store times under their model and fingerprint."""
    write_cache(times, _path(folder, times.model_hash, times.fingerprint))


def _path(folder: Path, model_hash: str, fingerprint: str) -> Path:
    key = hashlib.blake2b(fingerprint.encode(), digest_size=6).hexdigest()
    return folder / f"layers-{model_hash}-{key}.{FORMAT}.json"
