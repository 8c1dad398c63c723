"""The public interface: the names in `coedge`, and the libraries that importing them loads."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import coedge
import orchestrator
import workers

ERRORS = [
    "CoEdgeError", "CaptureError", "InputError", "ConfigError", "PlanError", "InfeasibleError", "ClusterError",
    "DeviceLost", "DynamicShape", "StepFailed", "FrameTimeout", "Cancelled",
]  # fmt: skip
NAMES = [
    "capture", "with_normalisation", "Mixture", "Model", "zoo",
    "ClusterConfig", "DeviceConfig", "LinkConfig", "PowerConfig", "load_config",
    "Objective", "Profile", "Plan", "Stage", "UnitRect", "even_plan", "make_mixture", "make_plan",
    "Program", "load_testbed", "lower", "simulate", "Timeline", "profile_of", "run_in_process",
    "Cluster", "Job", "connect",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert sorted(coedge.__all__) == sorted(NAMES + ERRORS)
    assert len(set(coedge.__all__)) == len(coedge.__all__)


@pytest.mark.parametrize("name", NAMES + ERRORS)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(coedge, name)
    assert inspect.getdoc(value)
    assert name in dir(coedge)


def test_errors_have_one_root() -> None:
    for name in ERRORS:
        assert issubclass(getattr(coedge, name), coedge.CoEdgeError)


def test_an_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="module 'coedge' has no attribute 'captur'"):
        coedge.captur  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING and the names that load lazily are the same."""
    text = Path(inspect.getfile(coedge)).read_text(encoding="utf-8")
    block = text.split("if TYPE_CHECKING:")[1].split("_HOMES")[0]
    scope: dict[str, object] = {}
    exec(inspect.cleandoc(block), scope)
    scope.pop("__builtins__")
    assert sorted([*scope, "zoo"]) == sorted(coedge.__all__)
    for name, value in scope.items():
        assert getattr(coedge, name) is value


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import coedge", ["torch", "cvxpy", "ray", "onnxruntime", "zmq", "onnx", "numpy", "pydantic", "rich"]),
        ("import orchestrator.cli", ["torch", "cvxpy", "ray", "onnxruntime", "zmq"]),
        ("import orchestrator.cli.app", ["torch", "cvxpy", "ray", "onnxruntime", "zmq"]),
        ("import coedge; coedge.load_config", ["torch", "cvxpy", "ray", "onnxruntime", "zmq"]),
        ("import coedge; coedge.make_plan", ["torch", "ray", "zmq", "cvxpy"]),
        ("import coedge; coedge.zoo.NAMES", ["torch"]),
        ("import workers.runtime.worker", ["torch", "cvxpy", "orchestrator", "ray"]),
        ("import workers.transport.zmq_transport", ["torch", "cvxpy", "orchestrator", "ray"]),
        ("import workers.actor", ["torch", "cvxpy", "orchestrator"]),
        ("import orchestrator.cluster.cluster", ["torch", "cvxpy"]),
    ],
)
def test_heavy_libraries_load_when_first_needed(statement: str, unwanted: list[str]) -> None:
    loaded = modules_after(statement)
    assert loaded & {"coedge", "orchestrator", "workers"}
    assert not loaded & set(unwanted)


def test_no_submodule_hides_a_public_name() -> None:
    """After all modules were imported, `coedge.capture` is still the function."""
    for package in (coedge, orchestrator, workers):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    for name in coedge.__all__:
        assert isinstance(getattr(coedge, name), ModuleType) == (name == "zoo"), name
    assert all(inspect.isfunction(value) for value in (coedge.capture, coedge.simulate, coedge.lower, coedge.connect))
    submodules = {found.name for found in pkgutil.iter_modules(coedge.__path__)}
    assert submodules & set(coedge.__all__) == {"zoo"}


@pytest.mark.parametrize("package", [coedge, orchestrator, workers])
def test_packages_are_typed(package: ModuleType) -> None:
    assert (Path(package.__path__[0]) / "py.typed").is_file()
