"""Kernels: the tiles of programs as ONNX Runtime sessions, created once per tile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from coedge.core.onnx_session import Session, session_options
from coedge.core.provider import ON_CPU, Provider
from coedge.core.region import Region
from coedge.execution.program import Compute, Part, Patch, Program, Read, Receive, Step, Tile
from coedge.graph.graph import Tensor
from coedge.graph.large_weights import session_of
from coedge.graph.model import Model
from coedge.graph.tile import build_tile, vector_matrices
from coedge.graph.weight_slice import WeightSlice
from coedge.plan.codec import tensor_codec
from workers.transport.codecs import decode, encode
from workers.transport.message import MalformedMessage

Array = NDArray[Any]

# Matrices of at least this size are inputs of the session, which reads them in place. Otherwise it would copy them.
FED_NBYTES = 4_000_000


class _TileSession(NamedTuple):
    """The session of a tile.

    Attributes:
        fed: the weights that are inputs of the session.
        given: the other weights. They must live as long as the session, which may read them in place.
    """

    session: Session
    fed: dict[str, Array]
    given: Sequence[onnxruntime.OrtValue]


class Kernels:
    """The sessions of one model on one device.

    Args:
        threads: per session. One is fastest if several devices are emulated on this machine.
        providers: of the sessions, in order of preference.
    """

    def __init__(self, model: Model, threads: int = 1, providers: Sequence[Provider] = ON_CPU) -> None:
        self.model = model
        self.threads = threads
        self.providers = tuple(providers)
        self._sessions: dict[Tile, _TileSession] = {}
        # By the keys of the parts: contiguous, as sessions read them; and as they were added.
        self._weights: dict[str, Array] = {}
        self._values: dict[str, Array] = {}

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the large constants that were added."""
        return sum(value.nbytes for value in list(self._values.values()))

    def add_weights(self, weights: Mapping[str, Array]) -> None:
        """Add large constants that the model's skeleton left out, or parts of them, by key."""
        self._values.update(weights)

    def lacks(self, part: WeightSlice) -> bool:
        """Return whether a large constant, or a part of one, is missing. (The skeleton has zeros in its place.)"""
        return part.key not in self._values and part.name not in self._values

    def missing_weights(self, program: Program) -> list[str]:
        """Return the keys of the parts of large constants that a program reads and that are missing."""
        parts = self.model.weight_slices(program.tiles())
        return sorted(k for k, part in parts.items() if part.name in self.model.weights and self.lacks(part))

    def prepare(self, tile: Tile) -> _TileSession:
        """Return the session of a tile. It is created in the first call."""
        session = self._sessions.get(tile)
        if session is None:
            session = self._sessions[tile] = self._create(tile)
        return session

    def keep(self, tiles: Iterable[Tile]) -> None:
        """Drop all sessions but these, and the weights that only the dropped ones read."""
        kept = set(tiles)
        self._sessions = {tile: session for tile, session in self._sessions.items() if tile in kept}
        parts = self.model.weight_slices(kept)
        # An entire constant serves the parts of it that were not added.
        read = {key if key in self._values else part.name for key, part in parts.items()}
        self._weights = {key: value for key, value in self._weights.items() if key in parts}
        self._values = {key: value for key, value in self._values.items() if key in read}

    def warm_up(self, step: Compute) -> None:
        """Create the session of a step and run it once on zeros, so that memory is allocated and weights are packed."""
        if step.tile in self._sessions:
            return
        self.prepare(step.tile)
        tensors = self.model.graph.tensors
        zeros = [np.zeros(tensors[r.tensor].region_shape(r.region), tensors[r.tensor].dtype) for r in step.inputs]
        # Some operators refuse zeros. Then the first frame takes longer.
        with contextlib.suppress(Exception):
            self.run(step.tile, zeros)

    def run(self, tile: Tile, arrays: Sequence[Array]) -> list[Array]:
        """Run a tile on the arrays of `tile.inputs`, and return those of `tile.outputs`."""
        session, fed, _ = self.prepare(tile)
        outputs: list[Array] = session.run(tile.outputs, dict(zip(tile.inputs, arrays)) | fed)
        return outputs

    def perform(self, patches: Sequence[Patch], step: Step, values: Mapping[int, Array]) -> list[Array]:
        """Return the arrays that a step makes: patches (Compute), packed parts (Send) or outputs (Answer)."""
        tensors = self.model.graph.tensors
        if step.kind == "send":
            return [self._packed(step.codec, part, patches[part.patch], values[part.patch]) for part in step.parts]
        arrays = [assemble(read, tensors[read.tensor], patches, values) for read in step.inputs]
        return self.run(step.tile, arrays) if step.kind == "compute" else arrays

    def unpack(self, step: Receive, patches: Sequence[Patch], arrays: Sequence[Array]) -> list[Array]:
        """Return the values of the patches in a message; see `received`."""
        return received(step, patches, self.model.graph.tensors, arrays)

    def _packed(self, codec: str, part: Part, patch: Patch, value: Array) -> Array:
        tensor = self.model.graph.tensors[patch.tensor]
        return encode(tensor_codec(codec, tensor), take(part, tensor, patch.region, value))

    def _create(self, tile: Tile) -> _TileSession:
        # Packing does not speed up a product with one vector. Other processors cannot read this memory in place.
        as_inputs = vector_matrices(self.model, tile, FED_NBYTES) if self.providers == ON_CPU else ()
        proto, weights = build_tile(self.model, tile, as_inputs)
        options, parts = session_options(self.threads), self.model.weight_slices([tile])
        values = {key: self._weight(key, parts.get(key), value) for key, value in weights.items()}
        fed = {key: values.pop(key) for key in as_inputs}
        given = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in values.values()]
        if given:
            options.add_external_initializers(list(values), given)
        return _TileSession(Session(proto.SerializeToString(), self.threads, options, self.providers), fed, given)

    def _weight(self, key: str, part: WeightSlice | None, value: Array) -> Array:
        """Return a weight as a contiguous array.

        Args:
            part: None for a constant of the tile's own.
            value: the model's value, zeros if the skeleton left it out.
        """
        if part is None:
            return np.ascontiguousarray(value)
        if key not in self._weights:
            if key in self._values:
                value = self._values[key]
            elif part.name in self._values:
                value = part.of(self._values[part.name])
            self._weights[key] = np.ascontiguousarray(value)
        return self._weights[key]


def unsplit_session(model: Model, threads: int) -> Session:
    """Return a session of the network before any rewrite, whose output is the reference for split output.

    Raises:
        CaptureError: the model was not captured in this process.
    """
    return session_of(model.original_proto, threads)


def received(
    step: Receive, patches: Sequence[Patch], tensors: Mapping[str, Tensor], arrays: Sequence[Array]
) -> list[Array]:
    """Return the values of the patches in a message, unpacked.

    Raises:
        MalformedMessage: number, shapes, dtypes or bytes of the arrays are not the expected ones.
    """
    if len(arrays) != len(step.writes):
        raise MalformedMessage(f"{step.peer} sent {len(arrays)} arrays, {len(step.writes)} are expected")
    values = []
    for patch, array in zip((patches[index] for index in step.writes), arrays):
        tensor = tensors[patch.tensor]
        codec, shape = tensor_codec(step.codec, tensor), tensor.region_shape(patch.region)
        rows = tensor.row_axis is not None or tensor.col_axis is not None or tensor.partial_extent
        if not rows and array.ndim == len(shape):
            shape = array.shape  # it depends on the image, as that of a NonZero
        try:
            values.append(decode(codec, array, shape, tensor.dtype))
        except MalformedMessage as error:
            sent = f"{step.peer} sent {array.dtype} {list(array.shape)} for {patch.tensor!r}"
            raise MalformedMessage(f"{sent}: {error}") from None
    return values


def assemble(read: Read, tensor: Tensor, patches: Sequence[Patch], values: Mapping[int, Array]) -> Array:
    """Return the array of a region, assembled from patches: a view or the patch itself where possible."""
    if tensor.partial_extent:
        shares = [values[part.patch] for part in read.parts]
        return shares[0] if len(shares) == 1 else np.concatenate(shares, axis=0)
    if len(read.parts) == 1:
        part = read.parts[0]
        return take(part, tensor, patches[part.patch].region, values[part.patch])
    first = values[read.parts[0].patch]
    whole = np.empty(tensor.region_shape(read.region), first.dtype)
    for part in read.parts:
        held = patches[part.patch].region
        whole[tensor.slices(read.region, part.region)] = values[part.patch][tensor.slices(held, part.region)]
    return whole


def take(part: Part, tensor: Tensor, held: Region, value: Array) -> Array:
    """Return a part of a patch, contiguous."""
    if part.region == held or tensor.partial_extent:
        return value
    return np.ascontiguousarray(value[tensor.slices(held, part.region)])
