"""The questions to one machine: what it tells, and connections between two listeners on it."""

from __future__ import annotations

import ast
import inspect
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coedge.core.version import VERSION
from orchestrator.doctor import examiner, node_probe, tcp_probe
from orchestrator.doctor.answers import TimeLeft, ask_here
from orchestrator.doctor.examiner import Examiner
from orchestrator.doctor.facts import NodeFacts
from orchestrator.doctor.node_answers import node_facts
from orchestrator.profiling.speed_cache import load_speed, store_speed

# Upper bound on what happens at once, on a busy machine.
GRACE_SECONDS = 10.0


@pytest.fixture
def probe() -> Iterator[Examiner]:
    made = Examiner()
    yield made
    made.close()


@pytest.mark.parametrize("module", [node_probe, tcp_probe])
def test_the_questions_need_no_other_module_of_this_project(module: object) -> None:
    """They are sent by value to nodes where coedge is missing."""
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    outer = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in outer if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in outer if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert set(vars(examiner.Examiner)) >= {"__doc__"}


def test_this_machine_tells_everything(probe: Examiner, tmp_path: Path) -> None:
    answers = ask_here(
        {
            "versions": probe.versions,
            "memory": probe.memory,
            "processor": probe.processor,
            "interface": lambda: probe.interface("127.0.0.1"),
            "folder": lambda: probe.folder("cache", str(tmp_path / "not" / "made")),
        },
        60.0,
    )
    node = node_facts(NodeFacts("here", "127.0.0.1", here=True), answers)
    assert node.problems == {}
    assert node.versions is not None and node.versions["coedge"] == VERSION and node.versions["onnxruntime"]
    assert node.memory is not None and 0 < node.memory.available_nbytes < node.memory.total_nbytes
    assert node.processor is not None and node.processor.cores >= 1
    assert node.interface is not None and node.interface.mtu > 1000
    assert node.folders[0].problem == "" and 0 < node.folders[0].free_nbytes <= node.folders[0].total_nbytes


def test_an_address_of_no_interface_is_a_problem(probe: Examiner) -> None:
    answers = ask_here({"interface": lambda: probe.interface("203.0.113.7")}, 60.0)
    node = node_facts(NodeFacts("here", "203.0.113.7"), answers)
    assert node.problems == {"mtu": "no interface has the address 203.0.113.7"}


def test_a_processor_that_is_throttled(probe: Examiner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for core, governor in enumerate(("ondemand", "ondemand")):
        clock, heat = tmp_path / f"cpu{core}/cpufreq", tmp_path / f"cpu{core}/thermal_throttle"
        for folder in (clock, heat):
            folder.mkdir(parents=True)
        for name, text in (
            ("scaling_governor", governor), ("scaling_driver", "cpufreq-dt"), ("cpuinfo_max_freq", "1500000"),
            ("scaling_max_freq", "600000"),
        ):  # fmt: skip
            (clock / name).write_text(f"{text}\n")
        (heat / "core_throttle_count").write_text(f"{core + 3}\n")
    tool = tmp_path / "vcgencmd"
    tool.write_text("#!/bin/sh\necho throttled=0x50005\n")
    tool.chmod(0o755)
    monkeypatch.setattr(node_probe, "CPUS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = probe.processor()
    assert found["governors"] == ("ondemand",) and found["driver"] == "cpufreq-dt"
    assert (found["most_mhz"], found["allowed_mhz"]) == (1500.0, 600.0)
    assert (found["throttles"], found["board_flags"]) == (4, 0x50005)


def test_a_connection_and_its_rate(probe: Examiner) -> None:
    port = probe.listen("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    found = probe.reach({"open": ("127.0.0.1", port), "closed": ("127.0.0.1", closed)}, GRACE_SECONDS)
    assert found["open"][0] == "" and found["open"][1] < GRACE_SECONDS
    assert found["closed"][0] == "Connection refused"
    assert probe.rate(("127.0.0.1", port), 0.2) > 1e6
    probe.close()
    assert probe.reach({"open": ("127.0.0.1", port)}, GRACE_SECONDS)["open"][0] != ""


def test_a_transfer_of_which_nothing_arrives_ends_in_time(probe: Examiner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="counted no bytes"):
            probe.rate(mute.getsockname()[:2], 0.2)
        assert time.monotonic() - start < 1.2 + GRACE_SECONDS


def test_an_address_of_another_machine_cannot_be_listened_on(probe: Examiner) -> None:
    with pytest.raises(OSError, match="assign"):
        probe.listen("203.0.113.7")


def test_one_question_without_an_answer_leaves_the_others(probe: Examiner) -> None:
    def fail() -> None:
        raise PermissionError("denied\nand more")

    start = time.monotonic()
    answers = ask_here({"a": lambda: 1, "late": lambda: time.sleep(60), "bad": fail}, 0.5)
    assert time.monotonic() - start < 0.5 + GRACE_SECONDS
    assert answers.values == {"a": 1}
    assert answers.problems == {"late": "no answer within 0.5 s", "bad": "PermissionError: denied"}


def test_the_time_of_an_examination_ends() -> None:
    left = TimeLeft(0.0)
    assert left.at_most(5.0) == 0.0
    answers = ask_here({"late": lambda: time.sleep(60)}, left.at_most(5.0))
    assert answers.problems == {"late": "the time of the examination is over"}


def test_the_best_speed_is_known(tmp_path: Path) -> None:
    assert load_speed(tmp_path, "pi|4") is None
    for gflops in (10.0, 8.0):
        store_speed(tmp_path, "pi|4", gflops)
        assert load_speed(tmp_path, "pi|4") == 10.0
    assert load_speed(tmp_path, "pi|1") is None
