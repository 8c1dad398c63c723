"""`coedge doctor` on this machine, on a cluster of two nodes, and where half of it is broken."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Result

from coedge.core.version import VERSION
from orchestrator.doctor.examination import TOTAL_SECONDS

ROOT = Path(__file__).resolve().parents[2]
# Starting Python, on a busy machine.
GRACE_SECONDS = 30.0


def at(findings: list[dict[str, str]], check: str, where: str = "") -> list[dict[str, str]]:
    return [one for one in findings if (one["check"], one["where"]) == (check, where)]


def test_this_machine(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = cli("doctor", "--json")
    found = json.loads(result.out)
    (node,) = found["facts"]["nodes"]
    checks = {one["check"] for one in found["findings"]}
    assert checks >= {"versions", "memory", "disk", "cpu", "load", "speed", "mtu"}
    assert checks.isdisjoint({"head", "join", "ports", "links"})
    assert node["speed"]["gflops"] > 0.01 and node["speed"]["known_gflops"] is None
    assert result.code == int(any(one["level"] == "red" for one in found["findings"]))
    again = cli("doctor")
    assert "of the best that was measured before" in " ".join(again.out.split()) and "Traceback" not in again.err
    assert again.out.strip().splitlines()[-1].endswith("ok")


def test_an_address_where_nothing_listens(cli: Callable[..., Result], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "c.yaml").write_text(f"ray: {{address: '127.0.0.1:{port}'}}\ncache_dir: {tmp_path}\n")
    result = cli("doctor", "--cluster", "c.yaml", "--json")
    assert result.code == 1
    findings = json.loads(result.out)["findings"]
    (head,) = at(findings, "head")
    assert head["level"] == "red" and f"no Ray cluster answers at 127.0.0.1:{port}" in head["text"]
    assert head["mend"].startswith(f"ray start --head --port={port}")
    assert {one["check"] for one in findings} >= {"versions", "memory", "speed"}, "the machine is examined all the same"


def test_a_wrong_configuration_does_not_stop_the_examination(cli: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"rey: {{address: auto}}\ncache_dir: {tmp_path}\n")
    result = cli("doctor", "--cluster", "c.yaml", "--json")
    assert result.code == 1
    findings = json.loads(result.out)["findings"]
    (wrong,) = at(findings, "configuration")
    assert wrong["level"] == "red" and "rey" in wrong["text"] and wrong["mend"] == "correct c.yaml"
    assert {one["check"] for one in findings} >= {"versions", "memory"}


def test_a_configuration_that_starts_ray_is_no_cluster_yet(cli: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"devices: [{{name: a, speed: 0.5}}]\ncache_dir: {tmp_path}\n")
    findings = json.loads(cli("doctor", "--cluster", "c.yaml", "--json").out)["findings"]
    (head,) = at(findings, "head")
    assert head["level"] == "ok" and "starts a Ray of its own" in head["text"]


# Starts a cluster of two nodes, the second with another coedge, and runs commands of the test.
CLUSTER = """
    import json, os, pathlib, subprocess, sys, time
    from ray.cluster_utils import Cluster

    folder = pathlib.Path(sys.argv[1])
    (folder / "old/coedge/core").mkdir(parents=True)
    (folder / "old/coedge/__init__.py").touch()
    (folder / "old/coedge/core/__init__.py").touch()
    (folder / "old/coedge/core/version.py").write_text("VERSION = '0.0.9'")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(folder / "old")})
    (folder / "c.yaml").write_text(
        "ray: {address: '%s'}\\ncache_dir: %s\\ndevices: [{name: a}, {name: attic, node: 203.0.113.7}]\\n"
        % (cluster.address, folder)
    )
    found = []

    def doctor():
        command = [sys.executable, "-m", "coedge", "doctor", "--cluster", str(folder / "c.yaml"), "--json"]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        seconds = time.monotonic() - start
        found.append({"code": done.returncode, "out": done.stdout, "err": done.stderr[-3000:], "seconds": seconds})

    doctor()
    {more}
    print(json.dumps({"address": cluster.address, "found": found}))
    cluster.shutdown()
"""
# The second node hangs; then the head does, too.
HANGS = """
    import psutil
    raylets = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
    newest = max(raylets, key=lambda p: p.create_time())
    gcs = next(p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server")
    try:
        newest.suspend()
        doctor()
        gcs.suspend()
        doctor()
    finally:
        gcs.resume()
        newest.resume()
"""


def examined(tmp_path: Path, more: str = "") -> tuple[str, list[dict[str, Any]]]:
    script = textwrap.dedent(CLUSTER).replace("{more}", textwrap.dedent(more))
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, timeout=280, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for one in found["found"]:
        assert one["seconds"] < TOTAL_SECONDS + GRACE_SECONDS
        assert one["code"] == 1 and "Traceback" not in one["err"], one
    return found["address"], [json.loads(one["out"]) for one in found["found"]]


def check_old_node(address: str, findings: list[dict[str, str]]) -> str:
    """Check what is found where the second node has an old version. Return its label."""
    (joined,) = at(findings, "join")
    assert joined["text"] == "this process joined a cluster of 2 nodes"
    (missing,) = at(findings, "nodes", "attic")
    assert missing["level"] == "red" and missing["mend"].startswith(f"ray start --address={address}")
    versions = {one["where"]: one for one in findings if one["check"] == "versions"}
    assert versions["a"]["level"] == "ok"
    (other,) = versions.keys() - {"a"}
    assert versions[other]["level"] == "red" and f"coedge is 0.0.9 there and {VERSION} here" in versions[other]["text"]
    assert versions[other]["mend"].startswith(f"pip install coedge=={VERSION}")
    for node, peer in (("a", other), (other, "a")):
        (ports,) = at(findings, "ports", node)
        assert ports["level"] == "ok" and f"connects to {peer}" in ports["text"]
        (links,) = at(findings, "links", node)
        assert f"Mbit/s to {peer}" in links["text"]
    for check in ("memory", "disk", "cpu", "load", "clocks", "mtu"):
        assert at(findings, check, other), check
    return other


@pytest.mark.ray
def test_a_cluster_whose_second_node_has_an_old_version(tmp_path: Path) -> None:
    address, (found,) = examined(tmp_path)
    check_old_node(address, found["findings"])
    assert found["facts"]["address"] == address


@pytest.mark.ray
@pytest.mark.deep
def test_a_node_that_hangs_and_a_head_that_hangs_cost_only_their_deadlines(tmp_path: Path) -> None:
    address, (well, one_hangs, all_hang) = examined(tmp_path, HANGS)
    other = check_old_node(address, well["findings"])
    (silent,) = at(one_hangs["findings"], "nodes", other)
    assert silent["level"] == "red" and f"ray start --address={address}" in silent["mend"]
    (versions,) = at(one_hangs["findings"], "versions", "a")
    assert versions["level"] == "ok"
    reds = [one for one in all_hang["findings"] if one["level"] == "red" and one["check"] in ("head", "join")]
    assert len(reds) == 1 and reds[0]["mend"]
    assert {one["check"] for one in all_hang["findings"]} >= {"versions", "memory", "disk", "speed"}
