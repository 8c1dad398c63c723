"""Measurement of layer times on this machine: layers as stages of their own, and longer stages, at several shares of
the rows. `coedge.profile.stage_fit` turns the times into a profile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from coedge.core.onnx_session import Session
from coedge.core.provider import ON_CPU, Provider
from coedge.core.region import UNIT
from coedge.execution.program import Program
from coedge.graph.layers import Layer
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, Stage, stages_of, strips
from coedge.profile.profile import LayerTime
from coedge.profile.stage_fit import fit_fused, fit_layers, like_in_time
from workers.calibration.calibration_run import DEVICE, CalibrationRun, StepTimings

# (share of the rows, layers per stage), most important first. Other devices have the rows above and below. The device
# must copy their rows and its own into one array, as in most plans. (With all rows there is no copy.)
ALONE = ((0.75, 1), (0.4, 1), (0.2, 1), (0.1, 1), (0.05, 1))
# Shares of the features of a dense layer. Every share needs a session with its own weights.
FEATURE_SHARES = (1.0, 0.25)
TOGETHER = ((0.4, 3), (1.0, 1000), (0.2, 8), (0.1, 3), (0.2, 2), (0.5, 16))
OTHERS = "others"
LEAST_SWEEPS, MOST_SWEEPS = 2, 8
# Part of the messages that is ignored, because another process took the core meanwhile.
OUTLIERS = 0.02
# Part of the budget after which no more stages of several layers are prepared.
PREPARATION = 0.3
CONVOLUTION_FLOP = 2 * 64 * 64 * 9 * 56 * 56


@dataclass(frozen=True, slots=True)
class ModelTimes:
    """Times of a model on one kind of machine, at full speed.

    Attributes:
        layers, fused: per layer, as in `DeviceProfile`.
        send_seconds, receive_seconds: of the worker's own code, per message.
    """

    layers: tuple[LayerTime, ...]
    fused: tuple[LayerTime, ...]
    send_seconds: float
    receive_seconds: float


def measure_layers(
    model: Model,
    threads: int,
    speed: float | None,
    budget_seconds: float = 20.0,
    memory_bytes: float | None = None,
) -> ModelTimes:
    """Measure the affine time of every layer, at the end of a stage and inside one; see `LayerMeasurement`."""
    run = LayerMeasurement(model, threads, speed, budget_seconds, memory_bytes)
    try:
        return model_times(model, run.sweeps(MOST_SWEEPS))
    finally:
        run.close()


class LayerMeasurement:
    """Calibration runs of all layers and of longer stages, at several shares of the rows, with made-up weights.

    The constructor builds all sessions. Close the object after use.

    Args:
        speed: of an emulated device: the CPU time of one thread counts, and the device rests after kernels. The times
            are still those of the machine's full speed. None: wall time counts.
        budget_seconds: approximate duration of the constructor and all sweeps.
        memory_bytes: of this device. A dense layer that needs more is measured on as many features as fit.

    Attributes:
        done: progress, from 0 to 1.
    """

    def __init__(
        self,
        model: Model,
        threads: int,
        speed: float | None,
        budget_seconds: float,
        memory_bytes: float | None = None,
        providers: tuple[Provider, ...] = ON_CPU,
    ) -> None:
        self.done = 0.0
        self._begun, self._budget_seconds = time.monotonic(), budget_seconds
        self._run = CalibrationRun(model, threads, speed, providers=providers)
        self._ready: list[int] = []
        try:
            for share, stage_layers in ALONE:
                self._add(rows_program(model, share, stage_layers))
            self._add(unsplittable_program(model))
            for share in FEATURE_SHARES:
                self._add(features_program(model, share, memory_bytes))
            for share, stage_layers in TOGETHER:
                if self._passed() < PREPARATION:
                    self._add(rows_program(model, share, stage_layers))
        except BaseException:
            self.close()
            raise

    def _add(self, program: Program) -> None:
        if program.computes:
            self._ready.append(self._run.add(program))

    def sweeps(self, most: int) -> list[StepTimings]:
        """Run all programs repeatedly until the budget is used, at least `LEAST_SWEEPS` and at most `most` times."""
        timings: list[StepTimings] = []
        start = self._passed()
        for sweep in range(most):
            passed = self._passed()
            if sweep >= LEAST_SWEEPS and passed + (passed - start) / sweep > 1:
                break
            for place, number in enumerate(self._ready):
                timings.append(self._run.run(number))
                swept = (sweep + (place + 1) / len(self._ready)) / most
                self.done = max(swept, min(self._passed(), 1.0))
        return timings

    def close(self) -> None:
        self._run.close()

    def _passed(self) -> float:
        """Return the used part of the budget."""
        return (time.monotonic() - self._begun) / self._budget_seconds


def model_times(model: Model, timings: Sequence[StepTimings]) -> ModelTimes:
    """Return the times of a model that fit the timings of calibration runs."""
    stages = [stage for frame in timings for stage in frame.stages]
    kinds = like_in_time(stages, alike(model))
    layers = fit_layers(stages, kinds)
    border_nbytes_per_row = [border_nbytes(model, layer) / max(layer.rows, 1) for layer in model.layers]
    return ModelTimes(
        layers=layers,
        fused=fit_fused(stages, layers, border_nbytes_per_row, kinds),
        send_seconds=usual(seconds for frame in timings for seconds in frame.send_seconds),
        receive_seconds=usual(seconds for frame in timings for seconds in frame.receive_seconds),
    )


def usual(seconds: Iterable[float]) -> float:
    """Return the mean without the longest times; 0 if there are none.

    A frame has many messages. Their times add up, so the mean is needed rather than the median.
    """
    known = sorted(seconds)
    kept = known[: max(1, int(len(known) * (1 - OUTLIERS)))]
    return statistics.fmean(kept) if kept else 0.0


def rows_program(model: Model, share: float, stage_layers: int) -> Program:
    """Return the program of a device with a share of the rows, in the middle, of every layer that can be split."""
    regions = strips({"above": (1 - share) / 2, DEVICE: share, OTHERS: (1 - share) / 2})
    return _program(model, stages_of(model, regions, OTHERS, stage_layers, {OTHERS: UNIT}))


def unsplittable_program(model: Model) -> Program:
    """Return the program of a device that computes the layers that cannot be split, and no others."""
    return _program(model, stages_of(model, {OTHERS: UNIT}, DEVICE, 1, {OTHERS: UNIT}))


def features_program(model: Model, share: float, memory_bytes: float | None) -> Program:
    """Return the program of a device with a share of the features of dense layers, or of the features that fit."""
    stages = []
    dense = [layer for layer in model.layers if layer.by_features]
    weights = sum(model.weights[name].nbytes for d in dense for name in model.weight_names(d.first, d.stop))
    # A session packs its weights into a copy, hence 2. The sessions of all shares exist at the same time.
    needed = 2 * sum(FEATURE_SHARES) * weights
    fits = min(1.0, memory_bytes / needed) if memory_bytes is not None and needed else 1.0
    for layer in model.layers:
        regions = {OTHERS: UNIT}
        if layer.by_features:
            own = max(fits, 1 / layer.rows) * share
            regions = strips({DEVICE: own, OTHERS: 1 - own})
        stages.append(Stage(first=layer.index, last=layer.index, regions=regions))
    return _program(model, tuple(stages))


def _program(model: Model, stages: tuple[Stage, ...]) -> Program:
    plan = Plan(
        scheme="calibration", model_name=model.name, model_hash=model.hash, devices=("above", DEVICE, OTHERS),
        source=DEVICE, sink=DEVICE, stages=stages,
    )  # fmt: skip
    return lower(plan, model)[DEVICE]


def alike(model: Model) -> list[int]:
    """Return for each layer the first layer with the same operators, attributes and shapes; itself if there is none."""
    first: dict[object, int] = {}
    return [first.setdefault(_signature(model, layer), layer.index) for layer in model.layers]


def _signature(model: Model, layer: Layer) -> object:
    graph = model.graph

    def shape(name: str) -> object:
        tensor = graph.tensors.get(name)
        if tensor is not None:
            return tensor.shape, tensor.dtype, name in own
        value = graph.constants.get(name)
        return None if value is None else (value.shape, str(value.dtype))

    own = {name for node in graph.nodes[layer.first : layer.stop] for name in node.outputs}
    return tuple(
        (
            node.domain,
            node.op,
            tuple(attribute.SerializeToString() for attribute in node.proto.attribute),
            tuple(map(shape, (*node.inputs, *node.captured))),
            tuple(map(shape, node.outputs)),
        )
        for node in graph.nodes[layer.first : layer.stop]
    )


def border_nbytes(model: Model, layer: Layer) -> int:
    """Return the bytes of a layer's outputs that later layers read."""
    tensors, later = (
        model.graph.tensors,
        model.cuts[layer.index + 1].tensors if layer.index + 1 < len(model.cuts) else (),
    )
    made = {name for node in model.graph.nodes[layer.first : layer.stop] for name in node.outputs}
    return sum(tensors[name].region_nbytes(tensors[name].whole) for name in later if name in made)


def measure_gflops(threads: int, cpu_time: bool, providers: Sequence[Provider] = ON_CPU) -> float:
    """Return the 10^9 floating-point operations per second of `convolution`, a figure for people."""
    run = convolution(threads, providers)
    clock = time.thread_time if cpu_time and threads == 1 else time.perf_counter
    samples = []
    for _ in range(16):
        start = clock()
        run()
        samples.append(clock() - start)
    return CONVOLUTION_FLOP / statistics.median(samples[1:]) / 1e9


def convolution(threads: int, providers: Sequence[Provider] = ON_CPU) -> Callable[[], object]:
    """Return a function that runs a typical kernel: a 3x3 convolution, 64 channels at 56 x 56."""
    from onnx import TensorProto, helper

    shape = [1, 64, 56, 56]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "speed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, [64, 64, 3, 3], np.full(64 * 64 * 9, 0.01, np.float32))],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 17)], ir_version=8)
    run = Session(proto.SerializeToString(), threads, providers=providers)
    feeds = {"x": np.full(shape, 0.5, np.float32)}
    return lambda: run.run(None, feeds)
