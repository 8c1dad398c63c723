"""Structure of the code: imports run one way, files are short, and no file names a folder of one machine."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("coedge", "orchestrator", "workers")
# A file is read in one sitting.
MOST_LINES = 450


class Import(NamedTuple):
    file: str
    line: int
    module: str
    at_import: bool  # whether it is imported when the module loads, not in a function or for type checkers only

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def sources(*packages: str) -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert found
    return found


def imports(path: Path) -> Iterator[Import]:
    name = path.relative_to(ROOT).as_posix()

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(name, child.lineno, alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                folders = list(path.relative_to(ROOT).parts[: -child.level]) if child.level else []
                module = ".".join([*folders, *([child.module] if child.module else [])])
                # `from package import name`: the name may be a module of its own.
                yield Import(name, child.lineno, module, at_import)
                yield from (Import(name, child.lineno, f"{module}.{alias.name}", at_import) for alias in child.names)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from walk(child, False)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), False)
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), at_import)
            else:
                yield from walk(child, at_import)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


@functools.cache
def all_imports(*packages: str) -> list[Import]:
    return [found for path in sources(*packages) for found in imports(path)]


def is_of(found: Import, *modules: str) -> bool:
    return any(found.module == module or found.module.startswith(f"{module}.") for module in modules)


# Subpackages in import order: each imports from itself and from those before it.
IMPORT_ORDER = (
    "coedge.core", "coedge.config", "coedge.execution", "coedge.graph", "coedge.frontend", "coedge.zoo",
    "coedge.profile", "coedge.plan", "coedge.simulation",
    "workers.transport", "workers.emulation", "workers.runtime", "workers.calibration", "workers.actor",
    "orchestrator.control", "orchestrator.profiling", "orchestrator.evaluation", "orchestrator.schemes",
    "orchestrator.search", "orchestrator.planner", "orchestrator.adaptation", "orchestrator.runtime",
    "orchestrator.cluster", "orchestrator.doctor", "orchestrator.bench", "orchestrator.lab", "orchestrator.cli",
)  # fmt: skip
# The public names, which load lazily, and `python -m coedge`. They may import everything.
FACADE = ("coedge/__init__.py", "coedge/__main__.py")


def subpackage_of(module: str) -> str | None:
    """Return the subpackage of a module. None: the `__init__` of a package, or another library."""
    return next((name for name in IMPORT_ORDER if module == name or module.startswith(f"{name}.")), None)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_module_is_in_the_import_order() -> None:
    """A new subpackage must be added to `IMPORT_ORDER`, so that the next test checks it."""
    outside = [module_of(path) for path in sources(*PACKAGES) if subpackage_of(module_of(path)) is None]
    assert set(outside) == {"coedge", "coedge.__main__", "orchestrator", "workers"}


def test_imports_run_one_way() -> None:
    """Check imports in functions and for type checkers, too."""
    checked, wrong = set(), []
    for one in all_imports(*PACKAGES):
        importer, imported = subpackage_of(module_of(ROOT / one.file)), subpackage_of(one.module)
        if one.file in FACADE or imported is None:
            continue
        checked.add((importer, imported))
        if importer is None or IMPORT_ORDER.index(imported) > IMPORT_ORDER.index(importer):
            wrong.append(str(one))
    assert wrong == []
    assert len(checked) > 50


def test_the_documentation_shows_the_import_order() -> None:
    page = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    assert [name for name in IMPORT_ORDER if name.partition(".")[2] not in page] == []


def test_no_module_imports_the_facade() -> None:
    found = [one for one in all_imports(*PACKAGES) if one.file not in FACADE]
    # `from coedge import zoo` imports a subpackage.
    subpackages = {(one.file, one.line) for one in found if is_of(one, "coedge.zoo")}
    assert [str(one) for one in found if one.module == "coedge" and (one.file, one.line) not in subpackages] == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    edges: dict[str, set[str]] = {}
    names = {module_of(path) for path in sources(*PACKAGES)}
    for one in all_imports(*PACKAGES):
        importer = module_of(ROOT / one.file)
        if one.module in names and one.file not in FACADE and one.module != importer:
            edges.setdefault(importer, set()).add(one.module)
    # The `__init__` of a package collects the names of its modules.
    order = TopologicalSorter({m: {x for x in out if not x.startswith(f"{m}.")} for m, out in edges.items()})
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("library", ["torch", "cvxpy", "typer", "matplotlib"])
def test_heavy_libraries_are_imported_in_functions(library: str) -> None:
    loaded_late = ("coedge/zoo/", "orchestrator/cli/")  # a zoo module is loaded when its network is built
    found = [i for i in all_imports(*PACKAGES) if is_of(i, library)]
    assert found
    assert [str(i) for i in found if i.at_import and not i.file.startswith(loaded_late)] == []


def test_workers_are_light() -> None:
    wrong = [found for found in all_imports("workers") if is_of(found, "torch", "cvxpy", "matplotlib", "typer", "rich")]
    assert [str(found) for found in wrong] == []


def test_the_orchestrator_needs_no_torch() -> None:
    """The commands that load a user's module are the exception."""
    wrong = {found.file for found in all_imports("orchestrator") if is_of(found, "torch")}
    assert {file for file in wrong if not file.startswith("orchestrator/cli/")} == set()


# Values and functions of values: no Ray, sockets, clocks or threads.
PURE_IMPORT_ORDER = (
    "coedge/core", "coedge/execution", "coedge/graph", "coedge/profile", "coedge/plan", "coedge/simulation",
    "orchestrator/evaluation", "orchestrator/schemes", "orchestrator/search", "orchestrator/planner",
    "orchestrator/adaptation",
)  # fmt: skip


def test_pure_code_imports_neither_ray_nor_sockets() -> None:
    """Follow imports within these packages to any depth."""
    by_file: dict[str, list[Import]] = {}
    for found in all_imports(*PACKAGES):
        by_file.setdefault(found.file, []).append(found)
    pure = {path.relative_to(ROOT).as_posix() for path in sources(*PURE_IMPORT_ORDER)} | {
        "workers/transport/message.py"
    }
    queue, seen = sorted(pure), set(pure)
    while queue:
        for found in by_file.get(queue.pop(), []):
            assert not is_of(found, "ray", "zmq", "socket"), str(found)
            path = found.module.replace(".", "/")
            for file in (f"{path}.py", f"{path}/__init__.py"):
                if file in by_file and file not in seen and found.at_import:
                    seen.add(file)
                    queue.append(file)
    assert len(seen) > len(pure)


def test_ray_and_sockets_stay_in_their_rooms() -> None:
    """Ray: the orchestrator, and the one actor. ZeroMQ: one transport and its authenticator."""
    ray = {found.file for found in all_imports(*PACKAGES) if is_of(found, "ray")}
    assert {file for file in ray if not file.startswith("orchestrator/")} == {"workers/actor.py"}
    zmq = {found.file for found in all_imports(*PACKAGES) if is_of(found, "zmq")}
    assert zmq == {"workers/transport/authenticator.py", "workers/transport/zmq_transport.py"}


def test_no_two_classes_share_a_name() -> None:
    """Ignore leading underscores."""
    homes: dict[str, list[str]] = {}
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(f"{module_of(path)}:{node.lineno}")
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short(package: str) -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources(package)
    }
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_every_module_has_a_docstring() -> None:
    silent = [p.name for p in sources(*PACKAGES) if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert silent == []


# Folders of one machine. Example users may have homes.
OF_A_MACHINE = re.compile(r"(?<![\w.:/~}])/(?:work|root|tmp|home/(?!(?:ada|pi|you)/)[\w.-]+|Users)/")
_SKIPPED = {".git", ".venv", "build", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"}


def tracked() -> list[Path]:
    """Return the files of the repository; without git, all files in its folder."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        names = [ROOT / name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [
            path
            for path in ROOT.rglob("*")
            if not any(part in _SKIPPED or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)
        ]
    return [path for path in names if path.is_file()]


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), 1):
            if OF_A_MACHINE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_the_pattern_finds_folders_of_one_machine() -> None:
    for folder in ("work", "root", "tmp", "Users", "home/someone"):
        assert OF_A_MACHINE.search(f'path = "/{folder}/x"')
    assert not OF_A_MACHINE.search("https://example.org/work/x and src/tmp/x")
    assert len(tracked()) > 50
