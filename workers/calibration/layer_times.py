"""Measures what a model's layers take on this machine: each a stage of its own, at several shares of its rows, and in
longer stages; see `coedge.profile.stage_fit` for what follows from it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from coedge.core.provider import ON_CPU, Provider
from coedge.core.region import UNIT
from coedge.execution.program import Program
from coedge.graph.layers import Layer
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, Stage, stages_of, strips
from coedge.profile.profile import LayerTime
from coedge.profile.stage_fit import fit_fused, fit_layers
from workers.calibration.calibration_run import DEVICE, CalibrationRun, StepTimings

# Shares of the rows, and with each how many layers are in a stage, most needed first. Somebody else has the rows above
# and below: a device puts its rows and theirs together, which takes a copy. (With all rows it does not.)
ALONE = ((0.75, 1), (0.4, 1), (0.2, 1), (0.1, 1), (0.05, 1))
# Of the features of a dense layer: every share is a session with weights of its own.
FEATURE_SHARES = (1.0, 0.25)
TOGETHER = ((0.4, 3), (1.0, 1000), (0.2, 8), (0.1, 3), (0.2, 2), (0.5, 16))
OTHERS = "others"
LEAST_SWEEPS, MOST_SWEEPS = 2, 8
# Of the messages, in which something else took the core.
OUTLIERS = 0.02
# Of the time, what may go into making stages ready beyond those of one layer.
PREPARATION = 0.3
CONVOLUTION_FLOP = 2 * 64 * 64 * 9 * 56 * 56


@dataclass(frozen=True, slots=True)
class ModelTimes:
    """What a model takes on one kind of machine, at full speed.

    Attributes:
        layers, fused: of each layer, as in `DeviceProfile`.
        send_seconds, receive_seconds: of the device's own code, per message.
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
    """The affine time of every layer at the end of its stage, and inside of one; see `LayerMeasurement`."""
    run = LayerMeasurement(model, threads, speed, budget_seconds, memory_bytes)
    try:
        return model_times(model, run.sweeps(MOST_SWEEPS))
    finally:
        run.close()


class LayerMeasurement:
    """Frames in which each layer, and longer stages, run at several shares of the rows. Weights are made up.

    Making it makes everything ready; close it after use.

    Args:
        speed: of an emulated device: CPU time counts (of one thread), with the rests that it takes. The times are
            those of the machine's full speed all the same. None: wall time.
        budget_seconds: about how long making it and all sweeps may take.
        memory_bytes: of this device. A dense layer that needs more is measured on as many features as fit.

    Attributes:
        done: how far it is, from 0 to 1.
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
            self._add(whole_program(model))
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
        """Plays all of it, over and over, as long as the budget lasts; at least `LEAST_SWEEPS` times."""
        played: list[StepTimings] = []
        start = self._passed()
        for sweep in range(most):
            passed = self._passed()
            if sweep >= LEAST_SWEEPS and passed + (passed - start) / sweep > 1:
                break
            for place, number in enumerate(self._ready):
                played.append(self._run.run(number))
                swept = (sweep + (place + 1) / len(self._ready)) / most
                self.done = max(swept, min(self._passed(), 1.0))
        return played

    def close(self) -> None:
        self._run.close()

    def _passed(self) -> float:
        """The part of the budget that is gone."""
        return (time.monotonic() - self._begun) / self._budget_seconds


def model_times(model: Model, played: Sequence[StepTimings]) -> ModelTimes:
    """What follows from frames that were played."""
    stages = [stage for frame in played for stage in frame.stages]
    kinds = alike(model)
    layers = fit_layers(stages, kinds)
    border_nbytes_per_row = [border_nbytes(model, layer) / max(layer.rows, 1) for layer in model.layers]
    return ModelTimes(
        layers=layers,
        fused=fit_fused(stages, layers, border_nbytes_per_row, kinds),
        send_seconds=usual(seconds for frame in played for seconds in frame.send_seconds),
        receive_seconds=usual(seconds for frame in played for seconds in frame.receive_seconds),
    )


def usual(seconds: Iterable[float]) -> float:
    """Their mean without the longest: a frame has many messages, and their times add up as means do, not medians.

    Zero, where there are none.
    """
    known = sorted(seconds)
    kept = known[: max(1, int(len(known) * (1 - OUTLIERS)))]
    return statistics.fmean(kept) if kept else 0.0


def rows_program(model: Model, share: float, stage_layers: int) -> Program:
    """What a device does that has a share of the rows, in the middle, of every layer that can be split."""
    regions = strips({"above": (1 - share) / 2, DEVICE: share, OTHERS: (1 - share) / 2})
    return _program(model, stages_of(model, regions, OTHERS, stage_layers, {OTHERS: UNIT}))


def whole_program(model: Model) -> Program:
    """What a device does that has all that cannot be split, and nothing else."""
    return _program(model, stages_of(model, {OTHERS: UNIT}, DEVICE, 1, {OTHERS: UNIT}))


def features_program(model: Model, share: float, memory_bytes: float | None) -> Program:
    """What a device does that has a share of the features of dense layers, or of as many of them as fit."""
    stages = []
    dense = [layer for layer in model.layers if layer.by_features]
    weights = sum(model.weights[name].nbytes for d in dense for name in model.weight_names(d.first, d.stop))
    # Twice: a session packs its weights into a copy. All shares of all dense layers are ready at once.
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
        scheme="rehearsal", model_name=model.name, model_hash=model.hash, devices=("above", DEVICE, OTHERS),
        source=DEVICE, sink=DEVICE, stages=stages,
    )  # fmt: skip
    return lower(plan, model)[DEVICE]


def alike(model: Model) -> list[int]:
    """For each layer, the first one that does the same on tensors of the same shapes: itself, if there is none."""
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
    """Bytes that a layer makes for later ones: what it writes where its stage ends with it."""
    tensors, later = (
        model.graph.tensors,
        model.cuts[layer.index + 1].tensors if layer.index + 1 < len(model.cuts) else (),
    )
    made = {name for node in model.graph.nodes[layer.first : layer.stop] for name in node.outputs}
    return sum(tensors[name].region_nbytes(tensors[name].whole) for name in later if name in made)


def measure_gflops(threads: int, cpu_time: bool, providers: Sequence[Provider] = ON_CPU) -> float:
    """10^9 multiply-adds per second x 2 of `convolution`: a figure for people."""
    run = convolution(threads, providers)
    clock = time.thread_time if cpu_time and threads == 1 else time.perf_counter
    samples = []
    for _ in range(16):
        start = clock()
        run()
        samples.append(clock() - start)
    return CONVOLUTION_FLOP / statistics.median(samples[1:]) / 1e9


def convolution(threads: int, providers: Sequence[Provider] = ON_CPU) -> Callable[[], object]:
    """A typical piece of work: a 3x3 convolution, 64 channels at 56 x 56."""
    from onnx import TensorProto, helper

    from workers.runtime.kernels import session

    shape = [1, 64, 56, 56]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "speed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, [64, 64, 3, 3], np.full(64 * 64 * 9, 0.01, np.float32))],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 17)], ir_version=8)
    run = session(proto.SerializeToString(), threads, providers=providers)
    feeds = {"x": np.full(shape, 0.5, np.float32)}
    return lambda: run.run(None, feeds)
