"""The best measured speed of each kind of machine, on disk: what a machine reaches when nothing slows it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.profiling.cache_file import read_cache, write_cache

# Part of the file name; raised when the meaning of the content changes.
FORMAT = 1


class KnownSpeed(BaseModel):
    """The best speed that was measured on one kind of machine, without emulation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    gflops: float = Field(gt=0)


def load_speed(folder: Path, fingerprint: str) -> float | None:
    """Return the best known 10^9 floating-point operations per second; None if there are none."""
    known = read_cache(KnownSpeed, _path(folder, fingerprint))
    return known.gflops if known and known.fingerprint == fingerprint else None


def store_speed(folder: Path, fingerprint: str, gflops: float) -> None:
    """Store a speed, if it is better than the known one."""
    if gflops > (load_speed(folder, fingerprint) or 0.0):
        write_cache(KnownSpeed(fingerprint=fingerprint, gflops=gflops), _path(folder, fingerprint))


def _path(folder: Path, fingerprint: str) -> Path:
    key = hashlib.blake2b(fingerprint.encode(), digest_size=6).hexdigest()
    return folder / f"speed-{key}.{FORMAT}.json"
