"""A slow network interface, emulated in user space: messages wait as long as a real link would take.

    send --> up-link (FIFO, own rate) --> latency --> inner --> down-link (FIFO, own rate) --> receive
             `------ sending thread waits ------'           `-- receiving thread stamps the arrival

Two threads wait and stamp, so that a kernel on the main thread neither delays what leaves nor what arrives.
(A main thread that runs Python all the time does: by up to `sys.getswitchinterval()`, 5 ms by default.)
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from coedge.link_clock import LinkClock
from workers.message import Message
from workers.transport import MAX_TIMEOUT_SECONDS, Endpoint, Transport

CLOSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """The network interface of a device, full duplex.

    Attributes:
        bytes_per_second: of each direction. None is unlimited.
        latency_seconds: between the interface and the middle of the network, one way.
    """

    bytes_per_second: float | None = None
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        LinkClock(self.bytes_per_second)  # refuses a rate that is not positive
        if not self.latency_seconds >= 0:
            raise ValueError(f"a latency of {self.latency_seconds} s is not possible")


class PacedTransport:
    """Paces another transport as the links of this device and of its peers would.

    A message to peer p leaves when the up-link has carried it and both latencies have passed; latency does
    not occupy the link. One that arrives from p takes its turn on the down-link, see `LinkClock.deliver`.
    Peers that `peers` does not name are not paced, in neither direction. An array that was sent must not be
    written to before its receiver is known to have it.

    Args:
        inner: used by one sending and one receiving thread of this object, which also closes it.
        own: this device's link.
        peers: the links of the other devices, by index.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        inner: Transport,
        own: LinkSpec,
        peers: Mapping[int, LinkSpec],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._own = own
        self._links = dict(peers)
        self._clock = clock
        self._up = LinkClock(own.bytes_per_second)
        self._down = LinkClock(own.bytes_per_second)
        self._order = itertools.count()  # ties in time keep their order
        self._leaving: list[tuple[float, int, int, Message]] = []  # heap: (due, order, peer, message)
        self._arrived: list[tuple[float, int, Message]] = []  # heap: (delivered, order, message)
        self._leave = threading.Condition()
        self._arrive = threading.Condition()
        self._woken = False
        self._failure: Exception | None = None
        self._close_at: float | None = None  # what is due later than that is not sent any more
        self._close_lock = threading.Lock()
        name = inner.endpoint.name
        self._threads = [
            threading.Thread(target=self._run, args=(loop,), name=f"{name}-{role}", daemon=True)
            for role, loop in (("sender", self._send_loop), ("receiver", self._receive_loop))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def endpoint(self) -> Endpoint:
        return self._inner.endpoint

    def connect(self, peers: Iterable[Endpoint]) -> None:
        self._inner.connect(peers)

    def send(self, peer_index: int, message: Message) -> None:
        """Queue the message. An error of the inner transport is raised by the next `send` or `receive`."""
        self._raise_failure()
        link = self._links.get(peer_index)
        with self._leave:
            due = self._clock()
            if link is not None:
                due = self._up.occupy(due, message.nbytes) + self._own.latency_seconds + link.latency_seconds
            heapq.heappush(self._leaving, (due, next(self._order), peer_index, message))
            self._leave.notify()

    def receive(self, timeout_seconds: float) -> Message | None:
        """The next message that is through the down-link; None if none is in time, or after `wake`."""
        deadline = self._clock() + min(max(timeout_seconds, 0.0), MAX_TIMEOUT_SECONDS)
        with self._arrive:
            while True:
                now = self._clock()
                if self._arrived and self._arrived[0][0] <= now:
                    return heapq.heappop(self._arrived)[2]
                self._raise_failure()
                if self._woken or now >= deadline:
                    self._woken = False
                    return None
                until = min(deadline, self._arrived[0][0]) if self._arrived else deadline
                self._arrive.wait(until - now)

    def wake(self) -> None:
        with self._arrive:
            self._woken = True
            self._arrive.notify()

    def close(self) -> None:
        """Send what is due within half a second, stop both threads, then close the inner transport."""
        with self._close_lock:
            if self._close_at is not None:
                return
            with self._leave:
                self._close_at = self._clock() + CLOSE_SECONDS
                self._leave.notify()
            self._inner.wake()
            for thread in self._threads:
                thread.join()
            self._inner.close()

    def _send_loop(self) -> None:
        while True:
            with self._leave:
                while not self._leaving or self._leaving[0][0] > self._clock():
                    due = self._leaving[0][0] if self._leaving else None
                    if self._close_at is not None and (due is None or due > self._close_at):
                        return
                    self._leave.wait(None if due is None else min(due - self._clock(), MAX_TIMEOUT_SECONDS))
                _, _, peer_index, message = heapq.heappop(self._leaving)
            try:
                self._inner.send(peer_index, message)
            except Exception as error:  # belongs to the loop's thread, which asks for it
                self._fail(error)

    def _receive_loop(self) -> None:
        while self._close_at is None:
            message = self._inner.receive(MAX_TIMEOUT_SECONDS)
            if message is None:
                continue
            delivered = arrived = self._clock()
            link = self._links.get(message.sender)
            if link is not None:
                delivered = self._down.deliver(arrived, message.nbytes, link.bytes_per_second)
            with self._arrive:
                heapq.heappush(self._arrived, (delivered, next(self._order), message))
                self._arrive.notify()

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._arrive:
            self._failure = error
            self._arrive.notify()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
