"""Costs of computing and of sending, derived once from a model and a profile.

The schemes, the search and the evaluator read link rates, message times, kernel times and watts from here. Axes:

    [device], [sender, receiver]    in the order of `profile.devices`; 0 from a device to itself
    [layer, device]                 in the order of `model.layers`
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coedge.graph.model import Model
from coedge.plan.codec import LOSSY, RAW
from coedge.profile.profile import Profile

Array = NDArray[np.float64]
# A codec must save this part of the time of the raw bytes. Ratios of sample images are no more accurate than that.
LEAST_CODEC_GAIN = 0.02


@dataclass(frozen=True)
class SharedMedium:
    """A capacity that transfers share.

    Attributes:
        uses: [sender, receiver] whether a transfer takes part of it.
    """

    name: str
    bytes_per_second: float
    uses: NDArray[np.bool_]


@dataclass(frozen=True)
class KernelTimes:
    """Affine times of all layers: `fixed + per_row * rows` seconds, both [layer, device]."""

    fixed: Array
    per_row: Array


class CostTable:
    """Costs of one model on one profile. Do not change the arrays.

    Attributes:
        position: index of a device by its name.
        source: index of the device where the input is.
        rows: [layer] rows of each layer's output.
        inside, at_end: kernel times of layers inside a stage, and of layers that end their stage.
        compute_watts, idle_watts: [device].
        transfer_watts: [sender, receiver] watts of both ends while a byte is on the wire.
    """

    def __init__(self, model: Model, profile: Profile) -> None:
        self.model, self.profile, self.names = model, profile, profile.names
        self.position = {name: index for index, name in enumerate(self.names)}
        self.source = self.position[profile.source]
        self.rows = np.array([float(layer.rows) for layer in model.layers])
        self.inside, self.at_end = (self._kernel_times(ends_stage) for ends_stage in (False, True))
        power = [device.power for device in profile.devices]
        self.compute_watts = np.array([p.compute_watts for p in power])
        self.idle_watts = np.array([p.idle_watts for p in power])
        self.transfer_watts = np.add.outer([p.transmit_watts for p in power], [p.receive_watts for p in power])
        self._derive_links()

    @classmethod
    def of(cls, model: Model, profile: Profile) -> CostTable:
        """Return the table of this profile; the same one as long as a caller holds it."""
        key = (model.hash, id(profile))
        table = _tables.get(key)
        if table is None:
            table = _tables[key] = cls(model, profile)
        return table

    def with_links(self, profile: Profile) -> CostTable:
        """Return the table of a profile with the same devices and other links."""
        other = copy.copy(self)
        other.profile = profile
        other._derive_links()
        return other

    def whole_seconds(self, first: int = 0, stop: int | None = None) -> Array:
        """Return [device] seconds for all rows of layers [first, stop), inside one stage."""
        before = self._seconds_before
        seconds: Array = before[len(self.rows) if stop is None else stop] - before[first]
        return seconds

    def seconds(self, first: int, rows: Array) -> Array:
        """Return the seconds of the layers of one stage.

        Args:
            first: the first layer of the stage.
            rows: [layer, ..., device] rows of each layer that a device computes.

        Returns:
            [layer, ..., device] The last layer that a device computes ends its stage.
        """
        count, computed = len(rows), rows > 0
        shape = (count, *(1,) * (rows.ndim - 2), rows.shape[-1])
        layers = slice(first, first + count)

        def of_layers(values: Array) -> Array:
            return values[layers].reshape(shape)

        seconds: Array = computed * of_layers(self.inside.fixed) + rows * of_layers(self.inside.per_row)
        last = count - 1 - computed[::-1].argmax(axis=0)[None]
        fixed, per_row, rows_of_last = (
            np.take_along_axis(np.broadcast_to(values, rows.shape), last, axis=0)
            for values in (of_layers(self.at_end.fixed), of_layers(self.at_end.per_row), rows)
        )
        at_end = np.where(rows_of_last > 0, fixed + per_row * rows_of_last, 0.0)
        np.put_along_axis(seconds, last, at_end, axis=0)
        return seconds

    def codec(self, tensors: Sequence[str], sender: int, receiver: int, lossy: bool) -> tuple[str, float]:
        """Return the codec with which these tensors pass a link soonest, and its seconds per raw byte.

        A codec pays if encoding, sending and decoding take less time than sending the raw bytes:

            1 / encode + ratio * seconds_per_byte + 1 / decode  <  seconds_per_byte
        """
        raw = float(self.seconds_per_byte[sender, receiver])
        devices, tensor_of = self.profile.devices, self.model.graph.tensors
        encoders, decoders = devices[sender].codecs, devices[receiver].codecs
        nbytes = {name: tensor_of[name].region_nbytes(tensor_of[name].whole) for name in tensors}
        total = sum(nbytes.values())
        best = (RAW, (1 - LEAST_CODEC_GAIN) * raw)
        for codec in sorted(encoders.keys() & decoders.keys()) if total else ():
            if codec in LOSSY and not lossy:
                continue
            ratios = self.profile.codec_ratios
            packed = sum(size * ratios.get(name, {}).get(codec, 1.0) for name, size in nbytes.items())
            work = 1 / encoders[codec].encode_bytes_per_second + 1 / decoders[codec].decode_bytes_per_second
            best = min(best, (codec, packed / total * raw + work), key=lambda candidate: candidate[1])
        return (RAW, raw) if best[0] == RAW else best

    @cached_property
    def layer_seconds(self) -> Array:
        """[layer, device] seconds for all rows of a layer, inside a stage."""
        seconds: Array = self.inside.fixed + self.inside.per_row * self.rows[:, None]
        return seconds

    @cached_property
    def _seconds_before(self) -> Array:
        """[cut, device] seconds for all rows of the layers before a cut."""
        return np.vstack([np.zeros((1, len(self.names))), np.cumsum(self.layer_seconds, axis=0)])

    def _kernel_times(self, ends_stage: bool) -> KernelTimes:
        times = [
            [device.layer_time(layer.index, ends_stage) for device in self.profile.devices]
            for layer in self.model.layers
        ]
        return KernelTimes(
            np.array([[time.fixed_seconds for time in row] for row in times]),
            np.array([[time.seconds_per_row for time in row] for row in times]),
        )

    def _derive_links(self) -> None:
        """Fill in what depends on links and media.

        link_seconds: [sender, receiver] per byte, of the link alone.
        medium_seconds: [sender, receiver] per byte, of the slowest shared medium on the way; 0 without one.
        seconds_per_byte: [sender, receiver] the larger of both.
        latency: [sender, receiver] seconds of an empty message on the link.
        message_seconds: [sender, receiver] latency, and the time that a message occupies both ends.
        media: the shared media.
        """
        profile, devices = self.profile, self.profile.devices
        shape = (len(self.names), len(self.names))
        self.link_seconds, self.latency, self.message_seconds = (np.zeros(shape) for _ in range(3))
        for a, b in np.ndindex(shape):
            if a != b:
                link = profile.link(self.names[a], self.names[b])
                self.link_seconds[a, b], self.latency[a, b] = 1 / link.bytes_per_second, link.latency_seconds
                handling = devices[a].send_seconds + devices[b].receive_seconds
                self.message_seconds[a, b] = link.latency_seconds + handling
        self.media = tuple(
            self._shared(medium.name, medium.bytes_per_second, medium.devices) for medium in profile.media
        )
        self.medium_seconds = np.zeros(shape)
        for medium in self.media:
            self.medium_seconds = np.maximum(self.medium_seconds, medium.uses / medium.bytes_per_second)
        self.seconds_per_byte = np.maximum(self.link_seconds, self.medium_seconds)

    def _shared(self, name: str, bytes_per_second: float, devices: Sequence[str]) -> SharedMedium:
        on_it = np.array([device in devices for device in self.names])
        return SharedMedium(name, bytes_per_second, np.logical_or.outer(on_it, on_it) & ~np.eye(len(on_it), dtype=bool))


_tables = weakref.WeakValueDictionary[tuple[str, int], CostTable]()
