"""A program: the steps of one device for one frame.

    receive -> compute -> send -> ... -> answer

Steps are in dataflow order and name *patches*: arrays that hold one region of one tensor. A step may run as soon
as the patches that it reads are present. Nothing else is decided at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

from coedge.core.region import Region

CLIENT = "@client"
# The codec of arrays that are sent unpacked (see `coedge.plan.codec`).
RAW = "raw"


class Patch(NamedTuple):
    """One region of one tensor that a device holds while a frame is under way."""

    tensor: str
    region: Region


class Part(NamedTuple):
    """A region within a patch."""

    patch: int
    region: Region


class Read(NamedTuple):
    """An array to assemble: `region` of `tensor`, from disjoint parts of patches."""

    tensor: str
    region: Region
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class TileNode:
    """One operator of a tile.

    Attributes:
        node: index of the node in the graph.
        adjust: pads and similar integers, as the rule of the node defines them.
        crops: rows and columns to drop from inputs, as (name, (above, below, left, right)).
    """

    node: int
    adjust: tuple[int, ...]
    crops: tuple[tuple[str, tuple[int, int, int, int]], ...] = ()


@dataclass(frozen=True, slots=True)
class Tile:
    """A run of operators on one region. It holds no absolute row numbers, so one tile serves regions of any size.

    Attributes:
        fixed_cols: the inputs that hold all columns of their tensors.
    """

    nodes: tuple[TileNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed_cols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """The amount of one layer that a step computes: rows of the layer's tensor. A part of the columns counts as a
    fraction of a row."""

    layer: int
    rows: float


class Named(Protocol):
    """A layer, as far as labels need it."""

    @property
    def name(self) -> str: ...


class _LocalStep:
    """Base of the steps that exchange no message with another device. They read whole arrays (`inputs`)."""

    __slots__ = ()
    inputs: tuple[Read, ...]
    peer: ClassVar[str] = ""
    channel: ClassVar[int] = -1
    codec: ClassVar[str] = RAW

    @property
    def reads(self) -> tuple[int, ...]:
        """The patches that the step reads, each once."""
        return tuple(dict.fromkeys(part.patch for read in self.inputs for part in read.parts))


@dataclass(frozen=True, slots=True)
class Compute(_LocalStep):
    """Runs a tile on its inputs.

    Attributes:
        inputs: the arrays of `tile.inputs`, in that order.
        writes: the patches of `tile.outputs`, in that order.
        work: rows that the step computes of each layer, in order.
    """

    kind: ClassVar[Literal["compute"]] = "compute"
    stage: int
    tile: Tile
    inputs: tuple[Read, ...]
    writes: tuple[int, ...]
    work: tuple[Work, ...]

    def label(self, layers: Sequence[Named]) -> str:
        """Return the first and last layer of the step, for people."""
        names = [layers[work.layer].name for work in self.work] or ["(no rows)"]
        return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"

    def description(self, layers: Sequence[Named]) -> str:
        """Return the step for an error message."""
        return f"stage {self.stage} ({self.label(layers)})"


@dataclass(frozen=True, slots=True)
class Send:
    """Sends parts of patches to a peer, as one message.

    Attributes:
        stage: the stage that needs the parts.
        codec: how each part is packed for the wire (see `coedge.plan.codec`).
    """

    kind: ClassVar[Literal["send"]] = "send"
    inputs: ClassVar[tuple[Read, ...]] = ()
    writes: ClassVar[tuple[int, ...]] = ()
    channel: int
    peer: str
    stage: int
    parts: tuple[Part, ...]
    codec: str = RAW

    @property
    def reads(self) -> tuple[int, ...]:
        """The patches that the step reads, each once."""
        return tuple(dict.fromkeys(part.patch for part in self.parts))

    def carried(self, patches: Sequence[Patch]) -> tuple[Patch, ...]:
        """Return the tensor and region of every array in the message. `patches` are the program's."""
        return tuple(Patch(patches[part.patch].tensor, part.region) for part in self.parts)

    def label(self, layers: Sequence[Named]) -> str:
        """Return the receiver of the message, for people."""
        return f"to {self.peer}"

    def description(self, layers: Sequence[Named]) -> str:
        """Return the step for an error message."""
        return f"sending to {self.peer} for stage {self.stage}"


@dataclass(frozen=True, slots=True)
class Receive:
    """Receives the message of a `Send`.

    Attributes:
        stage: the stage that needs the patches.
        writes: the patches that the message brings, in its order.
        codec: how each patch is packed for the wire.
    """

    kind: ClassVar[Literal["receive"]] = "receive"
    inputs: ClassVar[tuple[Read, ...]] = ()
    reads: ClassVar[tuple[int, ...]] = ()
    channel: int
    peer: str
    stage: int
    writes: tuple[int, ...]
    codec: str = RAW

    def carried(self, patches: Sequence[Patch]) -> tuple[Patch, ...]:
        """Return the tensor and region of every array in the message. `patches` are the program's."""
        return tuple(patches[index] for index in self.writes)

    def label(self, layers: Sequence[Named]) -> str:
        """Return the sender of the message, for people."""
        return f"from {self.peer}"

    def description(self, layers: Sequence[Named]) -> str:
        """Return the step for an error message."""
        return f"receiving from {self.peer} for stage {self.stage}"


@dataclass(frozen=True, slots=True)
class Answer(_LocalStep):
    """Assembles the model's outputs and returns them to the client."""

    kind: ClassVar[Literal["answer"]] = "answer"
    stage: ClassVar[int] = -1
    writes: ClassVar[tuple[int, ...]] = ()
    inputs: tuple[Read, ...]

    def label(self, layers: Sequence[Named]) -> str:
        """Return the label of the step, for people."""
        return "answer"

    def description(self, layers: Sequence[Named]) -> str:
        """Return the step for an error message."""
        return "putting the answer together"


Step = Compute | Send | Receive | Answer


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of one device for one frame, and the patches that they name."""

    device: str
    model_hash: str
    patches: tuple[Patch, ...]
    steps: tuple[Step, ...]

    @property
    def computes(self) -> tuple[Compute, ...]:
        """The computations, in program order."""
        return tuple(step for step in self.steps if step.kind == "compute")

    @property
    def sends(self) -> tuple[Send, ...]:
        """The messages that the device sends, in program order."""
        return tuple(step for step in self.steps if step.kind == "send")

    @property
    def receives(self) -> tuple[Receive, ...]:
        """The messages that the device receives, in program order."""
        return tuple(step for step in self.steps if step.kind == "receive")

    @property
    def input_channels(self) -> tuple[int, ...]:
        """The channels on which the client sends the model's inputs: one on the source, none elsewhere."""
        return tuple(receive.channel for receive in self.receives if receive.peer == CLIENT)

    def tiles(self) -> list[Tile]:
        """Return the tiles that this device runs, in program order."""
        return [step.tile for step in self.computes]
