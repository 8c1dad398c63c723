"""Messages, transports and emulated links. Loopback only."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import psutil
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from waiting import listening, until

from coedge.core.errors import ClusterError, ConfigError
from coedge.execution.link_clock import LinkClock
from workers.emulation.paced_transport import LinkSpec, PacedTransport, _Holder
from workers.transport.message import (
    MalformedMessage,
    Message,
    MessageKind,
    array_to_text,
    decode,
    encode,
    text_to_array,
)
from workers.transport.transport import DeliveryFailed, Endpoint, InMemoryHub, InMemoryTransport, Transport
from workers.transport.zmq_transport import ZmqTransport

SOON = 10.0  # seconds: longer than any operation here, so that a test fails rather than hangs

dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)
any_array = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
messages = st.builds(
    Message,
    kind=st.sampled_from(MessageKind),
    sender=st.integers(-1, 2**31 - 1),
    epoch=st.integers(0, 2**32 - 1),
    frame=st.integers(0, 2**64 - 1),
    channel=st.integers(0, 2**32 - 1),
    arrays=st.lists(any_array, max_size=4).map(tuple),
    due=st.floats(0, 1e12),
)


def data(*arrays: np.ndarray, sender: int = 0, frame: int = 0) -> Message:
    return Message(MessageKind.DATA, sender, frame=frame, arrays=arrays)


def wire(message: Message) -> tuple[bytes, list[bytes]]:
    header, buffers = encode(message)
    return header, [buffer.tobytes() for buffer in buffers]


def assert_same(got: Message | None, sent: Message) -> None:
    assert got is not None
    for field in ("kind", "sender", "epoch", "frame", "channel", "due"):
        assert getattr(got, field) == getattr(sent, field)
    assert len(got.arrays) == len(sent.arrays)
    for a, b in zip(got.arrays, sent.arrays):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
        assert not a.flags.writeable


def take(transport: Transport) -> Message:
    message = transport.receive(SOON)
    assert message is not None
    return message


@contextmanager
def zmq_pair(encrypted: bool, local: bool = False) -> Iterator[tuple[ZmqTransport, ZmqTransport]]:
    a, b = (ZmqTransport(i, "ab"[i], encrypted=encrypted, local=local) for i in range(2))
    try:
        a.connect([b.endpoint])
        b.connect([a.endpoint])
        yield a, b
    finally:
        a.close()
        b.close()


modes = pytest.mark.parametrize(
    ("encrypted", "local"),
    [(True, False), (False, False), (True, True)],
    ids=["encrypted", "plain", "local"],
)
needs_local_sockets = pytest.mark.skipif(sys.platform != "linux", reason="clocks have names on Linux only")


class TestMessage:
    @given(messages)
    def test_round_trip(self, message: Message) -> None:
        assert_same(decode(*wire(message)), message)

    @given(messages)
    def test_nbytes_is_the_encoded_size(self, message: Message) -> None:
        header, buffers = wire(message)
        assert message.nbytes == len(header) + sum(map(len, buffers))

    @given(st.binary(max_size=200), st.lists(st.binary(max_size=20), max_size=3))
    def test_random_bytes_are_malformed(self, header: bytes, buffers: list[bytes]) -> None:
        with pytest.raises(MalformedMessage):
            decode(header, buffers)

    @given(messages, st.data())
    def test_truncated_headers_are_malformed(self, message: Message, choose: st.DataObject) -> None:
        header, buffers = wire(message)
        end = choose.draw(st.integers(0, len(header) - 1))
        with pytest.raises(MalformedMessage):
            decode(header[:end], buffers)

    @given(messages, st.data())
    def test_flipped_bits_never_crash(self, message: Message, choose: st.DataObject) -> None:
        header, buffers = wire(message)
        flipped = bytearray(header)
        for bit in choose.draw(st.lists(st.integers(0, 8 * len(header) - 1), min_size=1, max_size=8)):
            flipped[bit // 8] ^= 1 << bit % 8
        try:
            got = decode(bytes(flipped), buffers)
        except MalformedMessage:
            return
        assert [array.nbytes for array in got.arrays] == [len(buffer) for buffer in buffers]

    @given(messages.filter(lambda message: message.arrays))
    def test_a_missing_a_shorter_and_an_extra_part_are_malformed(self, message: Message) -> None:
        header, buffers = wire(message)
        for wrong in (buffers[:-1], [*buffers, b""], [*buffers[:-1], buffers[-1] + b"\0"]):
            with pytest.raises(MalformedMessage):
                decode(header, wrong)

    def test_an_empty_array_of_uncountable_shape_is_malformed(self) -> None:
        header, buffers = wire(data(np.zeros((0, 1), np.float32)))
        with pytest.raises(MalformedMessage, match="shape"):
            decode(header[:-8] + b"\xff" * 8, buffers)

    def test_a_bool_that_is_neither_0_nor_1_is_malformed(self) -> None:
        header, _ = wire(data(np.zeros(2, np.bool_)))
        with pytest.raises(MalformedMessage, match="bool"):
            decode(header, [b"\1\2"])

    @pytest.mark.parametrize("due", [-1.0, float("inf"), float("nan")])
    def test_a_due_time_that_is_no_time_is_malformed(self, due: float) -> None:
        with pytest.raises(MalformedMessage, match="due"):
            decode(*wire(replace(data(), due=due)))

    def test_the_error_for_another_version_says_what_to_do(self) -> None:
        header, buffers = wire(data())
        with pytest.raises(MalformedMessage, match="update the older device"):
            decode(header[:4] + b"\x63" + header[5:], buffers)

    def test_decoded_arrays_are_views_of_the_buffers(self) -> None:
        header, _ = wire(data(np.zeros(4, np.int64)))
        memory = bytearray(np.arange(4).tobytes())
        (array,) = decode(header, [memoryview(memory)]).arrays
        memory[0] = 9
        np.testing.assert_array_equal(array, [9, 1, 2, 3])

    def test_unaligned_bytes_become_aligned_arrays(self) -> None:
        header, _ = wire(data(np.zeros(4, np.int64)))
        (array,) = decode(header, [memoryview(b"." + np.arange(4).tobytes())[1:]]).arrays
        assert array.flags.aligned
        np.testing.assert_array_equal(array, np.arange(4))

    def test_contiguous_arrays_are_encoded_as_views(self) -> None:
        array = np.arange(4)
        _, (buffer,) = encode(data(array))
        assert np.shares_memory(np.asarray(buffer), array)

    @pytest.mark.parametrize(
        "array",
        [
            np.arange(12).reshape(3, 4).T,
            np.arange(24)[::-3],
            np.broadcast_to(np.float32(1), (2, 3)),
            np.arange(5, dtype=">i4"),
        ],
        ids=["transposed", "strided", "broadcast", "big-endian"],
    )
    def test_any_layout_travels(self, array: np.ndarray) -> None:
        (got,) = decode(*wire(data(array))).arrays
        np.testing.assert_array_equal(got, array)

    @pytest.mark.parametrize("array", [np.array([None]), np.array(["a"]), np.zeros(1, complex)])
    def test_other_dtypes_are_refused(self, array: np.ndarray) -> None:
        with pytest.raises(ValueError, match="cannot travel"):
            encode(data(array))

    @given(st.text())
    def test_text(self, text: str) -> None:
        (array,) = decode(*wire(data(text_to_array(text)))).arrays
        assert array_to_text(array) == text

    def test_text_that_is_not_utf8_is_replaced(self) -> None:
        assert array_to_text(np.array([65, 255], np.uint8)) == "A\ufffd"


class TestInMemoryTransport:
    def test_in_order_and_read_only(self) -> None:
        hub = InMemoryHub()
        a, b = InMemoryTransport(0, "a", hub), InMemoryTransport(1, "b", hub)
        a.connect([b.endpoint])
        sent = [data(np.arange(3), frame=frame) for frame in range(5)]
        for message in sent:
            a.send(1, message)
        for message in sent:
            assert_same(b.receive(0), message)
        assert b.receive(0) is None

    def test_unknown_peer(self) -> None:
        with pytest.raises(ClusterError, match="peer 7"):
            InMemoryTransport(0, "a", InMemoryHub()).send(7, data())

    def test_wake(self) -> None:
        transport = InMemoryTransport(0, "a", InMemoryHub())
        transport.wake()
        assert transport.receive(SOON) is None

    def test_a_closed_peer_loses_messages(self) -> None:
        hub = InMemoryHub()
        a, b = InMemoryTransport(0, "a", hub), InMemoryTransport(1, "b", hub)
        a.connect([b.endpoint])
        b.close()
        a.send(1, data())


class TestZmqTransport:
    @modes
    def test_both_directions_in_order(self, encrypted: bool, local: bool) -> None:
        random = np.random.default_rng(0)
        sizes = [1, 100, 5_000, 100_000, 131_071, 131_072, 4_000_000, 0, 1]
        with zmq_pair(encrypted, local) as (a, b):
            arrays = [(random.integers(0, 256, size, np.uint8), np.array(size)) for size in sizes]
            there = [data(*arrays[frame], sender=0, frame=frame) for frame in range(len(sizes))]
            back = [data(*arrays[frame], sender=1, frame=frame) for frame in range(len(sizes))]
            for x, y in zip(there, back):
                a.send(1, x)
                b.send(0, y)
            for x, y in zip(there, back):
                assert_same(b.receive(SOON), x)
                assert_same(a.receive(SOON), y)

    def test_a_received_array_can_be_sent_on(self) -> None:
        with zmq_pair(encrypted=True) as (a, b):
            message = data(np.arange(100_000), np.arange(3))
            a.send(1, message)
            b.send(0, replace(take(b), sender=1))
            assert_same(a.receive(SOON), replace(message, sender=1))

    def test_a_peer_may_send_before_it_is_known(self) -> None:
        early, late = ZmqTransport(0, "early"), ZmqTransport(1, "late")
        try:
            early.connect([late.endpoint])
            early.send(1, data(frame=1))
            assert late.receive(0.2) is None  # the handshake has begun and waits
            late.connect([early.endpoint])
            assert take(late).frame == 1
        finally:
            early.close()
            late.close()

    def test_messages_of_an_unknown_key_are_not_delivered(self) -> None:
        stranger = ZmqTransport(2, "stranger")
        try:
            with zmq_pair(encrypted=True) as (a, b):
                stranger.connect([b.endpoint])
                stranger.send(1, data(sender=2))
                a.send(1, data(sender=0))
                assert take(b).sender == 0
                assert b.receive(0.5) is None
        finally:
            stranger.close()

    def test_messages_without_encryption_are_not_delivered_to_an_encrypted_transport(self) -> None:
        with zmq_pair(encrypted=True) as (_, b), zmq.Context() as context:
            push = context.socket(zmq.PUSH)
            push.linger = 0
            push.connect(b.endpoint.address)
            with contextlib.suppress(zmq.Again):  # the connection has been refused already
                push.send(encode(data())[0], zmq.NOBLOCK)
            assert b.receive(0.5) is None
            push.close()

    def test_a_new_connection_with_a_replaced_key_is_not_admitted(self) -> None:
        with zmq_pair(encrypted=True) as (a, b):
            b.connect([replace(a.endpoint, public_key=zmq.curve_keypair()[0].decode())])
            a.connect([replace(b.endpoint, name="b, connected anew")])
            a.send(1, data())
            assert b.receive(0.5) is None

    @needs_local_sockets
    def test_the_local_socket_is_used_on_the_same_clock_only(self) -> None:
        """The network address leads nowhere, so only the local socket delivers."""
        nowhere = "tcp://127.0.0.1:9"
        with zmq_pair(encrypted=True, local=True) as (a, b):
            a.connect([replace(b.endpoint, address=nowhere)])
            a.send(1, data(frame=1))
            assert take(b).frame == 1
            a.connect([replace(b.endpoint, address=nowhere, clock="another machine")])
            a.send(1, data(frame=2))
            assert b.receive(0.5) is None

    @needs_local_sockets
    def test_a_device_receives_from_local_and_from_remote_peers(self) -> None:
        far = ZmqTransport(2, "far")
        try:
            with zmq_pair(encrypted=True, local=True) as (a, b):
                far.connect([b.endpoint])
                b.connect([far.endpoint])
                for frame in range(20):
                    a.send(1, data(sender=0, frame=frame))
                    far.send(1, data(sender=2, frame=frame))
                came = [take(b) for _ in range(40)]
                for sender in (0, 2):
                    assert [m.frame for m in came if m.sender == sender] == list(range(20))
        finally:
            far.close()

    def test_without_encryption_there_is_no_local_socket(self) -> None:
        with zmq_pair(encrypted=False, local=True) as (a, _):
            assert a.endpoint.local is None

    def test_an_unknown_peer_is_named_with_those_known(self) -> None:
        with zmq_pair(encrypted=False) as (a, _), pytest.raises(ClusterError, match=r"peer 9.*1 \(b\)"):
            a.send(9, data())

    def test_a_peer_with_another_encryption_setting_is_refused(self) -> None:
        with zmq_pair(encrypted=True) as (a, _), pytest.raises(ClusterError, match="same encryption"):
            a.connect([Endpoint(5, "bare", "tcp://127.0.0.1:9")])

    def test_a_restarted_peer_is_reached_at_its_new_address(self) -> None:
        with zmq_pair(encrypted=True) as (a, b):
            a.send(1, data())
            take(b)
            b.close()
            restarted = ZmqTransport(1, "b")
            try:
                restarted.connect([a.endpoint])
                a.connect([restarted.endpoint])
                a.connect([restarted.endpoint])  # a second call changes nothing
                a.send(1, data(frame=2))
                assert take(restarted).frame == 2
                restarted.send(0, data(sender=1, frame=3))
                assert take(a).frame == 3
                assert addresses(a) == {restarted.endpoint.address}
            finally:
                restarted.close()

    def test_receive_times_out(self) -> None:
        with zmq_pair(encrypted=False) as (a, _):
            assert a.receive(0) is None
            assert a.receive(-1) is None
            assert a.receive(0.01) is None

    @modes
    def test_wake_from_another_thread(self, encrypted: bool, local: bool) -> None:
        with zmq_pair(encrypted, local) as (a, b):
            got: list[Message | None] = []
            thread = threading.Thread(target=lambda: got.append(b.receive(3600)))
            thread.start()
            b.wake()
            thread.join(SOON)
            assert got == [None]
            a.send(1, data(frame=4))
            assert take(b).frame == 4

    def test_malformed_messages_are_dropped_counted_and_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with zmq_pair(encrypted=False) as (_, b), zmq.Context() as context:
            push = context.socket(zmq.PUSH)
            push.linger = 0
            push.connect(b.endpoint.address)
            header, _ = encode(data(np.zeros(3)))
            with caplog.at_level(logging.WARNING):
                for parts in ([b""], [b"rubbish"], [header], [header, b"short"], [encode(data(frame=5))[0]]):
                    push.send_multipart(parts)
                assert take(b).frame == 5
            assert b.dropped == 4
            assert len(caplog.records) == 1
            push.close()

    def test_a_taken_port_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(ClusterError, match=str(port)):
                ZmqTransport(0, "a", port=port)

    def test_a_chosen_port_is_used(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        transport = ZmqTransport(0, "a", port=port)
        transport.close()
        assert transport.endpoint.address == f"tcp://127.0.0.1:{port}"

    def test_ipv6(self) -> None:
        try:
            a, b = ZmqTransport(0, "a", host="::1"), ZmqTransport(1, "b")
        except ClusterError:
            pytest.skip("this machine has no IPv6 loopback")
        b.connect([a.endpoint])
        a.connect([b.endpoint])
        b.send(0, data(sender=1))
        take(a)
        a.close()
        b.close()

    @pytest.mark.parametrize("host", ["0.0.0.0", "*", "::", ""])
    def test_a_host_that_peers_cannot_reach_is_refused(self, host: str) -> None:
        with pytest.raises(ConfigError, match="peers"):
            ZmqTransport(0, "a", host=host)

    def test_a_closed_transport_says_so(self) -> None:
        transport = ZmqTransport(0, "a")
        transport.close()
        transport.close()
        transport.wake()
        with pytest.raises(ClusterError, match="closed"):
            transport.receive(0)
        with pytest.raises(ClusterError, match="closed"):
            transport.send(1, data())

    @modes
    def test_close_leaves_no_thread_and_no_port(self, encrypted: bool, local: bool) -> None:
        me = psutil.Process()

        def use() -> set[int]:
            with zmq_pair(encrypted, local) as (a, b):
                a.send(1, data(np.zeros(100_000)))  # 800 kB: not copied
                take(b)
                ports = {port_of(a), port_of(b)}
                assert ports <= listening()
                return ports

        use()  # starts pyzmq's own thread, which frees sent arrays and stays
        before = {thread.id for thread in me.threads()}
        ports = use()
        until(lambda: {thread.id for thread in me.threads()} <= before, "the joined threads disappear from /proc")
        assert not ports & listening()


class TestPacedTransport:
    def test_order_and_lower_bounds(self) -> None:
        slow = LinkSpec(bytes_per_second=10e6, latency_seconds=0.01)
        with paced_pair(slow, slow) as (a, b):
            started = time.monotonic()
            a.send(1, data(np.zeros(1_000_000, np.uint8), frame=1))
            a.send(1, data(frame=2))
            a.send(1, data(np.zeros(500_000, np.uint8), frame=3))
            assert take(b).frame == 1
            assert time.monotonic() - started >= 0.12
            assert take(b).frame == 2
            assert take(b).frame == 3
            assert time.monotonic() - started >= 0.17

    def test_two_senders_share_the_receiver_s_down_link(self) -> None:
        hub = InMemoryHub()
        fast, slow = LinkSpec(100e6), LinkSpec(10e6)
        links = {0: fast, 1: fast, 2: slow}
        transports = [
            PacedTransport(InMemoryTransport(index, str(index), hub), link, links) for index, link in links.items()
        ]
        endpoints = [transport.endpoint for transport in transports]
        try:
            started = time.monotonic()
            for index in (0, 1):
                transports[index].connect(endpoints)
                transports[index].send(2, data(np.zeros(500_000, np.uint8), sender=index))
            assert {take(transports[2]).sender, take(transports[2]).sender} == {0, 1}
            assert time.monotonic() - started >= 0.1
        finally:
            for transport in transports:
                transport.close()

    def test_over_an_encrypted_transport_both_ways(self) -> None:
        with paced_zmq_pair(LinkSpec(50e6, 0.001)) as (a, b):
            for frame in range(20):
                a.send(1, data(np.full(10_000, frame), sender=0, frame=frame))
                b.send(0, data(np.full(100, frame), sender=1, frame=frame))
            for frame in range(20):
                at_b, at_a = take(b), take(a)
                assert_same(at_b, replace(data(np.full(10_000, frame), sender=0, frame=frame), due=at_b.due))
                assert_same(at_a, replace(data(np.full(100, frame), sender=1, frame=frame), due=at_a.due))

    def test_an_unknown_peer_is_named(self) -> None:
        with paced_pair(LinkSpec(), LinkSpec()) as (a, _), pytest.raises(ClusterError, match="peer 9"):
            a.send(9, data())

    def test_a_held_message_that_cannot_be_sent_is_reported_by_receive_with_the_message(self) -> None:
        inner = InMemoryTransport(0, "a", InMemoryHub())
        a = PacedTransport(inner, LinkSpec(), {8: LinkSpec(), 9: LinkSpec()})
        try:
            a.connect([Endpoint(index, "gone", f"memory://{index}", clock="another") for index in (8, 9)])
            inner._peers.clear()
            a.send(9, data(frame=1))
            a.send(8, data(frame=2))
            for peer, frame in ((9, 1), (8, 2)):
                with pytest.raises(DeliveryFailed, match=f"peer {peer}") as failed:
                    a.receive(SOON)
                assert (failed.value.peer_index, failed.value.message.frame) == (peer, frame)
            assert a.receive(0.0) is None, "each failure is reported once"
        finally:
            a.close()

    def test_the_end_of_the_sending_thread_is_reported_by_every_later_call(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: object) -> None:
            raise OSError("no memory")

        monkeypatch.setattr(_Holder, "_next", fail)
        with held_pair(LinkSpec(latency_seconds=0.05)) as (a, b):
            with contextlib.suppress(ClusterError):  # the thread may have ended already
                a.send(1, data())
            for _ in range(2):
                with pytest.raises(ClusterError, match="no memory"):
                    a.receive(SOON)
                with pytest.raises(ClusterError, match="no memory"):
                    a.send(1, data())
            assert b.receive(0.0) is None

    def test_times_out_and_wakes(self) -> None:
        with paced_pair(LinkSpec(), LinkSpec()) as (a, _):
            assert a.receive(0) is None
            assert a.receive(0.01) is None
            got: list[Message | None] = []
            thread = threading.Thread(target=lambda: got.append(a.receive(3600)))
            thread.start()
            a.wake()
            thread.join(SOON)
            assert got == [None]

    def test_close_sends_held_messages_that_are_due_soon_and_leaves_no_thread(self) -> None:
        threads = set(threading.enumerate())
        with held_pair(LinkSpec(latency_seconds=0.05)) as (a, b):
            a.send(1, data(frame=1))
            assert b.receive(0) is None
            a.close()
            a.close()
            assert set(threading.enumerate()) == threads
            assert take(b).frame == 1

    def test_close_does_not_wait_for_held_messages_that_are_due_later(self) -> None:
        with held_pair(LinkSpec(bytes_per_second=0.001)) as (a, b):
            a.send(1, data())
            a.close()
            assert b.receive(0) is None

    @pytest.mark.parametrize("fields", [(0.0, 0.0), (-1.0, 0.0), (1.0, -1.0), (None, float("nan"))])
    def test_impossible_links_are_refused(self, fields: tuple[float | None, float]) -> None:
        with pytest.raises(ValueError):
            LinkSpec(*fields)


class TestStamps:
    """The `due` times of messages, in virtual time."""

    def test_a_message_leaves_at_once_and_says_when_it_is_due(self) -> None:
        wire = VirtualWire(now=7.0)
        a = PacedTransport(wire, LinkSpec(100.0, 0.5), {1: LinkSpec(None, 0.25)}, wire.clock)
        message = data(np.zeros(100, np.uint8))
        a.send(1, message)
        a.send(1, message)
        assert [(peer, sent.due) for peer, sent in wire.sent] == [
            (1, pytest.approx(7.75 + message.nbytes / 100)),
            (1, pytest.approx(7.75 + 2 * message.nbytes / 100)),
        ]
        assert wire.now == 7.0

    def test_a_changed_link_applies_to_later_messages(self) -> None:
        wire = VirtualWire()
        a = PacedTransport(wire, LinkSpec(100.0), {1: LinkSpec()}, wire.clock)
        message = data(np.zeros(100, np.uint8))
        a.send(1, message)
        a.set_link(wire.endpoint.index, LinkSpec(50.0, 0.5))
        a.send(1, message)
        a.set_link(1, LinkSpec(latency_seconds=2.0))
        a.send(1, message)
        first, second, third = (sent.due for _, sent in wire.sent)
        assert first == pytest.approx(message.nbytes / 100)
        assert second == pytest.approx(first + message.nbytes / 50 + 0.5)
        assert third == pytest.approx(second + message.nbytes / 50 + 2.0)

    def test_a_message_leaves_at_the_time_that_ready_tells(self) -> None:
        wire = VirtualWire(now=7.0)
        a = PacedTransport(wire, LinkSpec(None, 0.5), {1: LinkSpec()}, wire.clock, ready=lambda: 6.0)
        a.send(1, data())
        assert wire.sent[0][1].due == 6.5

    def test_the_time_to_hand_over_a_message_delays_it(self) -> None:
        """The hand-over takes one second of the device's time, which is estimated from earlier messages."""
        wire = VirtualWire()
        times = iter(range(100))
        a = PacedTransport(wire, LinkSpec(), {1: LinkSpec(latency_seconds=10.0)}, wire.clock, ready=lambda: next(times))
        for _ in range(40):
            a.send(1, data())
        late = [sent.due - 10.0 - 2 * number for number, (_, sent) in enumerate(wire.sent)]
        assert late[0] == 0.0 and late == sorted(late) and late[-1] == pytest.approx(1.0, abs=0.01)

    def test_a_device_that_lags_behind_does_not_see_messages_of_its_future(self) -> None:
        """The real time is 5 s, the device's time 2 s. A poll must not return the message, a wait may."""
        wire = VirtualWire([(0.0, replace(data(sender=1), due=3.0))], now=5.0)
        a = PacedTransport(wire, LinkSpec(), {1: LinkSpec()}, wire.clock, ready=lambda: 2.0)
        assert a.receive(0.0) is None
        message = a.receive(SOON)
        assert message is not None and message.due == 3.0 and wire.now == 5.0

    def test_a_message_that_arrives_early_is_received_when_it_is_due(self) -> None:
        wire = VirtualWire([(0.0, replace(data(sender=1), due=3.0))])
        a = PacedTransport(wire, LinkSpec(), {1: LinkSpec()}, wire.clock)
        assert a.receive(2.0) is None and wire.now == 2.0
        assert take(a).due == 3.0 and wire.now == 3.0

    def test_a_message_that_arrives_late_is_received_at_once_with_its_due_time(self) -> None:
        wire = VirtualWire([(5.0, replace(data(sender=1), due=3.0))])
        a = PacedTransport(wire, LinkSpec(), {1: LinkSpec()}, wire.clock)
        assert take(a).due == 3.0 and wire.now == 5.0

    def test_messages_take_the_down_link_in_the_order_in_which_they_are_due(self) -> None:
        """The link has 100 bytes/s. Of two messages with 100 bytes each, the first to arrive is the last to be due."""
        payload = np.zeros(100 - data(np.zeros(0, np.uint8)).nbytes, np.uint8)
        first = replace(data(payload, sender=1, frame=1), due=1.5)
        second = replace(data(payload, sender=2, frame=2), due=1.0)
        wire = VirtualWire([(0.0, first), (0.1, second)])
        a = PacedTransport(wire, LinkSpec(100.0), {1: LinkSpec(100.0), 2: LinkSpec(100.0)}, wire.clock)
        assert [(m.frame, m.due) for m in (take(a), take(a))] == [(2, 1.0), (1, 2.0)]

    def test_a_message_to_a_peer_without_an_emulated_link_is_not_delayed(self) -> None:
        wire = VirtualWire()
        a = PacedTransport(wire, LinkSpec(1.0), {1: LinkSpec(1.0)}, wire.clock)
        a.send(1, data(frame=1))
        a.send(2, data(frame=2))
        assert wire.sent[1][1].due == 0.0

    def test_a_message_from_a_peer_without_an_emulated_link_overtakes(self) -> None:
        wire = VirtualWire([(0.0, replace(data(sender=1, frame=1), due=9.0)), (1.0, data(sender=2, frame=2))])
        a = PacedTransport(wire, LinkSpec(), {1: LinkSpec()}, wire.clock)
        assert take(a).frame == 2 and wire.now == 1.0

    def test_a_due_time_of_another_clock_is_ignored(self) -> None:
        wire = VirtualWire([(1.0, replace(data(sender=1), due=9999.0))])
        a = PacedTransport(wire, LinkSpec(), {1: LinkSpec()}, wire.clock)
        a.connect([Endpoint(1, "far", "memory://1", clock="another")])
        assert take(a).due == 1.0

    def test_wake_ends_a_wait_for_a_message_that_is_not_due_yet(self) -> None:
        wire = VirtualWire([(0.0, replace(data(sender=1), due=9.0))])
        a = PacedTransport(wire, LinkSpec(), {1: LinkSpec()}, wire.clock)
        a.wake()
        assert a.receive(SOON) is None and wire.now == 0.0
        assert take(a).due == 9.0

    @given(
        st.lists(
            st.tuples(st.sampled_from([1, 2]), st.integers(0, 50), st.floats(0, 5), st.integers(0, 300)),
            max_size=12,
            unique_by=lambda send: send[1],  # of two with equal due times, the first to arrive goes first
        ),
        st.sampled_from([None, 50.0, 1000.0]),
    )
    def test_an_early_arrival_does_not_change_the_delivery_time(
        self, sends: list[tuple[int, int, float, int]], rate: float | None
    ) -> None:
        """The down-link delivers each message at the same time, whether it arrives when it is due or before."""
        stamped = [
            replace(data(np.zeros(nbytes, np.uint8), sender=peer, frame=frame), due=10 + due / 10)
            for frame, (peer, due, _, nbytes) in enumerate(sends)
        ]
        got = []
        for arrivals in ([m.due for m in stamped], [m.due - early for m, (_, _, early, _) in zip(stamped, sends)]):
            wire = VirtualWire(sorted(zip(arrivals, stamped), key=lambda item: item[0]))
            a = PacedTransport(wire, LinkSpec(rate), {1: LinkSpec(100.0), 2: LinkSpec(None)}, wire.clock)
            through = [a.receive(1000.0) for _ in stamped]
            got.append(sorted(message.due for message in through if message is not None))
            assert wire.now == pytest.approx(max([*got[-1], 0.0]))
        assert got[0] == pytest.approx(got[1])


class TestLinkClock:
    def test_transfers_queue(self) -> None:
        link = LinkClock(100.0)
        assert [link.occupy(0.0, 100), link.occupy(0.5, 200), link.occupy(10.0, 50)] == [1.0, 3.0, 10.5]

    def test_an_unlimited_link_takes_no_time(self) -> None:
        link = LinkClock(None)
        assert [link.occupy(1.0, 10**9), link.occupy(2.0, 10**9)] == [1.0, 2.0]
        assert link.deliver(3.0, 10**9, None) == 3.0

    @pytest.mark.parametrize(
        ("sender_rate", "delivered"),
        [(None, 2.0), (200.0, 1.5), (100.0, 1.0), (50.0, 1.0)],
        ids=["unlimited", "faster", "equal", "slower"],
    )
    def test_the_slower_end_sets_the_pace(self, sender_rate: float | None, delivered: float) -> None:
        """The last of 100 bytes arrives at 1 s."""
        assert LinkClock(100.0).deliver(1.0, 100, sender_rate) == delivered

    def test_two_senders_at_once_share_the_down_link(self) -> None:
        """Both sent 100 bytes in [0, 1] s. The receiver needs 2 s for 200 bytes."""
        link = LinkClock(100.0)
        assert [link.deliver(1.0, 100, 100.0), link.deliver(1.0, 100, 100.0)] == [1.0, 2.0]

    def test_two_slow_senders_use_the_down_link_fully(self) -> None:
        """Both sent 60 bytes in [0, 1] s, so the down-link carries 120 bytes during [0, 1.2] s."""
        link = LinkClock(100.0)
        assert [link.deliver(1.0, 60, 60.0), link.deliver(1.0, 60, 60.0)] == pytest.approx([1.0, 1.2])

    @given(
        st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1000), st.sampled_from([None, 50.0, 5000.0]))),
        st.sampled_from([None, 10.0, 1000.0]),
    )
    def test_deliveries_keep_their_order_and_the_rate(
        self, steps: list[tuple[float, int, float | None]], rate: float | None
    ) -> None:
        link = LinkClock(rate)
        arrived = last = 0.0
        for gap, nbytes, sender_rate in steps:
            arrived += gap
            delivered = link.deliver(arrived, nbytes, sender_rate)
            assert delivered >= max(arrived, last)
            last = delivered
        if rate and steps:
            first_start = min(0.0, *(-n / r for _, n, r in steps if r)) if any(r for *_, r in steps) else 0.0
            assert last >= first_start + sum(n for _, n, _ in steps) / rate - 1e-6

    @pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
    def test_a_rate_that_is_not_positive_is_refused(self, rate: float) -> None:
        with pytest.raises(ValueError, match="carries nothing"):
            LinkClock(rate)


@contextmanager
def paced_pair(link_a: LinkSpec, link_b: LinkSpec) -> Iterator[tuple[PacedTransport, PacedTransport]]:
    hub = InMemoryHub()
    links = {0: link_a, 1: link_b}
    a, b = (PacedTransport(InMemoryTransport(i, "ab"[i], hub), link, links) for i, link in links.items())
    try:
        a.connect([b.endpoint])
        b.connect([a.endpoint])
        yield a, b
    finally:
        a.close()
        b.close()


@contextmanager
def held_pair(link: LinkSpec) -> Iterator[tuple[PacedTransport, InMemoryTransport]]:
    """A paced transport, and a plain one whose endpoint has the clock of another host."""
    hub = InMemoryHub()
    a, b = PacedTransport(InMemoryTransport(0, "a", hub), link, {1: LinkSpec()}), InMemoryTransport(1, "b", hub)
    try:
        a.connect([replace(b.endpoint, clock="another")])
        yield a, b
    finally:
        a.close()


class VirtualWire:
    """An inner transport in virtual time: messages arrive at given times, and waiting advances the clock."""

    endpoint = Endpoint(0, "a", "memory://0", clock="here")

    def __init__(self, arrivals: Iterable[tuple[float, Message]] = (), now: float = 0.0) -> None:
        self.arrivals, self.now = list(arrivals), now
        self.sent: list[tuple[int, Message]] = []
        self.woken = False

    def clock(self) -> float:
        return self.now

    def connect(self, peers: Iterable[Endpoint]) -> None:
        pass

    def disconnect(self, peer_index: int) -> None:
        pass

    def send(self, peer_index: int, message: Message) -> None:
        self.sent.append((peer_index, message))

    def receive(self, timeout_seconds: float) -> Message | None:
        until = self.now + timeout_seconds
        if self.arrivals and self.arrivals[0][0] <= until:
            time, message = self.arrivals.pop(0)
            self.now = max(self.now, time)
            return message
        if self.woken:
            self.woken = False
        else:
            self.now = until
        return None

    def wake(self) -> None:
        self.woken = True

    def close(self) -> None:
        pass


@contextmanager
def paced_zmq_pair(link: LinkSpec) -> Iterator[tuple[PacedTransport, PacedTransport]]:
    links = {0: link, 1: link}
    a, b = (PacedTransport(ZmqTransport(i, "ab"[i]), link, links) for i in links)
    try:
        a.connect([b.endpoint])
        b.connect([a.endpoint])
        yield a, b
    finally:
        a.close()
        b.close()


def port_of(transport: ZmqTransport) -> int:
    return int(transport.endpoint.address.rsplit(":", 1)[1])


def addresses(transport: ZmqTransport) -> set[str]:
    """Return the addresses of the transport's open PUSH sockets."""
    return {push.get_string(zmq.LAST_ENDPOINT).rstrip("\0") for push in transport._sockets.values()}
