"""A constant of the graph, or a run of it along one axis: what a device holds of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

# Names of parts, which are not the model's own.
PART = "coedge.part:"


class WeightSlice(NamedTuple):
    """[start, stop) of the constant `name` along `axis`; all of it where `stop` is None."""

    name: str
    axis: int = 0
    start: int = 0
    stop: int | None = None

    @property
    def key(self) -> str:
        """What it is called in tiles and at devices: `coedge.part:fc1.weight[0:1024]`; the name itself if whole."""
        if self.stop is None:
            return self.name
        return f"{PART}{self.name}[{':, ' * self.axis}{self.start}:{self.stop}]"

    def of(self, value: NDArray[Any]) -> NDArray[Any]:
        """The part of the constant's value, as a view."""
        return value if self.stop is None else value[(slice(None),) * self.axis + (slice(self.start, self.stop),)]
