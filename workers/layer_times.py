"""Measures a model's layers on this machine: seconds at several row counts, each layer a tile of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from coedge.layers import Layer
from coedge.lower import tile_of
from coedge.model import Model
from coedge.profile import LayerTime, fit
from coedge.program import Tile
from coedge.region import UNIT, Region, UnitRect
from workers.kernels import Kernels

FRACTIONS = (1.0, 0.5, 0.25, 0.125)
LEAST_RUNS, MOST_RUNS = 3, 25
SECONDS_PER_POINT = 0.02


def measure_layers(
    model: Model, threads: int, cpu_time: bool, budget_seconds: float = 20.0
) -> tuple[list[LayerTime], float]:
    """The affine time of every layer, and the fused ratio (see `coedge.profile`). Weights are made up.

    Args:
        cpu_time: count the CPU time of this thread instead of wall time (for emulated devices, one thread).
        budget_seconds: about how long it may take; the fewer runs are left for each point.
    """
    clock = time.thread_time if cpu_time and threads == 1 else time.perf_counter
    kernels = Kernels(model, threads)
    kernels.add_weights(made_up_weights(model))
    seen: dict[object, LayerTime] = {}
    times: list[LayerTime] = []
    started = time.monotonic()
    for layer in model.layers:
        key = _signature(model, layer)
        if key not in seen:
            left = budget_seconds - (time.monotonic() - started)
            points = []
            for fraction in FRACTIONS if layer.splittable else (1.0,):
                rect = UnitRect(row_stop=fraction)
                rows = rect.of_extent(layer.rows, layer.cols).rows.length
                if rows and rows not in {r for r, _ in points}:
                    seconds = _time(model, kernels, layer.first, layer.stop, rect, clock, left > 0)
                    if seconds is not None:
                        points.append((rows, seconds))
            seen[key] = fit((float(r), s) for r, s in points)
        times.append(seen[key])
    whole = _time(model, kernels, 0, len(model.graph.nodes), UNIT, clock, True)
    total = sum(t.seconds(layer.rows) for t, layer in zip(times, model.layers))
    ratio = whole / total if whole and total > 0 else 1.0
    return times, min(max(ratio, 0.05), 1.5)


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
    seconds = _median(lambda: run.run(None, feeds), clock, True)
    return 2 * 64 * 64 * 9 * 56 * 56 / seconds / 1e9


def made_up_weights(model: Model) -> dict[str, np.ndarray]:
    """Arrays of the right shapes: times do not depend on the values, as long as they are ordinary numbers."""
    noise = np.random.default_rng(0).standard_normal(65_536).astype(np.float32) * 0.02
    made: dict[str, np.ndarray] = {}
    for name, value in model.weights.items():
        if value.dtype.kind == "f":
            made[name] = np.resize(noise, value.shape).astype(value.dtype, copy=False)
        else:
            made[name] = np.array(value)
    return made


def _signature(model: Model, layer: Layer) -> object:
    """Layers with equal signatures take equal time: same operators, attributes and shapes."""
    parts: list[object] = []
    for node in model.graph.nodes[layer.first : layer.stop]:
        attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.proto.attribute))
        shapes = tuple(
            model.graph.constants[n].shape if n in model.graph.constants else model.graph.tensors[n].shape
            for n in (*node.inputs, *node.captured)
            if n
        )
        parts.append((node.op, attributes, shapes))
    return tuple(parts)


def _time(
    model: Model,
    kernels: Kernels,
    first: int,
    stop: int,
    rect: UnitRect,
    clock: Callable[[], float],
    thorough: bool,
) -> float | None:
    tile_and_regions = _tile(model, first, stop, rect)
    if tile_and_regions is None:
        return None
    tile, need = tile_and_regions
    generator = np.random.default_rng(0)
    arrays = []
    for name in tile.inputs:
        tensor = model.graph.tensors[name]
        shape = tensor.region_shape(need[name])
        dtype = np.dtype(tensor.dtype)
        if dtype.kind == "f":
            arrays.append(generator.standard_normal(shape).astype(dtype))
        else:
            arrays.append(generator.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype))
    return _median(lambda: kernels.run(tile, arrays), clock, thorough)


def _tile(model: Model, first: int, stop: int, rect: UnitRect) -> tuple[Tile, dict[str, Region]] | None:
    made = {name for node in model.graph.nodes[first:stop] for name in node.outputs if name}
    later = {n for node in model.graph.nodes[stop:] for n in model.graph.activations(node)} | set(
        model.graph.outputs
    )
    wanted = {}
    for name in made & later:
        tensor = model.graph.tensors[name]
        region = rect.of_extent(tensor.rows, tensor.cols)
        if not region.empty:
            wanted[name] = region
    return tile_of(model, first, stop, wanted) if wanted else None


def _median(function: Callable[[], object], clock: Callable[[], float], thorough: bool) -> float:
    function()
    samples: list[float] = []
    begun = time.monotonic()
    while len(samples) < LEAST_RUNS or (
        thorough and len(samples) < MOST_RUNS and time.monotonic() - begun < SECONDS_PER_POINT
    ):
        start = clock()
        function()
        samples.append(clock() - start)
    return statistics.median(samples)
