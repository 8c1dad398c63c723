"""Workers without Ray and sockets: loading, probing, stopping."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from nets import kept
from waiting import listening, until

import coedge
from coedge.graph.model import Model
from coedge.graph.weight_slice import WeightSlice
from coedge.plan.lowering import lower
from workers.runtime.spec import WorkerSpec
from workers.runtime.worker import Worker
from workers.transport.local_socket import IPC
from workers.transport.transport import InMemoryHub, InMemoryTransport


@pytest.fixture(scope="module")
def model() -> Model:
    net = coedge.zoo.build("squeezenet", width=0.25)
    return kept("worker-squeezenet", lambda: coedge.capture(net, torch.zeros(1, 3, 64, 64)))


@pytest.fixture
def worker() -> Worker:
    return Worker(WorkerSpec(0, "device-0", "", False, 1.0), InMemoryTransport(0, "device-0", InMemoryHub()))


def test_a_program_without_all_of_its_weights_is_refused(model: Model, worker: Worker) -> None:
    program = lower(coedge.even_plan(model, 1), model)["device-0"]
    name, *rest = sorted(model.weights)
    with pytest.raises(RuntimeError, match="device-0 lacks 1 weights of its program"):
        worker.load(1, program, model.skeleton, {n: model.weights[n] for n in rest})
    worker.load(1, program, model.skeleton, model.weights)
    assert worker.missing_weights(model.hash, [WeightSlice(name)]) == (False, [])


def test_weights_of_an_unloaded_plan_are_missing(model: Model, worker: Worker) -> None:
    program = lower(coedge.even_plan(model, 1), model)["device-0"]
    worker.load(1, program, model.skeleton, model.weights)
    worker.unload(1)
    parts = [WeightSlice(name) for name in sorted(model.weights)]
    assert worker.missing_weights(model.hash, parts) == (False, parts)
    with pytest.raises(RuntimeError, match="lacks"):
        worker.load(2, program, None, {})


@pytest.mark.parametrize("speed", [None, 0.5])
def test_a_probe_returns_the_arrival_times_of_its_messages(speed: float | None) -> None:
    hub = InMemoryHub()
    names = ("near", "far")
    pair = [
        Worker(WorkerSpec(i, name, "", False, speed), InMemoryTransport(i, name, hub)) for i, name in enumerate(names)
    ]
    endpoints = [worker.facts().endpoint for worker in pair]
    for worker in pair:
        worker.connect(endpoints, {})
    threads = [threading.Thread(target=worker.serve, daemon=True) for worker in pair]
    for thread in threads:
        thread.start()
    try:
        near, far = pair
        for _ in range(2):
            times = near.probe("far", 1000, 3, 10.0)
            assert len(times.came_seconds) == 3 and list(times.came_seconds) == sorted(times.came_seconds)
            assert 0 < times.send_seconds < 10
        assert len(far.probe("near", 0, 1, 10.0).came_seconds) == 1
    finally:
        for worker in pair:
            worker.stop()
        for thread in threads:
            thread.join(10.0)


@pytest.mark.parametrize("serves", [True, False])
def test_a_worker_that_stops_leaves_no_socket_and_no_folder(serves: bool) -> None:
    worker = Worker(WorkerSpec(0, "device-0", "127.0.0.1", True, 1.0))
    endpoint = worker.facts().endpoint
    folder = Path(endpoint.local.address.removeprefix(IPC)).parent if endpoint.local else None
    assert folder is None or folder.exists()
    thread = threading.Thread(target=worker.serve)
    if serves:
        thread.start()
        until(worker._serving.is_set, "the worker serves")
    port = int(endpoint.address.rsplit(":", 1)[1])
    assert port in listening()
    worker.stop(10.0)
    assert port not in listening()
    assert folder is None or not folder.exists()
    if serves:
        thread.join(10.0)
