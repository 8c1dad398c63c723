"""What the facts of an examination mean: one line per fact, and for every red line what mends it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.doctor.facts import (
    Clock,
    DoctorFacts,
    Folder,
    Interface,
    Memory,
    NodeFacts,
    Processor,
    Speed,
    Way,
)
from orchestrator.doctor.finding import Finding
from orchestrator.doctor.findings import findings

VERSIONS: dict[str, str | None] = {"coedge": "0.1.0", "Python": "3.11.7", "ray": "2.60.0", "onnxruntime": "1.32.0"}
# A Raspberry Pi 4 with 4 GB that runs nothing else.
PI = NodeFacts(
    label="pi",
    address="192.168.1.21",
    versions=VERSIONS,
    memory=Memory(3.2e9, 4.0e9),
    folders=(Folder("Ray's files", "/var/ray", 20e9, 31e9),),
    processor=Processor(4, 0.2, ("performance",), "cpufreq-dt", 1500.0, 1500.0, None, 0),
    interface=Interface("eth0", 1500, 1000.0),
    speed=Speed(11.2, 11.6),
    clock=Clock(0.0004, 0.0015),
)
LAPTOP = replace(
    PI,
    label="laptop",
    address="192.168.1.10",
    here=True,
    memory=Memory(9e9, 16e9),
    folders=(Folder("Ray's files", "/var/ray", 80e9, 250e9), Folder("cache", "/home/ada/.cache/coedge", 80e9, 250e9)),
    processor=Processor(8, 0.5, ("performance",), "intel_pstate", 4200.0, 4200.0, 0),
    clock=None,
)
GOOD_WAYS = (
    Way("laptop", "pi", PI.address, "", 0.0004, 117e6),
    Way("pi", "laptop", LAPTOP.address, "", 0.0005, 112e6),
)
HEALTHY = DoctorFacts(
    (LAPTOP, PI), VERSIONS, "192.168.1.10:6379", "boards.yaml",
    known=("192.168.1.10 (laptop)", "192.168.1.21 (pi)"), ways=GOOD_WAYS,
)  # fmt: skip
TOKEN_REFUSAL = (
    "the Ray of 192.168.1.21 (pi) wants a token, which the head does not have. Run there: "
    "`ray stop; export RAY_AUTH_MODE=disabled; ray start --address=HEAD:PORT`"
)
SILENT = NodeFacts("pi", PI.address, problems={"versions": "no answer within 8 s"}, ray_port=41234)


def with_pi(**changes: Any) -> DoctorFacts:
    return replace(HEALTHY, nodes=(LAPTOP, replace(PI, **changes)))


def with_processor(**changes: Any) -> DoctorFacts:
    assert PI.processor is not None
    return with_pi(processor=replace(PI.processor, **changes))


def with_version(name: str, version: str | None) -> DoctorFacts:
    return with_pi(versions={**VERSIONS, name: version})


def with_way(**changes: Any) -> DoctorFacts:
    return replace(HEALTHY, ways=(replace(GOOD_WAYS[0], **changes), GOOD_WAYS[1]))


# (facts, check, where, level, part of the text, part of what mends it)
CASES: dict[str, tuple[DoctorFacts, str, str, str, str, str]] = {
    "old coedge": (
        with_version("coedge", "0.0.9"), "versions", "pi", "red", "coedge is 0.0.9 there and 0.1.0 here",
        "pip install coedge==0.1.0   (on pi",
    ),
    "no coedge": (
        with_version("coedge", None), "versions", "pi", "red", "coedge is not installed", "pip install coedge==0.1.0",
    ),
    "broken onnxruntime": (
        with_version("onnxruntime", "!ImportError: libstdc++"), "versions", "pi", "red",
        "onnxruntime cannot be imported: ImportError: libstdc++", "pip install --force-reinstall onnxruntime==1.32.0",
    ),
    "another onnxruntime": (
        with_version("onnxruntime", "1.20.1"), "versions", "pi", "warning", "times and last digits", "pip install",
    ),
    "another Python": (
        with_version("Python", "3.11.2"), "versions", "pi", "red", "Python is 3.11.2 there", "install Python 3.11.7",
    ),
    "another Ray": (with_version("ray", "2.40.0"), "versions", "pi", "red", "ray is 2.40.0", "pip install ray==2.60.0"),
    "Ray here runs in another environment": (
        replace(HEALTHY, versions={**VERSIONS, "coedge": "0.2.0"}, nodes=(LAPTOP,), ways=()), "versions", "laptop",
        "red", "coedge is 0.1.0 where Ray runs and 0.2.0 in this process", "pip install coedge==0.2.0",
    ),
    "bad configuration": (
        DoctorFacts((LAPTOP,), VERSIONS, configuration="b.yaml", configuration_problem="line 3: unknown key"),
        "configuration", "", "red", "b.yaml: line 3: unknown key", "correct b.yaml",
    ),
    "Ray of its own": (
        DoctorFacts((LAPTOP,), VERSIONS, configuration="demo.yaml"), "head", "", "ok", "starts a Ray of its own", "",
    ),
    "no head": (
        DoctorFacts((LAPTOP,), VERSIONS, "192.168.1.10:6379", head_problem="no Ray cluster answers: refused"),
        "head", "", "red", "no Ray cluster answers", "ray start --head --port=6379 --node-ip-address=192.168.1.10",
    ),
    "not a node": (
        DoctorFacts((LAPTOP,), VERSIONS, "10.0.0.1:6379", join_problem="no node of this cluster here"),
        "join", "", "red", "no node", "ray start --address=10.0.0.1:6379",
    ),
    "wrong token": (
        DoctorFacts(
            (LAPTOP,), VERSIONS, "10.0.0.1:6379",
            join_problem="the head wants another token. Run `export RAY_AUTH_MODE=token` and "
            "`export RAY_AUTH_TOKEN=...`; `ray get-auth-token` shows the token on the head's machine",
        ),
        "join", "", "red", "another token",
        "export RAY_AUTH_MODE=token; export RAY_AUTH_TOKEN=...   (`ray get-auth-token` shows the token on the head)",
    ),
    "board with a token": (
        replace(HEALTHY, nodes=(LAPTOP, replace(SILENT, problems={"token": TOKEN_REFUSAL}))), "token", "pi", "red",
        "wants a token", "ray stop; export RAY_AUTH_MODE=disabled; ray start --address=HEAD:PORT   (on pi)",
    ),
    "another Ray at the head": (
        DoctorFacts((LAPTOP,), VERSIONS, "10.0.0.1:6379", join_problem="RuntimeError: Version mismatch: Ray 2.40.0"),
        "join", "", "red", "2.40.0", "pip install ray==",
    ),
    "missing node": (
        replace(HEALTHY, missing=(("attic", "192.168.1.22"),)), "nodes", "attic", "red",
        "alive are 192.168.1.10 (laptop), 192.168.1.21 (pi)",
        "ray start --address=192.168.1.10:6379   (on 192.168.1.22)",
    ),
    "node that left": (
        replace(HEALTHY, gone=("192.168.1.23",)), "nodes", "192.168.1.23", "warning", "left", "ray start --address=",
    ),
    "silent node": (
        replace(HEALTHY, nodes=(LAPTOP, SILENT)),
        "nodes", "pi", "red", "no question: no answer within 8 s", "ray stop; ray start --address=192.168.1.10:6379",
    ),
    "firewall before Ray": (
        replace(HEALTHY, nodes=(LAPTOP, replace(SILENT, unreachable="no answer within 3 s"))), "ports", "pi", "red",
        "cannot connect from here to its Ray at 192.168.1.21:41234: no answer within 3 s",
        "sudo ufw allow proto tcp from ADDRESS to any port 41234   (on pi",
    ),
    "dead Ray": (
        replace(HEALTHY, nodes=(LAPTOP, replace(SILENT, unreachable="Connection refused"))), "ports", "pi", "red",
        "its Ray has ended", "ray start --address=192.168.1.10:6379",
    ),
    "late check": (
        with_pi(speed=None, problems={"speed": "no answer within 8 s"}), "speed", "pi", "warning",
        "not checked: no answer within 8 s", "",
    ),
    "little memory": (with_pi(memory=Memory(0.4e9, 0.9e9)), "memory", "pi", "warning", "400 MB of 900 MB", ""),
    "no memory": (with_pi(memory=Memory(0.15e9, 0.9e9)), "memory", "pi", "red", "a worker needs 250 MB", "ps aux"),
    "Ray would end workers": (with_pi(memory=Memory(0.5e9, 16e9)), "memory", "pi", "red", "less than 5%", "ps aux"),
    "disk nearly full": (
        with_pi(folders=(Folder("Ray's files", "/var/ray", 1.2e9, 31e9),)), "disk", "pi", "red",
        "1.2 GB free for Ray's files in /var/ray, 3.9% of it", "--temp-dir=FOLDER",
    ),
    "disk full": (
        with_pi(folders=(Folder("cache", "/home/pi/.cache/coedge", 0.1e9, 1e9),)), "disk", "pi", "red",
        "less than 200 MB", "cache_dir: FOLDER",
    ),
    "little disk": (
        with_pi(folders=(Folder("Ray's files", "/var/ray", 0.9e9, 8e9),)), "disk", "pi", "warning", "900 MB free", "",
    ),
    "read-only folder": (
        with_pi(folders=(Folder("cache", "/home/pi/.cache/coedge", 9e9, 31e9, "Read-only file system"),)),
        "disk", "pi", "red", "cannot be written: Read-only file system", "cache_dir: FOLDER",
    ),
    "lowest clock": (
        with_processor(governors=("powersave",)), "cpu", "pi", "red", "lowest clock",
        "sudo cpupower frequency-set -g performance",
    ),
    "adaptive clock": (
        with_processor(governors=("powersave",), driver="intel_pstate"), "cpu", "pi", "warning", "short kernels",
        "sudo cpupower frequency-set -g performance",
    ),
    "ondemand": (with_processor(governors=("ondemand",)), "cpu", "pi", "warning", "ondemand", "cpupower"),
    "limited clock": (
        with_processor(allowed_mhz=600.0), "cpu", "pi", "warning", "limited to 600 of 1500 MHz", "-u 1500MHz",
    ),
    "no frequency": (with_processor(governors=()), "cpu", "pi", "ok", "shows no CPU frequency", ""),
    "weak supply": (
        with_processor(board_flags=0x50005), "cpu", "pi", "red", "under-voltage, throttled now", "5 V, 3 A",
    ),
    "weak supply earlier": (
        with_processor(board_flags=0x10000), "cpu", "pi", "warning", "under-voltage since the start", "5 V, 3 A",
    ),
    "hot now": (with_processor(board_flags=0x8), "cpu", "pi", "red", "soft temperature limit now", "heat sink"),
    "hot earlier": (with_processor(throttles=17), "cpu", "pi", "warning", "slowed the cores 17 times", "heat sink"),
    "some load": (with_processor(load=3.0), "load", "pi", "warning", "load 3.0 on 4 cores", "top"),
    "high load": (with_processor(load=8.2), "load", "pi", "red", "load 8.2 on 4 cores", "top"),
    "first speed": (with_pi(speed=Speed(11.2)), "speed", "pi", "ok", "11.2 GFLOP/s, measured for the first time", ""),
    "slower than before": (with_pi(speed=Speed(7.0, 11.6)), "speed", "pi", "warning", "60% of the best", "cpupower"),
    "far slower": (with_pi(speed=Speed(4.0, 11.6)), "speed", "pi", "red", "34% of the best", "cpupower"),
    "hot while measured": (with_pi(speed=Speed(9.0, 11.6, 3)), "speed", "pi", "red", "3 times meanwhile", "heat sink"),
    "slow clock questions": (with_pi(clock=Clock(0.0, 0.05)), "clocks", "pi", "warning", "+- 25.0 ms", "cable"),
    "uncertain clock": (with_pi(clock=Clock(0.1, 0.4)), "clocks", "pi", "red", "+100.0 ms +- 200.0 ms", "cable"),
    "wrong time of day": (with_pi(clock=Clock(-90.0, 0.002)), "clocks", "pi", "warning", "-90000.0 ms", "set-ntp true"),
    "small MTU": (
        with_pi(interface=Interface("wg0", 576), address=""), "mtu", "pi", "red", "wg0: MTU 576", "dev wg0 mtu 1500",
    ),
    "half duplex": (
        with_pi(interface=Interface("eth0", 1500, 100.0, False)), "mtu", "pi", "warning", "half duplex", "ethtool",
    ),
    "different MTUs": (
        with_pi(interface=Interface("wg0", 1420)), "mtu", "", "warning", "laptop 1500, pi 1420",
        "mtu 1420   (on laptop)",
    ),
    "firewall": (
        with_way(problem="no answer within 3 s"), "ports", "laptop", "red",
        "cannot connect to pi at 192.168.1.21: no answer within 3 s",
        "sudo ufw allow from 192.168.1.10 to any port 32768:60999 proto tcp   (on pi)",
    ),
    "no route": (with_way(problem="No route to host"), "ports", "laptop", "red", "No route", "one network"),
    "loopback address": (
        with_way(address="127.0.1.1", problem="Connection refused"), "ports", "laptop", "red", "at 127.0.1.1",
        "--node-ip-address=ADDRESS   (on pi",
    ),
    "large packets are lost": (
        with_way(bytes_per_second=None, transfer_problem="nothing of the transfer arrived"), "links", "laptop", "red",
        "large packets are lost", "sudo ip link set dev eth0 mtu 1400",
    ),
    "slow link": (with_way(bytes_per_second=1e5), "links", "laptop", "warning", "0.8 Mbit/s to pi", "cable"),
    "bad cable": (
        with_way(bytes_per_second=11.7e6), "links", "laptop", "warning",
        "93.6 Mbit/s to pi, but the interfaces have 1000", "ethtool -S",
    ),
}  # fmt: skip


def test_a_healthy_cluster_has_only_ok() -> None:
    found = findings(HEALTHY)
    assert [finding for finding in found if finding.level != "ok"] == []
    by_check = {(finding.check, finding.where): finding.text for finding in found}
    assert by_check["join", ""] == "this process joined a cluster of 2 nodes"
    assert by_check["versions", "pi"] == "coedge 0.1.0, Python 3.11.7, ray 2.60.0, onnxruntime 1.32.0"
    assert by_check["ports", "laptop"] == "connects to pi (0.4 ms)"
    assert by_check["links", "laptop"] == "936 Mbit/s to pi"
    assert {check for check, _ in by_check} == {
        "head", "join", "versions", "memory", "disk", "cpu", "load", "speed", "clocks", "mtu", "ports", "links",
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_fact_has_its_finding(name: str) -> None:
    facts, check, where, level, text, mend = CASES[name]
    found = findings(facts)
    fitting = [one for one in found if (one.check, one.where, one.level) == (check, where, level) and text in one.text]
    assert len(fitting) == 1, found
    assert mend in fitting[0].mend
    assert unmended(found) == []
    others = [one for one in found if one.level != "ok" and one is not fitting[0]]
    assert others == [], "one fact has one finding"


def unmended(found: tuple[Finding, ...]) -> list[Finding]:
    return [one for one in found if one.level == "red" and not one.mend]


def test_a_silent_node_does_not_hide_the_others() -> None:
    silent = NodeFacts("attic", "192.168.1.22", problems={"versions": "no answer within 8 s"})
    found = findings(replace(HEALTHY, nodes=(LAPTOP, PI, silent)))
    assert [one.where for one in found if one.level == "red"] == ["attic"]
    assert [one for one in found if one.where in ("laptop", "pi") and one.level != "ok"] == []


def test_nothing_at_all_is_known() -> None:
    problems = {"versions": "PermissionError: denied", "memory": "PermissionError: denied"}
    found = findings(DoctorFacts((NodeFacts("here", here=True, problems=problems),)))
    assert [one.level for one in found] == ["red"] and unmended(found) == []
