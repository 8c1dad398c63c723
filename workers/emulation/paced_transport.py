"""A slower network interface, emulated in user space: messages take as long as on a real link.

    send --> up-link (FIFO, own rate) --> latency --> down-link (FIFO, own rate) --> receive
    `----------- stamped `due`, sent at once ----'   `------- held until then -------'

The time that the emulation itself takes (the hand-over to the peer's process, the wake-up of a core) is part of the
emulated transfer time. A stamp is a time of the monotonic clock, so it holds between devices of one host. A message to
a peer on another host is held by a thread of the sender until it is due, and the time of the real network is added.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from coedge.core.errors import ClusterError
from coedge.execution.link_clock import LinkClock
from workers.transport.message import Message, MessageKind
from workers.transport.transport import (
    MAX_TIMEOUT_SECONDS,
    MAX_UNDELIVERED,
    MAX_UNDELIVERED_NBYTES,
    DeliveryFailed,
    Endpoint,
    Transport,
)

log = logging.getLogger(__name__)

CLOSE_SECONDS = 0.5
SMOOTHING = 0.2
# Messages taken from the inner transport at a time: a peer that sends without pause must not keep `receive` busy.
MAX_DRAINED = 1024


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
    """A transport that delays the messages of another one according to the links of this device and of its peers.

    A message to peer p is due when the up-link has carried it and both latencies have passed. Latency does not occupy
    the link. A message from p that is due takes its turn on the down-link (`LinkClock.deliver`). `receive` returns it
    when the down-link has carried it, with that time as its `due`. Peers that are not in `peers` are not delayed, in
    neither direction. An array that was sent must not be written to before its receiver is known to have it.

    A message from another host counts as arrived when `receive` finds it, which is later while a kernel runs.
    Heartbeats are not delayed.

    At most `MAX_UNDELIVERED` messages and `MAX_UNDELIVERED_NBYTES` of one peer wait here. Further ones are dropped.

    Args:
        inner: closed by this object. A thread of this object sends on it, besides the caller's thread.
        own: this device's link.
        peers: the links of the other devices, by index.
        clock: seconds, monotonic, of `Endpoint.clock`.
        ready: the time from which a message that is sent now may leave, in seconds of that clock; by default, now.

    Attributes:
        dropped: number of messages that were dropped because too many of their peer, or too many bytes, waited.
    """

    def __init__(
        self,
        inner: Transport,
        own: LinkSpec,
        peers: Mapping[int, LinkSpec],
        clock: Callable[[], float] = time.monotonic,
        ready: Callable[[], float] | None = None,
    ) -> None:
        self._inner = inner
        self._own = own
        self._links = dict(peers)
        self._clock = clock
        self._ready = ready or clock
        self._up = LinkClock(own.bytes_per_second)
        self._down = LinkClock(own.bytes_per_second)
        self._order = itertools.count()  # ties in time keep their order
        self._due: list[tuple[float, int, Message]] = []  # heap: (due at the down-link, order, message)
        self._through: list[tuple[float, int, Message]] = []  # heap: (delivered, order, message)
        self._waiting: Counter[int] = Counter()  # messages in both heaps, by sender
        self._waiting_nbytes: Counter[int] = Counter()
        self.dropped = 0
        self._same_clock: dict[int, bool] = {}
        self._holder: _Holder | None = None
        self._woken = False
        self._send_seconds = 0.0  # smoothed time that the inner transport takes to accept a message

    @property
    def endpoint(self) -> Endpoint:
        return self._inner.endpoint

    def connect(self, peers: Iterable[Endpoint]) -> None:
        peers = list(peers)
        own = self.endpoint.clock
        self._same_clock.update({peer.index: own is not None and peer.clock == own for peer in peers})
        self._inner.connect(peers)

    def disconnect(self, peer_index: int) -> None:
        self._inner.disconnect(peer_index)

    def set_link(self, index: int, link: LinkSpec) -> None:
        """Change the link of this device or of a peer, for messages that are sent from now on."""
        if index == self.endpoint.index:
            self._own = link
            self._up.bytes_per_second = self._down.bytes_per_second = link.bytes_per_second
        else:
            self._links[index] = link

    def send(self, peer_index: int, message: Message) -> None:
        """Send the message, or hold it if its peer is on another host.

        Raises:
            ClusterError: the inner transport refuses the message. For a held message, `receive` raises it.
        """
        link = self._links.get(peer_index)
        if link is None:
            self._inner.send(peer_index, message)
            return
        start = self._ready()
        leaves = self._up.occupy(start + self._send_seconds, message.nbytes)
        due = leaves + self._own.latency_seconds + link.latency_seconds
        if self._same_clock.get(peer_index, True):
            self._inner.send(peer_index, replace(message, due=due))
            self._send_seconds += (self._ready() - start - self._send_seconds) * SMOOTHING
            return
        if self._holder is None:
            self._holder = _Holder(self._inner, self._clock)
        self._holder.put(due, peer_index, message)

    def receive(self, timeout_seconds: float) -> Message | None:
        """Return the next message that the down-link has carried; None if none comes in time, or after `wake`.

        With a timeout of 0 the message must be there at the time that `ready` tells. An emulated device that lags
        behind the real time must not see messages of its own future before it does the steps that are ready.

        Raises:
            DeliveryFailed: a message that was held could not be sent.
            ClusterError: the inner transport is closed or broken, or held messages cannot be sent any more.
        """
        deadline = self._clock() + min(max(timeout_seconds, 0.0), MAX_TIMEOUT_SECONDS)
        for _ in range(MAX_DRAINED):
            message = self._inner.receive(0.0)
            if message is None:
                break
            self._arrived(message)
        while True:
            if self._holder is not None:
                self._holder.raise_failure()
            now = self._clock()
            while self._due and self._due[0][0] <= now:
                self._enter_down_link(*heapq.heappop(self._due))
            if self._through and self._through[0][0] <= (now if timeout_seconds > 0 else min(now, self._ready())):
                message = heapq.heappop(self._through)[2]
                self._waiting[message.sender] -= 1
                self._waiting_nbytes[message.sender] -= message.nbytes
                return message
            if self._woken or now >= deadline:
                self._woken = False
                return None
            until = min([deadline, *(heap[0][0] for heap in (self._due, self._through) if heap)])
            message = self._inner.receive(until - now)
            if message is not None:
                self._arrived(message)

    def wake(self) -> None:
        self._woken = True
        self._inner.wake()

    def close(self) -> None:
        """Send the held messages that are due within half a second, then close the inner transport."""
        if self._holder is not None:
            self._holder.close()
        self._inner.close()

    def _arrived(self, message: Message) -> None:
        """Put a message into the heap in which it waits."""
        waiting, nbytes = self._waiting[message.sender], self._waiting_nbytes[message.sender]
        if waiting >= MAX_UNDELIVERED or (waiting and nbytes + message.nbytes > MAX_UNDELIVERED_NBYTES):
            self.dropped += 1
            if self.dropped == 1:
                log.warning(
                    "%s dropped a message of device %d: %d others with %d bytes wait (further ones are not logged)",
                    self.endpoint.name, message.sender, waiting, nbytes,
                )  # fmt: skip
            return
        self._waiting[message.sender] += 1
        self._waiting_nbytes[message.sender] += message.nbytes
        if message.sender not in self._links or message.kind is MessageKind.HEARTBEAT:
            heapq.heappush(self._through, (self._clock(), next(self._order), message))
            return
        stamped = message.due and self._same_clock.get(message.sender, True)
        heapq.heappush(self._due, (message.due if stamped else self._clock(), next(self._order), message))

    def _enter_down_link(self, due: float, order: int, message: Message) -> None:
        """Let the down-link carry a message. Messages enter in the order of their due times, not of their arrival."""
        through = self._down.deliver(due, message.nbytes, self._links[message.sender].bytes_per_second)
        heapq.heappush(self._through, (through, order, replace(message, due=through)))


class _Holder:
    """A thread that holds messages until they are due, then sends them."""

    def __init__(self, inner: Transport, clock: Callable[[], float]) -> None:
        self._inner, self._clock = inner, clock
        self._held: list[tuple[float, int, int, Message]] = []  # heap: (due, order, peer, message)
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._failures: deque[DeliveryFailed] = deque(maxlen=MAX_UNDELIVERED)
        self._fatal: BaseException | None = None  # ended the thread
        self._close_at: float | None = None  # messages that are due later are not sent any more
        self._thread = threading.Thread(target=self._run, name=f"{inner.endpoint.name}-sender", daemon=True)
        self._thread.start()

    def put(self, due: float, peer_index: int, message: Message) -> None:
        """Hold a message until it is due.

        Raises:
            ClusterError: the thread has ended.
        """
        self._raise_fatal()
        with self._changed:
            heapq.heappush(self._held, (due, next(self._order), peer_index, message))
            self._changed.notify()

    def raise_failure(self) -> None:
        """Raise the failure of a message that was held, if there is one.

        Raises:
            DeliveryFailed: the message was not sent.
            ClusterError: the thread has ended, no message is sent any more.
        """
        if self._failures:
            raise self._failures.popleft()
        self._raise_fatal()

    def close(self) -> None:
        with self._changed:
            if self._close_at is None:
                self._close_at = self._clock() + CLOSE_SECONDS
            self._changed.notify()
        self._thread.join()

    def _raise_fatal(self) -> None:
        if self._fatal is not None:
            raise ClusterError(f"held messages cannot be sent any more: {self._fatal!r}") from self._fatal

    def _run(self) -> None:
        try:
            while (leaving := self._next()) is not None:
                self._send(*leaving)
        except BaseException as error:  # the receiving thread reports it
            self._fatal = error
            self._inner.wake()

    def _send(self, peer_index: int, message: Message) -> None:
        try:
            self._inner.send(peer_index, message)
        except Exception as error:  # the receiving thread reports it
            failure = DeliveryFailed(peer_index, message, error)
            failure.__cause__ = error
            self._failures.append(failure)
            self._inner.wake()

    def _next(self) -> tuple[int, Message] | None:
        """Wait until a message is due and return it; None if the holder closes first."""
        with self._changed:
            while not self._held or self._held[0][0] > self._clock():
                due = self._held[0][0] if self._held else None
                if self._close_at is not None and (due is None or due > self._close_at):
                    return None
                self._changed.wait(None if due is None else min(due - self._clock(), MAX_TIMEOUT_SECONDS))
            _, _, peer_index, message = heapq.heappop(self._held)
            return peer_index, message
