"""Kernels: tiles as ONNX Runtime sessions, created once, fed with what the machine holds."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from coedge.core.provider import ON_CPU, Provider
from coedge.core.region import Region
from coedge.execution.program import Compute, Part, Patch, Program, Read, Receive, Step, Tile
from coedge.graph.graph import Tensor
from coedge.graph.large_weights import stub, without_initializers
from coedge.graph.model import Model
from coedge.graph.tile import build_tile, vector_matrices
from coedge.graph.weight_slice import WeightSlice
from coedge.plan.codec import tensor_codec
from workers.transport.codecs import decode, encode
from workers.transport.message import MalformedMessage

Array = NDArray[Any]

LARGE_ELEMENTS = 1_000_000
# Matrices from this size on are read where they lie: a session would have its own copy of each.
FED_NBYTES = 4_000_000


class _TileSession(NamedTuple):
    """Of a tile.

    Attributes:
        fed: the weights that are inputs of it.
        given: the others: it may read them in place.
    """

    session: onnxruntime.InferenceSession
    fed: dict[str, Array]
    given: Sequence[onnxruntime.OrtValue]


class Kernels:
    """The sessions of one model on one device.

    Args:
        threads: per session; one is fastest where devices are emulated side by side.
        providers: of the sessions, in order of preference.
    """

    def __init__(self, model: Model, threads: int = 1, providers: Sequence[Provider] = ON_CPU) -> None:
        self.model = model
        self.threads = threads
        self.providers = tuple(providers)
        self._sessions: dict[Tile, _TileSession] = {}
        # By the keys of the parts: as sessions read them, each in one run of memory; and as they came.
        self._weights: dict[str, Array] = {}
        self._values: dict[str, Array] = {}

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the large constants that are here."""
        return sum(value.nbytes for value in list(self._values.values()))

    def add_weights(self, weights: Mapping[str, Array]) -> None:
        """Makes large constants known that the model's skeleton left out, or parts of them, by key."""
        self._values.update(weights)

    def lacks(self, part: WeightSlice) -> bool:
        """Whether a large constant, or a part of one, is not here: for it the skeleton has only zeros."""
        return part.key not in self._values and part.name not in self._values

    def missing_weights(self, program: Program) -> list[str]:
        """Keys of the parts of large constants that the program reads and that are not here."""
        parts = self.model.weight_slices(program.tiles())
        return sorted(k for k, part in parts.items() if part.name in self.model.weights and self.lacks(part))

    def prepare(self, tile: Tile) -> _TileSession:
        """The session of a tile. A tile that was prepared before costs nothing."""
        session = self._sessions.get(tile)
        if session is None:
            session = self._sessions[tile] = self._create(tile)
        return session

    def keep(self, tiles: Iterable[Tile]) -> None:
        """Lets go of all sessions but these, and of the weights that only those others read."""
        kept = set(tiles)
        self._sessions = {tile: session for tile, session in self._sessions.items() if tile in kept}
        parts = self.model.weight_slices(kept)
        # A constant that came whole serves the parts of it that did not come.
        read = {key if key in self._values else part.name for key, part in parts.items()}
        self._weights = {key: value for key, value in self._weights.items() if key in parts}
        self._values = {key: value for key, value in self._values.items() if key in read}

    def warm_up(self, step: Compute) -> None:
        """Creates the session of a step and runs it once on zeros: memory is laid out, weights are packed."""
        if step.tile in self._sessions:
            return
        self.prepare(step.tile)
        tensors = self.model.graph.tensors
        zeros = [np.zeros(tensors[r.tensor].region_shape(r.region), tensors[r.tensor].dtype) for r in step.inputs]
        # Values that zeros are not may be what an operator insists on; then the first frame pays.
        with contextlib.suppress(Exception):
            self.run(step.tile, zeros)

    def run(self, tile: Tile, arrays: Sequence[Array]) -> list[Array]:
        """Runs a tile on the arrays of `tile.inputs`; the arrays of `tile.outputs`."""
        session, fed, _ = self.prepare(tile)
        outputs: list[Array] = session.run(tile.outputs, dict(zip(tile.inputs, arrays)) | fed)
        return outputs

    def perform(self, patches: Sequence[Patch], step: Step, values: Mapping[int, Array]) -> list[Array]:
        """The arrays that a step makes: patches for Compute, parts as they travel for Send, outputs for Answer."""
        tensors = self.model.graph.tensors
        if step.kind == "send":
            return [self._packed(step.codec, part, patches[part.patch], values[part.patch]) for part in step.parts]
        arrays = [assemble(read, tensors[read.tensor], patches, values) for read in step.inputs]
        return self.run(step.tile, arrays) if step.kind == "compute" else arrays

    def unpack(self, step: Receive, patches: Sequence[Patch], arrays: Sequence[Array]) -> list[Array]:
        """The values of the patches that a message brings; see `received`."""
        return received(step, patches, self.model.graph.tensors, arrays)

    def _packed(self, codec: str, part: Part, patch: Patch, value: Array) -> Array:
        tensor = self.model.graph.tensors[patch.tensor]
        return encode(tensor_codec(codec, tensor), take(part, tensor, patch.region, value))

    def _create(self, tile: Tile) -> _TileSession:
        # Packing a matrix gains nothing where it is multiplied by one vector. Another processor's memory is not ours.
        as_inputs = vector_matrices(self.model, tile, FED_NBYTES) if self.providers == ON_CPU else ()
        proto, weights = build_tile(self.model, tile, as_inputs)
        options, parts = session_options(self.threads), self.model.weight_slices([tile])
        values = {key: self._weight(key, parts.get(key), value) for key, value in weights.items()}
        fed = {key: values.pop(key) for key in as_inputs}
        given = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in values.values()]
        if given:
            options.add_external_initializers(list(values), given)
        return _TileSession(session(proto.SerializeToString(), self.threads, options, self.providers), fed, given)

    def _weight(self, key: str, part: WeightSlice | None, value: Array) -> Array:
        """`part` is None for a constant of the tile's own; `value` is what the model has."""
        if part is None:
            return np.ascontiguousarray(value)
        if key not in self._weights:
            if key in self._values:
                value = self._values[key]
            elif part.name in self._values:
                value = part.of(self._values[part.name])
            self._weights[key] = np.ascontiguousarray(value)
        return self._weights[key]


def session(
    proto: bytes,
    threads: int,
    options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[Provider] = ON_CPU,
) -> onnxruntime.InferenceSession:
    """A session under the project's options. A provider that fails is an error: nothing falls back unseen."""
    given = [(provider.name, dict(provider.options)) for provider in providers]
    options = options or session_options(threads)
    return onnxruntime.InferenceSession(proto, options, providers=given, enable_fallback=0)


def unsplit_session(model: Model, threads: int) -> onnxruntime.InferenceSession:
    """The network before any rewrite, in one piece on this machine: what split output is compared with.

    Raises:
        CaptureError: the model was not captured in this process.
    """
    original = model.original_proto
    large = {i.name: i for i in original.graph.initializer if math.prod(i.dims) > LARGE_ELEMENTS}
    light = without_initializers(original, large)
    light.graph.initializer.extend(stub(i.name, i.data_type, i.dims) for i in large.values())
    options = session_options(threads)
    if large:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(numpy_helper.to_array(i)) for i in large.values()]
        options.add_external_initializers(list(large), values)
    return session(light.SerializeToString(), threads, options)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options under which every session of the project runs, and the unsplit model that it is compared with."""
    _share_arena()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads of one session must not take the cores from the next one, or from another device's worker.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On x86, int8 activations would be fused into integer kernels only where ONNX Runtime can first make them uint8,
    # which it cannot at the border of a tile: whole and tile would be rounded differently.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@functools.cache
def _share_arena() -> None:
    """One arena for all sessions of the process: with one each, a plan of many stages would keep the activations of
    every stage, and every stage would compute in memory that no cache holds."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    unlimited, as_much_as_asked, default = 0, 1, -1
    arena = onnxruntime.OrtArenaCfg(unlimited, as_much_as_asked, default, default)
    onnxruntime.create_and_register_allocator(memory, arena)


def received(
    step: Receive, patches: Sequence[Patch], tensors: Mapping[str, Tensor], arrays: Sequence[Array]
) -> list[Array]:
    """The values of the patches that a message brings, unpacked.

    Raises:
        MalformedMessage: it does not hold what is expected; it comes over the network.
    """
    if len(arrays) != len(step.writes):
        raise MalformedMessage(f"{step.peer} sent {len(arrays)} arrays, {len(step.writes)} are expected")
    values = []
    for patch, array in zip((patches[index] for index in step.writes), arrays):
        tensor = tensors[patch.tensor]
        codec, shape = tensor_codec(step.codec, tensor), tensor.region_shape(patch.region)
        rows = tensor.row_axis is not None or tensor.col_axis is not None or tensor.partial_extent
        if not rows and array.ndim == len(shape):
            shape = array.shape  # of a NonZero, say, it depends on the image
        try:
            values.append(decode(codec, array, shape, tensor.dtype))
        except MalformedMessage as error:
            sent = f"{step.peer} sent {array.dtype} {list(array.shape)} for {patch.tensor!r}"
            raise MalformedMessage(f"{sent}: {error}") from None
    return values


def assemble(read: Read, tensor: Tensor, patches: Sequence[Patch], values: Mapping[int, Array]) -> Array:
    """The array of a region, out of the patches that hold its parts. A view or the patch itself where possible."""
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
    """A part of a patch, contiguous."""
    if part.region == held or tensor.partial_extent:
        return value
    return np.ascontiguousarray(value[tensor.slices(held, part.region)])
