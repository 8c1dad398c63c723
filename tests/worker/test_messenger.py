"""The messenger of a device: which peers it reports as silent, and for how long it may be silent itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from waiting import until

from coedge.execution.program import CLIENT
from workers.emulation.processor import EmulatedProcessor
from workers.runtime.messenger import Messenger
from workers.transport.message import Message, MessageKind
from workers.transport.transport import InMemoryHub, InMemoryTransport

DETECT_SECONDS = 0.3


class Told:
    """Device 0, which hears the client and not device 1, and what it tells the client."""

    def __init__(self) -> None:
        hub = InMemoryHub()
        self.client, self.peer = InMemoryTransport(2, CLIENT, hub), InMemoryTransport(1, "b", hub)
        own = InMemoryTransport(0, "a", hub)
        self.messenger = Messenger(0, own, EmulatedProcessor(None), DETECT_SECONDS)
        self.messenger.connect([self.peer.endpoint, self.client.endpoint], {})
        self.client.connect([own.endpoint])
        self.messenger.beat()

    def next(self) -> Message:
        """Return the next heartbeat that the client gets. The device receives meanwhile."""
        while True:
            self.client.send(0, Message(MessageKind.HEARTBEAT, 2))
            while self.messenger.receive(0.01) is not None:
                pass
            message = self.client.receive(0.01)
            if message is not None:
                return message

    def silent(self) -> list[int]:
        message = self.next()
        return message.arrays[0].tolist() if message.arrays else []


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.messenger.close()


@pytest.mark.clock
def test_a_peer_that_is_introduced_again_is_still_silent_and_one_with_another_address_is_not(told: Told) -> None:
    until(lambda: told.silent() == [1], "device 1 is reported as silent")
    told.messenger.connect([told.peer.endpoint], {})
    ends = time.monotonic() + 0.6 * DETECT_SECONDS
    while time.monotonic() < ends:
        assert told.silent() == [1]
    told.messenger.connect([replace(told.peer.endpoint, address="memory://another")], {})
    assert told.silent() == []
    until(lambda: told.silent() == [1], "device 1 is silent at its other address, too")
    told.messenger.disconnect("b")
    until(lambda: told.silent() == [], "device 1 is not expected any more")


def test_a_device_says_for_how_long_it_may_be_silent(told: Told) -> None:
    with told.messenger.silent_for(2.0), told.messenger.silent_for(0.5):
        until(lambda: told.next().channel == 2500, "both are told")
    until(lambda: told.next().channel == 0, "the end is told")


def test_a_device_that_does_not_serve_yet_says_nothing() -> None:
    messenger = Messenger(0, InMemoryTransport(0, "a", InMemoryHub()), EmulatedProcessor(None), DETECT_SECONDS)
    with messenger.silent_for(1.0):
        pass
    messenger.close()
