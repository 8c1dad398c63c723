"""Dense layers split by output features are exact, and each device holds only its slice of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import ray
from hypothesis import given, note
from hypothesis import strategies as st
from nets import (
    TOLERANCE,
    Net,
    check_split,
    difference,
    examples,
    image,
    intermediates,
    make_plan,
    one_stage,
    plans,
    unsplit,
    zoo_model,
)

import coedge
from coedge import InfeasibleError, zoo
from coedge.core.region import UNIT, UnitRect
from coedge.frontend.capture import capture
from coedge.graph.analysis import model_from_skeleton
from coedge.graph.model import SMALL_NBYTES, Model
from coedge.graph.rules.dense import DenseRule
from coedge.graph.weight_slice import PART, WeightSlice
from coedge.plan.lowering import lower
from coedge.plan.memory import activation_nbytes, program_nbytes, weight_nbytes
from coedge.plan.plan import Plan, even_plan, stages_of, strips
from orchestrator.cluster.cluster import Cluster
from workers.calibration.calibration_run import made_up_weights
from workers.calibration.layer_times import measure_layers
from workers.runtime.in_process import InProcess
from workers.runtime.kernels import Kernels
from workers.runtime.spec import WorkerSpec
from workers.runtime.worker import Worker
from workers.transport.transport import InMemoryHub, InMemoryTransport

# ---------------------------------------------------------------- random dense networks


class Chain:
    """A vector of features under construction: `x` has shape [n, f].

    Its values are positive for the most part: others may sum up to next to nothing, and then every rounding is large.
    """

    def __init__(self, net: Net, draw: st.DrawFn, x: str, n: int, f: int) -> None:
        self.net, self.draw, self.x, self.n, self.f = net, draw, x, n, f
        self.seen = [(x, f)]

    def pick(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def matrix(self, *shape: int) -> str:
        return self.net.const(self.net.random.uniform(0.2, 1.8, shape) / self.f)

    def constant(self, low: float = -0.3, high: float = 1.0) -> str:
        """Add a constant of any shape that broadcasts to [n, f]."""
        shape = self.pick((self.f,), (1, self.f), (self.n, self.f), (self.n, 1), (1,), ())
        return self.net.const(self.net.random.uniform(low, high, shape))


Block = Callable[[Chain], None]


def gemm(chain: Chain) -> None:
    net, wide = chain.net, chain.pick(1, 2, 3, 7, 16, 33)
    turned = chain.pick(0, 1)
    inputs, chain.f = [chain.x, chain.matrix(*((wide, chain.f) if turned else (chain.f, wide)))], wide
    if chain.pick(True, True, False):
        inputs.append(chain.constant())
    options = {"alpha": chain.pick(None, 0.5), "beta": chain.pick(None, 2.0), "transB": turned or chain.pick(None, 0)}
    chain.x = net.op("Gemm", *inputs, **options)


def matmul_and_add(chain: Chain) -> None:
    net, wide = chain.net, chain.pick(1, 4, 9, 24)
    chain.x = net.op("MatMul", chain.x, chain.matrix(chain.f, wide))
    chain.f = wide
    chain.x = net.op("Add", chain.x, chain.constant())


def activation(chain: Chain) -> None:
    net = chain.net
    kind = chain.pick("Relu", "Sigmoid", "Clip", "PRelu", "Dropout", "Where")
    if kind == "Clip":
        chain.x = net.op("Clip", chain.x, net.const(-0.5), net.const(0.5))
    elif kind == "PRelu":
        chain.x = net.op("PRelu", chain.x, net.vector(chain.f, 0.1, 0.5))
    elif kind == "Where":
        chain.x = net.op("Where", net.op("Greater", chain.x, chain.constant()), chain.x, net.const(0.25))
    else:
        chain.x = net.op(kind, chain.x)


def arithmetic(chain: Chain) -> None:
    inputs = [chain.x, chain.constant(0.5, 1.5)]
    chain.x = chain.net.op(
        chain.pick("Add", "Mul", "Sub", "Max", "Min"), *(inputs if chain.pick(0, 1) else inputs[::-1])
    )


def residual(chain: Chain) -> None:
    alike = [name for name, f in chain.seen if f == chain.f]
    if alike:
        chain.x = chain.net.op("Add", chain.x, chain.pick(*alike))


def batch_norm(chain: Chain) -> None:
    net, f = chain.net, chain.f
    parameters = [net.vector(f, 0.5, 1.0), net.vector(f, 0.5, 1.0), net.vector(f), net.vector(f, 0.5, 1.5)]
    chain.x = net.op("BatchNormalization", chain.x, *parameters)


def normalise(chain: Chain) -> None:
    net = chain.net
    kind = chain.pick("Softmax", "LogSoftmax", "LayerNormalization", "ReduceMean", "ReduceMax")
    if kind == "LayerNormalization":
        chain.x = net.op(kind, chain.x, net.vector(chain.f), net.vector(chain.f), axis=-1)
    elif kind.startswith("Reduce"):
        chain.x = net.op("Sub", chain.x, net.reduce(kind, chain.x, [1]))
    else:
        chain.x = net.op(kind, chain.x, axis=chain.pick(1, -1))


def there_and_back(chain: Chain) -> None:
    """Reshape, with or without an axis of their own for the features."""
    net, n, f = chain.net, chain.n, chain.f
    kind = chain.pick("4d", "pixel", "unsqueeze", "transpose", "rows", "vector", "flatten")
    if kind in ("4d", "pixel"):
        x = net.op("Reshape", chain.x, net.ints(n, f, 1, 1))
        x = net.op("Relu", x) if kind == "4d" else net.op("Conv", x, chain.matrix(f, f, 1, 1))
        chain.x = net.op("Reshape", x, net.ints(n, -1))
    elif kind == "unsqueeze":
        x = net.squeeze("Unsqueeze", chain.x, [chain.pick(0, 1, 2)])
        chain.x = net.op("Reshape", net.op("Mul", x, net.const(0.5)), net.ints(n, f))
    elif kind == "transpose":
        chain.x = net.op("Transpose", net.op("Relu", net.op("Transpose", chain.x, perm=[1, 0])), perm=[1, 0])
    elif kind == "rows":
        x = net.op("Reshape", chain.x, net.ints(n, 1, f, 1))
        x = net.op("Conv", x, net.weight(1, 1, 3, 1), pads=[1, 0, 1, 0])
        chain.x = net.op("Reshape", x, net.ints(n, f))
    elif kind == "vector":
        x = net.op("Sigmoid", net.op("Reshape", chain.x, net.ints(-1)))
        chain.x = net.op("Reshape", x, net.ints(n, f))
    else:
        chain.x = net.op("Flatten", chain.x)


def take_apart(chain: Chain) -> None:
    net, f = chain.net, chain.f
    kind = chain.pick("split", "slice", "gather", "concat", "stack")
    if kind == "split" and f > 1:
        a, b = net.split(chain.x, 1, [1, f - 1])
        chain.x = net.op("Concat", b, net.op("Relu", a), axis=1)
    elif kind == "slice" and f > 1:
        chain.x, chain.f = net.slice(chain.x, 1, f, 1), f - 1
    elif kind == "gather":
        chain.x, chain.f = net.op("Gather", chain.x, net.ints(0, f - 1, 0), axis=1), 3
    elif kind == "concat":
        chain.x, chain.f = net.op("Concat", chain.x, net.op("Relu", chain.x), axis=1), 2 * f
    elif kind == "stack":
        x = net.squeeze("Unsqueeze", chain.x, [0])
        chain.x = net.reduce("ReduceMax", net.op("Concat", x, net.op("Neg", x), axis=0), [0], keepdims=0)


BLOCKS: tuple[Block, ...] = (
    gemm, matmul_and_add, activation, arithmetic, residual, batch_norm, normalise, there_and_back, take_apart,
)  # fmt: skip


@st.composite
def dense_nets(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw an image or a convolution of it, its flattened vector, and dense layers with operators between them."""
    net = Net(opset=17, seed=draw(st.integers(0, 99)))
    n, c, h, w = draw(st.sampled_from([1, 1, 2])), draw(st.integers(1, 3)), draw(st.integers(1, 7)), 3
    picture = net.op("Sigmoid", net.input((n, c, h, w)))
    if draw(st.booleans()):
        picture = net.op("Sigmoid", net.op("Conv", picture, net.weight(c, c, 3, 3), pads=[1, 1, 1, 1]))
    if draw(st.booleans()):
        chain = Chain(net, draw, net.op("Flatten", picture), n, c * h * w)
    else:
        chain = Chain(net, draw, net.reduce("ReduceMean", picture, [2, 3], keepdims=0), n, c)
    for _ in range(draw(st.integers(1, 4))):
        draw(st.sampled_from([gemm, gemm, matmul_and_add]))(chain)
        for block in draw(st.lists(st.sampled_from(BLOCKS), max_size=2)):
            block(chain)
        chain.seen.append((chain.x, chain.f))
    end = draw(st.sampled_from(["features", "features", "features", "argmax", "topk", "gate"]))
    outputs = [chain.x]
    if end == "argmax":
        outputs = [net.op("ArgMax", chain.x, axis=1, keepdims=draw(st.integers(0, 1)))]
    elif end == "topk":
        outputs = net.ops("TopK", chain.x, net.ints(1), axis=1, outputs=2)
    elif end == "gate":
        last = net.op("Gemm", chain.x, chain.matrix(chain.f, c))
        gate = net.squeeze("Unsqueeze", net.op("Sigmoid", last), [2, 3])
        outputs = [net.op("Conv", net.op("Mul", picture, gate), net.weight(2, c, 3, 3), pads=[1, 1, 1, 1])]
    others = [name for name, _ in chain.seen[1:]] if draw(st.integers(0, 3)) == 0 else []
    return net.proto(*dict.fromkeys([*others, *outputs]))


@st.composite
def dense_plans(draw: st.DrawFn, model: Model) -> Plan:
    """Draw plans with uneven and empty shares of the dense layers, on other devices than the other layers."""
    names = draw(st.permutations("abcd"))[: draw(st.integers(1, 4))]
    cuts = draw(st.lists(st.sampled_from([0.0, 0.03, 0.2, 0.5, 0.77, 1.0]), min_size=len(names) - 1, max_size=3))
    edges = [0.0, *sorted(cuts)[: len(names) - 1], 1.0]
    dense = {name: UnitRect(a, b) for name, a, b in zip(names, edges, edges[1:])}
    stages = stages_of(model, strips({"a": 1, "b": 1}), "a", draw(st.sampled_from([1, 3])), dense)
    return make_plan(model, [(s.last - s.first + 1, s.regions) for s in stages], "a", "d", "abcd")


@given(proto=dense_nets(), data=st.data())
@examples(250, 30)
def test_split_is_exact(proto: onnx.ModelProto, data: st.DataObject) -> None:
    note(onnx.printer.to_text(proto))
    model = capture(proto)
    arrays = [image(tensor.shape) for tensor in model.inputs]
    expected, inside = unsplit(model, arrays), intermediates(model, arrays)
    for plan in (data.draw(dense_plans(model)), data.draw(plans(model))):
        note(str(plan))
        check_split(model, plan, arrays, expected, inside)


@given(proto=dense_nets(), data=st.data())
@examples(60)
def test_a_device_computes_the_same_with_its_slices_only(proto: onnx.ModelProto, data: st.DataObject) -> None:
    """Kernels of a model without weights get only the parts that `weight_slices` lists."""
    model = capture(proto)
    arrays = [image(tensor.shape) for tensor in model.inputs]
    programs = lower(data.draw(dense_plans(model)), model)
    light = model_from_skeleton(model.skeleton, {})
    assert (light.rules, light.layers) == (model.rules, model.layers)
    kernels = Kernels(light)
    for program in programs.values():
        for key, part in light.weight_slices(program.tiles()).items():
            assert key == part.key
            if part.name in model.weights:
                kernels.add_weights({key: part.of(model.weights[part.name]).copy()})
        assert not kernels.missing_weights(program)
    outputs = InProcess(light, programs, kernels).run(model.check_inputs(arrays))
    for got, wanted in zip(outputs, unsplit(model, arrays), strict=True):
        assert difference(got, wanted) <= TOLERANCE


# ---------------------------------------------------------------- what is split, and what stays as it is


def tail(after: str, **attributes: Any) -> Model:
    """Capture a flatten, a dense layer of 8 features, and one more operator."""
    net = Net(opset=17)
    x = net.op("Flatten", net.input((1, 2, 4, 3)))
    return capture(net.proto(net.op(after, net.op("Gemm", x, net.weight(8, 24), transB=1), **attributes)))


@pytest.mark.parametrize("after", ["Relu", "Sigmoid", "Identity"])
def test_operators_on_single_features_are_split_with_the_dense_layer(after: str) -> None:
    model = tail(after)
    (layer,) = model.layers
    assert (layer.op, layer.rows, layer.cols) == ("Gemm", 8, 1)
    assert layer.by_features and not layer.splittable
    assert model.outputs[0].features and not model.outputs[0].spatial


@pytest.mark.parametrize("after", ["Softmax", "LpNormalization", "ArgMax"])
def test_operators_that_need_all_features_are_a_layer_of_their_own(after: str) -> None:
    model = tail(after, axis=1)
    assert [(layer.op, layer.by_features) for layer in model.layers] == [("Gemm", True), (after, False)]
    assert not model.outputs[0].features
    # It is not reported, because it does not restrict plans.
    assert "not split: Flatten" in model.describe() and after not in model.describe()
    assert "1 dense (split by features)" in model.describe()


def test_operands_with_a_value_for_each_feature_are_sliced_too() -> None:
    net = Net(opset=17)
    x = net.op("Flatten", net.input((1, 2, 4, 3)))
    x = net.op("Add", net.op("MatMul", x, net.weight(24, 8)), net.vector(8))
    x = net.op("BatchNormalization", x, *(net.vector(8, 0.5, 1.0) for _ in range(4)))
    model = capture(net.proto(net.op("PRelu", x, net.vector(8))))
    program = lower(even_plan(model, 4, split_dense=True), model)["device-2"]
    parts = model.weight_slices(program.tiles()).values()
    sizes = {part.of(model.graph.constants[part.name]).size for part in parts if part.stop is not None}
    assert sizes == {24 * 2, 2}
    assert {part.name for part in parts if part.stop is None} <= {
        name for name, value in model.graph.constants.items() if value.size < 8
    }


def test_features_in_another_shape_are_gathered_by_the_dense_layer_that_reads_them() -> None:
    net = Net(opset=17)
    x = net.op("Gemm", net.op("Flatten", net.input((2, 2, 4, 3))), net.weight(24, 8))
    x = net.op("Gemm", net.op("Reshape", net.op("Relu", x), net.ints(1, 16)), net.weight(16, 4))
    model = capture(net.proto(x))
    assert [(layer.op, layer.by_features) for layer in model.layers] == [("Gemm", True), ("Gemm", True)]
    assert model.graph.nodes[model.layers[1].first].op == "Reshape"
    check_split(model, even_plan(model, 3, split_dense=True), [image((2, 2, 4, 3))])


REASONS = [
    ("flowing weights", "multiplies two tensors that are not constant"),
    ("flowing bias", "its bias is not constant"),
    ("rows", "its input has rows"),
    ("transposed", "its input is transposed"),
]


@pytest.mark.parametrize("kind, why", REASONS, ids=[kind for kind, _ in REASONS])
def test_products_that_are_not_split_say_why_and_are_exact(kind: str, why: str) -> None:
    net = Net(opset=17)
    x = net.op("Flatten", net.input((1, 2, 4, 3)))
    if kind == "flowing weights":
        y = net.op("Gemm", x, net.op("Reshape", x, net.ints(24, 1)))
    elif kind == "flowing bias":
        y = net.op("Gemm", x, net.weight(24, 24), x)
    elif kind == "rows":
        y = net.op("Gemm", net.op("Reshape", net.op("Relu", "x"), net.ints(8, 3)), net.weight(3, 5))
    else:
        y = net.op("Gemm", x, net.weight(1, 5), transA=1)
    model = capture(net.proto(y))
    rule = next(rule for node, rule in zip(model.graph.nodes, model.rules) if node.op == "Gemm")
    if kind != "rows":  # a reshape through the rows leaves no rows
        assert not isinstance(rule, DenseRule) and why in rule.why
    for devices in (1, 3):
        check_split(model, even_plan(model, devices, split_dense=True), [image((1, 2, 4, 3))])


def test_a_gate_made_by_dense_layers_leaves_its_image_as_splittable_as_before() -> None:
    """In squeeze-and-excite, the last dense layer, its sigmoid and the product with the image are one layer of rows."""
    net = Net(opset=17)
    x = net.op("Conv", net.input((1, 4, 9, 3)), net.weight(32, 4, 3, 3), pads=[1, 1, 1, 1])
    pooled = net.reduce("ReduceMean", x, [2, 3], keepdims=0)
    gate = net.op("Gemm", net.op("Relu", net.op("Gemm", pooled, net.weight(32, 6))), net.weight(6, 32))
    y = net.op("Mul", x, net.squeeze("Unsqueeze", net.op("Sigmoid", gate), [2, 3]))
    model = capture(net.proto(net.op("Conv", y, net.weight(4, 32, 3, 3))))
    assert [(la.op, la.rows, la.splittable, la.by_features) for la in model.layers] == [
        ("Conv", 9, True, False), ("ReduceSum", 1, False, False), ("Gemm", 6, False, True), ("Mul", 9, True, False),
        ("Conv", 7, True, False),
    ]  # fmt: skip
    assert "not split" not in model.describe()
    for rects in (strips({"a": 1, "b": 2, "c": 1}), {"a": UnitRect(0, 1, 0, 0.5), "b": UnitRect(0, 1, 0.5, 1)}):
        arrays = [image((1, 4, 9, 3))]
        check_split(model, make_plan(model, [(1, rects)] * len(model.layers), "a"), arrays)
        check_split(model, one_stage(model, rects, "a"), arrays)


def test_eight_bit_features_travel_as_they_are() -> None:
    """Per-tensor quantisation between dense layers is local to each feature, and the cut tensors are 8-bit."""
    net = Net(opset=17)
    scale = [net.const(0.02), net.const(0, "int8")]
    x = net.op("Flatten", net.input((1, 2, 4, 3)))
    x = net.op("QuantizeLinear", net.op("Relu", net.op("Gemm", x, net.weight(24, 16))), *scale)
    x = net.op("Gemm", net.op("DequantizeLinear", x, *scale), net.weight(16, 8))
    model = capture(net.proto(x))
    assert [layer.by_features for layer in model.layers] == [True, True]
    (name,) = model.cuts[1].tensors
    assert model.graph.tensors[name].dtype == "int8" and model.graph.tensors[name].features
    check_split(model, even_plan(model, 3, split_dense=True), [image((1, 2, 4, 3))])


def test_tensor_names_like_those_of_weight_slices_are_allowed() -> None:
    net = Net(opset=17)
    x = net.op("Flatten", net.input((1, 2, 4, 3)))
    net.initializers.append(onnx.numpy_helper.from_array(np.ones((8, 24), np.float32), "w"))
    net.initializers.append(onnx.numpy_helper.from_array(np.full((1, 4), 3.0, np.float32), "w[0:4]"))
    net.add("Gemm", [x, "w"], ["w[4:8]"], transB=1)
    net.add("Mul", ["w[4:8]", net.const(2.0)], ["y"])
    net.add("Gemm", ["y", net.weight(8, 4), "w[0:4]"], ["z"])
    model = capture(net.proto("z"))
    check_split(model, even_plan(model, 2, split_dense=True), [image((1, 2, 4, 3))])


def test_the_key_of_a_part_reads_like_a_slice() -> None:
    assert WeightSlice("fc1.weight").key == "fc1.weight"
    assert WeightSlice("fc1.weight", 0, 0, 1024).key == f"{PART}fc1.weight[0:1024]"
    assert WeightSlice("fc1.weight", 1, 5, 9).key == f"{PART}fc1.weight[:, 5:9]"
    value = np.arange(12).reshape(3, 4)
    assert WeightSlice("w", 1, 1, 3).of(value).tolist() == [[1, 2], [5, 6], [9, 10]]
    assert WeightSlice("w").of(value) is value


# ---------------------------------------------------------------- plans


@pytest.fixture(scope="module")
def vgg() -> Model:
    """Return a quarter-width VGG-16: 12.6 MB of weights, of which 9.0 MB are in dense layers."""
    return zoo_model("vgg16")


def dense_weights(model: Model) -> dict[str, int]:
    """Return the bytes of the large weights of dense layers, by name."""
    layers = [layer for layer in model.layers if layer.by_features]
    return {n: model.weights[n].nbytes for layer in layers for n in model.weight_names(layer.first, layer.stop)}


LIMIT_MB = 7.0


def test_dense_layers_stay_on_one_device_unless_asked_for(vgg: Model) -> None:
    assert [layer.op for layer in vgg.layers][-4:] == ["MaxPool", "Gemm", "Gemm", "Gemm"]
    assert [layer.rows for layer in vgg.layers if layer.by_features] == [1024, 1024, 10]
    for plan in (even_plan(vgg, 3), even_plan(vgg, 3, stage_layers=9)):
        assert list(plan.stages[-1].regions.values()) == [UNIT]
    split = even_plan(vgg, 3, stage_layers=9, split_dense=True)
    assert [(s.first, s.last, len(s.regions)) for s in split.stages[-3:]] == [(18, 18, 3), (19, 19, 3), (20, 20, 3)]
    grid = even_plan(vgg, grid=(2, 2), split_dense=True)
    assert [rect.row_stop for rect in grid.stages[-1].regions.values()] == [0.25, 0.5, 0.75, 1.0]


def test_each_weight_of_a_dense_layer_lies_on_one_device_and_the_whole_fits_on_none(vgg: Model) -> None:
    dense = dense_weights(vgg)
    assert sum(dense.values()) > LIMIT_MB * 1e6
    programs = lower(even_plan(vgg, 4, split_dense=True), vgg)
    held = dict.fromkeys(dense, 0)
    for program in programs.values():
        assert program_nbytes(program, vgg) < LIMIT_MB * 1e6
        for part in vgg.weight_slices(program.tiles()).values():
            if part.name in dense:
                nbytes = part.of(vgg.weights[part.name]).nbytes
                held[part.name] += nbytes
                assert nbytes <= 0.3 * dense[part.name] + SMALL_NBYTES
    assert held == dense
    whole = lower(even_plan(vgg, 4), vgg)["device-0"]
    assert program_nbytes(whole, vgg) == vgg.weight_nbytes + activation_nbytes(whole, vgg) > LIMIT_MB * 1e6


@pytest.mark.parametrize("boundaries", [None, [0.0, 0.05, 0.6], [0.25, 0.25, 1.0]], ids=str)
def test_vgg_is_exact(vgg: Model, boundaries: list[float] | None) -> None:
    x = zoo.example("vgg16", image_size=96).numpy()
    check_split(vgg, even_plan(vgg, 4, boundaries, split_dense=True), [x], inside=intermediates(vgg, [x]))


def test_each_device_gathers_the_image_itself(vgg: Model) -> None:
    """The reshape before the first dense layer is part of that layer: no device collects the maps for the others."""
    programs = lower(even_plan(vgg, 4, split_dense=True), vgg)
    first = next(layer for layer in vgg.layers if layer.by_features)
    assert vgg.graph.nodes[first.first].op == "Reshape"
    for program in programs.values():
        (tile,) = (t for t in program.tiles() if first.first in {part.node for part in t.nodes})
        assert tile.inputs == vgg.cuts[first.index].tensors


# ---------------------------------------------------------------- workers


def worker() -> Worker:
    return Worker(WorkerSpec(0, "device-0", "", False, 1.0), InMemoryTransport(0, "device-0", InMemoryHub()))


def parts_of(model: Model, plan: Plan, device: str = "device-0") -> dict[str, WeightSlice]:
    parts = model.weight_slices(lower(plan, model)[device].tiles())
    return {key: part for key, part in parts.items() if part.name in model.weights}


def test_a_worker_holds_its_slices_only_and_lacks_those_of_another_plan(vgg: Model) -> None:
    plans = [even_plan(vgg, 4, cut, split_dense=True) for cut in ([0.25, 0.5, 0.75], [0.3, 0.5, 0.75])]
    programs = [lower(plan, vgg)["device-0"] for plan in plans]
    device, wanted = worker(), parts_of(vgg, plans[0])
    device.load(1, programs[0], vgg.skeleton, {k: np.array(p.of(vgg.weights[p.name])) for k, p in wanted.items()})
    assert device.status().weight_nbytes == sum(p.of(vgg.weights[p.name]).nbytes for p in wanted.values())
    assert device.status().weight_nbytes <= weight_nbytes(programs[0], vgg) < LIMIT_MB * 1e6

    other = parts_of(vgg, plans[1])
    _, lacking = device.missing_weights(vgg.hash, list(other.values()))
    assert lacking == [part for key, part in other.items() if key not in wanted] != []
    with pytest.raises(RuntimeError, match=r"device-0 lacks \d weights of its program: 'coedge.part:"):
        device.load(2, programs[1], None, {})
    device.load(2, programs[1], None, {p.key: np.array(p.of(vgg.weights[p.name])) for p in lacking})
    device.unload(1)
    assert device.status().weight_nbytes == sum(p.of(vgg.weights[p.name]).nbytes for p in other.values())


def test_a_worker_that_has_a_weight_whole_needs_no_slices_of_it(vgg: Model) -> None:
    whole, split = even_plan(vgg, 1), even_plan(vgg, 4, split_dense=True)
    device, programs = worker(), [lower(plan, vgg)["device-0"] for plan in (whole, split)]
    device.load(1, programs[0], vgg.skeleton, vgg.weights)
    assert device.missing_weights(vgg.hash, list(parts_of(vgg, split).values())) == (False, [])
    device.load(2, programs[1], None, {})
    device.unload(1)
    device.load(3, programs[1], None, {})  # the whole weight is still here
    assert device.missing_weights(vgg.hash, list(parts_of(vgg, whole).values())) == (False, [])


def test_small_slices_of_large_weights_are_sent_with_their_values() -> None:
    """The graph that a worker gets has no values of large weights, nor of small parts of them."""
    net = Net(opset=17)
    x = net.op("Flatten", net.input((1, 2, 4, 3)))
    model = capture(net.proto(net.op("Gemm", x, net.weight(64, 24), transB=1)))
    (name,) = model.weights
    plan = even_plan(model, 16, split_dense=True)
    light = model_from_skeleton(model.skeleton, {})
    kernels, programs = Kernels(light), lower(plan, model)
    for program in programs.values():
        (part,) = (p for p in light.weight_slices(program.tiles()).values() if p.name == name)
        portion = part.of(model.weights[name])
        assert portion.nbytes < SMALL_NBYTES
        kernels.add_weights({part.key: np.array(portion)})
    arrays = [image((1, 2, 4, 3))]
    (got,) = InProcess(light, programs, kernels).run(model.check_inputs(arrays))
    assert difference(got, unsplit(model, arrays)[0]) <= TOLERANCE


@pytest.mark.clock
def test_dense_layers_are_measured_by_feature_and_within_memory(vgg: Model) -> None:
    light = model_from_skeleton(vgg.skeleton, {})
    times = measure_layers(light, 1, speed=0.3, budget_seconds=1.0).layers
    limited = measure_layers(light, 1, speed=0.3, budget_seconds=1.0, memory_bytes=1e6).layers
    first = next(layer for layer in vgg.layers if layer.by_features)
    for found in (times[first.index], limited[first.index]):
        assert 0 < found.seconds(first.rows) < 1.0
        assert found.seconds_per_row > 0


def test_made_up_weights_have_the_size_of_the_weights_that_are_read(vgg: Model) -> None:
    program = lower(even_plan(vgg, 4, split_dense=True), vgg)["device-1"]
    light = model_from_skeleton(vgg.skeleton, {})
    made = made_up_weights(light, light.weight_slices(program.tiles()).values())
    assert sum(value.nbytes for value in made.values()) <= weight_nbytes(program, vgg)
    parts = vgg.weight_slices(program.tiles())
    assert all(value.shape == parts[key].of(vgg.weights[parts[key].name]).shape for key, value in made.items())


# ---------------------------------------------------------------- a cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Connect four devices, each with less memory than the dense layers need."""
    folder: Path = tmp_path_factory.mktemp("cache")
    devices = [{"name": f"device-{i}", "speed": 1.0, "memory_mb": LIMIT_MB} for i in range(4)]
    with coedge.connect(
        {
            "devices": devices,
            "source": "device-0",
            "profile_budget_seconds": 1.0,
            "trial_frames": 0,
            "cache_dir": str(folder),
        }
    ) as joined:
        yield joined


def held_nbytes(cluster: Cluster) -> dict[str, int]:
    statuses = {name: ray.get(actor.status.remote()) for name, actor in cluster._group.actors.items()}
    return {name: status.weight_nbytes for name, status in statuses.items()}


@pytest.mark.ray
def test_a_network_that_fits_on_no_device_runs_on_four(cluster: Cluster, vgg: Model) -> None:
    assert sum(dense_weights(vgg).values()) > LIMIT_MB * 1e6
    x = zoo.example("vgg16", image_size=96)
    (expected,) = unsplit(vgg, [x.numpy()])
    with pytest.raises(InfeasibleError, match=r"device-0 would need 1\d\.\d MB"):
        cluster.submit(vgg, x, plan=even_plan(vgg, 4)).result()
    assert set(held_nbytes(cluster).values()) == {0}

    # Each plan has its own slices of the weights; the slices of older plans make room.
    for cuts in ([0.25, 0.5, 0.75], [0.2, 0.5, 0.8], [0.25, 0.55, 0.75]):
        plan = even_plan(vgg, 4, cuts, split_dense=True)
        got = cluster.submit(vgg, x, plan=plan).result()
        assert difference(got.numpy(), expected) <= TOLERANCE
        programs = lower(plan, vgg)
        for name, nbytes in held_nbytes(cluster).items():
            assert 0 < nbytes <= weight_nbytes(programs[name], vgg) < LIMIT_MB * 1e6


@pytest.mark.ray
def test_the_planner_splits_dense_layers_when_memory_requires_it(cluster: Cluster, vgg: Model) -> None:
    assert all(device.memory_bytes == LIMIT_MB * 1e6 for device in cluster.profile(vgg).devices)
    plan = cluster.plan(vgg)
    assert plan.feasible, plan.reason
    x = zoo.example("vgg16", image_size=96)
    got = cluster.submit(vgg, x, plan=plan).result()
    assert difference(got.numpy(), unsplit(vgg, [x.numpy()])[0]) <= TOLERANCE
    programs = lower(plan, vgg)
    for name, nbytes in held_nbytes(cluster).items():
        assert nbytes <= weight_nbytes(programs[name], vgg) < LIMIT_MB * 1e6
