"""A constant of the graph, or the slice of it along one axis that a device holds."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

# Prefix of the names of slices, which are not names of the model.
PART = "coedge.part:"


class WeightSlice(NamedTuple):
    """Positions [start, stop) of the constant `name` along `axis`. `stop` None: the whole constant."""

    name: str
    axis: int = 0
    start: int = 0
    stop: int | None = None

    @property
    def key(self) -> str:
        """The name of the slice in tiles and on devices, such as `coedge.part:fc1.weight[0:1024]`.

        The key of a whole constant is its name.
        """
        if self.stop is None:
            return self.name
        return f"{PART}{self.name}[{':, ' * self.axis}{self.start}:{self.stop}]"

    def of(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return the slice of the constant's value, as a view."""
        return value if self.stop is None else value[(slice(None),) * self.axis + (slice(self.start, self.stop),)]
