"""A calibration run: the real loop and kernels of a worker, with made-up rows on sockets of its own."""

from __future__ import annotations

import functools
import threading

import pytest
from nets import Net

from coedge.execution.program import Compute, Program, Receive, Send
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from workers.calibration.calibration_run import CalibrationRun, made_up_weights
from workers.calibration.layer_times import (
    FEATURE_SHARES,
    alike,
    border_nbytes,
    features_program,
    rows_program,
    unsplittable_program,
)
from workers.runtime.worker import Worker


@functools.cache
def net() -> Model:
    """Convolutions, two of them alike, then two dense layers."""
    made = Net()
    x = made.input([1, 3, 32, 24])
    for channels, before in ((8, 3), (8, 8), (8, 8)):
        x = made.op("Relu", made.op("Conv", x, made.weight(channels, before, 3, 3), pads=[1, 1, 1, 1]))
    x = made.op("Flatten", made.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = made.op("Relu", made.op("Gemm", x, made.weight(8 * 16 * 12, 64)))
    return capture(made.proto(made.op("Gemm", x, made.weight(64, 5))), name="net")


@pytest.mark.parametrize("speed", [0.1, 0.5, None])
def test_every_stage_of_a_program_is_timed(speed: float | None) -> None:
    calibration = CalibrationRun(net(), 1, speed)
    try:
        program = rows_program(net(), 0.5, 1)
        number = calibration.add(program)
        for _ in range(2):
            timings = calibration.run(number)
            expected = [step.work for step in program.steps if isinstance(step, Compute)]
            assert [stage.work for stage in timings.stages] == expected[-len(timings.stages) :]
            assert len(expected) - len(timings.stages) <= 1  # the first step has no earlier one to count from
            assert all(0 < stage.seconds < 5 for stage in timings.stages)
            assert len(timings.send_seconds) >= sum(isinstance(step, Send) for step in program.steps) - 1
            assert len(timings.receive_seconds) >= sum(isinstance(step, Receive) for step in program.steps) - 1
    finally:
        calibration.close()


def test_several_programs_take_turns() -> None:
    calibration = CalibrationRun(net(), 1, speed=0.3)
    try:
        numbers = [calibration.add(program) for program in (rows_program(net(), 0.5, 1), rows_program(net(), 1.0, 100))]
        counts = [[len(calibration.run(number).stages) for number in numbers] for _ in range(2)]
        assert counts[0] == counts[1] and counts[0][0] > counts[0][1]
    finally:
        calibration.close()


def test_closing_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    calibration = CalibrationRun(net(), 1, speed=0.3)
    calibration.run(calibration.add(rows_program(net(), 0.5, 1)))
    calibration.close()
    assert set(threading.enumerate()) == before


def test_a_step_that_fails_is_reported() -> None:
    calibration = CalibrationRun(net(), 1, speed=0.3)
    try:
        number = calibration.add(rows_program(net(), 0.5, 1))
        calibration._made_up[number][0][0].arrays[0].shape = (3, 32, 24)  # the input has lost an axis
        with pytest.raises(RuntimeError, match=r"a calibration run failed: .*is expected"):
            calibration.run(number)
    finally:
        calibration.close()


def test_the_end_of_the_worker_is_reported_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(worker: Worker) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(Worker, "serve", end)
    calibration = CalibrationRun(net(), 1, speed=0.3)
    try:
        number = calibration.add(rows_program(net(), 0.5, 1))
        with pytest.raises(RuntimeError, match="a calibration run failed: OSError: no memory"):
            calibration.run(number)
    finally:
        calibration.close()


def layers_of(program: Program) -> list[int]:
    return sorted({w.layer for step in program.steps if isinstance(step, Compute) for w in step.work})


def test_rows_features_and_the_rest_have_programs_of_their_own() -> None:
    model = net()
    kinds = [(layer.splittable, layer.by_features) for layer in model.layers]
    rows, dense = ([i for i, kind in enumerate(kinds) if kind[place]] for place in (0, 1))
    assert rows and dense
    assert layers_of(rows_program(model, 0.5, 1)) == rows
    assert layers_of(features_program(model, 0.25, None)) == dense
    assert layers_of(unsplittable_program(model)) == [i for i in range(len(kinds)) if i not in rows and i not in dense]


def test_a_device_in_the_middle_has_neighbours_on_both_sides() -> None:
    steps = rows_program(net(), 0.5, 1).steps
    assert {step.peer for step in steps if isinstance(step, Receive)} >= {"above", "others"}


def test_a_dense_layer_is_measured_on_as_many_features_as_fit() -> None:
    model = net()
    layer = next(layer for layer in model.layers if layer.by_features)
    weights = sum(model.weights[name].nbytes for name in model.weight_names(layer.first, layer.stop))

    def features(memory_bytes: float | None) -> float:
        program = features_program(model, 1.0, memory_bytes)
        return next(w.rows for s in program.steps if isinstance(s, Compute) for w in s.work if w.layer == layer.index)

    assert features(None) == layer.rows
    # A session packs a copy, hence 2. The sessions of all shares exist at the same time.
    needed = 2.0 * sum(FEATURE_SHARES) * weights
    assert features(needed) == layer.rows
    assert features(needed / 2) == layer.rows / 2
    assert features(1.0) == 1


def test_layers_with_equal_operators_and_shapes_are_alike() -> None:
    kinds = alike(net())
    assert kinds[2] == kinds[1] == 1
    assert kinds[0] == 0 and len(set(kinds)) == len(kinds) - 1


def test_border_bytes_are_those_of_outputs_that_later_layers_read() -> None:
    model = net()
    assert border_nbytes(model, model.layers[0]) == 8 * 32 * 24 * 4
    assert border_nbytes(model, model.layers[-1]) == 0


def test_made_up_weights_have_the_shapes_of_the_parts() -> None:
    model = net()
    program = features_program(model, 0.25, None)
    parts = model.weight_slices(program.tiles())
    made = made_up_weights(model, parts.values())
    assert made
    for key, array in made.items():
        value = parts[key].of(model.weights[parts[key].name])
        assert (array.shape, array.dtype) == (value.shape, value.dtype)
