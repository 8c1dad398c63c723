"""Faulty and foreign peers of a transport: forged senders, guessed passwords, stolen sockets, floods. Loopback only."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq
from test_transport import SOON, VirtualWire, data, needs_local_sockets, take
from waiting import until

from coedge.core.errors import ClusterError
from workers.emulation import paced_transport
from workers.emulation.paced_transport import MAX_DRAINED, LinkSpec, PacedTransport
from workers.transport import local_socket, zmq_transport
from workers.transport.authenticator import Authenticator
from workers.transport.local_socket import IPC, PREFIX, SocketFolder
from workers.transport.message import encode
from workers.transport.transport import MAX_UNDELIVERED, Endpoint, LocalEndpoint
from workers.transport.zmq_transport import MAX_RECEIVED_AHEAD, ZmqTransport

SHORT_SECONDS = 0.5  # until a message that must not come would have come

both_ways = pytest.mark.parametrize(
    "local", [False, pytest.param(True, marks=needs_local_sockets)], ids=["tcp", "local"]
)


@contextmanager
def three(local: bool) -> Iterator[list[ZmqTransport]]:
    """Three transports that know each other as a cluster lets them: each has its own passwords only."""
    transports = [ZmqTransport(index, "abc"[index], local=local) for index in range(3)]
    try:
        for transport in transports:
            transport.connect([other.endpoint.for_peer(transport.endpoint) for other in transports])
        yield transports
    finally:
        for transport in transports:
            transport.close()


def folder_of(transport: ZmqTransport) -> Path:
    assert transport.endpoint.local is not None
    return Path(transport.endpoint.local.address.removeprefix(IPC)).parent


class TestSender:
    @both_ways
    def test_a_message_that_names_another_device_is_dropped_counted_and_logged_once(
        self, local: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        with three(local) as (a, b, c), caplog.at_level(logging.WARNING):
            for frame in range(3):
                c.send(1, data(sender=0, frame=frame))  # claims to be a
            c.send(1, data(sender=77))  # claims to be a device that does not exist
            a.send(1, data(sender=0, frame=10))
            c.send(1, data(sender=2, frame=11))
            assert {(m.sender, m.frame) for m in (take(b), take(b))} == {(0, 10), (2, 11)}
            assert b.receive(SHORT_SECONDS) is None
            assert b.dropped == 4
            assert [record.message.count("as its sender") for record in caplog.records] == [1]

    @both_ways
    def test_messages_of_a_key_that_was_replaced_are_dropped(self, local: bool) -> None:
        """The connection was admitted before, and stays."""
        with three(local) as (a, b, _):
            a.send(1, data(sender=0, frame=1))
            assert take(b).frame == 1
            b.connect([replace(a.endpoint, public_key=zmq.curve_keypair()[0].decode(), local=None)])
            a.send(1, data(sender=0, frame=2))
            assert b.receive(SHORT_SECONDS) is None
            assert b.dropped == 1


@needs_local_sockets
class TestLocalSocket:
    def test_a_peer_has_no_password_but_its_own(self) -> None:
        with three(local=True) as (a, b, c):
            of_c = b.endpoint.for_peer(c.endpoint)
            assert of_c.local is not None and b.endpoint.local is not None
            assert of_c.local.secret != b.endpoint.local.secret
            assert of_c.local.secret != b.endpoint.for_peer(a.endpoint).local.secret
            assert of_c.local.secret not in repr(of_c)
            with pytest.raises(ClusterError, match="password of another device"):
                a.connect([replace(of_c, name="b, connected anew")])

    @pytest.mark.parametrize("guess", ["nothing", "a guess", "the password of c", "the receiver's public key"])
    def test_the_user_name_of_another_device_needs_its_password(self, guess: str) -> None:
        with three(local=True) as (a, b, c), zmq.Context() as context:
            of_c = b.endpoint.for_peer(c.endpoint).local
            assert of_c is not None and a.endpoint.public_key and b.endpoint.public_key
            passwords = {
                "a guess": "guess", "the password of c": of_c.secret,
                "the receiver's public key": b.endpoint.public_key,
            }  # fmt: skip
            with context.socket(zmq.PUSH) as push:
                push.linger = 0
                if guess in passwords:
                    push.plain_username, push.plain_password = a.endpoint.public_key.encode(), passwords[guess].encode()
                push.connect(of_c.address)
                with contextlib.suppress(zmq.Again):  # the connection has been refused already
                    push.send(encode(data(sender=0))[0], zmq.NOBLOCK)
                assert b.receive(SHORT_SECONDS) is None

    def test_a_password_without_a_known_key_admits_nobody(self) -> None:
        """The secret of the receiver yields a valid password for every key. The key must be a peer's, too."""
        with three(local=True) as (_, b, _), zmq.Context() as context:
            key = zmq.curve_keypair()[0].decode()
            local = b.endpoint.local.for_sender(key) if b.endpoint.local else None
            assert local is not None
            with context.socket(zmq.PUSH) as push:
                push.linger = 0
                push.plain_username, push.plain_password = key.encode(), local.secret.encode()
                push.connect(local.address)
                with contextlib.suppress(zmq.Again):  # the connection has been refused already
                    push.send(encode(data(sender=0))[0], zmq.NOBLOCK)
                assert b.receive(SHORT_SECONDS) is None

    def test_its_folder_belongs_to_one_user_and_goes_with_the_transport(self) -> None:
        with three(local=True) as transports:
            folders = [folder_of(transport) for transport in transports]
            assert len(set(folders)) == 3
            for folder in folders:
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700
                assert folder.stat().st_uid == os.getuid()
        assert not any(folder.exists() for folder in folders)

    def test_a_peer_that_does_not_see_the_socket_uses_the_network(self) -> None:
        """The sender may be in a container with another file system and the same network."""
        with three(local=True) as (a, b, _):
            local = LocalEndpoint("ipc:///nowhere/inbox", "secret")
            a.connect([replace(b.endpoint, local=local)])
            a.send(1, data(sender=0, frame=3))
            assert take(b).frame == 3

    def test_a_path_that_is_too_long_leaves_the_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        deep = tmp_path / ("x" * 100)
        deep.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        with three(local=True) as (a, b, _):
            assert b.endpoint.local is None
            a.send(1, data(sender=0))
            take(b)
        assert list(deep.iterdir()) == []


HOLD = """
import sys, time
from workers.transport.zmq_transport import ZmqTransport
transport = ZmqTransport(0, "a", local=True)
print(transport.endpoint.local.address, flush=True)
sys.stdin.read()
"""


@needs_local_sockets
class TestSocketFolder:
    @pytest.fixture(autouse=True)
    def own_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if len(str(tmp_path)) > 70:
            pytest.skip("the temporary folder's path is too long for a socket")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setenv("TMPDIR", str(tmp_path))

    @pytest.mark.parametrize("by", ["the start of the next", "the end of another"])
    def test_the_folder_of_a_killed_process_is_removed_by(self, by: str, tmp_path: Path) -> None:
        other = SocketFolder() if by == "the end of another" else None
        with subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip().removeprefix(IPC)).parent
            assert folder.parent == tmp_path and folder.exists()
            SocketFolder().close()
            assert folder.exists(), "its process lives"
            process.send_signal(signal.SIGKILL)
            process.wait(SOON)
            assert folder.exists(), "nothing could remove it"
            if other is not None:
                other.close()
            else:
                last = SocketFolder()
                assert not folder.exists()
                last.close()
        assert list(tmp_path.iterdir()) == []

    def test_the_folder_of_a_process_that_ends_without_closing_is_removed(self, tmp_path: Path) -> None:
        subprocess.run([sys.executable, "-c", HOLD], input="", capture_output=True, text=True, check=True)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_without_a_socket_and_a_link_are_left_alone(self, tmp_path: Path) -> None:
        """A process that has just made its folder has no socket in it yet."""
        new = tmp_path / f"{PREFIX}new"
        new.mkdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / local_socket.SOCKET).touch()
        (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
        SocketFolder().close()
        assert new.exists() and (elsewhere / local_socket.SOCKET).exists()


class TestAuthenticator:
    def test_a_malformed_request_does_not_end_it(self) -> None:
        with three(local=False) as (a, b, _):
            dealer = b._context.socket(zmq.DEALER)
            dealer.connect("inproc://zeromq.zap.01")
            for parts in ([b"x"], [b""] * 20, [b"", b"1.0", b"1", b"coedge", b"", b"", b"CURVE", b"short"]):
                dealer.send_multipart(parts)
            dealer.send_multipart([b"", b"1.0", b"1", b"coedge", b"", b"", b"PLAIN", b"\xff", b"\xff"])
            a.send(1, data(sender=0, frame=1))
            assert take(b).frame == 1
            dealer.close(0)

    def test_its_end_is_reported_by_receive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: Authenticator) -> None:
            raise OSError("too many files")

        monkeypatch.setattr(Authenticator, "_admit", fail)
        late = ZmqTransport(3, "late")
        try:
            with three(local=False) as (_, b, _):
                late.connect([b.endpoint])
                late.send(1, data(sender=3))
                with pytest.raises(ClusterError, match=r"cannot authenticate peers any more: .*too many files"):
                    while b.receive(SOON) is None:
                        pass
        finally:
            late.close()


class TestFlood:
    def test_a_receiver_keeps_a_bounded_number_of_messages_of_one_peer(self) -> None:
        """The kernel's buffers hold some more, on both sides."""
        payload = np.zeros(16_000, np.uint8)
        with three(local=False) as (a, b, c):
            sent = 0
            with pytest.raises(ClusterError, match="messages wait for it"):
                while sent < 20 * MAX_UNDELIVERED:
                    a.send(1, data(payload, sender=0, frame=sent))
                    sent += 1
            assert MAX_UNDELIVERED <= sent < 20 * MAX_UNDELIVERED
            c.send(1, data(sender=2))
            until(lambda: take(b).sender == 2, "a message of another peer comes through")
            a.send(1, data(sender=0, frame=2**40))
            until(lambda: take(b).frame == 2**40, "the faulty peer is heard again")

    def test_a_sender_keeps_a_bounded_number_of_bytes_for_one_peer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The peer does not receive. One message passes whatever its size."""
        limit = 24_000_000
        monkeypatch.setattr(zmq_transport, "MAX_UNDELIVERED_NBYTES", limit)
        payload = np.zeros(8_000_000, np.uint8)
        with three(local=False) as (a, b, _):
            a.send(1, data(np.zeros(2 * limit, np.uint8), sender=0))
            assert take(b).arrays[0].nbytes == 2 * limit
            with pytest.raises(ClusterError, match="MB wait for it"):
                for frame in range(100):
                    a.send(1, data(payload, sender=0, frame=frame))
            assert 3 <= frame < 50
            a.send(1, data(payload, sender=0, frame=2**40))
            until(lambda: take(b).frame == 2**40, "the slow peer gets messages again")

    @both_ways
    def test_large_data_of_one_peer_does_not_grow_a_busy_receiver(self, local: bool) -> None:
        """All messages have the same array, which the sender does not copy."""
        payload, count = np.ones(4_000_000, np.uint8), 100
        with three(local) as (a, b, _):
            before = psutil.Process().memory_info().rss
            for frame in range(count):
                a.send(1, data(payload, sender=0, frame=frame))
            grown = []
            for _ in range(20):
                time.sleep(SHORT_SECONDS / 10)
                grown.append(psutil.Process().memory_info().rss - before)
            assert max(grown) < 4 * MAX_RECEIVED_AHEAD * payload.nbytes < count * payload.nbytes / 4
            assert [take(b).frame for _ in range(count)] == list(range(count))

    @both_ways
    def test_arrays_larger_than_a_message_may_be_do_not_arrive(
        self, local: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The sender has no such limit, as another program. Arrays of the largest size pass."""
        largest = 2_000_000
        with monkeypatch.context() as receivers:
            receivers.setattr(zmq_transport, "MAX_ARRAY_NBYTES", largest)
            b = ZmqTransport(1, "b", local=local)
        a = ZmqTransport(0, "a", local=local)
        try:
            b.connect([a.endpoint.for_peer(b.endpoint)])
            a.connect([b.endpoint.for_peer(a.endpoint)])
            a.send(1, data(np.ones(largest, np.uint8), frame=1))
            assert take(b).arrays[0].nbytes == largest
            a.send(1, data(np.ones(largest + 1_000, np.uint8), frame=2))
            assert b.receive(SHORT_SECONDS) is None
            a.send(1, data(np.ones(largest, np.uint8), frame=3))
            assert take(b).frame == 3
        finally:
            a.close()
            b.close()

    def test_an_array_that_no_peer_takes_is_refused_with_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zmq_transport, "MAX_ARRAY_NBYTES", 1_000_000)
        with three(local=False) as (a, b, _):
            with pytest.raises(ClusterError, match="2 MB is too large for a message: at most 1 MB"):
                a.send(1, data(np.zeros(2_000_000, np.uint8)))
            a.send(1, data(np.zeros(1_000_000, np.uint8)))
            assert take(b).arrays[0].nbytes == 1_000_000

    def test_an_emulated_link_keeps_a_bounded_number_of_bytes_of_one_peer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(paced_transport, "MAX_UNDELIVERED_NBYTES", 3_500)
        flood = [(0.0, replace(data(np.zeros(1_000, np.uint8), sender=1, frame=f), due=5.0)) for f in range(10)]
        other = (0.0, replace(data(np.zeros(9_000, np.uint8), sender=2), due=3.0))
        a = PacedTransport(wire := VirtualWire([*flood, other]), LinkSpec(), {1: LinkSpec(), 2: LinkSpec()}, wire.clock)
        assert take(a).sender == 2, "one message passes whatever its size"
        assert a.dropped == 7
        assert [take(a).frame for _ in range(3)] == [0, 1, 2]
        wire.arrivals.append((0.0, replace(data(np.zeros(3_000, np.uint8), sender=1, frame=20), due=6.0)))
        assert take(a).frame == 20, "room is free again"

    def test_an_emulated_link_keeps_a_bounded_number_of_messages_of_one_peer(self) -> None:
        count = MAX_UNDELIVERED + 10
        flood = [(0.0, replace(data(sender=1, frame=frame), due=5.0)) for frame in range(count)]
        wire = VirtualWire([*flood, (0.0, replace(data(sender=2, frame=7), due=3.0))])
        a = PacedTransport(wire, LinkSpec(), {1: LinkSpec(), 2: LinkSpec()}, wire.clock)
        assert take(a).sender == 2
        assert a.dropped == 10
        assert [take(a).frame for _ in range(MAX_UNDELIVERED)] == list(range(MAX_UNDELIVERED))
        wire.arrivals.append((0.0, replace(data(sender=1, frame=count), due=6.0)))
        assert take(a).frame == count, "room is free again"

    def test_an_emulated_link_takes_a_bounded_number_of_messages_at_a_time(self) -> None:
        wire = VirtualWire([(0.0, data(sender=peer)) for peer in range(1, 5) for _ in range(MAX_DRAINED)])
        a = PacedTransport(wire, LinkSpec(), {}, wire.clock)
        assert a.receive(0.0) is not None
        assert len(wire.arrivals) == 3 * MAX_DRAINED


def test_an_endpoint_without_a_key_has_no_local_socket_for_peers() -> None:
    endpoint = Endpoint(0, "a", "tcp://127.0.0.1:1", "key", "clock", LocalEndpoint("ipc:///nowhere", "secret"))
    assert endpoint.for_peer(Endpoint(1, "b", "tcp://127.0.0.1:2")).local is None
