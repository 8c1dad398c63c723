"""How much smaller codecs make each tensor of a model, measured where the model is; kept on disk."""

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
    """Packed over raw bytes by tensor and codec, of every tensor that may travel.

    On an input such as cameras make; real ones may pack better or worse, which costs time, and never exactness.
    """
    path = folder / f"codecs-{model.hash}.json"
    found = read_cache(_Ratios, path)
    if found is None or found.model_hash != model.hash:
        with progress(f"packing rows of {model.name}", len(model.layers)) as advance:
            samples = sample_activations(model, natural_inputs(model), 1, advance)
        found = _Ratios(model_hash=model.hash, ratios=measure_codecs(samples, 0.0)[1])
        write_cache(found, path)
    return found.ratios
