"""Measured layer times on disk, keyed by model and by the hardware and software that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from coedge.profile import LayerTime

# Changes with the meaning of a layer's rows (2: those of a dense layer are its features).
FORMAT = 2


class LayerTimes(BaseModel):
    """What a model takes at the full speed of one kind of machine: see `ModelTimes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    model_hash: str
    layers: tuple[LayerTime, ...]
    fused: tuple[LayerTime, ...]
    send_seconds: float = Field(ge=0)
    receive_seconds: float = Field(ge=0)


def load_times(folder: Path, model_hash: str, fingerprint: str) -> LayerTimes | None:
    """What was measured before; None: nothing, or nothing that can be read."""
    try:
        found = LayerTimes.model_validate_json(_path(folder, model_hash, fingerprint).read_text("utf-8"))
    except (OSError, ValueError):  # not there, not text, or not valid
        return None
    return found if (found.model_hash, found.fingerprint) == (model_hash, fingerprint) else None


def store_times(folder: Path, times: LayerTimes) -> None:
    """Keeps a measurement. A folder that cannot be written costs the next run a measurement, no more."""
    path = _path(folder, times.model_hash, times.fingerprint)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(times.model_dump_json(), encoding="utf-8")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()


def _path(folder: Path, model_hash: str, fingerprint: str) -> Path:
    key = hashlib.blake2b(fingerprint.encode(), digest_size=6).hexdigest()
    return folder / f"layers-{model_hash}-{key}.{FORMAT}.json"
