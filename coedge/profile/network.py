"""The measured network: links between devices, shared media, and the client's link."""

from __future__ import annotations

from dataclasses import dataclass

from coedge.profile.profile import Link, Medium


@dataclass(frozen=True, slots=True)
class ClientLink:
    """The link between the client and the source, in one direction."""

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, nbytes: int) -> float:
        """Return how long a message of `nbytes` takes."""
        return self.latency_seconds + nbytes / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Network:
    """The measured links and media of a cluster.

    Attributes:
        client: None if it was not measured.
    """

    links: tuple[Link, ...]
    media: tuple[Medium, ...] = ()
    client: ClientLink | None = None
