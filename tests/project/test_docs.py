"""The documentation builds without warnings, describes every public name, option and key, and its code blocks run."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from command_line import Result
from pages import LANGUAGES, ROOT, Page, blocks, commands, small_network

import coedge
import coedge.core.errors
import coedge.profile.testbed
from coedge.config.cluster_config import ClusterConfig
from coedge.config.key_reference import describe_keys
from orchestrator.cli.models import photograph

DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if blocks(page)]
# Number of blocks on each page that only a person can run: they need boards, root or an installation.
BY_HAND_BLOCKS = {
    "how-to/doctor.md": 1,
    "how-to/energy-meters.md": 1,
    "how-to/lab.md": 2,
    "how-to/plan-without-devices.md": 1,
    "how-to/ports.md": 3,
    "tutorial/boards.md": 3,
    "tutorial/laptop.md": 1,
}


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


# ---------------------------------------------------------------- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the documentation as HTML, with warnings as errors, and return the folder."""
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        str(out / "trees"),
        str(DOCS),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return out


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


@pytest.mark.deep
def test_every_page_is_built(site: Path) -> None:
    pages = [page for page in DOCS.rglob("*.md") if "_build" not in page.parts]
    assert [page.name for page in pages if not (site / page.relative_to(DOCS)).with_suffix(".html").is_file()] == []


@pytest.mark.deep
def test_every_public_name_is_described(site: Path) -> None:
    page = (site / "reference/api.html").read_text(encoding="utf-8")
    names = [name for name in coedge.__all__ if name != "zoo"]
    assert [name for name in names if f'id="coedge.{name}"' not in page] == []
    assert 'id="coedge.zoo.build"' in page


def the_commands() -> Any:
    from orchestrator.cli.app import app

    return typer.main.get_command(app)


@pytest.mark.deep
def test_every_command_and_option_is_listed(site: Path) -> None:
    text = text_of(site / "reference/command-line.html")

    def look(command: Any, path: str) -> None:
        assert path in text
        options = [option for parameter in command.params for option in parameter.opts]
        assert [option for option in options if option.upper() not in text.upper()] == []
        for name, inner in getattr(command, "commands", {}).items():
            look(inner, f"{path} {name}")

    for name, command in the_commands().commands.items():
        look(command, f"coedge {name}")


@pytest.mark.deep
@pytest.mark.parametrize("kind", [ClusterConfig, coedge.profile.testbed.Testbed])
def test_every_key_is_listed(site: Path, kind: type) -> None:
    text = text_of(site / "reference/configuration.html")
    assert [row["key"] for row in describe_keys(kind) if row["key"] not in text] == []


def test_every_error_says_what_to_do() -> None:
    page = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
    kinds = [
        name for name, kind in vars(coedge.core.errors).items() if isinstance(kind, type) and name != "CoEdgeError"
    ]
    assert [name for name in kinds if f"\n| `{name}` |" not in page] == []


# ---------------------------------------------------------------- results from saved samples


@pytest.fixture
def saved_results(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    return importlib.import_module("saved_results")


def test_figures_become_tables_and_pictures(saved_results: types.ModuleType, tmp_path: Path) -> None:
    point = {
        "figure": "10", "scale": 8.0, "series": "coedge", "x": "alexnet", "paper": {"ms": 64.6, "joules": 0.541},
        "predicted": {"ms": 89.3, "joules": 0.495}, "measured": {"ms": None, "joules": None},
    }  # fmt: skip
    kept = {"cluster": "paper.yaml", "frames": 0, "points": [point]}
    (tmp_path / "paper.json").write_text(json.dumps(kept), encoding="utf-8")
    (tmp_path / "paper-10.svg").touch()
    text = saved_results.paper_text(tmp_path / "paper.json")
    assert "| coedge | alexnet | 64.6 | 89.3 |  | 0.541 | 0.495 |  |" in text
    assert "**Figure 10 and 11**, links of 8 MB/s" in text
    assert text.endswith("![paper-10](paper-10.svg)")


def test_a_comparison_becomes_tables_and_pictures(saved_results: types.ModuleType, tmp_path: Path) -> None:
    kept = pytest.importorskip("orchestrator.bench.comparison")
    cases = [
        kept.Case(model="net", scheme="local", devices=("pi",), predicted_seconds=0.2, bound_seconds=0.05),
        kept.Case(model="net", scheme="auto", devices=("pi", "pc"), predicted_seconds=0.1, bound_seconds=0.05),
        kept.Case(model="net", scheme="coedge", problem="infeasible: too late"),
    ]
    samples = [
        kept.Sample("net", scheme, frame, seconds, 0.5, 0.0, {"pi>pc": 2000})
        for scheme, seconds in (("local", 0.3), ("auto", 0.1))
        for frame in range(3)
    ]
    comparison = kept.Comparison(
        cluster="mine.yaml", config={}, environment={"cores": 2}, begun="today", frames=3, size=64, cases=tuple(cases)
    )
    folder = tmp_path / "mine"
    folder.mkdir()
    kept.save(comparison, samples, folder)
    (folder / "latency.svg").touch()
    text = saved_results.comparison_text(folder, "mine")
    assert "| `local` | pi | 300.0 | 300.0 | 200.0 | 0.500 |  | 2.0 | 6.00 | 3.00 |" in text
    assert "* `coedge`: infeasible: too late" in text
    assert "| `local` | 1 | 3.00 | 1.00 | 3.00 | net |" in text
    assert text.endswith("![latency](mine/latency.svg)")


# ---------------------------------------------------------------- what the pages show


def test_blocks_are_in_a_known_language() -> None:
    found = {(name_of(page), block.line, block.language) for page in PAGES for block in blocks(page)}
    assert [place for place in found if place[2] not in LANGUAGES] == []


def test_the_number_of_blocks_that_do_not_run_is_known() -> None:
    counted = Counter(name_of(page) for page in PAGES for block in blocks(page) if block.by_hand)
    assert counted == BY_HAND_BLOCKS


def test_commands_to_be_typed_by_hand_exist_with_their_options() -> None:
    """Only the `coedge` commands among them are checked."""
    by_hand = [block for page in PAGES for block in blocks(page) if block.by_hand and block.language == "sh"]
    lines = [[word for word in words if word != "sudo"] for block in by_hand for words in commands(block)]
    typed = [words[1:] for words in lines if words[0] == "coedge"]
    assert typed
    for words in typed:
        command = the_commands()
        while hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        own = words[: words.index("--")] if "--" in words else words
        assert [word for word in own if word.startswith("-") and word not in known] == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def rules_as_they_were() -> Iterator[None]:
    from coedge.graph.rules.rule import FUNCTIONS

    before = dict(FUNCTIONS)
    yield
    FUNCTIONS.clear()
    FUNCTIONS.update(before)


@pytest.fixture
def small_and_quick(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small networks, and shorten measuring and searching."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("COEDGE_SET", "profile_budget_seconds=0.5; trial_frames=0")
    monkeypatch.setattr("orchestrator.profiling.planning_times.BUDGET_SECONDS", 0.5)
    monkeypatch.setattr("coedge.zoo.build", small_network)
    for effort in ("MULTISTART_STEPS", "LOCAL_SEARCH_STEPS"):
        monkeypatch.setattr(f"orchestrator.search.space.{effort}", 500)


@pytest.mark.ray
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_runs(
    page: Path,
    cli: Callable[..., Result],
    one_ray: None,
    small_and_quick: None,
    rules_as_they_were: None,
    tmp_path: Path,
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copy(photograph(), tmp_path / "photo.jpg")
    running = Page(page, cli)
    for block in blocks(page):
        running.run(block)
