"""Shared by all tests: Hypothesis settings, the tally of split against unsplit output, the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Result
from hypothesis import HealthCheck, settings
from nets import EFFORT, TALLY

# The same examples every time, unless more are asked for (see EFFORT): then new ones are looked for.
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("coedge", deadline=None, derandomize=EFFORT == 1, database=None, suppress_health_check=_QUIET)
settings.load_profile("coedge")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Where tests run in several processes: what one of them has counted."""
    TALLY.join(*node.workeroutput.get("tally", (0, 0, 0.0)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = (TALLY.cases, TALLY.identical, TALLY.largest)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.cases:
        terminalreporter.write_line(str(TALLY))


@pytest.fixture(scope="module")
def brief_search() -> Iterator[None]:
    """For tests of what holds between plans, however long they were looked for."""
    from orchestrator.search import space

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "MULTISTART_STEPS", 10_000)
        yield


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Result]:
    """Runs a command in this process and in an empty folder; an exception that comes through fails the test."""
    from orchestrator.cli.app import run_app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["coedge", *args])
        capsys.readouterr()
        code = run_app()
        return Result(code, *capsys.readouterr())

    return run
