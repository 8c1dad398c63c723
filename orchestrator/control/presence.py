"""Signs of life: which devices the client hears, and which links the devices report as silent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping

from coedge.execution.program import CLIENT
from workers.runtime.heartbeat import Hearing
from workers.transport.message import Message, MessageKind

Pair = tuple[str, str]

# No device is waited for longer, whatever it announces.
MOST_PATIENCE_SECONDS = 60.0
# A device that stands still is not heard by others either, and they say so until they hear it again. What is said of a
# link counts only if its ends were heard without a pause for so many heartbeats.
STEADY_BEATS = 2


class Presence:
    """Knowledge of who can be reached, from the messages of the devices.

    One thread, which receives, calls `came` and `emptied`. Any thread calls `unreachable`.

    Args:
        name_of: name by wire index, of the devices and of the client.
    """

    def __init__(self, name_of: Mapping[int, str], detect_seconds: float) -> None:
        self._name_of = dict(name_of)
        self._index_of = {name: index for index, name in name_of.items()}
        self.hearing = Hearing(detect_seconds)
        self.hearing.expect(index for index, name in name_of.items() if name != CLIENT)
        self._deaf: dict[str, tuple[str, ...]] = {}  # by device: the peers that it does not hear
        self._returned: dict[str, float] = {}  # when devices were heard again after a pause
        self._patience: dict[str, float] = {}  # by device: for how much longer it may be silent, as it says

    def came(self, message: Message) -> None:
        """Take note of a message of a device."""
        pause = self.hearing.heard(message.sender)
        if pause > STEADY_BEATS * self.hearing.beat_seconds and message.sender in self._name_of:
            self._returned[self._name_of[message.sender]] = self.hearing.now()
        if message.kind is MessageKind.HEARTBEAT and message.sender in self._name_of:
            silent = message.arrays[0].ravel().tolist() if message.arrays else ()
            self._deaf[self._name_of[message.sender]] = tuple(
                self._name_of[index] for index in silent if index in self._name_of
            )
            self._patience[self._name_of[message.sender]] = min(message.channel / 1e3, MOST_PATIENCE_SECONDS)

    def emptied(self) -> None:
        """Take note that no message waits."""
        self.hearing.emptied()

    def expect(self, name: str) -> None:
        """Begin to listen to a device that was started again."""
        self._deaf.pop(name, None)
        self._patience.pop(name, None)
        self.hearing.expect([self._index_of[name]])

    def hears(self, name: str) -> bool:
        """Return whether a device is not silent."""
        return self.hearing.silent_seconds(self._index_of[name]) <= self.hearing.detect_seconds

    def unreachable(self, devices: Collection[str], source: str, lost: Container[str] = ()) -> dict[str, str]:
        """Return the reason for each of these devices that frames cannot use now; see `unreachable`.

        Devices that build sessions may be silent for longer, as their heartbeats say.
        """
        seconds = {name: self.hearing.silent_seconds(self._index_of[name]) for name in devices}
        limit = {name: self.hearing.detect_seconds + self._patience.get(name, 0.0) for name in devices}
        silent = {name: seconds[name] for name in devices if seconds[name] > limit[name]}
        steady = {CLIENT, *(name for name in devices if self._steady(name, seconds[name]))}
        broken = [(peer, name) for name in devices for peer in self._deaf.get(name, ()) if {peer, name} <= steady]
        return unreachable(devices, source, silent, broken, lost)

    def _steady(self, name: str, silent_seconds: float) -> bool:
        """Return whether a device has been heard without a pause of late."""
        least = STEADY_BEATS * self.hearing.beat_seconds
        return silent_seconds <= least <= self.hearing.now() - self._returned.get(name, -math.inf)


def unreachable(
    devices: Collection[str],
    source: str,
    silent: Mapping[str, float],
    broken: Iterable[Pair],
    lost: Container[str] = (),
) -> dict[str, str]:
    """Return the devices to be left out, so that all others reach each other and the client, with the reasons.

    A link joins two devices, and one of them must go: the one with more broken links. If both have as many, it is the
    one that is lost; else the one that is not the source; else the later one.

    Args:
        silent: seconds of silence, of devices that the client does not hear.
        broken: (sender, receiver) of links over which nothing comes; either may be the client.
        lost: devices that frames do not use now.
    """
    left_out = {name: f"it has not been heard for {seconds:.1f} s" for name, seconds in silent.items()}
    order = {name: place for place, name in enumerate(devices)}
    pairs = {pair for pair in broken if all(name == CLIENT or name in order for name in pair)}
    while True:
        pairs = {pair for pair in pairs if not left_out.keys() & set(pair)}
        counts = Counter(name for pair in pairs for name in set(pair) if name != CLIENT)
        if not counts:
            return left_out
        worst = max(counts, key=lambda name: (counts[name], name in lost, name != source, order[name]))
        sender, receiver = min(pair for pair in pairs if worst in pair)
        left_out[worst] = f"nothing comes from {_named(sender)} to {_named(receiver)}"


def _named(name: str) -> str:
    return "the client" if name == CLIENT else name
