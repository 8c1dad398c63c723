"""Signs of life: which devices the client hears, and which links the devices report as silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from coedge.execution.program import CLIENT
from workers.runtime.heartbeat import Hearing
from workers.transport.message import Message, MessageKind

Pair = tuple[str, str]

# Threads of a device that builds sessions or measures may stand still for so many times `detect_seconds`.
PATIENCE = 5.0


class Presence:
    """What the messages of the devices say about who can be reached.

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

    def came(self, message: Message) -> None:
        """Take note of a message of a device."""
        self.hearing.heard(message.sender)
        if message.kind is MessageKind.HEARTBEAT and message.sender in self._name_of:
            silent = message.arrays[0].ravel().tolist() if message.arrays else ()
            self._deaf[self._name_of[message.sender]] = tuple(
                self._name_of[index] for index in silent if index in self._name_of
            )

    def emptied(self, begun: float) -> None:
        """Take note that a `receive` that began at a time found no message."""
        self.hearing.emptied(begun)

    def expect(self, name: str) -> None:
        """Begin to listen to a device that was started again."""
        self._deaf.pop(name, None)
        self.hearing.expect([self._index_of[name]])

    def unreachable(self, devices: Collection[str], source: str, busy: Collection[str] = ()) -> dict[str, str]:
        """Return the reason for each of these devices that frames cannot use now; see `unreachable`.

        Args:
            busy: devices that load or measure. They may be silent for `PATIENCE` times as long.
        """
        seconds = {name: self.hearing.silent_seconds(self._index_of[name]) for name in devices}
        limit = {name: self.hearing.detect_seconds * (PATIENCE if name in busy else 1) for name in devices}
        silent = {name: seconds[name] for name in devices if seconds[name] > limit[name]}
        broken = [(peer, name) for name in devices for peer in self._deaf.get(name, ()) if not {peer, name} & set(busy)]
        return unreachable(devices, source, silent, broken)


def unreachable(
    devices: Collection[str], source: str, silent: Mapping[str, float], broken: Iterable[Pair]
) -> dict[str, str]:
    """Return the devices to be left out, so that all others reach each other and the client, with the reasons.

    A link joins two devices, and one of them must go: the one with more broken links; not the source, if both have as
    many; else the later one.

    Args:
        silent: seconds of silence, of devices that the client does not hear.
        broken: (sender, receiver) of links over which nothing comes; either may be the client.
    """
    left_out = {name: f"it has not been heard for {seconds:.1f} s" for name, seconds in silent.items()}
    order = {name: place for place, name in enumerate(devices)}
    pairs = {pair for pair in broken if all(name == CLIENT or name in order for name in pair)}
    while True:
        pairs = {pair for pair in pairs if not left_out.keys() & set(pair)}
        counts = Counter(name for pair in pairs for name in set(pair) if name != CLIENT)
        if not counts:
            return left_out
        worst = max(counts, key=lambda name: (counts[name], name != source, order[name]))
        sender, receiver = min(pair for pair in pairs if worst in pair)
        left_out[worst] = f"nothing comes from {_named(sender)} to {_named(receiver)}"


def _named(name: str) -> str:
    return "the client" if name == CLIENT else name
