"""The notebooks run from top to bottom with small networks, in one kernel and on one Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Source of the cell tagged `parameters`, and text that the notebook must print.
SMALL = {
    "first-cluster": ('network, size = "squeezenet", 64', "largest difference"),
    "energy-against-latency": ('network, size, points, testbeds = "squeezenet", 64, 3, ["device-edge"]', "J predicted"),
    "paper-figures": ('networks, size = ["mobilenet_v1"], 64', "mobilenet_v1  auto"),
    "reading-a-timeline": ('network, size = "squeezenet", 64', "largest difference"),
}
# Runs before each notebook: removes the names of the previous one, keeps Ray, which `connect` then uses, and shortens
# searches.
BEFORE = """%reset -f
from coedge.config.loading import load_config
from orchestrator.control import ray_connection
from orchestrator.search import space
ray_connection.enter(load_config())
space.MULTISTART_STEPS = space.LOCAL_SEARCH_STEPS = 500
del load_config, ray_connection, space"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    manager = pytest.importorskip("jupyter_client").manager.KernelManager()
    pytest.importorskip("nbclient")
    small = {
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "COEDGE_SET": "profile_budget_seconds=1; trial_frames=0",
    }
    manager.start_kernel(cwd=str(FOLDER), env={**os.environ, "PYTHONPATH": str(FOLDER.parent), **small})
    try:
        yield manager
    finally:
        manager.shutdown_kernel()


def test_every_notebook_has_a_small_size() -> None:
    assert sorted(SMALL) == [path.stem for path in NOTEBOOKS]


@pytest.mark.deep
@pytest.mark.ray
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, kernel: Any) -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    parameters, said = SMALL[path.stem]
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source = parameters
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEFORE))
    nbclient.NotebookClient(notebook, km=kernel, timeout=120).execute(reset_kc=True)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert said in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_output(path: Path) -> None:
    """Saved output belongs to one machine and makes changes of a notebook hard to review."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    assert [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
