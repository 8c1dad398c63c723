"""Capture of what people bring: files of every opset, shapes that depend on data, networks that cannot run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, note, reject
from hypothesis import strategies as st
from nets import Array, Net, deep_after, difference, examples, image, plans, session
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from coedge import CaptureError, CoEdgeError, InputError, Model, capture, even_plan, run_in_process
from coedge.core import denormals
from coedge.core.onnx_session import Session
from coedge.frontend.data_shapes import data_dependent
from coedge.frontend.normal_form import RESERVED, normal_form
from coedge.frontend.opset import OPSET

NEWEST = 23
SHAPE = (1, 3, 12, 14)
PLANS: Sequence[Mapping[str, Any]] = (
    {"devices": 2},
    {"devices": 3, "stage_layers": 100},
    {"devices": 4, "stage_layers": 2},
    {"grid": (2, 2)},
)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any] | None],
    outputs: Sequence[str],
    constants: Mapping[str, Any] = {},
    opset: int = OPSET,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """Return a model; inputs and outputs are float32."""
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def conv(source: str, output: str, weight: str = "w", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [output], pads=[1, 1, 1, 1], **attributes)


def weight(*shape: int, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


W = weight(3, 3, 3, 3)


def by_onnx_runtime(proto: onnx.ModelProto, *arrays: Array) -> list[Array]:
    run = session(proto)
    outputs: list[Array] = run.run(None, dict(zip([i.name for i in run.get_inputs()], arrays)))
    return outputs


def check_equal(model: Model, arrays: Sequence[Array], expected: Sequence[Array]) -> None:
    """Check the output under several plans against that of the file as it is."""
    for options in PLANS:
        got = run_in_process(model, even_plan(model, **options), tuple(arrays))
        for one, wanted in zip(got if isinstance(got, tuple) else (got,), expected, strict=True):
            assert difference(np.asarray(one), wanted) <= 1e-5, options


def check_as_it_is(proto: onnx.ModelProto, *arrays: Array) -> Model:
    """Capture a model and check it against ONNX Runtime on the model as it is."""
    model = capture(proto, arrays)
    check_equal(model, arrays, by_onnx_runtime(proto, *arrays))
    return model


# ---------------------------------------------------------------- opsets

Step = Callable[[Net, str, st.DataObject], str]


def padded(net: Net, x: str, data: st.DataObject) -> str:
    if net.opset < 11:
        return net.op("Pad", x, pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="constant", value=0.5)
    return net.op("Pad", x, net.ints(0, 0, 1, 2, 0, 0, 0, 1), net.const(0.5))


def sliced(net: Net, x: str, data: st.DataObject) -> str:
    if net.opset < 10:
        return net.op("Slice", x, axes=[2, 3], starts=[1, 0], ends=[1000, -1])
    return net.op("Slice", x, net.ints(1, 0), net.ints(1000, -1), net.ints(2, 3))


def enlarged(net: Net, x: str, data: st.DataObject) -> str:
    mode = data.draw(st.sampled_from(["nearest", "linear"]))
    factors = data.draw(st.sampled_from([(1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 1.0, 3.0), (1.0, 1.0, 1.5, 2.0)]))
    if net.opset < 9:
        return net.op("Upsample", x, scales=list(factors), mode=mode)
    if net.opset < 11:
        return net.op("Upsample" if net.opset < 10 else "Resize", x, net.const(factors), mode=mode)
    return net.resize(x, factors, mode=mode)


def clipped(net: Net, x: str, data: st.DataObject) -> str:
    if net.opset < 11:
        return net.op("Clip", x, min=-0.5, max=1.0)
    return net.op("Clip", x, net.const(-0.5), net.const(1.0))


def dropped(net: Net, x: str, data: st.DataObject) -> str:
    return net.op("Dropout", x, ratio=0.5) if net.opset < 12 else net.op("Dropout", x, net.const(0.5))


def normed(net: Net, x: str, data: st.DataObject) -> str:
    return net.op("BatchNormalization", x, *(net.vector(3, 0.5, 1.5) for _ in range(4)))


def residual(net: Net, x: str, data: st.DataObject) -> str:
    return net.op("Add", x, net.op("Conv", x, net.weight(3, 3, 3, 3), pads=[1, 1, 1, 1]))


def excited(net: Net, x: str, data: st.DataObject) -> str:
    mean = net.op("GlobalAveragePool", x) if data.draw(st.booleans()) else net.reduce("ReduceMean", x, [2, 3])
    return net.op("Mul", x, net.op("Sigmoid", mean))


def swapped(net: Net, x: str, data: st.DataObject) -> str:
    parts = net.split(x, 1, [1, 2])
    return net.op("Concat", *reversed(parts), axis=1)


def wrapped(net: Net, x: str, data: st.DataObject) -> str:
    return net.squeeze("Squeeze", net.op("Relu", net.squeeze("Unsqueeze", x, [0])), [0])


def weighted(net: Net, x: str, data: st.DataObject) -> str:
    return net.op("Softmax", x, axis=data.draw(st.sampled_from([1, 3])))


def pooled(net: Net, x: str, data: st.DataObject) -> str:
    kind = data.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    return net.op(kind, x, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 1, 1, 0])


STEPS: tuple[Step, ...] = (
    padded, sliced, enlarged, clipped, dropped, normed, residual, excited, swapped, wrapped, weighted, pooled,
)  # fmt: skip


@given(opset=st.integers(7, NEWEST), old=st.booleans(), data=st.data())
@examples(300, 60)
def test_every_opset_is_split_and_equal(opset: int, old: bool, data: st.DataObject) -> None:
    net = Net(opset, seed=data.draw(st.integers(0, 9)))
    x = net.input(SHAPE)
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=4)):
        x = step(net, x, data)
    proto = net.proto(net.op("Conv", x, net.weight(2, 3, 3, 3), pads=[1, 1, 1, 1]))
    if old and opset <= 9:
        proto.ir_version = 3
        proto.graph.input.extend(
            helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in proto.graph.initializer
        )
    note(onnx.printer.to_text(proto))
    arrays = (image(SHAPE),)
    try:
        feeds = {"x": arrays[0]}
        expected = session(proto).run(None, feeds)
    except Exception:
        reject()
    model = capture(proto)
    assert [tensor.name for tensor in model.inputs] == ["x"]
    got = run_in_process(model, data.draw(plans(model)), arrays)
    assert difference(np.asarray(got), expected[0]) <= 1e-5


LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


# Their dense layers take seconds. The others have all of their operators.
WITH_DENSE_LAYERS = [path for path in LIGHT if path.stem in ("light_vgg19", "light_zfnet512", "light_bvlc_alexnet")]


@pytest.mark.parametrize("path", deep_after(LIGHT, [path for path in LIGHT if path not in WITH_DENSE_LAYERS]), ids=str)
def test_light_models_of_the_onnx_package(path: Path) -> None:
    """Files of 2017 to 2019: opset 9, IR version 3, all weights among the inputs."""
    proto = onnx.load(path)
    given_names = {i.name for i in proto.graph.initializer}
    (x,) = (i for i in proto.graph.input if i.name not in given_names)
    array = image([d.dim_value for d in x.type.tensor_type.shape.dim])
    model = capture(path)
    got = run_in_process(model, even_plan(model, devices=2, stage_layers=5), array)
    assert difference(np.asarray(got), by_onnx_runtime(proto, array)[0]) <= 1e-5


def test_an_operator_that_cannot_be_converted_is_named() -> None:
    scaler = helper.make_node("ImageScaler", ["x"], ["y"], scale=1.0)
    with pytest.raises(CaptureError, match=r"opset 8, and its operator 'ImageScaler' cannot be converted to opset 18"):
        capture(graph([scaler], {"x": SHAPE}, ["y"], opset=8))


def test_a_conversion_that_changes_the_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = graph([conv("x", "y")], {"x": SHAPE}, ["y"], {"w": W}, opset=9)
    convert = onnx.version_converter.convert_version

    def wrongly(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        made = convert(model, version)
        made.graph.node[0].attribute.append(helper.make_attribute("dilations", [1, 1]))
        made.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("pads", [0, 1, 2, 1]))
        return made

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrongly)
    with pytest.raises(CaptureError, match="output 'y' changes when the model is converted"):
        capture(proto)


# ---------------------------------------------------------------- one form


def test_initialisers_are_no_inputs_and_unread_ones_are_gone() -> None:
    """Constants of equal value, integers, and one that nothing reads, all listed among the inputs."""
    scale = np.array([1, 1, 2, 2], np.float32)
    nodes = [
        conv("x", "a"),
        helper.make_node("Upsample", ["a", "s"], ["b"]),
        helper.make_node("Upsample", ["b", "t"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["z"]),
    ]
    constants = {"w": W, "s": scale, "t": scale, "shape": np.array([1, 3, 48, 56]), "unread": W}
    proto = graph(nodes, {"x": SHAPE}, ["z"], constants, opset=9, ir_version=3)
    proto.graph.input.extend(
        helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in proto.graph.initializer
    )
    model = check_as_it_is(proto, image(SHAPE))
    assert [tensor.name for tensor in model.inputs] == ["x"]
    assert "unread" not in {i.name for i in normal_form(proto).graph.initializer}
    assert len(proto.graph.input) == 6, "the caller's model was changed"


def test_names_of_this_package_in_a_model_do_not_matter() -> None:
    nodes = [
        conv("x", "coedge.constant_1", "coedge.tile:1", name="coedge.partial:y"),
        helper.make_node("ReduceMean", ["coedge.constant_1", "axes"], ["coedge.y/partial"], name="coedge.combine:y"),
        helper.make_node("Mul", ["coedge.constant_1", "coedge.y/partial"], ["coedge.tile:2"], name="coedge.share:"),
        helper.make_node("Slice", ["coedge.tile:2", "one", "end", "two"], ["coedge.tile:3"]),
        conv("coedge.tile:3", "coedge.constant_2", "coedge.tile:1"),
    ]
    constants = {"coedge.tile:1": W, "axes": [2, 3], "one": [1], "end": [1000], "two": [2]}
    model = check_as_it_is(graph(nodes, {"x": SHAPE}, ["coedge.constant_2", "coedge.tile:2"], constants), image(SHAPE))
    assert [tensor.name for tensor in model.outputs] == ["coedge.constant_2", "coedge.tile:2"]
    assert not any(node.name.startswith(RESERVED) for node in normal_form(graph(nodes, {}, ["y"])).graph.node)


@pytest.mark.parametrize("number", range(4))
def test_nodes_may_have_the_names_that_a_tile_gives_its_own(number: int) -> None:
    """PaddlePaddle numbers its nodes in the same way: `Reshape.51`."""
    nodes = [
        conv("x", "a", name=f"Slice.{number}"),
        conv("a", "b", name=f"Pad.{number}"),
        helper.make_node("Add", ["a", "b"], ["y"], name=f"Reshape.{number}"),  # reads a crop of `a` in a fused stage
    ]
    check_as_it_is(graph(nodes, {"x": SHAPE}, ["y"], {"w": W}), image(SHAPE))


def test_nodes_of_one_name_get_names_of_their_own() -> None:
    nodes = [conv("x", "a", name="same"), conv("a", "b", name="same"), conv("b", "y", name="same_1")]
    named = normal_form(graph(nodes, {"x": SHAPE}, ["y"], {"w": W})).graph.node
    assert [node.name for node in named] == ["same", "same_1", "same_1_2"]
    x = image(SHAPE)
    distinct = [conv("x", "a"), conv("a", "b"), conv("b", "y")]
    expected = by_onnx_runtime(graph(distinct, {"x": SHAPE}, ["y"], {"w": W}), x)
    check_equal(capture(graph(nodes, {"x": SHAPE}, ["y"], {"w": W}), x), [x], expected)


def test_inputs_and_outputs_may_have_the_names_of_intermediate_values() -> None:
    nodes = [
        conv("coedge.y/share", "coedge.y/partial"),
        helper.make_node("ReduceMean", ["coedge.y/partial", "axes"], ["y"]),
        helper.make_node("Mul", ["coedge.y/partial", "y"], ["coedge.shape:y"]),
    ]
    names = ["coedge.y/partial", "y", "coedge.shape:y"]
    check_as_it_is(graph(nodes, {"coedge.y/share": SHAPE}, names, {"w": W, "axes": [2, 3]}), image(SHAPE))


def test_local_functions_are_replaced_by_their_nodes() -> None:
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Add", ["t", "a"], ["b"])]
    function = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", OPSET)])
    proto = graph(
        [conv("x", "c"), helper.make_node("Twice", ["c"], ["y"], domain="own")], {"x": SHAPE}, ["y"], {"w": W}
    )
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    model = check_as_it_is(proto, image(SHAPE))
    assert {rule.kind for rule in model.rules} == {"window", "local"}


def test_the_long_name_of_the_standard_domain() -> None:
    proto = graph([conv("x", "y")], {"x": SHAPE}, ["y"], {"w": W}, opset=9)
    proto.opset_import[0].domain = proto.graph.node[0].domain = "ai.onnx"
    assert check_as_it_is(proto, image(SHAPE)).rules[0].kind == "window"


@pytest.mark.parametrize("written", [-1, 0])
def test_extents_below_one_are_dynamic(written: int) -> None:
    proto = graph([conv("x", "y")], {"x": [written, 3, written, 14]}, ["y"], {"w": W})
    x, free = image((2, 3, 9, 14)), graph([conv("x", "y")], {"x": ["n", 3, "h", 14]}, ["y"], {"w": W})
    model = capture(proto, x)
    assert model.inputs[0].shape == (2, 3, 9, 14)
    check_equal(model, (x,), by_onnx_runtime(free, x))
    with pytest.raises(CaptureError, match="dynamic dimension"):
        capture(proto)
    with pytest.raises(CaptureError, match=r"has shape \['\?', 3, '\?', 14\]"):
        capture(proto, image((1, 3, 9, 15)))


# ---------------------------------------------------------------- shapes


def branches(image_like: str) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """Return branches whose outputs differ in shape."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "te"]
    smaller = helper.make_node("MaxPool", [image_like], ["e"], kernel_shape=[2, 2], strides=[2, 2])
    return (
        helper.make_graph([helper.make_node("Identity", [image_like], ["t"])], "then", [], value[:1]),
        helper.make_graph([smaller], "else", [], value[1:]),
    )


def test_branches_of_different_shape() -> None:
    then, other = branches("a")
    nodes = [
        conv("x", "a"),
        helper.make_node("ReduceMax", ["a"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "o"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        conv("y", "z"),
    ]
    proto = graph(nodes, {"x": SHAPE}, ["z"], {"w": W, "o": np.float32(0.0)})
    shapes = set()
    for example in (image(SHAPE), np.zeros(SHAPE, np.float32)):
        model = capture(proto, example)
        for x in (image(SHAPE), np.zeros(SHAPE, np.float32), -10 * np.abs(image(SHAPE, seed=3))):
            expected = by_onnx_runtime(proto, x)
            shapes.add(expected[0].shape)
            check_equal(model, (x,), expected)
    assert len(shapes) == 2, "the test does not take both branches"


def detector() -> onnx.ModelProto:
    """A detector with its non-maximum suppression and a head on the regions that it finds."""
    net = Net(OPSET)
    x = net.input((1, 3, 24, 24))
    features = net.op("Relu", net.op("Conv", x, net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    scores = net.op("Reshape", net.op("Conv", features, net.weight(1, 8, 1, 1)), net.ints(1, 1, 144))
    rows, cols = (np.array(i, np.float32).reshape(-1) for i in np.indices((12, 12)))
    boxes = net.const(np.stack([rows - 2, cols - 2, rows + 3, cols + 3], 1)[None])
    found = net.op("NonMaxSuppression", boxes, scores, net.const(200, "int64"), net.const(0.3), net.const(0.3))
    index = net.op("Gather", found, net.const(2, "int64"), axis=1)
    kept = net.op("Gather", net.op("Squeeze", boxes, net.ints(0)), index, axis=0)
    batch = net.op("Gather", found, net.const(0, "int64"), axis=1)
    regions = net.op("RoiAlign", features, kept, batch, output_height=6, output_width=6, sampling_ratio=2)
    masks = net.op("Sigmoid", net.op("Conv", regions, net.weight(2, 8, 3, 3), pads=[1, 1, 1, 1]))
    pooled = net.op("GlobalAveragePool", masks)
    heat = net.op("Conv", features, net.weight(2, 8, 3, 3), pads=[1, 1, 1, 1])
    return net.proto(kept, masks, pooled, heat)


def test_a_detector_with_its_suppression_and_masks_inside() -> None:
    proto = detector()
    counts = set()
    for example in (None, np.zeros((1, 3, 24, 24), np.float32)):
        model = capture(proto, example)
        assert {node.op for node, rule in zip(model.graph.nodes, model.rules) if rule.kind == "window"} == {"Conv"}
        for x in (np.zeros((1, 3, 24, 24), np.float32), *(s * image((1, 3, 24, 24)) for s in (0.3, 1.0, 5.0))):
            expected = by_onnx_runtime(proto, x)
            counts.add(len(expected[0]))
            check_equal(model, (x,), expected)
    assert min(counts) == 0 and len(counts) > 2 and max(counts) > 10


@given(level=st.floats(-2.0, 2.0), devices=st.integers(1, 4), stage=st.integers(1, 6))
@examples(60, 15)
def test_pixels_that_are_chosen_by_their_values(level: float, devices: int, stage: int) -> None:
    net = Net(OPSET)
    x = net.op("Conv", net.input(SHAPE), net.weight(3, 3, 3, 3), pads=[1, 1, 1, 1])
    chosen = net.op("NonZero", net.op("Greater", x, net.const(level)))
    values = net.op("GatherND", x, net.op("Transpose", chosen, perm=[1, 0]))
    row = net.op("Unsqueeze", values, net.ints(0, 1, 2))
    blurred = net.op("Conv", row, net.weight(1, 1, 1, 3), pads=[0, 1, 0, 1])
    total = net.op("ReduceSum", blurred, keepdims=0)
    proto = net.proto(net.op("Conv", net.op("Add", x, total), net.weight(2, 3, 3, 3)), blurred)
    array = image(SHAPE)
    try:
        expected = by_onnx_runtime(proto, array)
    except Exception:
        reject()
    model = capture(proto, array)
    got = run_in_process(model, even_plan(model, devices=devices, stage_layers=stage), array)
    for one, wanted in zip(got, expected, strict=True):
        assert difference(np.asarray(one), wanted) <= 1e-5


def test_shapes_that_shapes_determine_do_not_depend_on_data() -> None:
    net = Net(OPSET)
    x = net.op("Conv", net.input(SHAPE), net.weight(3, 3, 3, 3), pads=[1, 1, 1, 1])
    size = net.op("Gather", net.op("Shape", x), net.ints(2, 3))
    shape = net.op("Concat", net.ints(1, 3), net.op("Mul", size, net.ints(1, 1)), axis=0)
    proto = net.proto(net.op("Conv", net.op("Reshape", x, shape), net.weight(2, 3, 3, 3), pads=[1, 1, 1, 1]))
    assert data_dependent(proto, {}) == frozenset()
    assert check_as_it_is(proto, image(SHAPE)).dynamic == frozenset()


@pytest.mark.parametrize("where", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_the_kernel_decides_about_shapes(where: str) -> None:
    """Shape inference gives 25 rows for this operator, the kernel 24."""
    up = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], auto_pad=where, output_padding=[1, 1])
    model = check_as_it_is(graph([up, conv("y", "z")], {"x": SHAPE}, ["z"], {"w": W}), image(SHAPE))
    assert model.outputs[0].shape == by_onnx_runtime(graph([up], {"x": SHAPE}, ["y"], {"w": W}), image(SHAPE))[0].shape


# ---------------------------------------------------------------- networks that are refused


def test_networks_in_training_mode_are_refused() -> None:
    trained = graph(
        [helper.make_node("Dropout", ["x", "r", "t"], ["n"]), conv("n", "y")],
        {"x": SHAPE}, ["y"], {"w": W, "r": np.float32(0.5), "t": np.array(True)},
    )  # fmt: skip
    with pytest.raises(CaptureError, match=r"Dropout 'n' is in training mode; export the network in eval mode"):
        capture(trained)
    vector = np.ones(3, np.float32)
    statistics = helper.make_node("BatchNormalization", ["x", *"vvvv"], ["y", "a", "b"], training_mode=1)
    with pytest.raises(CaptureError, match="BatchNormalization 'y' is in training mode"):
        capture(graph([statistics], {"x": SHAPE}, ["y"], {"v": vector}))
    old = graph([helper.make_node("Dropout", ["x"], ["y"], ratio=0.5)], {"x": SHAPE}, ["y"], opset=6)
    with pytest.raises(CaptureError, match="training"):
        capture(old)
    noise = helper.make_node("RandomNormalLike", ["x"], ["y"])
    with pytest.raises(CaptureError, match="RandomNormalLike 'y' draws numbers at random"):
        capture(graph([noise], {"x": SHAPE}, ["y"]))


def test_dropout_outside_of_training_is_nothing() -> None:
    quiet = graph(
        [helper.make_node("Dropout", ["x", "r", "t"], ["n"]), conv("n", "y")],
        {"x": SHAPE}, ["y"], {"w": W, "r": np.float32(0.5), "t": np.array(False)},
    )  # fmt: skip
    assert {rule.kind for rule in check_as_it_is(quiet, image(SHAPE)).rules} == {"local", "window"}


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


def test_programs_in_training_mode_are_refused() -> None:
    program = torch.export.export(Normed().train(), (torch.zeros(SHAPE),), strict=False)
    with pytest.raises(CaptureError, match=r"batch_norm.* is in training mode; call module.eval\(\) before"):
        capture(program)
    assert capture(torch.export.export(Normed().eval(), (torch.zeros(SHAPE),), strict=False)).rules[0].kind == "window"

    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x + torch.rand_like(x)

    with pytest.raises(CaptureError, match="draws numbers at random"):
        capture(Noisy(), torch.zeros(SHAPE))


def test_a_network_that_cannot_run_at_this_size_is_refused() -> None:
    nodes = [conv("x", "a"), helper.make_node("Reshape", ["a", "s"], ["z"])]
    proto = graph(nodes, {"x": ["n", 3, "h", "w"]}, ["z"], {"w": W, "s": [1, 300]})
    with pytest.raises(CaptureError, match=r"does not run on inputs of this shape \(x \[1, 3, 8, 8\]\).*Reshape"):
        capture(proto, image((1, 3, 8, 8)))
    assert capture(proto, image((1, 3, 10, 10))).outputs[0].shape == (1, 300)


class Resized(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> Any:
        return functional.relu(functional.interpolate(x + 1, **self.options))


def test_an_operator_that_differs_from_torch_is_named() -> None:
    """Kernels round the rows of a resize from 26 to 64 in another way than torch."""
    x = torch.randn(1, 1, 26, 26, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        CaptureError, match=r"'upsample_nearest2d', made by Resize, differs from torch by .*another way"
    ):
        capture(Resized(size=(64, 64), mode="nearest"), x)
    for options in ({"scale_factor": 2, "mode": "nearest"}, {"size": (64, 64), "mode": "bilinear"}):
        capture(Resized(**options), x)


def test_a_kernel_that_is_less_precise_than_torch_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from coedge.frontend import agreement

    monkeypatch.setattr(agreement, "PRECISE", -1.0)
    with pytest.warns(UserWarning, match="differs from torch by"):
        capture(Normed(), torch.ones(SHAPE))
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(Normed(), torch.ones(SHAPE))


@pytest.mark.parametrize(
    ("given_file", "text"),
    [
        (b"", "is empty; export the model again"),
        (b"\x00\x01 no model", "cannot be read as ONNX"),
        (b"\x08\x08", "is not an ONNX model: it has no graph"),
    ],
)
def test_files_that_are_no_models_are_named(given_file: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(given_file)
    with pytest.raises(CaptureError, match=f"net.onnx {text}"):
        capture(path, image(SHAPE))


def test_inputs_that_are_no_images_are_named() -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(CaptureError, match="input 'x' states no shape; give an example"):
        capture(graph(relu, {"x": None}, ["y"]))
    assert capture(graph(relu, {"x": None}, ["y"]), image(SHAPE)).inputs[0].shape == SHAPE
    model = capture(graph(relu, {"x": SHAPE}, ["y"]))
    with pytest.raises(InputError, match=r"a sparse tensor cannot travel; make it dense: x.to_dense\(\)"):
        run_in_process(model, even_plan(model, devices=1), torch.zeros(SHAPE).to_sparse())
    untyped = graph(relu, {"x": SHAPE}, ["y"])
    untyped.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(CoEdgeError):
        capture(untyped)


# ---------------------------------------------------------------- denormal numbers


def test_denormals_are_zero_in_sessions_and_nowhere_else() -> None:
    tiny = np.full(SHAPE, 1e-39, np.float32)
    scaled = helper.make_node("Mul", ["x", "m"], ["y"])
    run = Session(graph([scaled], {"x": SHAPE}, ["y"], {"m": np.float32(1e30)}).SerializeToString(), 1)
    (value,) = run.run(None, {"x": tiny})
    assert value.max() == 0.0 if denormals.SUPPORTED else value.max() >= 0.0
    assert (tiny * np.float32(1e30)).max() > 0.0, "the caller's thread flushes denormals too"


def test_the_order_of_nested_blocks_restores_the_thread() -> None:
    if not denormals.SUPPORTED:
        pytest.skip("the floating-point environment of this platform is not known")
    tiny = np.full(4, 1e-39, np.float32)
    with denormals.flushed():
        with denormals.flushed():
            assert (tiny * np.float32(1)).max() == 0.0
        assert (tiny * np.float32(1)).max() == 0.0
    assert (tiny * np.float32(1)).max() > 0.0
