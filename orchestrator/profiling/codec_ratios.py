"""Compression ratio of every codec on every tensor of a model, measured by the client and kept on disk."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from coedge.core.progress import progress
from coedge.graph.model import Model
from orchestrator.profiling.cache_file import read_cache, write_cache
from workers.calibration.activations import natural_inputs, sample_activations
from workers.transport.codecs import measure_codecs


class _Ratios(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model_hash: str
    ratios: dict[str, dict[str, float]]


def codec_ratios(model: Model, folder: Path) -> dict[str, dict[str, float]]:
    """Return packed over raw bytes, by tensor and codec, for every tensor that crosses a cut.

    The sample inputs have the statistics of natural images. Other inputs may pack better or worse, which changes
    times and never results.
    """
    path = folder / f"codecs-{model.hash}.json"
    cached = read_cache(_Ratios, path)
    if cached is None or cached.model_hash != model.hash:
        with progress(f"packing rows of {model.name}", len(model.layers)) as advance:
            samples = sample_activations(model, natural_inputs(model), 1, advance)
        cached = _Ratios(model_hash=model.hash, ratios=measure_codecs(samples, 0.0)[1])
        write_cache(cached, path)
    return cached.ratios
