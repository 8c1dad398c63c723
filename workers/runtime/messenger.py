"""The transport of a worker, with the names of its peers and the device's own time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from coedge.core.errors import ClusterError
from coedge.execution.program import CLIENT
from workers.emulation.paced_transport import LinkSpec, PacedTransport
from workers.emulation.processor import EmulatedProcessor
from workers.runtime.heartbeat import Hearing, Heart
from workers.transport.message import Message, MessageKind
from workers.transport.transport import Endpoint, Transport


class Messenger:
    """Sends and receives for one device. The loop thread sends and receives; `wake` is for any thread.

    Args:
        index: of the device.
        transport: closed by this object.
        processor: its time advances while the device works and jumps while the device waits.
        detect_seconds: time without a message after which a peer counts as silent. None: peers are not watched.
    """

    def __init__(
        self, index: int, transport: Transport, processor: EmulatedProcessor, detect_seconds: float | None = None
    ) -> None:
        self._index, self._transport, self._processor = index, transport, processor
        self._unpaced = transport
        self._index_of: dict[str, int] = {}
        self._peers_known: dict[int, Endpoint] = {}  # by index
        self._watches = detect_seconds is not None
        self._hearing = Hearing(detect_seconds or 0.0)
        self._heart: Heart | None = None

    @property
    def endpoint(self) -> Endpoint:
        return self._transport.endpoint

    def connect(self, peers: Iterable[Endpoint], links: Mapping[int, LinkSpec]) -> None:
        """Add peers, or replace the addresses of peers that were started again.

        If this device or a peer has an emulated link, messages are delayed accordingly. Links count in the first call
        only.
        """
        peers = list(peers)
        first, self._index_of = not self._index_of, {**self._index_of, **{peer.name: peer.index for peer in peers}}
        if first and any(link.bytes_per_second or link.latency_seconds for link in links.values()):
            own = links.get(self._index, LinkSpec())
            others = {index: link for index, link in links.items() if index != self._index}
            self._transport = PacedTransport(self._transport, own, others, ready=self._processor.now)
        self._transport.connect(peers)
        # A peer whose address is known already is no more reachable than before.
        new = [peer for peer in peers if self._peers_known.get(peer.index) != peer and peer.index != self._index]
        self._peers_known.update({peer.index: peer for peer in new})
        self._hearing.expect(peer.index for peer in new)

    def beat(self) -> None:
        """Send heartbeats to all peers from now on, until `close`, if peers are watched."""
        if self._watches:
            self._heart = Heart(self._unpaced, self._hearing, self._peers, lambda: self._index_of.get(CLIENT))

    def silent_for(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Tell the client that this device may be silent for so much longer, until the context ends."""
        return self._heart.silent_for(seconds) if self._heart is not None else contextlib.nullcontext()

    def disconnect(self, peer: str) -> None:
        """Forget a peer whose process has ended, and the messages that wait for it."""
        index = self._index_of.get(peer)
        if index is not None:
            self._index_of = {name: other for name, other in self._index_of.items() if name != peer}
            self._peers_known.pop(index, None)
            self._hearing.forget(index)
            self._transport.disconnect(index)

    def set_link(self, index: int, link: LinkSpec) -> None:
        """Change the emulated link of this device or of a peer.

        Raises:
            RuntimeError: links are not emulated.
        """
        if not isinstance(self._transport, PacedTransport):
            raise RuntimeError(f"{self.endpoint.name} has a real link, whose rate cannot be set")
        self._transport.set_link(index, link)

    def index_of(self, peer: str) -> int | None:
        """Return the index of a peer; None if it is not known."""
        return self._index_of.get(peer)

    def knows(self, index: int) -> bool:
        """Return whether a peer has this index."""
        return index in self._index_of.values()

    def is_from_client(self, message: Message) -> bool:
        return message.sender == self._index_of.get(CLIENT)

    def _peers(self) -> list[int]:
        return [index for index in self._index_of.values() if index != self._index]

    def send(
        self,
        peer: str | int,
        kind: MessageKind,
        arrays: Iterable[NDArray[Any]],
        epoch: int = 0,
        frame: int = 0,
        channel: int = 0,
    ) -> None:
        """Send a message to a peer, named or by index, at the device's own time.

        Raises:
            ClusterError: the peer is not known, or does not take messages.
            ValueError: an array cannot travel.
        """
        index = self._index_of.get(peer) if isinstance(peer, str) else peer
        if index is None:
            raise ClusterError(f"{self.endpoint.name} does not know {peer}. It knows {', '.join(self._index_of)}")
        message = Message(kind, self._index, epoch, frame, channel, tuple(arrays))
        self._processor.rest()
        self._transport.send(index, message)

    def receive(self, timeout_seconds: float) -> Message | None:
        """Return the next message; None if none comes in time or for a while, or after `wake`.

        The device's time moves to the arrival of the message.

        Raises:
            DeliveryFailed, ClusterError: see `Transport.receive`.
        """
        if self._watches:  # silence is known only up to the last look
            timeout_seconds = min(timeout_seconds, self._hearing.beat_seconds)
        self._processor.now()  # work done so far counts as the device's time, waiting does not
        message = None
        try:
            message = self._transport.receive(timeout_seconds)
            if message is None:
                self._hearing.emptied()
            else:
                self._hearing.heard(message.sender)
        finally:
            # A heartbeat is nothing that the device waited for.
            waited = message is not None and message.kind is not MessageKind.HEARTBEAT
            self._processor.reach((message.due or time.monotonic()) if message is not None and waited else 0.0)
        return message

    def wake(self) -> None:
        self._transport.wake()

    def close(self) -> None:
        if self._heart is not None:
            self._heart.stop()
        self._transport.close()
