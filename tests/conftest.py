"""Shared by all tests: the short and the deep suite, second runs, the tally of split against unsplit output, the
command line.

    pytest          the short suite: everything but the tests marked `deep`, random tests with few examples
    pytest --deep   the deep suite: the tests marked `deep`, and random tests with all of their examples
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Result
from hypothesis import HealthCheck, settings
from nets import EFFORT, SUITE, TALLY

# Tests that start processes or measure real time depend on what else the machine does: they may run a second time.
RERUN_MARKERS = ("ray", "root", "processes", "clock")

# The same examples every time. With TEST_EFFORT above 1, new ones every time.
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("coedge", deadline=None, derandomize=EFFORT == 1, database=None, suppress_health_check=_QUIET)
settings.load_profile("coedge")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deep", action="store_true", help="run the deep suite in place of the short one")


def pytest_configure(config: pytest.Config) -> None:
    SUITE.deep = config.getoption("--deep")
    if hasattr(config, "cache"):
        SUITE.captures = config.cache.mkdir("captures")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of one suite, and put modules that start clusters first: they take longest."""
    for item in items:
        if any(item.get_closest_marker(name) for name in RERUN_MARKERS):
            item.add_marker(pytest.mark.flaky(reruns=1))
    chosen = [item for item in items if _in_suite(item, config.getoption("--deep"))]
    # Tests that are named one by one run in whichever suite they are.
    if not any("::" in argument for argument in config.args):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen
    with_clusters = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in with_clusters)


def _in_suite(item: pytest.Item, deep: bool) -> bool:
    marked = item.get_closest_marker("deep") is not None
    random = getattr(getattr(item, "function", None), "is_hypothesis_test", False)
    return marked or random if deep else not marked


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what another process of the same run has counted."""
    TALLY.join(*node.workeroutput.get("tally", (0, 0, 0.0)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = (TALLY.cases, TALLY.identical, TALLY.largest)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.cases:
        terminalreporter.write_line(str(TALLY))


# Steps of the search in the short suite: tests of what holds for any plan need no long search. Random tests of plans
# run again in the deep suite, which searches as long as users do.
SHORT_SEARCH = {"MULTISTART_STEPS": 5_000, "LOCAL_SEARCH_STEPS": 2_000}


@pytest.fixture(scope="session", autouse=True)
def suite_search() -> Iterator[dict[str, int]]:
    """Search briefly in the short suite. Return the steps that users have."""
    from orchestrator.search import space

    usual = {name: getattr(space, name) for name in SHORT_SEARCH}
    with pytest.MonkeyPatch.context() as patch:
        for name, steps in () if SUITE.deep else SHORT_SEARCH.items():
            patch.setattr(space, name, steps)
        yield usual


@pytest.fixture
def full_search(suite_search: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Search as long as users do, for tests of how good plans are."""
    from orchestrator.search import space

    for name, steps in suite_search.items():
        monkeypatch.setattr(space, name, steps)


@pytest.fixture(scope="module")
def brief_search() -> Iterator[None]:
    """Search briefly in both suites, for tests of what holds between plans."""
    from orchestrator.search import space

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "MULTISTART_STEPS", min(10_000, space.MULTISTART_STEPS))
        yield


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Start one Ray for a module: `connect` uses the Ray that its process has joined."""
    from coedge.config.loading import load_config
    from orchestrator.control import ray_connection

    ray_connection.enter(load_config({}))
    yield
    ray_connection.leave()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Result]:
    """Return a function that runs a command in this process and in an empty folder.

    Commands of one process capture equal networks once.
    """
    from pages import capture_once

    from orchestrator.cli.app import run_app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("orchestrator.cli.models.capture", capture_once)

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["coedge", *args])
        capsys.readouterr()
        code = run_app()
        return Result(code, *capsys.readouterr())

    return run
