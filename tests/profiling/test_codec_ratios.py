"""Compression ratios of codecs on a model's tensors: measured once, kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from nets import zoo_model

from coedge.plan.codec import CODECS, RAW
from orchestrator.profiling import codec_ratios as module
from orchestrator.profiling.codec_ratios import codec_ratios


def test_every_tensor_that_may_travel_has_its_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo_model("squeezenet")
    ratios = codec_ratios(model, tmp_path / "cache")
    assert set(ratios) == {name for cut in model.cuts for name in cut.tensors}
    assert all(set(known) == set(CODECS) - {RAW} for known in ratios.values())
    rectified = [ratios[name]["zero_mask"] for cut in model.cuts[2:6] for name in cut.tensors]
    assert min(rectified) < 0.8, "half of what leaves a ReLU is zero"
    with monkeypatch.context() as patch:
        patch.setattr(module, "sample_activations", lambda *_: pytest.fail("it is on disk"))
        assert codec_ratios(model, tmp_path / "cache") == ratios


def test_invalid_files_are_measured_again(tmp_path: Path) -> None:
    model = zoo_model("squeezenet")
    ratios = codec_ratios(model, tmp_path)
    (path,) = tmp_path.iterdir()
    for content in (b"", b"{}", b"\xff", path.read_bytes().replace(model.hash.encode(), b"f" * len(model.hash))):
        path.write_bytes(content)
        assert codec_ratios(model, tmp_path) == ratios
