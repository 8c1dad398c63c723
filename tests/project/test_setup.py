"""Installation: the lock covers every dependency, a worker needs few of them, and every supported Python sets up."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from waiting import until

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Libraries of the centre, which a worker must run without. (rich is not among them: blosc2 may require it.)
HEAVY = {"torch", "onnxscript", "cvxpy", "clarabel", "scipy", "matplotlib", "pillow", "typer"}
MODULES = {"pillow": "PIL"}
# On some platforms the only build of torch for a Python needs gigabytes of CUDA. These two packages are left out where
# another Python is tested.
EXPORTER = {"torch", "onnxscript"}
# Test files that need no exporter.
WITHOUT_EXPORTER = (
    "test_architecture.py", "test_beam_search.py", "test_calibration_run.py", "test_clock_offset.py",
    "test_contention.py", "test_dispatcher.py", "test_emulation.py", "test_energy_meter.py",
    "test_frame_assignment.py", "test_gantt.py", "test_measure.py", "test_profile.py", "test_rounding.py",
    "test_stage_fit.py", "test_timeline.py", "test_transport.py",
)  # fmt: skip
OTHER_PYTHONS = [version for version in ("3.11", "3.12", "3.13") if version != "{}.{}".format(*sys.version_info)]


def locked() -> dict[str, str]:
    """Return the locked version of every package, by its canonical name."""
    lines = [line.split(";")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return the direct requirements of the package with `extras`, by canonical name."""
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}


def test_the_lock_has_every_dependency_within_its_range() -> None:
    versions = locked()
    wanted = requirements("full", "dev")
    assert [name for name in wanted if name not in versions] == [], "run `make lock UPGRADE=`"
    outside = [f"{name} {versions[name]}" for name, one in wanted.items() if versions[name] not in one.specifier]
    assert outside == []


def test_the_lock_has_versions_only() -> None:
    """Hashes and local versions differ between package indexes."""
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    pinned = re.compile(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*( ; .+)?")
    assert len(lines) > 100
    assert [line for line in lines if not pinned.fullmatch(line)] == []


def test_a_worker_declares_no_library_of_the_centre() -> None:
    assert HEAVY & requirements().keys() == set()
    assert requirements("full").keys() >= HEAVY


def test_every_dependency_is_explained() -> None:
    page = (ROOT / "docs/reference/dependencies.md").read_text(encoding="utf-8")
    explained = {
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w.-]+)`", line)
    }
    assert requirements("full", "dev").keys() - explained == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


# ---------------------------------------------------------------- environments made from the lock


# Without a token for Ray: both nodes are on this host, and the head listens for the time of one test.
RAY_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what earlier tests or another interpreter's packages left in it.

    `ray.init` writes settings of its cluster into the environment of the process.
    """
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if key not in left_out and not key.startswith("RAY_")}
    return kept | RAY_ENVIRONMENT


def run(*command: str | Path, timeout_seconds: float, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        cwd=cwd,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def set_up(python: str | Path, folder: Path, packages: Sequence[str] = ()) -> Path:
    """Install the package without extras, and `packages`, from the lock into a new environment.

    Returns:
        The environment's interpreter.
    """
    source = folder / "source"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in ("coedge", "orchestrator", "workers"):
        shutil.copytree(ROOT / package, source / package, ignore=skipped)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    run(python, "-m", "venv", folder / "venv", timeout_seconds=120, cwd=folder)
    interpreter = folder / "venv/bin/python"
    install = (interpreter, "-m", "pip", "install", "--disable-pip-version-check", "--constraint", LOCK)
    run(*install, "setuptools", timeout_seconds=300, cwd=folder)
    run(*install, "--no-build-isolation", source, *packages, timeout_seconds=900, cwd=folder)
    return interpreter


@pytest.fixture(scope="module")
def worker_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with what a worker installs, and nothing else."""
    return set_up(sys.executable, tmp_path_factory.mktemp("worker-only"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ray_node(python: str | Path, *options: str, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a Ray node that runs until the process is told to end."""
    ports = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
    command = [str(python), "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *ports, *options]
    with (cwd / f"ray-{options[0].split('=')[0].strip('-')}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"],
            cwd=cwd,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@pytest.fixture
def two_nodes(worker_python: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a Ray head in this environment, with a node in the worker-only environment."""
    port = free_port()
    # Ray keeps sockets in its folder, and the path of a socket has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        options = (f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        started = [ray_node(sys.executable, "--head", *options, cwd=tmp_path)]
        try:
            until(lambda: is_listening(port), "a Ray head listens", 90)
            started.append(ray_node(worker_python, f"--address=127.0.0.1:{port}", cwd=tmp_path))
            yield f"127.0.0.1:{port}"
        finally:
            for process in reversed(started):
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(30)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Runs in a folder of its own: Ray adds the folders of the script and of the process to the module path of workers,
# and the worker-only node must import the package that was installed into its environment.
DRIVER = """
import json
import sys
import time

import numpy as np
import ray

sys.path.append(sys.argv[1])
import coedge

address, model_file, out_file, heavy = sys.argv[2:5] + [json.loads(sys.argv[5])]
ray.init(address=address, namespace="coedge", log_to_driver=False)
here = ray.get_runtime_context().get_node_id()
deadline = time.monotonic() + 90
while not (others := [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here]):
    assert time.monotonic() < deadline, "the worker-only node did not join"
    time.sleep(0.2)


@ray.remote(num_cpus=0)
def environment():
    import importlib.util

    import workers.actor

    return sys.executable, workers.actor.__file__, [name for name in heavy if importlib.util.find_spec(name)]


on_worker = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(others[0], soft=False)
facts = ray.get(environment.options(scheduling_strategy=on_worker).remote())
devices = [{"name": "centre", "node": here}, {"name": "board", "node": others[0]}]
config = {"devices": devices, "source": "centre", "profile_budget_seconds": 1, "connect_timeout_seconds": 120}
model = coedge.capture(model_file)
x = np.random.default_rng(0).standard_normal(model.inputs[0].shape).astype(np.float32)
with coedge.connect(config) as cluster:
    plans = {
        "on the worker": coedge.even_plan(model, ["board"]),
        "split": coedge.even_plan(model, ["centre", "board"]),
    }
    outputs = {name: cluster.submit(model, x, plan=plan).result(timeout=60) for name, plan in plans.items()}
np.savez(out_file, x=x, **outputs)
print(json.dumps(facts))
ray.shutdown()
"""


def small_network(path: Path) -> None:
    """Write two convolutions with ReLUs between them to an ONNX file."""
    random = np.random.default_rng(1)
    weights = [random.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 3, 3), (4, 8, 3, 3))]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["y"], pads=[1, 1, 1, 1]),
    ]
    values = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, 32, 32])]
        for name, channels in (("x", 3), ("y", 4))
    )
    graph = helper.make_graph(nodes, "small", inputs, outputs, values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.mark.deep
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_worker_only_installation_runs_frames(two_nodes: str, worker_python: Path, tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    driver, network, out = (tmp_path / "driver" / name for name in ("driver.py", "small.onnx", "out.npz"))
    driver.write_text(DRIVER, encoding="utf-8")
    small_network(network)
    arguments = (ROOT, two_nodes, network, out, json.dumps(sorted(MODULES.get(name, name) for name in HEAVY)))
    printed = run(sys.executable, driver, *arguments, timeout_seconds=400, cwd=tmp_path / "driver")
    executable, actor_file, heavy = json.loads(printed.splitlines()[-1])
    environment = worker_python.parent.parent
    assert Path(executable).is_relative_to(environment) and Path(actor_file).is_relative_to(environment)
    assert heavy == []
    kept = np.load(out)
    (unsplit,) = onnxruntime.InferenceSession(network).run(None, {"x": kept["x"]})
    for name in ("on the worker", "split"):
        np.testing.assert_allclose(kept[name], unsplit, rtol=1e-5, atol=1e-5 * np.abs(unsplit).max())


# ---------------------------------------------------------------- other Pythons


def interpreter_of(version: str) -> str | None:
    """Return an interpreter of `version`, such as "3.12", or None if this machine has none."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [f"python{version}", *map(str, sorted(root.glob(f"versions/{version}.*/bin/python3"), reverse=True))]
    script = "import sys, venv; print('{}.{}'.format(*sys.version_info))"
    for candidate in candidates:
        if shutil.which(candidate) is None:
            continue
        done = subprocess.run([candidate, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


@pytest.mark.deep
@pytest.mark.processes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_another_python_sets_up_and_passes(version: str, tmp_path: Path) -> None:
    """All dependencies but the exporter are installed from the lock, and the tests that need no exporter pass."""
    python = interpreter_of(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}")
    packages = [str(one) for name, one in requirements("full", "dev").items() if name not in EXPORTER]
    interpreter = set_up(python, tmp_path, packages)
    run(interpreter, "-m", "pip", "check", timeout_seconds=120, cwd=tmp_path)
    imports = "import coedge, orchestrator.cli.app, workers.actor; coedge.make_plan; coedge.connect"
    run(interpreter, "-c", imports, timeout_seconds=120, cwd=tmp_path)
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path.name in WITHOUT_EXPORTER]
    assert len(files) == len(WITHOUT_EXPORTER)
    options = ("-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml")
    passed = run(interpreter, "-m", "pytest", *options, *files, timeout_seconds=1200, cwd=ROOT)
    assert re.search(r"\d+ passed", passed)
    run(interpreter, "-m", "mypy", "--cache-dir", tmp_path / "mypy", timeout_seconds=600, cwd=ROOT)
