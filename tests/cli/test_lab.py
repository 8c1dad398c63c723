"""Tests of the lab: the commands that make its network and, if run by root, a real lab."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Result, fails
from hypothesis import given
from hypothesis import strategies as st
from nets import examples

from coedge.config.loading import load_config
from coedge.core.errors import ClusterError, ConfigError
from orchestrator.lab.lab import Lab
from orchestrator.lab.namespace import check_possible, namespaces
from orchestrator.lab.nodes import start_command
from orchestrator.lab.rates import parse_rate, show_rate
from orchestrator.lab.shaping import FRAME_NBYTES, add_host, burst_nbytes, network, put_on_medium, shape
from orchestrator.lab.spec import LabDevice, LabMedium, LabSpec, overrides, spec_of
from orchestrator.lab.state import LabState
from workers.transport.transport import own_clock

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "lab").glob("*.yaml"))
NAME = "test"  # the tests' own lab, so that another one may be up


def impossible() -> str:
    try:
        check_possible()
    except ClusterError as error:
        return str(error)
    return ""


root = [
    pytest.mark.deep,
    pytest.mark.root,
    pytest.mark.ray,
    pytest.mark.skipif(bool(impossible()), reason=impossible() or "possible"),
]


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("500KB/s", 500e3),
        ("1MB/s", 1e6),
        ("1 mb/s", 1e6),
        ("0.5GB/s", 5e8),
        ("2000B/s", 2e3),
        ("8Mbit/s", 1e6),
        ("100mbps", 12.5e6),
        ("8000 bit/s", 1e3),
        ("none", None),
    ],
)
def test_rates_are_parsed(text: str, bytes_per_second: float | None) -> None:
    assert parse_rate(text) == bytes_per_second


@pytest.mark.parametrize("text", ["", "500", "fast", "-1MB/s", "0MB/s", "1e3KB/s", "1MiB/s", "nanB/s", "1.2.3KB/s"])
def test_text_that_is_not_a_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a rate; give one such as 500KB/s"):
        parse_rate(text)


@examples(50)
@given(st.floats(1.0, 1e12))
def test_a_formatted_rate_is_parsed_again(bytes_per_second: float) -> None:
    assert parse_rate(show_rate(bytes_per_second)) == pytest.approx(bytes_per_second, rel=1e-3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_in_the_repository_are_labs(path: Path) -> None:
    """Their speeds add up to little more than one core, so that two cores are enough for all devices at once."""
    config = load_config(path, environment={})
    spec = spec_of(config)
    assert [device.name for device in spec.devices] == [device.name for device in config.devices]
    assert len({device.address for device in spec.devices}) == len(spec.devices)
    speeds = [device.speed for device in config.devices]
    assert all(speed is not None and 0 < speed <= 1 for speed in speeds)
    assert sum(speed or 0.0 for speed in speeds) <= 1.2
    assert all(device.bytes_per_second for device in spec.devices)


def test_the_repository_has_these_labs() -> None:
    names = {path.stem for path in CONFIGS}
    assert names == {"paper", "pi4-100mbps", "pi4-1gbps", "home-wifi", "device-edge"}


def two(**more: Any) -> dict[str, Any]:
    return {"devices": [{"name": "a.b", "link": {"mbps": 8, "latency_ms": 3}}, {"name": "c"}], "source": "c", **more}


def test_in_a_lab_workers_do_not_pace_by_rate_and_each_has_its_own_host() -> None:
    config = two()
    spec = spec_of(load_config(config))
    assert (spec.head, [device.bytes_per_second for device in spec.devices]) == ("c", [1e6, None])
    changes = overrides([(d.name, d.address) for d in spec.devices], spec.device(spec.head).address)
    inside = load_config(config, environment={"COEDGE_SET": ";".join(changes)})
    assert [device.node for device in inside.devices] == [device.address for device in spec.devices]
    assert [device.link.mbps for device in inside.devices] == [None, None]
    assert [device.link.latency_ms for device in inside.devices] == [3, 0]
    assert inside.ray.address == f"{spec.device('c').address}:6379"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "names none"),
        (two(ray={"address": "auto"}), "remove `ray.address`"),
        ({"devices": [{"name": "a", "node": "10.0.0.1"}]}, "remove `devices.a.node`"),
        ({"devices": [{"name": f"d{i}"} for i in range(251)]}, "at most 250"),
        (
            two(media=[{"name": "x", "devices": ["c"], "mbps": 1}, {"name": "y", "devices": ["c", "a.b"], "mbps": 1}]),
            "device c is on x and y",
        ),
    ],
)
def test_configurations_that_cannot_be_a_lab_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        spec_of(load_config(config))


@examples(50)
@given(st.floats(1e3, 2e9))
def test_a_bucket_has_room_for_a_frame_and_little_more(bytes_per_second: float) -> None:
    """A smaller bucket would block all frames; one of a millisecond would pass a message of 10 KB unshaped."""
    burst = burst_nbytes(bytes_per_second)
    assert FRAME_NBYTES <= burst <= FRAME_NBYTES + bytes_per_second * 1e-3
    if bytes_per_second <= 12.5e6:
        assert burst < 10_000 / 2
    command = shape("ns", "eth0", bytes_per_second)
    assert command[command.index("burst") + 1] == f"{burst}b"
    assert command[command.index("rate") + 1] == f"{round(bytes_per_second * 8)}bit"


def test_both_directions_of_every_link_are_shaped() -> None:
    commands = add_host("switch", "ns", LabDevice("a", 3, 1e6))
    assert [command for command in commands if command[0] == "tc"] == [
        shape("ns", "eth0", 1e6),
        shape("switch", "p3", 1e6),
    ]
    assert not [command for command in add_host("switch", "ns", LabDevice("a", 3)) if command[0] == "tc"]


def crossings(spec: LabSpec, commands: Sequence[Sequence[str]], sender: LabDevice, receiver: LabDevice) -> list[str]:
    """Return the media that a packet passes. The kernel applies the first filter that matches, by priority."""
    passed = []
    for port, side in ((sender.port, "ingress"), (receiver.port, "egress")):
        rules = [c[c.index("dev") + 1 :] for c in commands if "filter" in c]
        rules = [rule for rule in rules if rule[0] == port and rule[1] == side]
        for rule in sorted(rules, key=lambda rule: int(rule[rule.index("prio") + 1])):
            if "src" in rule and rule[rule.index("src") + 1] != f"{sender.address}/32":
                continue
            if "redirect" in rule:
                passed.append(rule[rule.index("redirect") + 2])
            break
    return passed


@examples(50)
@given(st.lists(st.sampled_from([None, "x", "y"]), min_size=2, max_size=6))
def test_a_packet_passes_each_medium_of_its_two_ends_once(on: list[str | None]) -> None:
    devices = tuple(LabDevice(f"d{index}", index, 1e6, medium) for index, medium in enumerate(on))
    media = tuple(
        LabMedium(name, index, 1e6, tuple(d.name for d in devices if d.medium == name))
        for index, name in enumerate(("x", "y"))
    )
    spec = LabSpec(devices, media, "d0")
    commands = network(spec, "switch", {device.name: device.name for device in devices})
    interface = {medium.name: medium.interface for medium in media}
    for sender in devices:
        for receiver in devices:
            if sender != receiver:
                wanted = [interface[name] for name in dict.fromkeys((sender.medium, receiver.medium)) if name]
                assert crossings(spec, commands, sender, receiver) == wanted


def test_weights_have_separate_links_on_request() -> None:
    config = load_config(two())
    names = {"a.b": "ns-a", "c": "ns-c"}
    plain, fast = (network(spec_of(config, wanted), "switch", names) for wanted in (False, True))
    added = [command for command in fast if command not in plain]
    assert [command for command in fast if command in plain] == plain and not any(c[0] == "tc" for c in added)
    for namespace in names.values():
        rules = [c for c in added if c[:5] == ["ip", "-n", namespace, "rule", "add"]]
        assert [rule[7:9] for rule in rules] == [["dport", "8076"], ["sport", "8076"]]
    start = start_command(LabDevice("a", 1), LabDevice("h", 0), Path("f"))
    assert {"--object-manager-port=8076", "--address=10.77.0.1:6379", "--node-ip-address=10.77.0.2"} <= set(start)


def test_a_packet_would_be_counted_twice_without_the_filter_for_members() -> None:
    """This shows that the test above can fail."""
    devices = (LabDevice("a", 0, None, "x"), LabDevice("b", 1, None, "x"))
    medium = LabMedium("x", 0, 1e6, ("a", "b"))
    unfiltered = [c for device in devices for c in put_on_medium("switch", device, medium, [device])]
    assert crossings(LabSpec(devices, (medium,), "a"), unfiltered, *devices) == ["m0", "m0"]


def test_without_root_one_line_says_so(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in (["up", str(CONFIGS[0])], ["status"], ["rate", "a", "1MB/s"], ["run", "--", "true"], ["down"]):
        result = cli("lab", *command)
        fails(result, 1, "a lab needs root and iproute2", "this user is not root", "coedge run MODEL --cluster FILE")
        assert len(result.err.splitlines()) == 1


def test_without_iproute2_one_line_says_so(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = cli("lab", "status", "--json")
    fails(result, 1, "ip is not installed, tc is not installed")
    assert json.loads(result.out)["error"] == "ClusterError"


@pytest.mark.parametrize("name", ["", "A", "a.b", "a@b", "a" * 17, "../x"])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a lab's name has"):
        Lab(name)


@pytest.mark.parametrize("command", ["up", "status", "run", "rate", "down"])
def test_every_command_has_an_example(cli: Callable[..., Result], command: str) -> None:
    result = cli("lab", command, "--help")
    assert result.code == 0 and f"Example: coedge lab {command}" in result.out


LAB = {
    "devices": [
        {"name": "one", "speed": 0.5, "link": {"mbps": 200}},
        {"name": "two", "speed": 0.5, "link": {"mbps": 160}},
        {"name": "three", "speed": 0.5, "link": {"mbps": 240, "latency_ms": 20}},
    ],
    "media": [{"name": "air", "devices": ["two", "three"], "mbps": 160}],
    "source": "one",
}
# Headers of a frame: Ethernet 14, IP 20, TCP 20 and its time stamps 12.
HEADER_NBYTES = 14 + 20 + 20 + 12


def coedge(*command: str) -> list[str]:
    return [sys.executable, "-m", "coedge", "lab", *command]


def run(*command: str, timeout: float = 90.0, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(coedge(*command), capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def traces(name: str = NAME) -> list[str]:
    """Return the namespaces and folders of a lab."""
    folder = Path("/run") / f"coedge-{name}"
    return [n for n in namespaces() if n.startswith((f"coedge-{name}.", f"coedge-{name}@"))] + [
        str(folder) for _ in [0] if folder.exists()
    ]


def rates(state: LabState) -> dict[str, tuple[float | None, float | None]]:
    return {host.name: (host.up_bytes_per_second, host.down_bytes_per_second) for host in state.hosts}


AS_GIVEN = {"one": (25e6, 25e6), "two": (20e6, 20e6), "three": (30e6, 30e6)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump({**LAB, "cache_dir": str(folder / "cache")}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lab(file: Path) -> Iterator[Lab]:
    """Start a lab; stop it at the end and check that nothing is left."""
    made = Lab(NAME)
    made.down()
    made.up(spec_of(load_config(file), fast_weights=True))
    pids = [pid for host in made.status().hosts for pid in host.pids]
    try:
        yield made
    finally:
        made.down()
    assert pids and not [pid for pid in pids if os.path.exists(f"/proc/{pid}/ns")]
    assert traces() == []


class TestLab:
    pytestmark = root

    def test_up_is_idempotent(self, lab: Lab, file: Path) -> None:
        before = lab.status()
        assert rates(before) == AS_GIVEN
        assert before.head is not None and before.head.name == "one" and all(host.node for host in before.hosts)
        run("rate", "two", "1MB/s", "--lab", NAME)
        again = json.loads(run("up", str(file), "--lab", NAME, "--fast-weights", "--json").stdout)
        assert again["up"]
        after = lab.status()
        assert rates(after) == AS_GIVEN
        assert {host.name: host.pids for host in after.hosts} == {host.name: host.pids for host in before.hosts}

    def test_rates_change_while_it_is_up(self, lab: Lab) -> None:
        lab.rate("two", 500e3, down=False)
        assert rates(lab.status()) == AS_GIVEN | {"two": (500e3, 20e6)}
        lab.rate("two", None)
        assert rates(lab.status()) == AS_GIVEN | {"two": (None, None)}
        run("rate", "two", "160mbps", "--lab", NAME)
        assert rates(lab.status()) == AS_GIVEN
        lab.rate("air", 1e6)
        assert [medium.bytes_per_second for medium in lab.status().media] == [1e6]
        lab.rate("air", 20e6)
        with pytest.raises(ClusterError, match="there are one, two, three, air"):
            lab.rate("four", 1e6)

    def test_links_carry_what_devices_send_and_little_else(self, lab: Lab, file: Path) -> None:
        """Bytes on every interface without packet headers match those of the timelines within 2 %.

        The rest is headers and encryption of messages, and Ray's own messages.
        """
        driver = str(ROOT / "tests" / "lab_driver.py")
        told = json.loads(run("run", "--lab", NAME, "--", sys.executable, driver, NAME, str(file)).stdout)
        assert told["worst"] <= 1e-5
        assert told["loading"][0] < 400_000, "the link did not carry the weight of 4 MB"
        hosts = {host.name: host.address for host in lab.status().hosts}
        assert {name: address.split("/")[2].rpartition(":")[0] for name, address in told["hosts"].items()} == hosts
        planned = {f"{name} {way}": 0 for name in hosts for way in ("sent", "received")} | {"air": 0}
        for sender, receiver, nbytes in told["sent"]:
            planned[f"{sender} sent"] += nbytes
            planned[f"{receiver} received"] += nbytes
            planned["air"] += nbytes
        assert len(told["sent"]) == 6 and all(nbytes > 100_000 for nbytes in planned.values())
        payload = {name: nbytes - HEADER_NBYTES * packets for name, (nbytes, packets) in told["counted"].items()}
        assert payload == {name: pytest.approx(nbytes, rel=0.02) for name, nbytes in planned.items()}
        assert sum(host.dropped for host in lab.status().hosts) == 0
        # The receiving worker adds the emulated latency to that of the network.
        assert told["latencies"]["one>three"] >= 0.02 > told["latencies"]["one>two"]

    def test_a_command_gets_its_arguments_and_returns_its_exit_code(self, lab: Lab) -> None:
        command = (
            "import sys; from workers.transport.transport import own_clock; "
            "print(sys.argv[1:], own_clock()); sys.exit(7)"
        )
        done = run("run", "--lab", NAME, "--", sys.executable, "-c", command, "--json", "-x", code=7)
        arguments, clock = done.stdout.strip().split("] ", 1)
        assert arguments == "['--json', '-x'"
        # Hosts of a lab have clocks of their own, as real hosts do, so emulated latency adds to that of the network.
        assert clock != own_clock()

    def test_a_running_lab_is_not_replaced_by_another(self, lab: Lab) -> None:
        before = lab.status()
        done = run("up", str(CONFIGS[0]), "--lab", NAME, code=1)
        assert f"stop it first: coedge lab down --lab {NAME}" in done.stderr
        assert {h.name: h.pids for h in lab.status().hosts} == {h.name: h.pids for h in before.hosts}

    def test_up_restarts_a_node_that_ended(self, lab: Lab, file: Path) -> None:
        before = {host.name: host for host in lab.status().hosts}
        for pid in before["two"].pids:
            os.kill(pid, signal.SIGKILL)
        assert "Ray has ended on two" in run("run", "--lab", NAME, "--", "true", code=1).stderr
        run("up", str(file), "--lab", NAME, "--fast-weights")
        after = {host.name: host for host in lab.status().hosts}
        assert after["two"].node and after["one"].pids == before["one"].pids

    @pytest.mark.parametrize("until", ["a namespace", "a process"])
    def test_down_removes_what_a_crashed_up_left(self, file: Path, until: str) -> None:
        name = "test-crash"
        process = subprocess.Popen(coedge("up", str(file), "--lab", name), cwd=ROOT)
        try:
            made = Lab(name)
            deadline = time.monotonic() + 60
            while not (
                made.status().namespaces if until == "a namespace" else any(h.pids for h in made.status().hosts)
            ):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        assert traces(name)
        run("down", "--lab", name)
        assert traces(name) == []
        assert json.loads(run("status", "--lab", name, "--json").stdout)["devices"] == []
