"""Time of an exchange between two devices: both send the same number of bytes at once and wait for the other's.

    loopback    a `Transport` in the clear, encrypted, and over the local socket of one machine, against TCP sockets
                with the same bytes, in turns
    links       encrypted, over emulated links, against the time on the wire

Two processes take part. `python -m benchmarks.transport [--json] [--quick]`, about half a minute.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.report import Report, arguments
from coedge.core.units import bytes_per_second_of
from workers.emulation.paced_transport import LinkSpec, PacedTransport
from workers.emulation.processor import sharpen_timers
from workers.runtime.process import tune_process
from workers.transport.message import Message, MessageKind
from workers.transport.transport import Transport
from workers.transport.zmq_transport import SPIN_SECONDS, ZmqTransport

SIZES = {"1 KB": 1_000, "10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000}
LINKS = {"100 Mbit/s": bytes_per_second_of(100), "1 Gbit/s": bytes_per_second_of(1000)}
LATENCY_SECONDS = 0.0001
SHORT_CUT = "by the short cut"
WARM_ROUNDS, WAIT_SECONDS = 5, 20.0

Exchange = Callable[[int], None]


def main() -> None:
    options = arguments(__doc__)
    report = Report("transport")
    loopback(report, blocks=2 if options.quick else 10, rounds=10 if options.quick else 40)
    links(report, rounds=10 if options.quick else 40)
    report.finish(options.json)


def loopback(report: Report, blocks: int, rounds: int) -> None:
    kinds = ("TCP", "in the clear", "encrypted", SHORT_CUT)
    with contextlib.ExitStack() as stack:
        ends = {kind: stack.enter_context(_pair(kind)) for kind in kinds}
        for label, nbytes in SIZES.items():
            taken: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(blocks):
                for kind in kinds:
                    taken[kind] += _rounds(*ends[kind], nbytes, rounds)
            medians = {kind: report.sample(f"{label}, {kind}, s", values) * 1e3 for kind, values in taken.items()}
            report.note(f"loopback, {label} each way: TCP", medians["TCP"], "ms")
            limit = 0.15 if nbytes < 10_000 else 1.1 * medians["TCP"]
            if 10_000 <= nbytes < 100_000:
                report.note(f"loopback, {label} each way: in the clear", medians["in the clear"], "ms")
            else:
                report.at_most(f"loopback, {label} each way: in the clear", medians["in the clear"], "ms", limit)
            report.note(f"loopback, {label} each way: encrypted", medians["encrypted"], "ms")
            report.note(f"loopback, {label} each way: {SHORT_CUT}", medians[SHORT_CUT], "ms")
            _say(f"loopback, {label}")


def links(report: Report, rounds: int) -> None:
    for link, rate in LINKS.items():
        with _pair("encrypted", rate) as ends:
            for label, nbytes in SIZES.items():
                wire = (
                    Message(MessageKind.DATA, 0, arrays=(np.zeros(nbytes, np.uint8),)).nbytes / rate
                    + 2 * LATENCY_SECONDS
                )
                taken = report.sample(f"{link}, {label}, s", _rounds(*ends, nbytes, rounds))
                report.at_most(f"{link}, {label} each way: encrypted", taken * 1e3, "ms", 1.1 * wire * 1e3)
                _say(f"{link}, {label}")


def _rounds(exchange: Exchange, peer: Connection, nbytes: int, count: int) -> list[float]:
    """Return the seconds of each exchange."""
    peer.send((nbytes, count + WARM_ROUNDS))
    seconds = []
    for _ in range(count + WARM_ROUNDS):
        start = time.perf_counter()
        exchange(nbytes)
        seconds.append(time.perf_counter() - start)
    assert peer.poll(WAIT_SECONDS) and peer.recv() == nbytes
    return seconds[WARM_ROUNDS:]


@contextlib.contextmanager
def _pair(kind: str, rate: float | None = None) -> Iterator[tuple[Exchange, Connection]]:
    """Return this end of an exchange, and the function that makes the process at the other end take part."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, kind, rate), daemon=True)
    process.start()
    try:
        with _end(here, 0, kind, rate) as exchange:
            yield exchange, here
            here.send(None)
            process.join(WAIT_SECONDS)
    finally:
        process.kill()


def _serve(there: Connection, kind: str, rate: float | None) -> None:
    with _end(there, 1, kind, rate) as exchange:
        while (asked := there.recv()) is not None:
            nbytes, count = asked
            for _ in range(count):
                exchange(nbytes)
            there.send(nbytes)


@contextlib.contextmanager
def _end(other: Connection, index: int, kind: str, rate: float | None) -> Iterator[Exchange]:
    tune_process(emulated=rate is not None)
    if rate is not None:
        sharpen_timers()
    if kind == "TCP":
        with _tcp(other, index) as connection:
            yield lambda nbytes: _exchange_tcp(connection, nbytes)
        return
    spin_seconds = SPIN_SECONDS if rate is None else 0.0
    transport: Transport = ZmqTransport(
        index, f"device-{index}", encrypted=kind in ("encrypted", SHORT_CUT), spin_seconds=spin_seconds,
        local=kind == SHORT_CUT,
    )  # fmt: skip
    other.send(transport.endpoint)
    assert other.poll(WAIT_SECONDS)
    endpoint = other.recv()
    if rate is not None:
        link = LinkSpec(rate, LATENCY_SECONDS)
        transport = PacedTransport(transport, link, {1 - index: link})
    transport.connect([endpoint])
    payload: dict[int, Any] = {nbytes: np.zeros(nbytes, np.uint8) for nbytes in SIZES.values()}

    def exchange(nbytes: int) -> None:
        transport.send(1 - index, Message(MessageKind.DATA, index, arrays=(payload[nbytes],)))
        message = transport.receive(WAIT_SECONDS)
        assert message is not None and message.arrays[0].nbytes == nbytes

    try:
        yield exchange
    finally:
        transport.close()


@contextlib.contextmanager
def _tcp(other: Connection, index: int) -> Iterator[socket.socket]:
    if index:
        assert other.poll(WAIT_SECONDS)
        connection = socket.create_connection(other.recv(), timeout=WAIT_SECONDS)
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(WAIT_SECONDS)
            other.send(server.getsockname())
            connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        yield connection


def _exchange_tcp(connection: socket.socket, nbytes: int) -> None:
    """Exchange bytes as fast as sockets allow: read into preallocated memory while the rest is sent."""
    outgoing, incoming = memoryview(_OUT)[:nbytes], memoryview(_IN)[:nbytes]
    sent = got = 0
    while sent < nbytes or got < nbytes:
        waiting = True
        if sent < nbytes:
            with contextlib.suppress(BlockingIOError):
                sent += connection.send(outgoing[sent:])
                waiting = False
        if got < nbytes:
            with contextlib.suppress(BlockingIOError):
                got += connection.recv_into(incoming[got:])
                waiting = False
        if waiting:
            select.select([connection], [connection] if sent < nbytes else [], [], WAIT_SECONDS)


_OUT, _IN = bytearray(max(SIZES.values())), bytearray(max(SIZES.values()))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
