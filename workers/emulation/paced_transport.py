"""A slow network interface, emulated in user space: messages take as long as a real link would.

    send --> up-link (FIFO, own rate) --> latency --> down-link (FIFO, own rate) --> receive
    `----------- stamped `due`, sent at once ----'   `------- held until then -------'

What the emulation itself takes (the hand-over to the peer's process, the wake-up of a core) hides inside the time
that the message is under way anyway. A stamp is of the monotonic clock, so it holds between devices of one host; a
message to a peer on another host is held here until it is due, by a thread, and takes the real network on top.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from coedge.execution.link_clock import LinkClock
from workers.transport.message import Message
from workers.transport.transport import MAX_TIMEOUT_SECONDS, Endpoint, Transport

CLOSE_SECONDS = 0.5
SMOOTHING = 0.2


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

    A message to peer p is due when it was handed over, the up-link has carried it and both latencies have passed;
    latency does not occupy the link. One that is due from p takes its turn on the down-link, see
    `LinkClock.deliver`; `receive` returns it when it is through, with that time as its `due`. Peers that `peers`
    does not name are not paced, in neither direction. An array that was sent must not be written to before its
    receiver is known to have it.

    What comes from another host counts as arrived when `receive` finds it: behind a kernel, that is later.

    Args:
        inner: closed by this object. Besides the caller's thread, one of this object sends.
        own: this device's link.
        peers: the links of the other devices, by index.
        clock: seconds, monotonic, of `Endpoint.clock`.
        ready: when what is sent now is ready to leave, in seconds of that clock; by default, now.
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
        self._same_clock: dict[int, bool] = {}
        self._holder: _Holder | None = None
        self._woken = False
        self._send_seconds = 0.0  # what handing a message to the inner transport takes, about

    @property
    def endpoint(self) -> Endpoint:
        return self._inner.endpoint

    def connect(self, peers: Iterable[Endpoint]) -> None:
        peers = list(peers)
        own = self.endpoint.clock
        self._same_clock.update({peer.index: own is not None and peer.clock == own for peer in peers})
        self._inner.connect(peers)

    def set_link(self, index: int, link: LinkSpec) -> None:
        """Gives this device, or a peer, another link: for what is handed over from now on."""
        if index == self.endpoint.index:
            self._own = link
            self._up.bytes_per_second = self._down.bytes_per_second = link.bytes_per_second
        else:
            self._links[index] = link

    def send(self, peer_index: int, message: Message) -> None:
        """Send the message, or hold it if its peer is on another host.

        Raises:
            ClusterError: as the inner transport; of a message that was held, by the next `send` or `receive`.
        """
        self._raise_failure()
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
        """The next message that is through the down-link; None if none is in time, or after `wake`.

        With no time to wait, one that is through when `ready` says: what a device that lags behind cannot know of
        yet must not overtake what it has to do.
        """
        deadline = self._clock() + min(max(timeout_seconds, 0.0), MAX_TIMEOUT_SECONDS)
        while (message := self._inner.receive(0.0)) is not None:
            self._arrived(message)
        while True:
            self._raise_failure()
            now = self._clock()
            while self._due and self._due[0][0] <= now:
                self._enter_down_link(*heapq.heappop(self._due))
            if self._through and self._through[0][0] <= (now if timeout_seconds > 0 else min(now, self._ready())):
                return heapq.heappop(self._through)[2]
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
        """Send what is held and due within half a second, then close the inner transport."""
        if self._holder is not None:
            self._holder.close()
        self._inner.close()

    def _arrived(self, message: Message) -> None:
        """Puts a message where it has to wait."""
        if message.sender not in self._links:
            heapq.heappush(self._through, (self._clock(), next(self._order), message))
            return
        stamped = message.due and self._same_clock.get(message.sender, True)
        heapq.heappush(self._due, (message.due if stamped else self._clock(), next(self._order), message))

    def _enter_down_link(self, due: float, order: int, message: Message) -> None:
        """In the order in which messages are due, which need not be that in which they came."""
        through = self._down.deliver(due, message.nbytes, self._links[message.sender].bytes_per_second)
        heapq.heappush(self._through, (through, order, replace(message, due=through)))

    def _raise_failure(self) -> None:
        if self._holder is not None:
            self._holder.raise_failure()


class _Holder:
    """Holds messages until they are due, then sends them, on a thread of its own."""

    def __init__(self, inner: Transport, clock: Callable[[], float]) -> None:
        self._inner, self._clock = inner, clock
        self._held: list[tuple[float, int, int, Message]] = []  # heap: (due, order, peer, message)
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._close_at: float | None = None  # what is due later than that is not sent any more
        self._thread = threading.Thread(target=self._run, name=f"{inner.endpoint.name}-sender", daemon=True)
        self._thread.start()

    def put(self, due: float, peer_index: int, message: Message) -> None:
        with self._changed:
            heapq.heappush(self._held, (due, next(self._order), peer_index, message))
            self._changed.notify()

    def raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        with self._changed:
            if self._close_at is None:
                self._close_at = self._clock() + CLOSE_SECONDS
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (leaving := self._next()) is not None:
            try:
                self._inner.send(*leaving)
            except Exception as error:  # belongs to the thread that sends and receives, which asks for it
                self._failure = error
                self._inner.wake()

    def _next(self) -> tuple[int, Message] | None:
        """What is due next, when it is; None: nothing before the end."""
        with self._changed:
            while not self._held or self._held[0][0] > self._clock():
                due = self._held[0][0] if self._held else None
                if self._close_at is not None and (due is None or due > self._close_at):
                    return None
                self._changed.wait(None if due is None else min(due - self._clock(), MAX_TIMEOUT_SECONDS))
            _, _, peer_index, message = heapq.heappop(self._held)
            return peer_index, message
