"""Sessions of tiles: they share weights and activation memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nets import TOLERANCE, Net, difference, image, unsplit

from coedge.execution.program import Tile
from coedge.frontend.capture import capture
from coedge.graph.analysis import model_from_skeleton
from coedge.graph.model import Model
from coedge.graph.tile import vector_matrices
from coedge.graph.weight_slice import PART
from coedge.plan.lowering import lower
from coedge.plan.plan import even_plan
from workers.runtime.in_process import InProcess
from workers.runtime.kernels import FED_NBYTES, Kernels

SHAPE = (1, 8, 12, 12)


def dense() -> Model:
    """Return a network with matrices of 4.7 MB, 4.2 MB and 41 KB."""
    net = Net()
    x = net.op("Relu", net.op("Gemm", net.op("Flatten", net.input(SHAPE)), net.weight(1152, 1024)))
    x = net.op("Relu", net.op("Gemm", x, net.weight(1024, 1024), transB=1))
    return capture(net.proto(net.op("Gemm", x, net.weight(1024, 10))), name="dense")


def test_a_matrix_that_is_multiplied_by_one_vector_is_in_memory_once() -> None:
    """Any number of sessions may read it, or parts of it. No session copies the entire matrix."""
    model = dense()
    large = {name for name, value in model.weights.items() if value.nbytes >= FED_NBYTES}
    assert len(large) == 2
    shipped = Kernels(model_from_skeleton(model.skeleton, {}))
    shipped.add_weights(model.weights)
    whole = lower(even_plan(model, 1), model)
    for kernels in (Kernels(model), shipped):
        fed = [kernels.prepare(tile).fed for tile in whole["device-0"].tiles()]
        assert {name for weights in fed for name in weights} == large
        assert all(np.shares_memory(value, model.weights[name]) for weights in fed for name, value in weights.items())
        parts = lower(even_plan(model, 2, [0.9375], split_dense=True), model)["device-0"].tiles()
        wanted = {PART + name for name in large if 0.9375 * model.weights[name].nbytes >= FED_NBYTES}
        assert {key.split("[")[0] for tile in parts for key in kernels.prepare(tile).fed} == wanted
        assert len(wanted) == 1


def test_a_fed_matrix_gives_the_unsplit_output() -> None:
    model, arrays = dense(), [image(SHAPE)]
    for plan in (even_plan(model, 1), even_plan(model, 2, [0.9375], split_dense=True)):
        (got,) = InProcess(model, lower(plan, model), Kernels(model)).run(model.check_inputs(arrays))
        assert difference(got, unsplit(model, arrays)[0]) <= TOLERANCE


def product(net: Net, weight: str, batch: int = 1) -> tuple[Model, Tile]:
    model = capture(net.proto(net.op("Gemm", net.op("Flatten", net.input((batch, 2, 4, 3))), weight)))
    (tile,) = lower(even_plan(model, 1), model)["device-0"].tiles()
    return model, tile


def test_a_small_matrix_and_one_multiplied_by_several_vectors_are_no_inputs() -> None:
    net = Net()
    model, tile = product(net, net.weight(24, 64))
    assert len(vector_matrices(model, tile, 24 * 64 * 4)) == 1
    assert vector_matrices(model, tile, 24 * 64 * 4 + 1) == ()
    net = Net()
    assert vector_matrices(*product(net, net.weight(24, 64), batch=3), 1) == ()


def test_a_matrix_that_other_operators_read_is_no_input() -> None:
    net = Net()
    weight = net.weight(24, 64)
    made = net.op("Gemm", net.op("Flatten", net.input((1, 2, 4, 3))), weight)
    model = capture(net.proto(net.op("Add", net.op("Relu", made), weight)))
    tiles = lower(even_plan(model, 1), model)["device-0"].tiles()
    assert [vector_matrices(model, tile, 1) for tile in tiles] == [()]


def memory_mb(script: str) -> float:
    """Run a script in a process of its own and return the number that it prints: growth of its memory in MB."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return float(ran.stdout)


MANY_STAGES = """
import psutil
from nets import Net
from coedge.frontend.capture import capture
from coedge.plan.lowering import lower
from coedge.plan.plan import even_plan
from workers.runtime.kernels import Kernels

net = Net()
x = net.input((1, 16, 256, 256))
for _ in range(16):
    x = net.op("Conv", x, net.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])
model = capture(net.proto(x))
plan = even_plan(model, 1)
assert len(plan.stages) == 16
kernels, process = Kernels(model), psutil.Process()
(first, *others) = [step for step in lower(plan, model)["device-0"].steps if hasattr(step, "tile")]
kernels.warm_up(first)
before = process.memory_info().rss
for step in others:
    kernels.warm_up(step)
print((process.memory_info().rss - before) / 1e6)
"""


def test_sessions_share_their_activations_memory() -> None:
    """A session with its own arena would keep two activations of 4 MB."""
    assert memory_mb(MANY_STAGES) < 15 * 4.2


LARGE_WEIGHTS = """
import numpy as np
import psutil
from nets import Net, make_plan
from coedge.frontend.capture import capture
from coedge.plan.lowering import lower
from coedge.core.region import UNIT
from workers.runtime.process import return_freed_memory
from workers.runtime.spec import WorkerSpec
from workers.transport.transport import InMemoryHub, InMemoryTransport
from workers.runtime.worker import Worker

net = Net()
x = net.input((1, 512, 8, 8))
for _ in range(8):
    x = net.op("Conv", x, net.weight(512, 512, 3, 3), pads=[1, 1, 1, 1])
model = capture(net.proto(x))
plan = make_plan(model, [(len(model.layers), {"device-0": UNIT})], "device-0")
program = lower(plan, model)["device-0"]
device = Worker(WorkerSpec(0, "device-0", "", False, 1.0), InMemoryTransport(0, "device-0", InMemoryHub()))
weights = {name: np.array(value) for name, value in model.weights.items()}
return_freed_memory()
before = psutil.Process().memory_info().rss
device.load(1, program, model.skeleton, weights)
print((psutil.Process().memory_info().rss - before) / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only the GNU C library has malloc_trim")
def test_memory_that_building_sessions_took_is_returned_to_the_system() -> None:
    """The 75 MB of weights and their packed copies stay. Building the sessions takes much more for a moment."""
    assert memory_mb(LARGE_WEIGHTS) < 1.2 * 75.5
