"""What a worker refuses, without Ray and without sockets."""

from __future__ import annotations

import pytest
import torch

import coedge
from coedge.lowering import lower
from coedge.model import Model
from coedge.weight_part import WeightPart
from workers.spec import WorkerSpec
from workers.transport import InMemoryHub, InMemoryTransport
from workers.worker import Worker


@pytest.fixture(scope="module")
def model() -> Model:
    return coedge.capture(coedge.zoo.build("squeezenet", width=0.25), torch.zeros(1, 3, 64, 64))


@pytest.fixture
def worker() -> Worker:
    return Worker(WorkerSpec(0, "device-0", "", False, 1.0), InMemoryTransport(0, "device-0", InMemoryHub()))


def test_a_program_without_all_of_its_weights_is_refused(model: Model, worker: Worker) -> None:
    program = lower(coedge.even_plan(model, 1), model)["device-0"]
    name, *rest = sorted(model.weights)
    with pytest.raises(RuntimeError, match="device-0 lacks 1 weights of its program"):
        worker.load(1, program, model.skeleton, {n: model.weights[n] for n in rest})
    worker.load(1, program, model.skeleton, model.weights)
    assert worker.missing_weights(model.hash, [WeightPart(name)]) == (False, [])


def test_weights_of_a_plan_that_was_unloaded_are_asked_for_again(model: Model, worker: Worker) -> None:
    program = lower(coedge.even_plan(model, 1), model)["device-0"]
    worker.load(1, program, model.skeleton, model.weights)
    worker.unload(1)
    parts = [WeightPart(name) for name in sorted(model.weights)]
    assert worker.missing_weights(model.hash, parts) == (False, parts)
    with pytest.raises(RuntimeError, match="lacks"):
        worker.load(2, program, None, {})
