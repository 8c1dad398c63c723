"""Ray's tokens: a cluster that CoEdge starts leaves no trace, and whoever sends a wrong token, or none, is told so."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from test_ray_connection import SETTINGS, Server
from waiting import until

import coedge
from coedge import ClusterConfig, ClusterError
from orchestrator.control.grpc_status import OK, UNAUTHENTICATED, _request, grpc_status
from orchestrator.control.private_token import KeptEnvironment
from orchestrator.control.ray_connection import _used_nodes
from orchestrator.control.ray_token import HEAD_CALL, MODE, TOKEN, TOKEN_PATH, check_node_tokens, check_token, own_token

ROOT = Path(__file__).resolve().parents[2]
RIGHT, WRONG = "right-" * 8, "wrong-" * 40
REFUSED = b"\x00\x0bgrpc-status\x0216\x00\x0cgrpc-message\x10InvalidAuthToken"
TAKEN = b"@\x0bgrpc-status\x010"
# A node starts within some seconds; on a busy machine it takes longer.
START_SECONDS = 120.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a home of its own, and no variable of Ray's tokens."""
    for name in (MODE, TOKEN, TOKEN_PATH, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def save_token(home: Path, token: str) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(f"{token}\n")


# ---------------------------------------------------------------- one call of gRPC


class Slow(Server):
    """A server that sends its answer byte by byte."""

    def _run(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.recv(10_000)
            for byte in self._answer:
                connection.sendall(bytes([byte]))
            time.sleep(0.2)


@pytest.mark.parametrize(("answer", "status"), [(SETTINGS + TAKEN, OK), (SETTINGS + REFUSED, UNAUTHENTICATED)])
@pytest.mark.parametrize("kind", [Server, Slow])
def test_the_status_is_read(kind: type[Server], answer: bytes, status: int) -> None:
    server = kind(answer)
    try:
        assert grpc_status(server.address, HEAD_CALL, None, 10.0) == status
    finally:
        server.close()


@pytest.mark.parametrize("answer", [b"", SETTINGS, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_not_grpc_has_no_status(answer: bytes) -> None:
    server = Server(answer, closes=bool(answer))
    try:
        start = time.monotonic()
        assert grpc_status(server.address, HEAD_CALL, None, 0.3) is None
        assert time.monotonic() - start < 10.0
        check_token(server.address, automatic=False, seconds=0.3)
    finally:
        server.close()
    assert grpc_status(server.address, HEAD_CALL, None, 0.3) is None, "nothing listens any more"


@pytest.mark.parametrize("nbytes", [1, 119, 120, 121, 127, 200, 300, 5000])
def test_tokens_of_any_length_are_sent(nbytes: int) -> None:
    """The length of a header is a number of 7 bits, and of more bytes if it is larger."""
    sent = _request("10.0.0.1:6379", HEAD_CALL, "t" * nbytes)
    value = b"Bearer " + b"t" * nbytes
    before = sent[: sent.index(value)]
    tail, length = before[before.rindex(b"\x0f\x08") + 2 :], len(value)
    decoded = tail[0] & 127
    if decoded == 127:
        decoded += sum((byte & 127) << (7 * index) for index, byte in enumerate(tail[1:]))
    assert decoded == length and tail[0] < 128


# ---------------------------------------------------------------- the token of this process


def test_ray_reads_the_token_from_the_first_of_three_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_token() == (None, str(home / ".ray" / "auth_token"))
    save_token(home, "of the home")
    assert own_token() == ("of the home", str(home / ".ray" / "auth_token"))
    (home / "other").write_text("of the path")
    monkeypatch.setenv(TOKEN_PATH, str(home / "other"))
    assert own_token() == ("of the path", str(home / "other"))
    monkeypatch.setenv(TOKEN, "of the variable")
    assert own_token() == ("of the variable", TOKEN)


def test_a_private_token_is_removed_and_the_environment_restored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "mine")
    kept = KeptEnvironment()
    kept.make_token()
    path = Path(os.environ[TOKEN_PATH])
    assert os.environ[MODE] == "token" and TOKEN not in os.environ
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert own_token() == (path.read_text(), str(path)) and len(path.read_text()) >= 32
    kept.restore()
    assert not path.parent.exists() and list(home.iterdir()) == []
    assert os.environ[TOKEN] == "mine" and MODE not in os.environ and TOKEN_PATH not in os.environ
    kept.restore()


def test_without_tokens_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE, "disabled")
    kept = KeptEnvironment()
    kept.make_token()
    assert TOKEN_PATH not in os.environ
    kept.restore()
    assert os.environ[MODE] == "disabled"


# ---------------------------------------------------------------- a head, by what it answers


class Head(Server):
    """A server that takes one token, or only calls without one, as a Ray process does."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        super().__init__()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # the test has ended
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Any) -> None:
        with connection:
            request = connection.recv(10_000)
            if HEAD_CALL.encode() not in request and b"NodeManagerService" not in request:
                connection.sendall(SETTINGS)  # the check whether it may be Ray
                return
            right = self._token is None or f"Bearer {self._token}".encode() in request
            connection.sendall(SETTINGS + (TAKEN if right else REFUSED))


@pytest.fixture
def head() -> Iterator[Callable[[str | None], str]]:
    heads: list[Head] = []

    def start(token: str | None) -> str:
        heads.append(Head(token))
        return heads[-1].address

    yield start
    for one in heads:
        one.close()


# (token of the head, mode, token here, words of the message)
REFUSALS = {
    "none is sent": (RIGHT, None, None, ("wants a token, and this process sends none", f"export {MODE}=token")),
    "it lies here unused": (RIGHT, None, RIGHT, ("sends none", f"Run `export {MODE}=token`: the token of", "is sent")),
    "there is none": (RIGHT, "token", None, ("wants a token, and there is none in", f"export {TOKEN}=")),
    "it is wrong": (RIGHT, "token", WRONG, ("wants another token than that of", "ray get-auth-token")),
    "it is not wanted": (None, "token", RIGHT, ("was started without a token", f"export {MODE}=disabled")),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_token_and_the_command(
    name: str, head: Callable[[str | None], str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, mode, own, words = REFUSALS[name]
    if own is not None:
        save_token(home, own)
    if mode is not None:
        monkeypatch.setenv(MODE, mode)
    address = head(wanted)
    with pytest.raises(ClusterError) as caught:
        coedge.connect({"ray": {"address": address}, "connect_timeout_seconds": 20})
    for word in (address, *words):
        assert word in str(caught.value)
    assert os.environ.get(MODE) == mode


def test_a_head_that_takes_what_is_sent_is_accepted(
    head: Callable[[str | None], str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_token(home, RIGHT)
    check_token(head(RIGHT), automatic=True)
    assert MODE not in os.environ
    check_token(head(None), automatic=False)
    monkeypatch.setenv(MODE, "token")
    check_token(head(RIGHT), automatic=False)


def test_a_token_that_lies_here_is_not_sent_to_a_head_without(
    head: Callable[[str | None], str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself sends it to a head that it has found, and then no worker starts."""
    save_token(home, RIGHT)
    monkeypatch.setenv(MODE, "")
    check_token(head(None), automatic=True)
    assert os.environ[MODE] == "disabled"


def test_nodes_with_other_tokens_are_named(
    head: Callable[[str | None], str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node(address: str, host: str) -> dict[str, Any]:
        ip, _, port = address.rpartition(":")
        return {"NodeManagerAddress": ip, "NodeManagerPort": int(port), "NodeManagerHostname": host}

    good, bad = node(head(None), "laptop"), node(head(WRONG), "board")
    check_node_tokens([good])
    with pytest.raises(ClusterError, match=rf"\(board\) wants a token, which .*export {MODE}=disabled") as caught:
        check_node_tokens([good, bad])
    assert "laptop" not in str(caught.value)
    save_token(home, RIGHT)
    monkeypatch.setenv(MODE, "token")
    with pytest.raises(ClusterError, match=rf"\(board\) does not take the token .*export {MODE}=token"):
        check_node_tokens([bad])


def test_the_nodes_of_this_host_and_of_devices_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray aborts a process that joins through a node which refuses its token."""
    cards = {"eth0": [SimpleNamespace(address="10.0.0.1")], "lo": [SimpleNamespace(address="127.0.0.1")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: cards)
    names = ("NodeManagerAddress", "NodeManagerHostname", "NodeID")
    nodes = [dict(zip(names, (f"10.0.0.{k}", f"host-{k}", f"id-{k}"))) for k in (1, 2, 3)]

    def used(*wanted: str | None) -> list[str]:
        devices = [{"name": f"d{index}", "node": node} for index, node in enumerate(wanted)]
        config = ClusterConfig.model_validate({"devices": devices})
        return [node["NodeID"] for node in _used_nodes(config, nodes)]

    assert used() == ["id-1", "id-2", "id-3"]
    assert used(None) == ["id-1"]
    assert used("host-3") == ["id-1", "id-3"]
    assert used("10.0.0.2", "id-3") == ["id-1", "id-2", "id-3"]
    assert [node["NodeID"] for node in _used_nodes(None, nodes)] == ["id-1"]


# ---------------------------------------------------------------- Ray itself


def run_script(text: str, home: Path, *arguments: str, **variables: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        capture_output=True, text=True, timeout=200, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ray
def test_a_cluster_of_coedge_leaves_no_trace_and_refuses_others(home: Path, tmp_path: Path) -> None:
    script = """
        import json, os, pathlib, subprocess, sys
        import coedge, ray

        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        before = {name: os.environ.get(name) for name in names}
        settings = {"devices": [{"name": "a", "speed": 0.5}], "cache_dir": sys.argv[1]}
        join = '''
        import coedge, sys
        try:
            coedge.connect({"ray": {"address": sys.argv[1]}, "connect_timeout_seconds": 30})
        except coedge.ClusterError as error:
            print(error)
        '''
        with coedge.connect(settings):
            path = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
            address = ray.get_runtime_context().gcs_address
            bare = {name: value for name, value in os.environ.items() if name not in names}
            command = [sys.executable, "-c", __import__("textwrap").dedent(join), address]
            refusal = subprocess.run(command, capture_output=True, text=True, env=bare).stdout
        restored = before == {name: os.environ.get(name) for name in names}
        gone = not path.parent.exists()
        # The same process uses a cluster without tokens afterwards.
        os.environ["RAY_AUTH_MODE"] = "disabled"
        with coedge.connect(settings) as second:
            state = second.devices()[0].state
        found = {"refusal": refusal, "path": str(path), "restored": restored, "gone": gone, "state": state}
        print(json.dumps(found))
    """
    found = run_script(script, home, str(tmp_path))
    assert found["restored"] and found["gone"] and found["state"] == "ready"
    assert not (home / ".ray").exists()
    assert "wants a token, and this process sends none" in found["refusal"]
    assert f"`export {MODE}=token` and `export {TOKEN_PATH}={found['path']}`" in found["refusal"]


JOIN = """
    import json, sys
    import coedge
    settings = {
        "ray": {"address": sys.argv[1]}, "cache_dir": sys.argv[2], "connect_timeout_seconds": 60,
        "devices": [{"name": "a", "speed": 0.5, "node": sys.argv[3] or None}],
    }
    try:
        with coedge.connect(settings) as cluster:
            print(json.dumps(cluster.devices()[0].state))
    except coedge.ClusterError as error:
        print(json.dumps(str(error)))
"""


@contextmanager
def ray_node(folder: Path, *options: str, home: Path, **variables: str) -> Iterator[None]:
    """Run a Ray node until the block ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats",
        "--object-store-memory=78643200", f"--temp-dir={folder}", *options,
    ]  # fmt: skip
    with open(folder / "out", "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
    try:
        yield
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        psutil.wait_procs([psutil.Process(process.pid)], timeout=20)
        for one in [*started, process]:
            try:
                one.kill()
            except psutil.Error:  # it has ended
                continue
        process.wait()


@pytest.mark.ray
@pytest.mark.deep
def test_heads_and_nodes_of_ray_with_and_without_tokens(home: Path, tmp_path: Path) -> None:
    def free_port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])

    save_token(home, RIGHT)
    with tempfile.TemporaryDirectory(prefix="ray-") as name:  # paths of sockets are short
        folders = [Path(name) / part for part in "abc"]
        for folder in folders:
            folder.mkdir()
        secret, plain = (f"127.0.0.1:{free_port()}" for _ in range(2))

        def head(address: str) -> tuple[str, ...]:
            port = address.rpartition(":")[2]
            return "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"

        with (
            ray_node(folders[0], *head(secret), home=home, RAY_AUTH_MODE="token"),
            ray_node(folders[1], *head(plain), home=home, RAY_AUTH_MODE="disabled"),
        ):
            until(lambda: status(secret) == UNAUTHENTICATED, "a head with a token", START_SECONDS)
            until(lambda: status(plain) == OK, "a head without a token", START_SECONDS)
            cache, other = str(tmp_path), {MODE: "token", TOKEN: WRONG}

            def join(address: str, node: str = "", **variables: str) -> str:
                return str(run_script(JOIN, home, address, cache, node, **variables))

            assert join(secret, **{MODE: "token"}) == "ready"
            assert join(plain) == "ready"
            assert "sends none" in join(secret)
            assert "wants another token than that of RAY_AUTH_TOKEN" in join(secret, **other)
            assert "was started without a token" in join(plain, **{MODE: "token"})
            node = ("--node-ip-address=127.0.0.2", f"--address={plain}")
            with ray_node(folders[2], *node, home=home, RAY_AUTH_MODE="token"):
                found = ""
                deadline = time.monotonic() + START_SECONDS
                while "which the head does not have" not in found and time.monotonic() < deadline:
                    found = join(plain, "127.0.0.2")
                assert "the Ray of 127.0.0.2" in found and f"ray stop; export {MODE}=disabled" in found
                assert join(plain) == "ready", "a device elsewhere needs nothing of that node"
                doctor = json.loads(run_doctor(plain, home, tmp_path))["findings"]
                (board,) = [one for one in doctor if one["check"] == "token"]
                assert board["level"] == "red" and f"export {MODE}=disabled" in board["mend"]
                assert [one["level"] for one in doctor if one["check"] == "versions"] == ["ok"], "the head is examined"
            refused = json.loads(run_doctor(secret, home, tmp_path))["findings"]
            (joining,) = [one for one in refused if one["check"] == "join"]
            assert joining["level"] == "red" and joining["mend"].startswith(f"export {MODE}=token")
    assert [path.name for path in (home / ".ray").iterdir()] == ["auth_token"]


def run_doctor(address: str, home: Path, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    config = folder / "doctor.yaml"
    config.write_text(f"ray: {{address: '{address}'}}\ncache_dir: {folder}\n")
    command = [sys.executable, "-m", "coedge", "doctor", "--cluster", str(config), "--json"]
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False).stdout


def status(address: str) -> int | None:
    return grpc_status(address, HEAD_CALL, None, 2.0)
