"""Corrections of profiles on disk, keyed by the model and by the devices of the cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from coedge.graph.model import Model
from coedge.profile.correction import Correction
from orchestrator.control.worker_group import RemoteWorker
from orchestrator.profiling.cache_file import read_cache, write_cache

# Part of the file name; raised when the meaning of the content changes.
FORMAT = 2


def load_correction(folder: Path, model: Model, workers: Mapping[str, RemoteWorker]) -> Correction | None:
    """Return the stored correction; None if there is none, or if it was made for other layers."""
    found = read_cache(Correction, _path(folder, model.hash, workers))
    fits = found is not None and all(len(factors) == len(model.layers) for factors in found.factors.values())
    return found if fits else None


def store_correction(folder: Path, model: Model, workers: Mapping[str, RemoteWorker], correction: Correction) -> None:
    """Store a correction under its model and devices."""
    write_cache(correction, _path(folder, model.hash, workers))


def _path(folder: Path, model_hash: str, workers: Mapping[str, RemoteWorker]) -> Path:
    devices = [
        (name, worker.facts.fingerprint, worker.config.speed, worker.config.link.model_dump())
        for name, worker in sorted(workers.items())
    ]
    key = hashlib.blake2b(json.dumps(devices).encode(), digest_size=6).hexdigest()
    return folder / f"correction-{model_hash}-{key}.{FORMAT}.json"
