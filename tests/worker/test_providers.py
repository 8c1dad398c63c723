"""Execution providers: availability, sessions made with them, and messages for missing ones."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from nets import Net, check_split, image

import coedge
from coedge.core.errors import ClusterError
from coedge.core.onnx_session import Session
from coedge.core.provider import CPU, KNOWN, ON_CPU, Provider, with_fallback
from coedge.frontend.capture import capture
from coedge.plan.lowering import lower
from coedge.plan.plan import even_plan
from workers.calibration.layer_times import LayerMeasurement
from workers.runtime.kernels import Kernels
from workers.runtime.providers import problem_of
from workers.runtime.spec import WorkerSpec
from workers.runtime.worker import Worker
from workers.transport.transport import InMemoryHub, InMemoryTransport

ARENA = Provider(CPU, (("use_arena", "0"),))
ABSENT = next(name for name in KNOWN if name not in onnxruntime.get_available_providers())


def worker(providers: tuple[Provider, ...]) -> Worker:
    spec = WorkerSpec(0, "device-0", "", False, 1.0, providers=providers)
    return Worker(spec, InMemoryTransport(0, "device-0", InMemoryHub()))


def small() -> coedge.Model:
    net = Net()
    x = net.op("Conv", net.input([1, 3, 12, 12]), net.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(net.op("Conv", x, net.weight(2, 4, 3, 3))))


@pytest.fixture
def made_with(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the providers of every session that is made, and whether it may fall back."""
    seen: list[Any] = []
    real = onnxruntime.InferenceSession

    def recorded(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["providers"], kwargs.get("enable_fallback")))
        return real(*args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    return seen


def test_every_provider_of_this_onnxruntime_is_known() -> None:
    assert set(onnxruntime.get_all_providers()) <= set(KNOWN)


def test_the_cpu_is_added_last() -> None:
    cuda = Provider("CUDAExecutionProvider")
    assert with_fallback([]) == ON_CPU
    assert with_fallback([cuda]) == (cuda, *ON_CPU)
    assert with_fallback([ARENA, cuda]) == (ARENA, cuda)


def test_an_available_provider_has_no_problem() -> None:
    assert problem_of(ON_CPU) == problem_of((ARENA,)) == ""
    assert worker((ARENA,)).facts().provider_problem == ""


def test_a_missing_provider_is_named_with_the_available_ones() -> None:
    problem = worker(with_fallback([Provider(ABSENT)])).facts().provider_problem
    for part in (f"{ABSENT} is not available", onnxruntime.__version__, CPU, "Install a build", "leave it out"):
        assert part in problem


def test_a_provider_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build claims the provider but cannot start it: ONNX Runtime raises or silently uses the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ABSENT, CPU])
    problem = problem_of(with_fallback([Provider(ABSENT)]))
    assert f"{ABSENT} does not start" in problem and "leave it out" in problem


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (RuntimeError("no such library"), "does not start: no such library. Correct its options, or leave it out"),
        (None, "does not start: onnxruntime"),
    ],
    ids=["raises", "falls back"],
)
def test_a_start_that_fails_is_reported_for_either_behaviour_of_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None, words: str
) -> None:
    def start(*_: Any, **__: Any) -> Any:
        if fault is not None:
            raise fault
        return SimpleNamespace(get_providers=lambda: [CPU])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ABSENT, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    problem = problem_of(with_fallback([Provider(ABSENT)]))
    assert problem.startswith(f"{ABSENT} {words}") and "leave it out" in problem


def test_sessions_are_made_without_fallback(made_with: list[Any]) -> None:
    """An unknown provider raises, or the session is made with fallback switched off."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Session(small().reference, 1, providers=(Provider("Nonsense"),))
    assert made_with[-1] == ([("Nonsense", {})], 0)


def test_options_reach_every_session_of_a_device(made_with: list[Any]) -> None:
    model = small()
    made_with.clear()
    device = worker((ARENA,))
    assert made_with == [([(CPU, {"use_arena": "0"})], 0)]
    device.load(1, lower(even_plan(model, 1), model)["device-0"], model.skeleton, model.weights)
    LayerMeasurement(model, 1, 0.3, 0.01, providers=(ARENA,)).close()
    assert len(made_with) > 3
    assert all(made == ([(CPU, {"use_arena": "0"})], 0) for made in made_with)


def test_kernels_with_providers_are_exact() -> None:
    model = small()
    check_split(model, even_plan(model, 3), [image((1, 3, 12, 12))], kernels=Kernels(model, 1, (ARENA,)))


def test_the_fingerprint_of_a_device_depends_on_its_providers() -> None:
    told = {
        worker(providers).facts().fingerprint for providers in (ON_CPU, (ARENA,), with_fallback([Provider(ABSENT)]))
    }
    assert len(told) == 3
    assert worker(ON_CPU).facts().fingerprint in told


@pytest.mark.ray
def test_a_cluster_refuses_a_device_without_its_provider(one_ray: None) -> None:
    devices = [{"name": "plain", "speed": 1.0}, {"name": "odd", "speed": 1.0, "providers": [ABSENT]}]
    with pytest.raises(ClusterError) as caught:
        coedge.connect({"devices": devices, "source": "plain"})
    message = str(caught.value)
    assert message.startswith(f"device odd: {ABSENT} is not available") and CPU in message and "plain" not in message


@pytest.mark.ray
def test_the_devices_command_lists_providers(cli: Any, one_ray: None, tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    devices = [{"name": "a", "speed": 1.0, "providers": [{"name": CPU, "options": {"use_arena": 0}}]}]
    config.write_text(json.dumps({"devices": [*devices, {"name": "b", "speed": 1.0}], "source": "a"}))
    told = json.loads(cli("devices", "--cluster", str(config), "--json").out)
    assert {row["name"]: row["providers"] for row in told} == {"a": ["CPU(use_arena=0)"], "b": ["CPU"]}
    assert np.isfinite([row["gflops"] for row in told]).all()
