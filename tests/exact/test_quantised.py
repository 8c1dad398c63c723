"""Quantised (QDQ) networks: what travels is 8-bit, tiles run on integer kernels, and the split is exact to the bit.

Where only 8-bit values are asked for, ONNX Runtime fuses the same operators as in the whole network: so every patch of
such a tensor is compared bit by bit.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from nets import Array, Net, check_split, examples, image, kept, make_plan, plans, session, unsplit
from onnx import helper, numpy_helper

import coedge
from coedge import zoo
from coedge.core.onnx_session import session_options
from coedge.execution.program import Send
from coedge.graph.analysis import model_from_skeleton
from coedge.graph.model import Model
from coedge.graph.quantised import tighten
from coedge.graph.tile import build_tile
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, even_plan, strips
from coedge.simulation.step_costs import message_nbytes
from workers.runtime.kernels import Kernels

NETS = ("resnet18", "mobilenet_v2")
SIZE = (69, 85)
STRIPS = strips({"a": 1, "b": 2, "c": 1})


@functools.cache
def proto(name: str) -> onnx.ModelProto:
    return zoo.quantised(name, SIZE, width=0.25, num_classes=10)


@functools.cache
def model(name: str) -> Model:
    return kept(f"quantised-{name}", lambda: coedge.capture(proto(name)))


@functools.cache
def photo() -> Array:
    from coedge.zoo.eight_bit import photograph

    return photograph(*SIZE)


@functools.cache
def kernels(name: str) -> Kernels:
    return Kernels(model(name))


def eight_bit(captured: Model, arrays: Sequence[Array]) -> dict[str, Array]:
    """The unsplit values of all that is quantised."""
    made = onnx.load_model_from_string(captured.skeleton)
    for initializer in made.graph.initializer:
        if initializer.name in captured.weights:
            initializer.CopyFrom(numpy_helper.from_array(captured.weights[initializer.name], initializer.name))
    names = {node.output[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    made.graph.output.extend(info for info in made.graph.value_info if info.name in names)
    run = session(made)
    values = run.run(None, {i.name: a for i, a in zip(run.get_inputs(), arrays)})
    return dict(zip([o.name for o in run.get_outputs()], values))


@functools.cache
def values(name: str) -> tuple[list[Array], dict[str, Array]]:
    return unsplit(model(name), [photo()]), eight_bit(model(name), [photo()])


def check(name: str, plan: Plan) -> None:
    expected, inside = values(name)
    check_split(model(name), plan, [photo()], expected, inside, tolerance=0.0, kernels=kernels(name))


# ---------------------------------------------------------------- networks of the zoo


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
@examples(40)
def test_any_plan_is_exact_to_the_bit(name: str, data: st.DataObject) -> None:
    plan = data.draw(plans(model(name)))
    note(str(plan))
    check(name, plan)


@pytest.mark.parametrize("name", ["mobilenet_v3", "googlenet", "densenet", "unet"])
def test_excitation_branches_joins_and_transposed_convolutions_are_exact_to_the_bit(name: str) -> None:
    whole = [node.op for node, rule in zip(model(name).graph.nodes, model(name).rules) if rule.kind == "whole"]
    assert set(whole) <= {"ReduceMean"}
    for options in ({"devices": 3}, {"grid": (2, 2), "stage_layers": 4}, {"devices": 2, "boundaries": [0.03]}):
        check(name, even_plan(model(name), **options))


@pytest.mark.parametrize("name", NETS)
def test_values_travel_in_8_bit(name: str) -> None:
    """All messages except the answer have a quarter of the bytes of float32."""
    captured = model(name)
    tensors = captured.graph.tensors
    assert {tensors[n].dtype for cut in captured.cuts[1:] for n in cut.tensors} == {"uint8"}
    plan = even_plan(captured, 4).model_copy(update={"source": "device-1"})
    sends = [(p, s) for p in lower(plan, captured).values() for s in p.steps if isinstance(s, Send)]
    seen = 0
    for program, send in sends:
        patches = [program.patches[part.patch] for part in send.parts]
        if any(patch.tensor in captured.graph.inputs for patch in patches):
            continue
        parts = [(tensors[patch.tensor], part.region) for patch, part in zip(patches, send.parts)]
        count = sum(int(np.prod(tensor.region_shape(region))) for tensor, region in parts)
        assert message_nbytes(program, send, captured) == count
        seen += count
    assert seen > 10_000


def fused_operators(captured: Model, plans: Sequence[Plan], folder: Path) -> Counter[str]:
    """Return the operators of all tiles after fusion by ONNX Runtime."""
    found = Counter[str]()
    for tile in {tile for plan in plans for program in lower(plan, captured).values() for tile in program.tiles()}:
        made, weights = build_tile(captured, tile)
        options = session_options(1)
        options.optimized_model_filepath = str(folder / "tile.onnx")
        if weights:
            given = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(w)) for w in weights.values()]
            options.add_external_initializers(list(weights), given)
        onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        fused = onnx.load(str(folder / "tile.onnx"), load_external_data=False)
        found.update(node.op_type for node in fused.graph.node)
    return found


@pytest.mark.parametrize("name", NETS)
def test_tiles_run_on_integer_kernels(name: str, tmp_path: Path) -> None:
    captured = model(name)
    some = [even_plan(captured, 3), even_plan(captured, grid=(2, 2), stage_layers=5)]
    found = fused_operators(captured, some, tmp_path)
    assert found["QLinearConv"] and found["QLinearAdd"] and found["QGemm"]
    assert not found.keys() & {"Conv", "Add", "Gemm", "MatMul"}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_tiles_of_either_sign_run_on_integer_kernels(dtype: str, tmp_path: Path) -> None:
    net = Net(opset=17)
    scale = scaled(net, 0.05, 3, dtype)
    y = net.op("QuantizeLinear", net.input((1, 4, 9, 8)), *scale)
    for _ in range(3):
        y = convolved(net, y, scale, 4, 4, pads=[1] * 4)
    captured = coedge.capture(net.proto(net.op("DequantizeLinear", y, *scale)))
    for stage_layers in (1, 2):
        found = fused_operators(captured, [even_plan(captured, 3, stage_layers=stage_layers)], tmp_path)
        assert found["QLinearConv"] and not found["Conv"]


def test_a_worker_has_the_same_layers() -> None:
    for name in NETS:
        captured = model(name)
        again = model_from_skeleton(captured.skeleton, captured.weights)
        assert (again.hash, again.layers, again.cuts) == (captured.hash, captured.layers, captured.cuts)
        assert [rule.kind for rule in again.rules] == [rule.kind for rule in captured.rules]


def test_an_unknown_quantised_network_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        zoo.quantised("resnet81")


@pytest.mark.deep
def test_the_quantiser_gives_the_same_network_again() -> None:
    assert coedge.capture(zoo.quantised("resnet18", SIZE, width=0.25, num_classes=10)).hash == model("resnet18").hash


# ---------------------------------------------------------------- by hand


def scaled(net: Net, scale: Any = 0.05, zero: Any = 3, dtype: str = "uint8") -> list[str]:
    return [net.const(scale), net.const(zero, dtype)]


def convolved(net: Net, x: str, scale: list[str], outputs: int, inputs: int, kernel: int = 3, **options: Any) -> str:
    """Return an 8-bit convolution with a scale per output channel, as quantisers write it."""
    weight = net.const(net.random.integers(-90, 90, (outputs, inputs, kernel, kernel)), "int8")
    per_channel = [net.const(net.random.uniform(0.002, 0.01, outputs)), net.const(np.zeros(outputs), "int8")]
    weight = net.op("DequantizeLinear", weight, *per_channel, axis=0)
    return net.op("QuantizeLinear", net.op("Conv", net.op("DequantizeLinear", x, *scale), weight, **options), *scale)


@given(data=st.data())
@examples(60)
def test_borders_are_padded_with_the_zero_point(data: st.DataObject) -> None:
    """The padding is the zero point of the image. Padding with 8-bit zeros would add other values."""
    number = functools.partial(lambda low, high: data.draw(st.integers(low, high)))
    net = Net(opset=17, seed=number(0, 99))
    dtype = data.draw(st.sampled_from(["uint8", "int8"]))
    scale = scaled(net, 0.05, number(1, 120), dtype)
    kernel, stride = number(1, 5), number(1, 2)
    pads = [number(0, kernel - 1) for _ in range(4)]
    y = net.op("QuantizeLinear", net.input((1, 2, number(6, 14), number(6, 14))), *scale)
    y = convolved(net, y, scale, 3, 2, kernel, pads=pads, strides=[stride, stride])
    y = convolved(net, y, scale, 2, 3, 3, pads=[1, 1, 1, 1])
    captured = coedge.capture(net.proto(net.op("DequantizeLinear", y, *scale)))
    arrays = [image(captured.inputs[0].shape, seed=number(0, 9))]
    plan = data.draw(plans(captured))
    check_split(captured, plan, arrays, inside=eight_bit(captured, arrays), tolerance=0.0)


def test_scales_along_channels_are_split_and_along_rows_are_not() -> None:
    for axis, extent, kind in ((1, 2, "local"), (2, 8, "whole"), (3, 6, "whole")):
        net = Net(opset=17)
        scale = [net.const(np.linspace(0.02, 0.06, extent)), net.const(np.arange(extent) + 1, "uint8")]
        y = net.op("QuantizeLinear", net.input((1, 2, 8, 6)), *scale, axis=axis)
        captured = coedge.capture(net.proto(net.op("DequantizeLinear", y, *scale, axis=axis)))
        assert captured.rules[0].kind == kind
        assert kind == "local" or "varies along the rows" in captured.describe()
        check_split(captured, even_plan(captured, 3), [image((1, 2, 8, 6))], tolerance=0.0)


def test_a_skip_travels_in_8_bit_however_late_it_is_read() -> None:
    """One DequantizeLinear, directly behind its QuantizeLinear, has two readers in different layers."""
    net = Net(opset=17)
    scale = scaled(net)
    y = net.op("QuantizeLinear", net.input((1, 4, 9, 8)), *scale)
    skip = net.op("DequantizeLinear", y, *scale)
    z = convolved(net, convolved(net, y, scale, 4, 4, pads=[1] * 4), scale, 4, 4, pads=[1] * 4)
    z = net.op("Add", net.op("DequantizeLinear", z, *scale), net.op("Sigmoid", skip))
    z = convolved(net, net.op("QuantizeLinear", z, *scale), scale, 2, 4)
    captured = coedge.capture(net.proto(net.op("Mul", net.op("DequantizeLinear", z, *scale), net.const(2.0))))
    tensors = captured.graph.tensors
    assert {tensors[n].dtype for cut in captured.cuts[1:] for n in cut.tensors} == {"uint8"}
    arrays = [image((1, 4, 9, 8))]
    check_split(captured, make_plan(captured, [(1, STRIPS)] * len(captured.layers), "a"), arrays, tolerance=0.0)


def test_float_images_are_quantised_by_a_layer_of_its_own() -> None:
    """The source can then send bytes. uint8 images are sent before normalisation."""
    firsts = {}
    for dtype in ("float32", "uint8"):
        net = Net(opset=17)
        scale = scaled(net)
        x = net.input((1, 3, 9, 8), dtype)
        x = net.op("Cast", x, to=onnx.TensorProto.FLOAT) if dtype == "uint8" else x
        x = net.op("QuantizeLinear", net.op("Mul", x, net.const(0.5)), *scale)
        y = convolved(net, convolved(net, x, scale, 4, 3, pads=[1] * 4), scale, 4, 4)
        captured = coedge.capture(net.proto(net.op("DequantizeLinear", y, *scale)))
        firsts[dtype] = [node.op for node in captured.graph.nodes[: captured.layers[0].stop]]
        check_split(captured, even_plan(captured, 3), [image((1, 3, 9, 8), dtype)], tolerance=0.0)
    assert firsts["float32"] == ["Mul", "QuantizeLinear"]
    assert firsts["uint8"][:3] == ["Cast", "Mul", "QuantizeLinear"] and "Conv" in firsts["uint8"]


@pytest.mark.parametrize(
    ("op", "kind"), [("ReduceMean", "whole"), ("GlobalAveragePool", "whole"), ("ReduceMax", "combine")]
)
def test_a_sum_that_is_rounded_is_not_taken_in_parts(op: str, kind: str) -> None:
    net = Net(opset=17)
    scale, fine = scaled(net), scaled(net, 0.05 / 64, 7)
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", net.input((1, 4, 8, 8)), *scale), *scale)
    y = net.op("GlobalAveragePool", y) if op == "GlobalAveragePool" else net.reduce(op, y, [2, 3])
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", y, *fine), *fine)
    captured = coedge.capture(net.proto(y))
    kinds = {rule.kind for rule in captured.rules}
    assert kind in kinds and (kind == "whole") == ("quantised later" in captured.describe())
    assert not any(name.startswith("coedge.") for name in captured.graph.constants) or kind == "combine"
    for regions in (STRIPS, strips({"b": 1, "a": 5})):
        plan = make_plan(captured, [(1, regions)] * len(captured.layers), "a")
        check_split(captured, plan, [image((1, 4, 8, 8))], tolerance=0.0)


def test_a_sum_that_is_not_rounded_is_taken_in_parts() -> None:
    net = Net(opset=17)
    scale = scaled(net)
    y = net.op("QuantizeLinear", net.input((1, 4, 8, 8)), *scale)
    y = net.op("GlobalAveragePool", net.op("DequantizeLinear", y, *scale))
    captured = coedge.capture(net.proto(y))
    assert {"partial", "combine"} <= {rule.kind for rule in captured.rules}
    check_split(captured, even_plan(captured, 3), [image((1, 4, 8, 8))])


# ---------------------------------------------------------------- the order of nodes


@given(data=st.data())
@examples(40)
def test_tightening_changes_order_and_nothing_else(data: st.DataObject) -> None:
    """Random graphs of 8-bit and float values: quantised anywhere, read once or several times, or returned."""
    net = Net(opset=17)
    scale = scaled(net, 0.05, 100)
    floats, bytes_ = [net.input((1, 2, 4, 3))], []
    for _ in range(data.draw(st.integers(1, 12))):
        op = data.draw(st.sampled_from(["QuantizeLinear", "DequantizeLinear", "Add", "Relu"]))
        pick = functools.partial(lambda names: data.draw(st.sampled_from(names)))
        if op == "QuantizeLinear":
            bytes_.append(net.op(op, pick(floats), *scale))
        elif op == "DequantizeLinear" and bytes_:
            floats.append(net.op(op, pick(bytes_), *scale))
        elif op == "Add":
            floats.append(net.op(op, pick(floats), pick(floats)))
        else:
            floats.append(net.op("Relu", pick(floats)))
    made = net.proto(*dict.fromkeys([floats[-1] if len(floats) > 1 else net.op("Relu", "x"), *bytes_[-1:]]))
    array = image((1, 2, 4, 3))
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def run() -> list[Array]:
        return onnxruntime.InferenceSession(made.SerializeToString(), plain).run(None, {"x": array})

    expected = run()
    tighten(made)
    onnx.checker.check_model(made)
    for got, wanted in zip(run(), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    once = [(node.op_type, *node.input, *node.output) for node in made.graph.node]
    tighten(made)
    assert [(node.op_type, *node.input, *node.output) for node in made.graph.node] == once
    returned = {output.name for output in made.graph.output}
    for node, following in zip(made.graph.node, [*made.graph.node[1:], None]):
        if node.op_type == "DequantizeLinear" and node.output[0] not in returned:
            readers = [other for other in made.graph.node if node.output[0] in other.input]
            assert len(readers) == 1 and following is not None
            assert following == readers[0] or following.op_type == "DequantizeLinear"


def test_a_value_that_an_inner_graph_reads_is_not_moved() -> None:
    net = Net(opset=17)
    scale = scaled(net)
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", net.input((1, 2, 4, 3)), *scale), *scale)
    info = [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, [1, 2, 4, 3])]
    branch = helper.make_graph([helper.make_node("Relu", [y], ["inner"])], "branch", [], info)
    chosen = net.op("If", net.const(True, "bool"), then_branch=branch, else_branch=branch)
    made = net.proto(net.op("Add", chosen, net.op("Neg", y)))
    before = unsplit_of(made)
    tighten(made)
    np.testing.assert_array_equal(unsplit_of(made), before)


def unsplit_of(made: onnx.ModelProto) -> Array:
    value: Array = session(made).run(None, {"x": image((1, 2, 4, 3))})[0]
    return value


# ---------------------------------------------------------------- from a file, and on real workers


def test_the_commands_take_a_quantised_file(cli: Any, tmp_path: Path) -> None:
    from orchestrator.cli.models import load_image, load_model, photograph
    from orchestrator.cli.models import unsplit as answer

    onnx.save(proto("resnet18"), str(tmp_path / "small.onnx"))
    captured = load_model(str(tmp_path / "small.onnx"))
    assert captured.layers == model("resnet18").layers
    array = load_image(photograph(), captured)
    got = coedge.run_in_process(captured, even_plan(captured, 2), array)
    np.testing.assert_array_equal(got, answer(captured, array)[0])


@pytest.mark.ray
def test_a_quantised_model_runs_on_real_workers() -> None:
    captured = model("resnet18")
    devices = [{"name": name, "speed": 1.0} for name in ("a", "b")]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "devices": devices,
            "source": "a",
            "cache_dir": folder,
            "profile_budget_seconds": 2.0,
            "trial_frames": 0,
        }
        with coedge.connect(settings) as cluster:
            plan = even_plan(captured, ("a", "b"))
            job = cluster.submit(captured, photo(), plan=plan)
            np.testing.assert_array_equal(job.result(), values("resnet18")[0][0])
            programs = lower(plan, captured).values()
            sent = sum(message_nbytes(p, s, captured) for p in programs for s in p.steps if isinstance(s, Send))
            assert sum(job.timeline.sent_nbytes().values()) == sent
            np.testing.assert_array_equal(cluster.submit(captured, photo()).result(), values("resnet18")[0][0])
