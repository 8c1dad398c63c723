"""A program: what one device does for one frame.

    receive -> compute -> send -> ... -> answer

Steps stand in dataflow order and name *patches*: arrays that hold one region of one tensor. A step may fire as
soon as the patches that it reads are there; nothing else is decided at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pydantic import TypeAdapter

from coedge.core.region import Region

CLIENT = "@client"
# The codec of what travels as it is (see `coedge.plan.codec`).
RAW = "raw"


class Patch(NamedTuple):
    """One region of one tensor, held by a device while a frame is under way."""

    tensor: str
    region: Region


class Part(NamedTuple):
    """A region to be taken out of a patch."""

    patch: int
    region: Region


class Read(NamedTuple):
    """An array to put together: `region` of `tensor`, out of disjoint parts of patches."""

    tensor: str
    region: Region
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class TileNode:
    """One operator of a tile: the node's index in the graph, its pads, and the crops of its inputs."""

    node: int
    adjust: tuple[int, ...]
    crops: tuple[tuple[str, tuple[int, int, int, int]], ...] = ()


@dataclass(frozen=True, slots=True)
class Tile:
    """A run of operators on one region. Holds no absolute row numbers, so one tile serves regions of any size.

    `fixed_cols` are the inputs that hold all columns of their tensors.
    """

    nodes: tuple[TileNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed_cols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """How much of a layer a step computes: `rows` of the layer's tensor (fractions for part of the columns)."""

    layer: int
    rows: float


@dataclass(frozen=True, slots=True)
class Compute:
    """Runs a tile. `writes` are the patches of `tile.outputs`, in that order."""

    stage: int
    tile: Tile
    reads: tuple[Read, ...]
    writes: tuple[int, ...]
    work: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Sends parts of patches to a peer, as one message. `stage` is the stage that needs them.

    `codec` is how each part is packed for the wire (see `coedge.plan.codec`).
    """

    channel: int
    peer: str
    stage: int
    parts: tuple[Part, ...]
    codec: str = RAW


@dataclass(frozen=True, slots=True)
class Receive:
    """The other end of a `Send`: the patches that a message brings, in its order."""

    channel: int
    peer: str
    stage: int
    patches: tuple[int, ...]
    codec: str = RAW


@dataclass(frozen=True, slots=True)
class Answer:
    """Puts the outputs together and returns them to the client."""

    reads: tuple[Read, ...]


Step = Compute | Send | Receive | Answer


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of one device, the patches that they name, and the weights that they need."""

    device: str
    model_hash: str
    patches: tuple[Patch, ...]
    steps: tuple[Step, ...]

    def to_json(self) -> bytes:
        return _ADAPTER.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes | str) -> Program:
        return _ADAPTER.validate_json(text)

    def tiles(self) -> list[Tile]:
        """The tiles that this device runs, in program order."""
        return [step.tile for step in self.steps if isinstance(step, Compute)]


_ADAPTER: TypeAdapter[Program] = TypeAdapter(Program)
