"""Capture: accepted models, the captured model, refused models and their messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from nets import Net, difference, image, unsplit, zoo_model
from onnx import helper
from torch import nn

import coedge
from coedge import CaptureError, InputError, Model, capture, even_plan, run_in_process
from coedge.graph.analysis import model_from_skeleton


class Small(nn.Module):
    """A convolution, followed by the function `finish`."""

    def __init__(self, finish: Callable[..., Any] = lambda y: y, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.finish = finish

    def forward(self, x: torch.Tensor) -> Any:
        return self.finish(self.drop(self.conv(x)))


X = torch.linspace(-1, 1, 3 * 12 * 10).reshape(1, 3, 12, 10)


@pytest.fixture(scope="module")
def small() -> tuple[Small, Model]:
    module = Small().eval()
    return module, capture(module, X)


def run(model: Model, x: Any, devices: int = 2) -> Any:
    return run_in_process(model, even_plan(model, devices), x)


def conv_net(shape: tuple[int | str, ...] = (1, 3, 12, 10), dtype: str = "float32") -> onnx.ModelProto:
    net = Net()
    x = net.input(shape, dtype)
    x = net.op("Cast", x, to=onnx.TensorProto.FLOAT) if dtype != "float32" else x
    return net.proto(net.op("Conv", x, net.weight(64, 3, 3, 3), pads=[1, 1, 1, 1]))


# ---------------------------------------------------------------- what is taken


def test_a_module_is_captured(small: tuple[Small, Model]) -> None:
    module, model = small
    assert model.name == "Small"
    assert capture(module, X, name="mine").name == "mine"
    assert [(t.shape, t.dtype) for t in model.inputs] == [((1, 3, 12, 10), "float32")]
    torch.testing.assert_close(run(model, X), module(X).detach())


def test_capture_restores_training_flags() -> None:
    module = Small()
    module.train()
    module.conv.eval()
    model = capture(module, X)
    assert module.training and module.drop.training and not module.conv.training
    with torch.no_grad():
        torch.testing.assert_close(run(model, X), module.conv(X))  # dropout does nothing
    with pytest.raises(CaptureError):
        capture(module, torch.zeros(1, 5, 12, 10))
    assert module.training and module.drop.training and not module.conv.training


def test_an_exported_program_and_its_file_are_captured(tmp_path: Path) -> None:
    module = Small(lambda y: {"y": y, "low": y[:, :, ::2]}).eval()
    expected = module(X)
    program = torch.export.export(module, (X,))
    torch.export.save(program, tmp_path / "net.pt2")
    models = capture(program), capture(tmp_path / "net.pt2"), capture(str(tmp_path / "net.pt2"), X)
    assert models[1].name == "net"
    for model in models:
        got = run(model, X)
        assert list(got) == ["y", "low"]
        for key, value in got.items():
            torch.testing.assert_close(value, expected[key].detach())


def test_an_onnx_file_with_and_without_external_data_is_captured(tmp_path: Path) -> None:
    onnx.save(conv_net(), tmp_path / "one.onnx")
    onnx.save(conv_net(), tmp_path / "two.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert (tmp_path / "weights.bin").stat().st_size > 1000
    x = image((1, 3, 12, 10))
    one, two = capture(tmp_path / "one.onnx", name="net"), capture(tmp_path / "two.onnx", name="net")
    assert one.hash == two.hash == capture(conv_net(), name="net").hash
    assert difference(run(two, x), unsplit(one, [x])[0]) <= 1e-5
    (tmp_path / "weights.bin").unlink()
    assert difference(run(two, x), unsplit(two, [x])[0]) <= 1e-5, "the file is not needed any more"
    with pytest.raises(CaptureError, match=r"two\.onnx cannot be read"):
        capture(tmp_path / "two.onnx")


def test_dynamic_dimensions_are_fixed_by_an_example(tmp_path: Path) -> None:
    onnx.save(conv_net(("batch", 3, "height", "width")), tmp_path / "net.onnx")
    for shape in ((1, 3, 12, 10), (2, 3, 7, 9)):
        x = image(shape)
        model = capture(tmp_path / "net.onnx", x)
        assert model.inputs[0].shape == shape
        assert difference(run(model, x), unsplit(model, [x])[0]) <= 1e-5
    with pytest.raises(CaptureError, match=r"'x' has a dynamic dimension \(batch, height, width\); give an ex"):
        capture(tmp_path / "net.onnx")
    with pytest.raises(CaptureError, match=r"'x' of the model has shape \['\?', 3, '\?', '\?'\], .*\[1, 4, 8, 8\]"):
        capture(tmp_path / "net.onnx", image((1, 4, 8, 8)))
    with pytest.raises(CaptureError, match="'x' of the model is float32, the example is uint8"):
        capture(tmp_path / "net.onnx", image((1, 3, 8, 8), "uint8"))
    with pytest.raises(CaptureError, match="takes 1 inputs \\(x\\), the example has 2"):
        capture(tmp_path / "net.onnx", (image((1, 3, 8, 8)), image((1, 3, 8, 8))))


def test_a_model_with_several_inputs_is_captured() -> None:
    class Two(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left[:, :1] * 2 + right.mean(1, keepdim=True)

    left, right = torch.randn(1, 3, 8, 6), torch.randn(1, 2, 8, 6)
    model = capture(Two(), (left, right))
    torch.testing.assert_close(run(model, (left, right)), Two()(left, right))
    with pytest.raises(InputError, match="takes 2 inputs, 1 were given"):
        run(model, left)


def test_uint8_images_are_normalised_in_the_model() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    module = Small().eval()
    raw = torch.randint(0, 256, (1, 3, 12, 10), dtype=torch.uint8)
    model = capture(coedge.with_normalisation(module, mean, std), raw)
    assert model.name == "Small"
    assert model.inputs[0].dtype == "uint8", "the raw bytes are what travels"
    normal = (raw.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(run(model, raw, 3), module(normal), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="has dtype uint8, float32 was given; convert it"):
        run(model, raw.float())


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], [0.5, 0.5]), ([], []), ([0.5, 0.5], [1.0, 0.0])], ids=["lengths", "none", "zero"]
)
def test_invalid_normalisation_is_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match=r"channel|zero"):
        coedge.with_normalisation(Small(), mean, std)


def test_nan_and_infinite_weights_are_accepted() -> None:
    module = Small().eval()
    with torch.no_grad():
        module.conv.weight[1] = torch.nan
        module.conv.weight[2] = torch.inf
        expected = module(X)
    got = run(capture(module, X), X)
    assert got[:, 1].isnan().all() and not got[:, 0].isnan().any()
    torch.testing.assert_close(got, expected, equal_nan=True)


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    "finish",
    [
        pytest.param(lambda y: y, marks=pytest.mark.deep),  # as in most tests
        lambda y: (y,),
        pytest.param(lambda y: [y, y + 1], marks=pytest.mark.deep),  # as inside the nested one
        lambda y: (y, y),
        lambda y: {"b": y, "a": y * 2},
        lambda y: {"levels": [y, (y[:, :, ::2], {"mean": y.mean()})], "x": y > 0},
    ],
    ids=["tensor", "tuple of one", "list", "twice the same", "dict", "nested"],
)
def test_outputs_have_the_structure_of_the_module(finish: Callable[..., Any]) -> None:
    module = Small(finish).eval()
    with torch.no_grad():
        expected = module(X)
    model = capture(module, X)
    for x, kind in ((X, torch.Tensor), (X.numpy(), np.ndarray)):
        got = run(model, x)
        leaves, spec = torch.utils._pytree.tree_flatten(got)
        assert spec == torch.utils._pytree.tree_structure(expected)
        assert all(type(leaf) is kind for leaf in leaves)
        for leaf, wanted in zip(leaves, torch.utils._pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(torch.as_tensor(leaf), wanted)


def test_arrays_of_any_memory_layout_are_accepted(small: tuple[Small, Model]) -> None:
    _, model = small
    expected = run(model, X.numpy())
    turned = np.asfortranarray(X.numpy())
    flipped = X.numpy()[:, :, ::-1][:, :, ::-1]
    assert np.array_equal(run(model, turned), expected)
    assert np.array_equal(run(model, flipped), expected)
    assert torch.equal(run(model, X.clone().requires_grad_()), torch.from_numpy(expected))


def test_the_answer_can_be_written_to(small: tuple[Small, Model]) -> None:
    _, model = small
    answer = run(model, X.numpy(), devices=1)
    answer[:] = 0
    assert run(model, X.numpy(), devices=1).any()


# ---------------------------------------------------------------- hash, skeleton, words


def test_hash_tells_weights_and_graphs_apart(small: tuple[Small, Model]) -> None:
    module, model = small
    assert len(model.hash) == 16
    assert capture(module, X).hash == model.hash, "two captures of the same module"
    assert capture(Small(seed=1).eval(), X).hash != model.hash, "other weights"
    assert capture(module, X[:, :, :8]).hash != model.hash, "another image size"
    net = Net()
    net.input((1, 3, 8, 8))
    large = [net.const(np.full((64, 3, 3, 3), value)) for value in (0.1, 0.2)]
    hashes = set()
    for weight in large:
        one = Net()
        one.input((1, 3, 8, 8))
        one.initializers = [i for i in net.initializers if i.name == weight]
        one.initializers[0].name = "weight"
        hashes.add(capture(one.proto(one.op("Conv", "x", "weight"))).hash)
    assert len(hashes) == 2, "weights that the skeleton leaves out count as well"


def test_the_hash_does_not_depend_on_where_a_model_was_captured() -> None:
    """Exporters note source lines with their paths. A plan must be valid for the same model captured elsewhere."""
    hashes = set()
    for folder in ("/home/one", "/home/two"):
        net = Net()
        net.input((1, 3, 8, 8))
        proto = net.proto(net.op("Relu", "x"))
        entry = proto.graph.node[0].metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.stack_trace", f'File "{folder}/net.py", line 3'
        proto.graph.node[0].doc_string = folder
        hashes.add(capture(proto).hash)
    assert len(hashes) == 1


def test_the_hash_ignores_exporter_notes_in_branches() -> None:
    hashes = set()
    for folder in ("/home/one", "/home/two"):
        net = Net()
        net.input((1, 3, 8, 8))
        net.nodes.append(helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0))
        net.nodes.append(helper.make_node("Greater", ["most", net.const(np.float32(0.5))], ["bright"]))
        branches = {}
        for branch, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
            node = helper.make_node(op, ["x"], [branch], doc_string=folder)
            made = helper.make_tensor_value_info(branch, 1, [1, 3, 8, 8])
            branches[branch] = helper.make_graph([node], branch, [], [made])
        net.nodes.append(helper.make_node("If", ["bright"], ["y"], **branches))
        hashes.add(capture(net.proto("y")).hash)
    assert len(hashes) == 1


@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet_v2", "ssd", "googlenet", "densenet"])
def test_skeleton_and_weights_make_the_model_again(name: str) -> None:
    model = zoo_model(name)
    again = model_from_skeleton(model.skeleton, model.weights)
    assert again.hash == model.hash and again.name == model.name
    assert again.graph.tensors == model.graph.tensors
    assert (again.rules, again.layers, again.cuts) == (model.rules, model.layers, model.cuts)
    assert again.skeleton == model.skeleton
    x = image(model.inputs[0].shape)
    got, expected = (run_in_process(m, even_plan(m, 3), x) for m in (again, model))
    wanted = list(expected.values()) if isinstance(expected, dict) else [expected]
    for a, b in zip(got if isinstance(got, tuple) else [got], wanted, strict=True):
        assert np.array_equal(a, b)


def test_a_worker_needs_only_the_weights_of_its_layers() -> None:
    model = zoo_model("squeezenet")
    half = len(model.graph.nodes) // 2
    names = model.weight_names(0, half) | model.weight_names(half, len(model.graph.nodes))
    assert names == set(model.weights)
    assert 0 < len(model.weight_names(0, half)) < len(names)
    part = model_from_skeleton(model.skeleton, {n: model.weights[n] for n in model.weight_names(0, half)})
    assert part.rules == model.rules and part.layers == model.layers


def test_save_writes_the_network_before_any_rewrite(tmp_path: Path) -> None:
    model = zoo_model("mobilenet_v3")
    model.save(tmp_path / "net.onnx")
    x = image(model.inputs[0].shape)
    again = capture(tmp_path / "net.onnx", name=model.name)
    assert again.hash == model.hash
    assert difference(unsplit(again, [x])[0], unsplit(model, [x])[0]) == 0


def test_describe_says_what_is_not_split_and_why() -> None:
    net = Net()
    x = net.input((1, 3, 12, 10))
    y = net.op("Conv", x, net.weight(4, 3, 3, 3))
    outputs = [net.op("Softmax", y, axis=2), net.op("Einsum", y, equation="nchw->nhwc")]
    words = capture(net.proto(*outputs), name="mine").describe()
    assert words.startswith("mine: ")
    assert "1 window (halo rows)" in words
    assert "not split: Softmax 'Softmax_1': normalises along the rows" in words
    assert "not split: Einsum 'Einsum_2': no rule for operator Einsum" in words
    assert "not split: Conv" not in words
    assert "not split" not in zoo_model("resnet50").describe().replace("not splittable", "")


def test_cuts_list_what_is_alive() -> None:
    net = Net()
    x = net.input((1, 3, 12, 10))
    a = net.op("Relu", net.op("Conv", x, net.weight(4, 3, 3, 3), pads=[1, 1, 1, 1]))
    b = net.op("Conv", a, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    c = net.op("Conv", b, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    model = capture(net.proto(net.op("Add", a, c), b))  # a skip over two layers, and an output on the way
    assert [layer.op for layer in model.layers] == ["Conv"] * 3
    pixels = 12 * 10 * 4
    assert [(set(cut.tensors), cut.nbytes) for cut in model.cuts] == [
        ({x}, 3 * pixels),
        ({a}, 4 * pixels),
        ({a, b}, 8 * pixels),
    ]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((3, 12, 10), torch.float32, r"'example' has 3 dimensions, \[3, 12, 10\]; .*\[N, C, H, W\]"),
        ((1, 3, 4, 12, 10), torch.float32, "5 dimensions"),
        ((1, 3, 12, 10), torch.float64, "is float64; inputs are float32 or uint8"),
        ((1, 3, 12, 10), torch.int64, "is int64"),
        ((1, 3, 0, 10), torch.float32, r"is empty: \[1, 3, 0, 10\]"),
        ((1, 5, 12, 10), torch.float32, "Small does not export: "),
    ],
)
def test_an_example_that_is_not_an_image_is_refused(shape: tuple[int, ...], dtype: torch.dtype, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        capture(Small(), torch.zeros(shape, dtype=dtype))


def test_values_that_are_not_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"needs an example input: coedge\.capture\(module, example\)"):
        capture(Small())
    with pytest.raises(CaptureError, match=r"cannot capture a dict: give a torch\.nn\.Module"):
        capture({})
    with pytest.raises(CaptureError, match="the example holds a str"):
        capture(Small(), "cat.jpg")
    with pytest.raises(CaptureError, match=r"nothing\.onnx does not exist"):
        capture(tmp_path / "nothing.onnx")
    (tmp_path / "net.tflite").write_bytes(b"x")
    with pytest.raises(CaptureError, match=r"net\.tflite: expected a \.onnx or \.pt2 file, not \.tflite"):
        capture(tmp_path / "net.tflite")
    (tmp_path / "net").write_bytes(b"x")
    with pytest.raises(CaptureError, match="not one without a suffix"):
        capture(tmp_path / "net")
    for content in (b"this is not a protobuf", b"", conv_net().SerializeToString()[:-400]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(CaptureError, match=r"bad\.onnx|no inputs"):
            capture(tmp_path / "bad.onnx")
    (tmp_path / "bad.pt2").write_bytes(b"this is not a zip file")
    with pytest.raises(CaptureError, match=r"bad\.pt2 is not a torch\.export program"):
        capture(tmp_path / "bad.pt2")


def test_onnx_inputs_that_are_not_images_are_refused() -> None:
    with pytest.raises(CaptureError, match="'x' is float64"):
        capture(conv_net(dtype="float64"))
    flat = Net()
    flat.input((1, 8))
    with pytest.raises(CaptureError, match=r"'x' has 2 dimensions, \[1, 8\]"):
        capture(flat.proto(flat.op("Relu", "x")))
    unknown = Net()
    unknown.input((1, 3, 8, 8))
    with pytest.raises(CaptureError, match="ONNX Runtime does not take the model"):
        capture(unknown.proto(unknown.op("Frobnicate", "x")))


def test_outputs_that_are_not_tensors_are_refused() -> None:
    with pytest.raises(CaptureError, match="value 1 of what the module returns is None, not a tensor"):
        capture(Small(lambda y: (y, None)), X)
    with pytest.raises(CaptureError, match="value 1 of what the module returns is 4, not a tensor"):
        capture(Small(lambda y: {"y": y, "stride": 4}), X)
    with pytest.raises(CaptureError, match="does not depend on the inputs; leave it out"):
        capture(Small(lambda y: (y, torch.ones(3))), X)
    net = Net()
    net.input((1, 4, 8, 8))
    parts = net.op("SplitToSequence", "x", net.const(2, "int64"), axis=1)
    with pytest.raises(CaptureError, match=f"'{parts}' is a sequence"):
        capture(net.proto(net.op("SequenceAt", parts, net.const(1, "int64"))))


@pytest.mark.parametrize("axis", [2, 3])
def test_an_empty_intermediate_image_is_refused(axis: int) -> None:
    net = Net()
    x = net.op("Relu", net.input((1, 3, 8, 6)))
    empty = net.slice(x, 0, 0, axis)
    shape = [1, 3, 8, 6]
    shape[axis] = 0
    with pytest.raises(
        CaptureError, match=rf"'{empty}', made by Slice 'Slice_1', is empty: {re.escape(str(shape))}; leave it out"
    ):
        capture(net.proto(net.op("Concat", x, empty, axis=axis)))


def test_an_intermediate_tensor_without_channels_is_accepted() -> None:
    net = Net()
    x = net.op("Relu", net.input((1, 3, 8, 6)))
    model = capture(net.proto(net.op("Concat", x, net.slice(x, 0, 0, 1), axis=1)))
    assert run_in_process(model, even_plan(model, 2), image((1, 3, 8, 6))).shape == (1, 3, 8, 6)


def test_a_module_that_raises_is_quoted() -> None:
    def fail(y: torch.Tensor) -> torch.Tensor:
        raise KeyError("the missing key")

    with pytest.raises(CaptureError, match=r"Small does not export: .*the missing key") as caught:
        capture(Small(fail), X)
    assert caught.value.__cause__ is not None


def test_control_flow_that_depends_on_the_image_is_quoted(capfd: pytest.CaptureFixture[str]) -> None:
    def choose(y: torch.Tensor) -> torch.Tensor:
        if y.mean() > 0.25:
            return y
        return -y

    with pytest.raises(CaptureError, match="Small does not export: ") as caught:
        capture(Small(choose), X)
    innermost: BaseException = caught.value
    while innermost.__cause__ or innermost.__context__:
        innermost = innermost.__cause__ or innermost.__context__  # type: ignore[assignment]
    assert " ".join(str(innermost).split())[:1000] in str(caught.value)
    assert capfd.readouterr() == ("", ""), "the exporter's own dump is not shown"


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X[:, :, :9], r"input 'x' of model 'Small' has shape \[1, 3, 12, 10\], \[1, 3, 9, 10\] was given; .*resize"),
        (X[0], r"\[3, 12, 10\] was given"),
        (X.repeat(2, 1, 1, 1), r"\[2, 3, 12, 10\] was given"),
        (X.double(), r"dtype float32, float64 was given; .*\(x\.astype\('float32'\) or x\.to\(torch\.float32\)"),
        (X.to(torch.uint8), "uint8 was given"),
        ((X, X), "takes 1 inputs, 2 were given"),
        ((), "takes 1 inputs, 0 were given"),
    ],
    ids=["height", "axes", "batch", "double", "bytes", "two", "none"],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(small: tuple[Small, Model], x: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(small[1], x)
