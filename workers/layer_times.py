"""Measures a model's layers on this machine: seconds at several row counts, each layer a tile of its own.

Layer after layer, as they run for a frame, rather than one layer over and over: its weights and rows are then
as cold as they will be, and what a worker does around the kernel (putting the rows and the halo together) is
measured with it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.layers import Layer
from coedge.lowering import tile_of
from coedge.model import Model
from coedge.profile import LayerTime, fit, scaled
from coedge.program import Part, Patch, Read, Tile
from coedge.region import UNIT, Region, UnitRect
from workers.kernels import Kernels, assemble

Array = NDArray[Any]

FRACTIONS = (1.0, 0.5, 0.25, 0.125)
# Of the features of a dense layer: every fraction is a session with weights of its own.
FEATURE_FRACTIONS = (1.0, 0.25)
LEAST_SWEEPS, MOST_SWEEPS = 3, 5
# An emulated device sleeps after every kernel, and so should the measurement: waking up costs cache lines.
REST_SECONDS = 0.001


def measure_layers(
    model: Model,
    threads: int,
    cpu_time: bool,
    budget_seconds: float = 20.0,
    memory_bytes: float | None = None,
) -> tuple[list[LayerTime], list[LayerTime]]:
    """The affine time of every layer at the end of its stage, and inside of one. Weights are made up.

    Args:
        cpu_time: for emulated devices of one thread: CPU time of this thread instead of wall time, with rests.
        budget_seconds: about how long it may take, preparation not counted.
        memory_bytes: of this device. Dense layers that need more are measured on as many features as fit.
    """
    emulated = cpu_time and threads == 1
    clock = time.thread_time if emulated else time.perf_counter
    kernels = Kernels(model, threads)
    points = [
        point
        for layer in model.layers
        for fraction in _fractions(model, layer, memory_bytes)
        if (point := _point(model, layer.first, layer.stop, fraction, layer.index)) is not None
    ]
    together = _longest_splittable_run(model)
    fused = _point(model, together[0].first, together[-1].stop, 1.0, -1)
    assert fused is not None
    kernels.add_weights(made_up_weights(model, [point.tile for point in (*points, fused)]))
    for point in (*points, fused):
        point.run(model, kernels)  # builds the session
    begun = time.monotonic()
    for sweep in range(MOST_SWEEPS):
        if sweep >= LEAST_SWEEPS and time.monotonic() - begun > budget_seconds * sweep / (sweep + 1):
            break
        for point in sorted(points, key=lambda point: -point.fraction):
            point.time(model, kernels, clock, emulated)
        fused.time(model, kernels, clock, emulated)
    times = []
    for layer in model.layers:
        mine = [p for p in points if p.layer == layer.index]
        rows = {p.fraction: UnitRect(row_stop=p.fraction).of_extent(layer.rows, layer.cols).rows.length for p in mine}
        times.append(fit((float(max(rows[p.fraction], 1)), statistics.median(p.samples)) for p in mine))
    total = sum(times[layer.index].seconds(layer.rows) for layer in together)
    ratio = statistics.median(fused.samples) / total if total > 0 else 1.0
    return times, [scaled(time, min(max(ratio, 0.05), 1.5)) for time in times]


def _fractions(model: Model, layer: Layer, memory_bytes: float | None) -> tuple[float, ...]:
    """The shares of a layer's rows at which it is measured."""
    if layer.splittable or not layer.by_features:
        return FRACTIONS if layer.splittable else (1.0,)
    dense = [other for other in model.layers if other.by_features]
    weights = sum(model.weights[name].nbytes for d in dense for name in model.weight_names(d.first, d.stop))
    # Twice: a session packs its weights into a copy.
    needed = 2 * sum(FEATURE_FRACTIONS) * weights
    fits = min(1.0, memory_bytes / needed) if memory_bytes is not None and needed else 1.0
    return tuple(max(fits, 1 / layer.rows) * fraction for fraction in FEATURE_FRACTIONS)


def _longest_splittable_run(model: Model) -> list[Layer]:
    """Layers to be fused for the ratio: the dense tail has nothing to gain, and packing it twice takes long."""
    runs: list[list[Layer]] = [[]]
    for layer in model.layers:
        if layer.splittable:
            runs[-1].append(layer)
        elif runs[-1]:
            runs.append([])
    return max(runs, key=len) or list(model.layers)


@dataclass
class _Point:
    """One layer at one share of its rows, with made-up inputs."""

    layer: int
    fraction: float
    tile: Tile
    reads: list[tuple[Read, list[Patch], dict[int, Array]]]
    samples: list[float]

    def run(self, model: Model, kernels: Kernels) -> None:
        tensors = model.graph.tensors
        feeds = [assemble(read, tensors[read.tensor], patches, held) for read, patches, held in self.reads]
        kernels.run(self.tile, feeds)

    def time(self, model: Model, kernels: Kernels, clock: Callable[[], float], rest: bool) -> None:
        if rest:
            time.sleep(REST_SECONDS)
        start = clock()
        self.run(model, kernels)
        self.samples.append(clock() - start)


def _point(model: Model, first: int, stop: int, fraction: float, layer: int) -> _Point | None:
    """None where so small a share has no rows."""
    rect = UNIT if fraction == 1.0 else UnitRect(row_stop=fraction)
    made = [name for node in model.graph.nodes[first:stop] for name in node.outputs if name]
    later = {n for node in model.graph.nodes[stop:] for n in model.graph.activations(node)}
    later |= set(model.graph.outputs)
    wanted = {}
    for name in made:
        tensor = model.graph.tensors[name]
        region = rect.of_extent(tensor.rows, tensor.cols)
        if name in later and not region.empty:
            wanted[name] = region
    if not wanted:
        return None
    tile, need = tile_of(model, first, stop, wanted)
    return _Point(layer, fraction, tile, [_read(model, name, need[name], rect) for name in tile.inputs], [])


def _read(model: Model, name: str, need: Region, rect: UnitRect) -> tuple[Read, list[Patch], dict[int, Array]]:
    """Rows that the device owns itself, and the halo below them as a patch of its own."""
    tensor = model.graph.tensors[name]
    generator = np.random.default_rng(0)
    own = rect.of_extent(tensor.rows, tensor.cols).intersection(need)
    regions = [need] if own.empty or tensor.partial_extent else [own, *need.minus(own)]
    held: dict[int, Array] = {}
    for index, region in enumerate(regions):
        shape, dtype = tensor.region_shape(region), np.dtype(tensor.dtype)
        if dtype.kind == "f":
            held[index] = generator.standard_normal(shape, np.float32).astype(dtype, copy=False)
        else:
            held[index] = generator.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)
    parts = tuple(Part(index, region) for index, region in enumerate(regions))
    return Read(name, need, parts), [Patch(name, region) for region in regions], held


def measure_gflops(threads: int, cpu_time: bool) -> float:
    """10^9 multiply-adds per second x 2 of a 3x3 convolution, 64 channels at 56 x 56: a figure for people."""
    from onnx import TensorProto, helper

    from workers.kernels import session

    shape = [1, 64, 56, 56]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "speed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, [64, 64, 3, 3], np.full(64 * 64 * 9, 0.01, np.float32))],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 17)], ir_version=8)
    run = session(proto.SerializeToString(), threads)
    feeds = {"x": np.full(shape, 0.5, np.float32)}
    clock = time.thread_time if cpu_time and threads == 1 else time.perf_counter
    seconds = _median(lambda: run.run(None, feeds), clock)
    return 2 * 64 * 64 * 9 * 56 * 56 / seconds / 1e9


def made_up_weights(model: Model, tiles: Iterable[Tile]) -> dict[str, np.ndarray]:
    """Arrays of the right shapes for the large constants that tiles read, or for the parts that they read, by key.

    Times do not depend on the values, as long as they are ordinary numbers.
    """
    noise = np.random.default_rng(0).standard_normal(65_536).astype(np.float32) * 0.02
    made: dict[str, np.ndarray] = {}
    for key, part in model.weight_parts(tiles).items():
        if part.name in model.weights:
            value = part.of(model.weights[part.name])
            if value.dtype.kind == "f":
                made[key] = np.resize(noise, value.shape).astype(value.dtype, copy=False)
            else:
                made[key] = np.array(value)
    return made


def _median(function: Callable[[], object], clock: Callable[[], float], count: int = 15) -> float:
    function()
    samples = []
    for _ in range(count):
        start = clock()
        function()
        samples.append(clock() - start)
    return statistics.median(samples)
