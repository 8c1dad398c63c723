"""Errors of steps in this process: device, step, layer and reason in one line, as from a worker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import Net, image

from coedge import CoEdgeError, Model, StepFailed, capture, even_plan, run_in_process
from coedge.plan.lowering import lower
from workers.runtime import in_process
from workers.runtime.in_process import InProcess
from workers.runtime.kernels import Kernels

SHAPE = (1, 1, 8, 6)


def looked_up() -> Model:
    """Return a network that looks up pixels in a table of 256 rows. The kernel refuses a pixel of 256 or more."""
    net = Net()
    index = net.op("Cast", net.op("Add", net.input(SHAPE), net.const(1.0)), to=7)
    return capture(net.proto(net.op("Gather", net.weight(256, 2), index, axis=0)), name="table")


def test_a_kernel_that_raises_is_named() -> None:
    model = looked_up()
    x = np.abs(image(SHAPE))
    run_in_process(model, even_plan(model, devices=["pi", "pc"]), x)
    x[0, 0, 7, 0] = 1000
    with pytest.raises(StepFailed) as caught:
        run_in_process(model, even_plan(model, devices=["pi", "pc"]), x)
    text = str(caught.value)
    assert text.startswith(("pi failed in stage ", "pc failed in stage "))
    assert model.layers[-1].name in text and "indices element out of data bounds" in text
    assert "\n" not in text and caught.value.__cause__ is not None


def test_a_session_that_is_not_created_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_session(*_: Any) -> None:
        raise RuntimeError("no memory\nfor this tile")

    monkeypatch.setattr(Kernels, "_create", no_session)
    model = looked_up()
    with pytest.raises(StepFailed, match=r"^pi failed in stage 0 \(.*\): RuntimeError: no memory for this tile$"):
        run_in_process(model, even_plan(model, devices=["pi"]), np.zeros(SHAPE, np.float32))


def test_a_message_that_is_not_expected_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def malformed(*_: Any) -> None:
        raise ValueError("not these rows")

    model = looked_up()
    runner = InProcess(model, lower(even_plan(model, devices=["pi", "pc"]), model), Kernels(model))
    monkeypatch.setattr(in_process, "received", malformed)
    with pytest.raises(StepFailed, match=r"failed in receiving from .* for stage -1: ValueError: not these rows"):
        runner.run((np.zeros(SHAPE, np.float32),))


@pytest.mark.parametrize("threads", [0, -1, 1.5, 10**9, None, "2", float("nan")])
def test_a_number_of_threads_that_is_none_is_refused(threads: Any) -> None:
    model = looked_up()
    with pytest.raises(CoEdgeError, match=r"threads is .*; give a whole number from 1 to 1024"):
        run_in_process(model, even_plan(model), np.zeros(SHAPE, np.float32), threads=threads)
