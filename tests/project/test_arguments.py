"""Arguments of the wrong kind: every public function refuses them with an error of this project."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import Net

import coedge
from coedge import CaptureError, CoEdgeError, ConfigError, Model, Plan, PlanError, Profile

SHAPE = (1, 3, 8, 8)
X = np.zeros(SHAPE, np.float32)


def network() -> Model:
    net = Net()
    return coedge.capture(net.proto(net.op("Conv", net.input(SHAPE), net.weight(2, 3, 3, 3), pads=[1] * 4)), name="net")


MODEL = network()
PLAN = coedge.even_plan(MODEL, devices=2)
TESTBED = coedge.load_testbed(Path(__file__).resolve().parents[2] / "configs/testbeds/device-edge.yaml")
PROFILE = coedge.profile_of(TESTBED, MODEL)
ALONE = coedge.make_plan(MODEL, PROFILE, scheme="local")
HOSTILE: dict[str, Any] = {
    "None": None, "number": 3, "nan": float("nan"), "text": "no such file", "empty": "", "nul": "a\0b", "bytes": b"x",
    "list": [1.5], "dict": {"a": 1}, "object": object(), "class": int, "long": 5000 * "x", "scalar": np.float64(1),
}  # fmt: skip
# Functions of one hostile argument.
CALLS: dict[str, Callable[[Any], Any]] = {
    "capture": coedge.capture,
    "capture example": lambda value: coedge.capture(torch.nn.ReLU(), value),
    "run model": lambda value: coedge.run_in_process(value, PLAN, X),
    "run plan": lambda value: coedge.run_in_process(MODEL, value, X),
    "run input": lambda value: coedge.run_in_process(MODEL, PLAN, value),
    "lower model": lambda value: coedge.lower(PLAN, value),
    "lower plan": lambda value: coedge.lower(value, MODEL),
    "even_plan model": coedge.even_plan,
    "even_plan devices": lambda value: coedge.even_plan(MODEL, devices=value),
    "even_plan boundaries": lambda value: coedge.even_plan(MODEL, devices=3, boundaries=value),
    "even_plan grid": lambda value: coedge.even_plan(MODEL, grid=value),
    "even_plan stage_layers": lambda value: coedge.even_plan(MODEL, stage_layers=value),
    "even_plan source": lambda value: coedge.even_plan(MODEL, source=value),
    "make_plan model": lambda value: coedge.make_plan(value, value),
    "make_plan profile": lambda value: coedge.make_plan(MODEL, value),
    "make_plan objective": lambda value: coedge.make_plan(MODEL, PROFILE, value, "local"),
    "make_plan scheme": lambda value: coedge.make_plan(MODEL, PROFILE, scheme=value),
    "make_mixture model": lambda value: coedge.make_mixture(value, PROFILE, coedge.Objective()),
    "make_mixture profile": lambda value: coedge.make_mixture(MODEL, value, coedge.Objective()),
    "make_mixture objective": lambda value: coedge.make_mixture(MODEL, PROFILE, value),
    "profile_of test bed": lambda value: coedge.profile_of(value, MODEL),
    "profile_of model": lambda value: coedge.profile_of(TESTBED, value),
    "simulate programs": lambda value: coedge.simulate(value, PROFILE, MODEL),
    "simulate profile": lambda value: coedge.simulate(coedge.lower(PLAN, MODEL), value, MODEL),
    "simulate model": lambda value: coedge.simulate(coedge.lower(PLAN, MODEL), PROFILE, value),
    "simulate frames": lambda value: coedge.simulate(coedge.lower(ALONE, MODEL), PROFILE, MODEL, frames=value),
    "simulate in_flight": lambda value: coedge.simulate(coedge.lower(ALONE, MODEL), PROFILE, MODEL, in_flight=value),
    "Plan.load": Plan.load,
    "Profile.load": Profile.load,
    "load_config": coedge.load_config,
    "load_config overrides": lambda value: coedge.load_config(None, value),
    "load_testbed": coedge.load_testbed,
    "with_normalisation": lambda value: coedge.with_normalisation(value, (0.0,), (1.0,)),
    "with_normalisation mean": lambda value: coedge.with_normalisation(torch.nn.ReLU(), value, (1.0, 1.0)),
}
# Values that these functions take.
TAKEN = {
    ("load_config", "None"), ("even_plan devices", "number"), ("even_plan stage_layers", "number"),
    ("even_plan boundaries", "None"), ("even_plan grid", "None"), ("even_plan source", "None"),
    ("even_plan source", "empty"), ("load_testbed", "None"),
    ("make_plan objective", "None"), ("simulate frames", "number"), ("simulate in_flight", "number"),
    ("simulate programs", "dict"),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_arguments_of_another_kind_are_refused(call: str) -> None:
    for name, value in HOSTILE.items():
        if (call, name) in TAKEN:
            continue
        with pytest.raises(CoEdgeError, match=r"."):
            CALLS[call](value)


@pytest.mark.parametrize("value", [None, 3, b"x", "a\0b", 5000 * "x", "", "no/such/folder/file", object()])
def test_files_that_cannot_be_written_are_named(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaptureError, match="cannot write net to "):
        MODEL.save(value)
    with pytest.raises(PlanError, match="cannot write "):
        PLAN.save(value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_named() -> None:
    with pytest.raises(CaptureError, match="cannot write net to /dev/full: No space left on device"):
        MODEL.save("/dev/full")
    with pytest.raises(PlanError, match="cannot write /dev/full: No space left on device"):
        PLAN.save("/dev/full")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.pt2", "plan.json", "cluster.yaml"):
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / name).chmod(0)
    for call, name in (("capture", "net.onnx"), ("capture", "net.pt2"), ("Plan.load", "plan.json")):
        with pytest.raises(CoEdgeError, match="Permission denied"):
            CALLS[call](tmp_path / name)
    with pytest.raises(ConfigError, match="Permission denied"):
        coedge.load_config(tmp_path / "cluster.yaml")


@pytest.mark.parametrize("name", ["folder.onnx", "folder.pt2", "folder.json"])
def test_a_folder_in_place_of_a_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for call in ("Plan.load", "Profile.load") if name.endswith("json") else ("capture",):
        with pytest.raises(CoEdgeError, match=f"{name}.*directory"):
            CALLS[call](tmp_path / name)


def test_arrays_that_torch_does_not_read() -> None:
    for array in (X[:, :, ::-1], X.astype(">f4")):
        model = coedge.capture(torch.nn.Conv2d(3, 2, 3), array)
        assert model.inputs[0].shape == SHAPE
        coedge.run_in_process(model, coedge.even_plan(model, devices=2), array)
    with pytest.raises(CoEdgeError, match="a tensor on the device 'meta' has no values"):
        coedge.run_in_process(MODEL, PLAN, torch.zeros(SHAPE, device="meta"))
