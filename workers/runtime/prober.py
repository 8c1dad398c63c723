"""Measurement messages between workers: probes, and the echoes that answer them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from coedge.core.errors import ClusterError
from workers.emulation.processor import EmulatedProcessor
from workers.runtime.messenger import Messenger
from workers.runtime.spec import ProbeTimes
from workers.transport.message import Message, MessageKind

log = logging.getLogger(__name__)


class EchoProber:
    """Sends probes and answers those of peers. For the loop thread.

    An echo holds two times of the answering device: when the probe arrived, and for how long the device held it.
    """

    def __init__(self, messenger: Messenger, processor: EmulatedProcessor) -> None:
        self._messenger, self._processor = messenger, processor
        self._peer: int | None = None  # the peer that is being probed
        self._awaited: range = range(0)  # the channels of its probes
        self._lost: str | None = None  # the peer that was lost last
        # By channel: (arrival of the probe, time held, arrival of the echo).
        self._echoes: dict[int, tuple[float, float, float]] = {}

    def probe(
        self, peer: str, nbytes: int, count: int, timeout_seconds: float, receive: Callable[[float], bool]
    ) -> ProbeTimes:
        """Send a peer `count` messages of `nbytes` bytes one behind the other, and wait for their echoes.

        Args:
            receive: waits for so many seconds for the next message and handles it.

        Raises:
            ClusterError: the peer is not known, does not take messages or was lost meanwhile.
            TimeoutError: an echo did not come in time.
        """
        payload = (np.zeros(nbytes, np.uint8),) if nbytes else ()
        self._lost = None
        self._peer = self._messenger.index_of(peer)
        self._awaited = range(self._awaited.stop, self._awaited.stop + count)
        self._echoes.clear()
        started, start = time.monotonic(), self._processor.now()
        try:
            for channel in self._awaited:
                self._messenger.send(peer, MessageKind.PROBE, payload, channel=channel)
            sent = self._processor.now()
            while len(self._echoes) < count:
                left = timeout_seconds - (time.monotonic() - started)
                if left <= 0:
                    raise TimeoutError(f"{peer} did not echo {count} x {nbytes} bytes within {timeout_seconds:.0f} s")
                if self._lost == peer:
                    raise ClusterError(f"{peer} was lost while the link to it was measured")
                receive(left)
        finally:
            self._peer = None
        echoes = [self._echoes[channel] for channel in self._awaited]
        _, held, back = echoes[-1]
        return ProbeTimes((sent - start) / count, back - sent - held, tuple(came for came, _, _ in echoes))

    def give_up(self, peer: str) -> None:
        """Stop waiting for the echoes of a peer that is lost. For any thread, which then wakes the loop."""
        self._lost = peer

    def answer(self, probe: Message) -> None:
        """Echo a probe to its sender. A sender without a known address gets no echo."""
        if not self._messenger.knows(probe.sender):
            return
        now = self._processor.now()
        came = probe.due or now
        times = np.array([came, self._processor.now() - came])
        try:
            self._messenger.send(probe.sender, MessageKind.ECHO, (times,), channel=probe.channel)
        except ClusterError as error:  # the prober reports the missing echo
            log.warning("a probe of device %d was not echoed: %s", probe.sender, error)

    def take_echo(self, echo: Message) -> None:
        """Keep the times of an echo. One that was not asked for, or of another form, is dropped."""
        expected = echo.sender == self._peer and echo.channel in self._awaited
        if expected and [array.shape for array in echo.arrays] == [(2,)]:
            came, held = echo.arrays[0].tolist()
            self._echoes[echo.channel] = (came, held, echo.due or self._processor.now())
