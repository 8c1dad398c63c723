"""Joining and leaving Ray: every wait for a Ray head has a deadline, whatever answers at its address."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from waiting import until

import coedge
from coedge import ClusterError
from orchestrator.control import ray_control
from orchestrator.control.deadline import Overrun, within
from orchestrator.control.local_ray import HOLD_THREAD, JOIN_THREAD
from orchestrator.control.ray_address import check_ray_address

ROOT = Path(__file__).resolve().parents[2]
# Upper bound on what happens at once, on a busy machine.
GRACE_SECONDS = 10.0

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes([0, 5, 0, 0, 64, 0])
HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class Server:
    """A server that does the same to every connection, until the test ends.

    Args:
        answer: sent to each client.
        reads: whether it reads what the client sends first.
        closes: whether it closes the connection afterwards.
    """

    def __init__(self, answer: bytes = b"", reads: bool = True, closes: bool = False) -> None:
        self._answer, self._reads, self._closes = answer, reads, closes
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # the test has ended
                return
            self._open.append(connection)
            if self._reads:
                connection.recv(1000)
            connection.sendall(self._answer)
            if self._closes:
                connection.close()

    def close(self) -> None:
        for one in (self._socket, *self._open):
            one.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**how: Any) -> Server:
        servers.append(Server(**how))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ({}, "accepted the connection and then sent nothing within 1 s"),
        ({"answer": SETTINGS[:5]}, r"sent nothing after b'.*' within 1 s"),
        ({"reads": False, "closes": True}, "(closed|ended) the connection"),
        ({"closes": True}, "closed the connection"),
        ({"answer": HTTP, "closes": True}, r"it sent b'HTTP/1\.1"),
        ({"answer": HTTP}, r"it sent b'HTTP/1\.1"),
        ({"answer": b"SSH-2.0-OpenSSH_9.6\r\n"}, "it sent b'SSH-2"),
    ],
    ids=["silent", "half a frame", "closes at once", "closes", "http", "http, stays open", "ssh"],
)
def test_an_address_where_something_else_answers_is_refused_in_time(
    serve: Callable[..., Server], how: dict[str, Any], problem: str
) -> None:
    address = serve(**how).address
    start = time.monotonic()
    with pytest.raises(ClusterError, match=problem) as caught:
        coedge.connect({"ray": {"address": address}, "connect_timeout_seconds": 2})
    assert time.monotonic() - start < 2 + GRACE_SECONDS
    assert f"what answers at {address} is not a Ray head" in str(caught.value)
    assert "ray start --head" in str(caught.value)


def test_auto_looks_at_the_address_of_the_environment(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = serve(answer=HTTP).address
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"at {address} is not a Ray head"):
        coedge.connect({"ray": {"address": "auto"}, "connect_timeout_seconds": 2})


def test_a_server_of_http_2_may_be_a_ray_head(serve: Callable[..., Server]) -> None:
    check_ray_address(serve(answer=SETTINGS).address, 5.0)
    check_ray_address(serve(answer=SETTINGS, reads=False).address, 5.0)


def run_script(text: str, *arguments: str) -> tuple[dict[str, Any], float]:
    """Run a script that prints JSON as its last line; return that, and the seconds that the process took."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        capture_output=True, text=True, timeout=180, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed, time.monotonic() - start


@pytest.mark.ray
def test_a_server_of_http_2_that_is_not_ray_is_given_up_and_the_process_ends(serve: Callable[..., Server]) -> None:
    script = """
        import json, sys, time
        import coedge
        errors, start = [], time.monotonic()
        for _ in range(2):
            try:
                coedge.connect({"ray": {"address": sys.argv[1]}, "connect_timeout_seconds": 2})
            except coedge.ClusterError as error:
                errors.append(str(error))
        print(json.dumps({"errors": errors, "seconds": time.monotonic() - start}))
    """
    address = serve(answer=SETTINGS).address
    found, seconds = run_script(script, address)
    first, second = found["errors"]
    assert f"Ray at {address} did not let this process join within 2 s" in first and "ray start --head" in first
    assert "still joins or leaves" in second
    assert found["seconds"] < 2 + GRACE_SECONDS and seconds < 2 + 2 * GRACE_SECONDS


@pytest.mark.ray
def test_a_ray_head_that_stops_is_given_up_by_questions_by_close_and_by_connect(tmp_path: Path) -> None:
    script = """
        import json, sys, threading, time
        import psutil, ray
        from ray.cluster_utils import Cluster
        import coedge
        from orchestrator.control import ray_connection, ray_control

        head = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        gcs = next(p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server")
        settings = {
            "devices": [{"name": "a", "speed": 0.5}],
            "ray": {"address": head.address}, "cache_dir": sys.argv[1], "connect_timeout_seconds": 60,
        }
        cluster = coedge.connect(settings)
        ray_connection.LEAVE_SECONDS = 2.0
        took, errors = [], []

        def timed(call):
            start = time.monotonic()
            try:
                call()
            except coedge.ClusterError as error:
                errors.append(str(error))
            took.append(time.monotonic() - start)

        gcs.suspend()
        try:
            timed(lambda: ray_control.alive_nodes(2.0))
            timed(cluster.close)
            timed(lambda: coedge.connect(settings | {"connect_timeout_seconds": 2}))
        finally:
            gcs.resume()
        deadline = time.monotonic() + 60
        while any(t.name == "coedge-leave" for t in threading.enumerate()) and time.monotonic() < deadline:
            time.sleep(0.1)
        # The head answers again.
        with coedge.connect(settings) as again:
            state = again.devices()[0].state
        head.shutdown()
        print(json.dumps({"took": took, "errors": errors, "state": state}))
    """
    found, _ = run_script(script, str(tmp_path))
    assert max(found["took"]) < 2 + GRACE_SECONDS
    question, connect = found["errors"]
    assert "did not list its nodes within 2 s" in question and "still joins or leaves" in connect
    assert found["state"] == "ready"


def test_a_start_that_hangs_is_given_up_and_what_it_started_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other children of the process stay."""
    go, undone = threading.Event(), list[bool]()
    sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
    other = subprocess.Popen(sleep)
    started: list[subprocess.Popen[bytes]] = []

    def hang(**_: Any) -> None:
        started.append(subprocess.Popen([*sleep, str(Path(ray.__file__).parent / "core")]))
        go.wait()

    monkeypatch.setattr(ray, "init", hang)
    monkeypatch.setattr(ray, "shutdown", lambda: undone.append(True))
    start = time.monotonic()
    try:
        with pytest.raises(ClusterError, match=r"did not start on this machine within 1 s.*connect_timeout_seconds"):
            coedge.connect({"connect_timeout_seconds": 1})
        assert time.monotonic() - start < 1 + GRACE_SECONDS
        assert started[0].poll() is not None and other.poll() is None
        with pytest.raises(ClusterError, match="still joins or leaves"):
            coedge.connect({"connect_timeout_seconds": 1})
    finally:
        go.set()
        other.kill()
        other.wait()
    until(lambda: undone == [True], "the Ray that starts too late is left")
    until(lambda: not any(t.name in (JOIN_THREAD, HOLD_THREAD) for t in threading.enumerate()), "the threads end")


def test_a_start_that_fails_is_an_error_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: raising(OSError("no space left"))())
    with pytest.raises(ClusterError, match="cannot start Ray on this machine: OSError: no space left"):
        coedge.connect({})


@pytest.mark.ray
def test_a_ray_whose_head_hangs_is_given_up_and_the_next_one_outlives_the_thread_that_connects(tmp_path: Path) -> None:
    script = """
        import json, sys, threading, time
        import psutil
        import coedge

        def suspend():
            while True:
                for one in psutil.Process().children():
                    if one.name() == "gcs_server":
                        return one.suspend()
                time.sleep(0.005)

        threading.Thread(target=suspend, daemon=True).start()
        settings = {"devices": [{"name": "a", "speed": 0.5}], "cache_dir": sys.argv[1]}
        start = time.monotonic()
        try:
            coedge.connect(settings | {"connect_timeout_seconds": 4})
        except coedge.ClusterError as error:
            message, seconds = str(error), time.monotonic() - start
        left = [one.name() for one in psutil.Process().children(recursive=True)]
        deadline = time.monotonic() + 60
        while any(t.name == "coedge-join" for t in threading.enumerate()) and time.monotonic() < deadline:
            time.sleep(0.1)
        clusters = []
        thread = threading.Thread(target=lambda: clusters.append(coedge.connect(settings)))
        thread.start()
        thread.join()
        time.sleep(1)  # the kernel would have killed Ray by now
        with clusters[0] as cluster:
            state = cluster.devices()[0].state
        after = [one.name() for one in psutil.Process().children(recursive=True)]
        print(json.dumps({"message": message, "seconds": seconds, "left": left, "state": state, "after": after}))
    """
    found, _ = run_script(script, str(tmp_path))
    assert "Ray did not start on this machine within 4 s" in found["message"]
    assert found["seconds"] < 2 * 4 + 2 * GRACE_SECONDS
    assert found["state"] == "ready"
    assert found["left"] == found["after"] == []


def test_every_question_to_the_ray_head_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(ray, "nodes", answer.wait)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    remote = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda spec: answer.wait()))
    monkeypatch.setattr(ray, "remote", lambda kind: remote)
    killed: list[Any] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    try:
        with pytest.raises(ClusterError, match=r"10\.0\.0\.1:6379 did not list its nodes within 0\.05 s"):
            ray_control.alive_nodes(0.05)
        with pytest.raises(ClusterError, match=r"10\.0\.0\.1:6379 did not start a worker for pi within 0\.05 s"):
            ray_control.create_actor(SimpleNamespace(name="pi"), "0" * 56, 0.05)
    finally:
        answer.set()
    until(lambda: killed, "the actor that nobody waits for is killed")


# ---------------------------------------------------------------- the deadline itself


def test_a_call_in_time_gives_its_value_or_its_error() -> None:
    undone: list[int] = []
    assert within(GRACE_SECONDS, lambda: 3, "test", undone.append) == 3
    with pytest.raises(ZeroDivisionError):
        within(GRACE_SECONDS, lambda: 1 // 0, "test", undone.append)
    with pytest.raises(TimeoutError) as own:
        within(GRACE_SECONDS, raising(TimeoutError("of the call")), "test", undone.append)
    assert not isinstance(own.value, Overrun) and undone == []


def raising(error: BaseException) -> Callable[[], int]:
    def call() -> int:
        raise error

    return call


def test_a_value_that_comes_too_late_is_undone() -> None:
    go, undone = threading.Event(), list[bool]()
    with pytest.raises(Overrun, match=r"test was not back within 0\.05 s"):
        within(0.05, go.wait, "test", undone.append)
    assert undone == []
    go.set()
    until(lambda: undone == [True], "the value is undone")


def test_without_new_threads_a_call_has_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _: raising(RuntimeError("no new threads"))())
    assert within(0.0, lambda: 4, "test") == 4
