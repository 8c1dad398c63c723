"""Helpers of the tests of splitting: hand-written ONNX graphs, random plans, and the comparison with the unsplit
network."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from coedge.core.onnx_session import session_options
from coedge.core.region import UNIT, UnitRect
from coedge.execution.program import Compute, Patch, Program
from coedge.execution.scheduler import Task
from coedge.frontend.capture import capture, capture_proto
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, Stage, check_plan, strips
from workers.runtime.in_process import InProcess
from workers.runtime.kernels import Kernels

Array = NDArray[Any]

TOLERANCE = 1e-5

# TEST_EFFORT=50 runs fifty times as many random examples, with a new seed each time.
EFFORT = int(os.environ.get("TEST_EFFORT", "1"))
# The short suite runs a fifth of the examples of the deep suite, but at least LEAST_EXAMPLES.
SHORT_DIVISOR, LEAST_EXAMPLES = 5, 5


@dataclass
class Suite:
    """The suite that runs; conftest.py sets it before test modules are imported."""

    deep: bool = False
    captures: Path | None = None  # folder of exported networks; None keeps them in memory only


SUITE = Suite()


def examples(count: int, short: int | None = None) -> settings:
    """Return Hypothesis settings with `count` examples in the deep suite and fewer in the short one.

    Args:
        short: the number of examples in the short suite; a fifth of `count` by default.
    """
    if SUITE.deep or EFFORT > 1:
        return settings(max_examples=count * EFFORT)
    default = max(count // SHORT_DIVISOR, min(count, LEAST_EXAMPLES))
    return settings(max_examples=min(count, default if short is None else short))


def deep_after(values: Iterable[Any], short: Collection[Any]) -> list[Any]:
    """Return `values` as parameters; those that are not in `short` are marked `deep`. A tuple is several arguments."""

    def marked(value: Any) -> Any:
        return pytest.param(*value if isinstance(value, tuple) else (value,), marks=pytest.mark.deep)

    return [value if value in short else marked(value) for value in values]


@dataclass
class Tally:
    """Counts and the largest difference of all comparisons in a test session."""

    cases: int = 0
    identical: int = 0
    largest: float = 0.0

    def add(self, identical: bool, difference: float) -> None:
        self.cases += 1
        self.identical += identical
        self.largest = max(self.largest, difference)

    def join(self, cases: int, identical: int, largest: float) -> None:
        """Add the comparisons of another process."""
        self.cases, self.identical, self.largest = (
            self.cases + cases, self.identical + identical, max(self.largest, largest)
        )  # fmt: skip

    def __str__(self) -> str:
        share = self.identical / max(self.cases, 1)
        return (
            f"split == unsplit: {self.cases} cases, {share:.0%} bit-identical, "
            f"largest difference {self.largest:.1e} of the largest value"
        )


TALLY = Tally()


# ---------------------------------------------------------------- graphs written by hand


class Net:
    """ONNX graph under construction. `op` adds a node and returns the name of its first output."""

    def __init__(self, opset: int = 20, seed: int = 0) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def fresh(self, prefix: str = "t") -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def input(self, shape: Sequence[int | str], dtype: str = "float32", name: str = "x") -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def const(self, value: Any, dtype: str = "float32") -> str:
        name = self.fresh("c")
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, "int64")

    def weight(self, *shape: int) -> str:
        """Add random weights, scaled so that a convolution keeps the magnitude of its input."""
        return self.const(self.random.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:]))))

    def vector(self, extent: int, low: float = -1.0, high: float = 1.0) -> str:
        return self.const(self.random.uniform(low, high, extent))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        return self.ops(kind, *inputs, outputs=outputs, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        names = [self.fresh() for _ in range(outputs)]
        self.add(kind, list(inputs), names, **attributes)
        return names

    def add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        given = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}_{len(self.nodes)}", **given))

    # Operators whose axes are an attribute in older opsets and an input in newer ones.

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(kind, x, self.ints(*axes), keepdims=keepdims)
        return self.op(kind, x, axes=list(axes), keepdims=keepdims)

    def squeeze(self, kind: str, x: str, axes: Sequence[int]) -> str:
        if self.opset >= 13:
            return self.op(kind, x, self.ints(*axes))
        return self.op(kind, x, axes=list(axes))

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        if self.opset >= 13:
            return self.ops("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)
        return self.ops("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))

    def slice(self, x: str, start: int, stop: int, axis: int, step: int = 1) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(axis), self.ints(step))

    def resize(self, x: str, scales: Sequence[float], **attributes: Any) -> str:
        roi = self.const(np.zeros(0)) if self.opset < 13 else ""
        return self.op("Resize", x, roi, self.const(scales), **attributes)

    def proto(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "net", self.inputs, [onnx.ValueInfoProto(name=n) for n in outputs], self.initializers
        )
        # The checker requires output types, so they are inferred here.
        imports = [helper.make_operatorsetid("", self.opset)]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=8 if self.opset < 19 else 10)
        inferred = onnx.shape_inference.infer_shapes(proto)
        types = {i.name: i for i in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)}
        for output in proto.graph.output:
            if output.name in types:
                output.CopyFrom(types[output.name])
        return proto


def session(proto: onnx.ModelProto | bytes) -> onnxruntime.InferenceSession:
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return onnxruntime.InferenceSession(data, session_options(1), providers=["CPUExecutionProvider"])


def image(shape: Sequence[int], dtype: str = "float32", seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    if dtype == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    return random.standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------- split against unsplit


def difference(got: Array, expected: Array, whole: Array | None = None) -> float:
    """Return the largest difference relative to the largest value of the whole tensor. NaN equals NaN."""
    assert got.shape == expected.shape, f"{got.shape} instead of {expected.shape}"
    assert got.dtype == expected.dtype, f"{got.dtype} instead of {expected.dtype}"
    floating = got.dtype.kind == "f"
    if np.array_equal(got, expected, equal_nan=floating):
        return 0.0
    if not floating:
        return float("inf")
    seen, whole = np.isfinite(expected), expected if whole is None else whole
    if not seen.any() or not np.array_equal(got[~seen], expected[~seen], equal_nan=True):
        return float("inf")
    largest = np.abs(whole[np.isfinite(whole)]).max()
    apart = np.abs(got[seen].astype(np.float64) - expected[seen].astype(np.float64)).max()
    return float(apart / max(largest, np.finfo(np.float32).tiny)) if np.isfinite(apart) else float("inf")


@functools.lru_cache(maxsize=32)
def _reference(reference: bytes) -> onnxruntime.InferenceSession:
    return session(reference)


def unsplit(model: Model, arrays: Sequence[Array]) -> list[Array]:
    """Run the network in ONNX Runtime as it was before any rewrite, and return its outputs."""
    run = _reference(model.reference)
    outputs: list[Array] = run.run(None, {i.name: a for i, a in zip(run.get_inputs(), arrays)})
    return outputs


def intermediates(model: Model, arrays: Sequence[Array]) -> dict[str, Array]:
    """Return every activation of the unsplit network except partial sums, from one run of the captured graph."""
    proto = onnx.load_model_from_string(model.skeleton)
    for initializer in proto.graph.initializer:
        if initializer.name in model.weights:
            initializer.CopyFrom(numpy_helper.from_array(model.weights[initializer.name], initializer.name))
    present = {o.name for o in proto.graph.output}
    wanted = [i for i in proto.graph.value_info if not model.graph.tensors[i.name].partial_extent]
    proto.graph.output.extend(i for i in wanted if i.name not in present)
    run = session(proto)
    values = run.run(None, {i.name: a for i, a in zip(run.get_inputs(), arrays)})
    return dict(zip([o.name for o in run.get_outputs()], values))


class Traced(InProcess):
    """In-process runner that keeps every patch that a step computed."""

    def __init__(self, model: Model, programs: Mapping[str, Program], kernels: Kernels) -> None:
        super().__init__(model, programs, kernels)
        self.made: list[tuple[str, Patch, Array]] = []

    def _perform(self, name: str, task: Task, values: Mapping[int, Array]) -> list[Array]:
        made = super()._perform(name, task, values)
        if isinstance(task.step, Compute):
            patches = [task.program.patches[i] for i in task.step.writes]
            self.made += [(name, patch, value) for patch, value in zip(patches, made)]
        return made


def check_split(
    model: Model,
    plan: Plan,
    arrays: Sequence[Array],
    expected: Sequence[Array] | None = None,
    inside: Mapping[str, Array] | None = None,
    tolerance: float = TOLERANCE,
    kernels: Kernels | None = None,
) -> list[Array]:
    """Run a plan in process, assert that its output equals the unsplit one, and return the output.

    Args:
        expected: the unsplit outputs; computed here by default.
        inside: unsplit intermediate tensors. Every patch that a device computes is compared with its part of them,
            so that a wrong halo is found even where later layers hide it.
    """
    runner = Traced(model, lower(plan, model), kernels or Kernels(model))
    outputs = runner.run(model.check_inputs(arrays))
    expected = unsplit(model, arrays) if expected is None else expected
    assert len(outputs) == len(expected)
    for tensor, got, wanted in zip(model.outputs, outputs, expected):
        apart = difference(got, wanted)
        assert apart <= tolerance, f"output {tensor.name!r} differs by {apart:.2e} of its largest value\n{plan}"
        TALLY.add(apart == 0.0, apart)
    for device, patch, value in runner.made:
        whole = (inside or {}).get(patch.tensor)
        if whole is None:
            continue
        tensor = model.graph.tensors[patch.tensor]
        part = whole[tensor.slices(tensor.whole, patch.region)]
        made = f"{device} made {patch.tensor!r}, {patch.region},"
        assert value.shape == part.shape, f"{made} as {value.shape} instead of {part.shape}"
        apart = difference(value, part, whole)
        assert apart <= tolerance, f"{made} off by {apart:.2e} of the tensor's largest value\n{plan}"
    return outputs


# ---------------------------------------------------------------- plans


def make_plan(
    model: Model,
    stages: Sequence[tuple[int, Mapping[str, UnitRect]]],
    source: str,
    sink: str | None = None,
    devices: Sequence[str] | None = None,
) -> Plan:
    """Make a plan from the number of layers and the regions of each stage."""
    made, first = [], 0
    for count, regions in stages:
        made.append(Stage(first=first, last=first + count - 1, regions=dict(regions)))
        first += count
    named = dict.fromkeys([source, sink or source, *(n for s in made for n in s.regions)])
    plan = Plan(
        scheme="test", model_name=model.name, model_hash=model.hash, devices=tuple(devices or named),
        source=source, sink=sink or source, stages=tuple(made),
    )  # fmt: skip
    check_plan(plan, model)
    return plan


def one_stage(model: Model, regions: Mapping[str, UnitRect], source: str, sink: str | None = None) -> Plan:
    return make_plan(model, [(len(model.layers), regions)], source, sink)


def mosaic(names: Sequence[str], choose: Callable[[int], int], rect: UnitRect = UNIT) -> dict[str, UnitRect]:
    """Cut a rectangle in two at eighths, recursively. The tilings are neither strips nor a grid."""
    if len(names) == 1:
        return {names[0]: rect}
    split, at, across = 1 + choose(len(names) - 1), choose(9) / 8, choose(2)
    if across:
        edge = rect.row_start + (rect.row_stop - rect.row_start) * at
        upper, lower = rect._replace(row_stop=edge), rect._replace(row_start=edge)
    else:
        edge = rect.col_start + (rect.col_stop - rect.col_start) * at
        upper, lower = rect._replace(col_stop=edge), rect._replace(col_start=edge)
    return {**mosaic(names[:split], choose, upper), **mosaic(names[split:], choose, lower)}


DEVICES = ("a", "b", "c", "d", "e")


@st.composite
def regions(draw: st.DrawFn) -> dict[str, UnitRect]:
    """Draw the regions of one stage: devices in any order on strips, a grid or a mosaic, or one device alone."""
    kind = draw(st.sampled_from(["strips", "strips", "uneven", "grid", "mosaic", "alone"]))
    names = draw(st.permutations(DEVICES))[: draw(st.integers(1, len(DEVICES)))]
    if kind == "alone":
        return {names[0]: UNIT}
    if kind == "strips":
        return strips(dict.fromkeys(names, 1.0))
    if kind == "uneven":
        inner = sorted(draw(st.lists(st.sampled_from(_EDGES), min_size=len(names) - 1, max_size=len(names) - 1)))
        edges = [0.0, *inner, 1.0]
        return {name: UnitRect(a, b) for name, a, b in zip(names, edges, edges[1:])}
    if kind == "grid":
        rows, cols = sorted([0.0, *draw(st.lists(st.sampled_from(_EDGES), max_size=1)), 1.0]), [0.0, 0.5, 1.0]
        cells = [(a, b, c, d) for a, b in itertools.pairwise(rows) for c, d in itertools.pairwise(cols)]
        return {name: UnitRect(*cell) for name, cell in zip(DEVICES, cells)}
    return mosaic(names, lambda n: draw(st.integers(0, n - 1)))


# With 0 and 1, a device gets no row. 0.02 and 0.97 leave one row or none.
_EDGES = [0.0, 0.02, 0.1, 0.25, 1 / 3, 0.4, 0.5, 0.55, 0.7, 0.85, 0.97, 1.0]


@st.composite
def plans(draw: st.DrawFn, model: Model) -> Plan:
    """Draw a plan with random cuts and with devices and regions of its own in every stage."""
    left, stages = len(model.layers), []
    while left:
        count = draw(st.integers(1, left))
        stages.append((count, draw(regions())))
        left -= count
    source, sink = draw(st.sampled_from(DEVICES)), draw(st.sampled_from(DEVICES))
    return make_plan(model, stages, source, sink, DEVICES)


# ---------------------------------------------------------------- networks of the zoo

SMALL: dict[str, int | tuple[int, int]] = {
    "alexnet": (97, 130), "vgg_f": (101, 97), "vgg16": 96, "unet": (69, 83),
}  # fmt: skip


@functools.cache
def zoo_net(name: str) -> Any:
    from coedge import zoo

    options = {"image_size": zoo_size(name)} if name in ("alexnet", "vgg_f", "vgg16") else {}
    return zoo.build(name, width=0.25, num_classes=10, **options)


def zoo_size(name: str) -> int | tuple[int, int]:
    return SMALL.get(name, (101, 135))


def zoo_image(name: str, batch: int = 1) -> Any:
    from coedge import zoo

    return zoo.example(name, batch=batch, image_size=zoo_size(name))


@functools.cache
def zoo_model(name: str, batch: int = 1) -> Model:
    """Return a quarter-width network of the zoo for a small image with odd extents."""
    return kept(f"quarter-{name}-{batch}", lambda: capture(zoo_net(name), zoo_image(name, batch), name))


@functools.cache
def _sources() -> str:
    """Return a hash of the sources and library versions that decide what the exporter returns."""
    import coedge

    root = Path(coedge.__file__).parent
    exporting = [file for file in sorted((root / "graph").rglob("*.py")) if b"torch" in file.read_bytes()]
    digest = hashlib.sha256()
    for file in (Path(__file__), *sorted((root / "zoo").rglob("*.py")), *exporting):
        digest.update(file.read_bytes())
    digest.update(repr([version(library) for library in ("torch", "onnx", "onnxscript", "onnxruntime")]).encode())
    return digest.hexdigest()[:16]


def kept(key: str, make: Callable[[], Model]) -> Model:
    """Return the model that `make` captures, with the export from torch to ONNX kept on disk between sessions.

    An export takes seconds. The rest of the capture (shapes, simplification, region rules) runs every time.

    Args:
        key: the name of the file; it tells the network, its options and the input shape.
        make: captures the model. It runs only where no file is found.
    """
    if SUITE.captures is None:
        return make()
    path = SUITE.captures / f"{key}-{_sources()}.onnx"
    described = path.with_suffix(".json")
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process exports, the others wait and read
        if not described.exists():
            model = make()
            path.write_bytes(model.reference)
            described.write_text(json.dumps({"name": model.name, "structure": model.structure}), encoding="utf-8")
            return model
    known = json.loads(described.read_text(encoding="utf-8"))
    return capture_proto(onnx.load(path), known["name"], structure=known["structure"])


@functools.cache
def zoo_kernels(name: str, batch: int = 1) -> Kernels:
    return Kernels(zoo_model(name, batch))


@functools.cache
def zoo_values(name: str, batch: int = 1) -> tuple[list[Array], dict[str, Array]]:
    """Return the unsplit outputs and all intermediate tensors."""
    model, x = zoo_model(name, batch), zoo_image(name, batch).numpy()
    return unsplit(model, [x]), intermediates(model, [x])
