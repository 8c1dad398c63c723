"""Examples and modules that the exporter cannot take: they are refused before it runs, with the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from nets import Net
from onnx import helper
from PIL import Image
from torch import Tensor, nn

from coedge import CaptureError, capture
from coedge.frontend.opset import newer_than_runtime

SHAPE = (1, 3, 8, 8)
X = torch.zeros(SHAPE)
WAY_OUT = "wrap it in a module whose forward takes tensors by position"


class ByKeyword(nn.Module):
    def forward(self, *, image: Tensor) -> Tensor:
        return image + 1


class KeywordBeside(nn.Module):
    def forward(self, image: Tensor, *, scale: Tensor) -> Tensor:
        return image * scale


class OfDict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"] + 1


class OfMapping(nn.Module):
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["image"] + 1


class OfList(nn.Module):
    def forward(self, images: list[Tensor], targets: Any = None) -> Tensor:
        return images[0] + images[1]


class OfUntypedList(nn.Module):
    def forward(self, images: Any) -> Tensor:
        return images[0] + images[1]


class OfTwo(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image * mask


class WithNumber(nn.Module):
    def forward(self, image: Tensor, scale: float) -> Tensor:
        return image * scale


class OfNothing(nn.Module):
    def forward(self) -> Tensor:
        return torch.zeros(SHAPE)


class WithoutForward(nn.Module):
    pass


@pytest.mark.parametrize(
    ("module", "example", "words"),
    [
        (ByKeyword(), X, "forward of ByKeyword takes 'image' by keyword only; " + WAY_OUT),
        (KeywordBeside(), X, "forward of KeywordBeside takes 'scale' by keyword only; " + WAY_OUT),
        (OfDict(), X, "forward of OfDict takes 'batch' as a list or a dict of tensors; " + WAY_OUT),
        (OfDict(), {"image": X}, "the example holds a dict; .* by position.*" + WAY_OUT),
        (OfMapping(), X, "takes 'batch' as a list or a dict"),
        (OfList(), [X, X], "takes 'images' as a list or a dict of tensors; " + WAY_OUT),
        (OfUntypedList(), [X, X], r"has 2 tensors, forward of OfUntypedList takes 1 \(images\).*" + WAY_OUT),
        (OfUntypedList(), ([X, X],), "the example holds a list; .*" + WAY_OUT),
        (OfTwo(), X, r"the example has 1 tensor, forward of OfTwo takes 2 \(image, mask\); give a tuple"),
        (OfTwo(), (X, X, X), r"the example has 3 tensors, forward of OfTwo takes 2 \(image, mask\)"),
        (OfTwo(), (), "the example has 0 tensors"),
        (WithNumber(), (X, 2.0), "the example holds a float; .*other values too, " + WAY_OUT),
        (OfNothing(), X, r"forward of OfNothing takes 0 \(none by position\)"),
        (WithoutForward(), X, "WithoutForward has no forward"),
        (torch.jit.trace(nn.ReLU(), X), X, "was made by torch.jit, .*give the module that it was made from"),
    ],
)  # fmt: skip
def test_modules_that_take_no_tensors_by_position(module: nn.Module, example: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        capture(module, example)


class Wrapped(nn.Module):
    """The way out that the messages show."""

    def __init__(self) -> None:
        super().__init__()
        self.of_list, self.of_dict, self.by_keyword = OfList(), OfDict(), ByKeyword()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.of_list([self.of_dict({"image": first}), self.by_keyword(image=second)])


class Optional(nn.Module):
    def forward(self, image: Tensor, mask: Tensor | None = None, *, flip: bool = False) -> Tensor:
        return image if mask is None else image * mask


class Several(nn.Module):
    def forward(self, *images: Tensor) -> Tensor:
        return images[0] + images[-1]


def test_modules_that_take_tensors_by_position() -> None:
    for module, count in ((Wrapped(), 2), (Optional(), 1), (Optional(), 2), (Several(), 2)):
        assert len(capture(module, (X + 0.5,) * count).inputs) == count


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (Image.new("RGB", (8, 8)), r"holds a Image, a picture; .*np.asarray\(picture.convert\('RGB'\)\)"),
        ([1.0, 2.0], r"holds a float; give a tensor or an array, \[N, C, H, W\]"),
        ([[1.0, 2.0]], "holds a list"),
        (np.float64(1), "holds a float64; give a tensor or an array"),
        ((X, None), "holds a NoneType"),
        (X.to_sparse(), "the example: a sparse tensor cannot travel; make it dense"),
        (X.bfloat16(), "the example: a tensor of torch.bfloat16 cannot travel"),
        (X.to("meta"), "the example: a tensor on the device 'meta' has no values"),
    ],
)  # fmt: skip
def test_examples_that_are_no_tensors(example: Any, words: str) -> None:
    net = Net()
    for model in (nn.ReLU(), net.proto(net.op("Relu", net.input(SHAPE)))):
        with pytest.raises(CaptureError, match=words):
            capture(model, example)


def test_doubles_are_to_be_converted() -> None:
    with pytest.raises(CaptureError, match=r"'example' is float64; inputs are float32 or uint8; convert it: x.float"):
        capture(nn.ReLU(), np.zeros(SHAPE))


def versions(opset: int = 18, ir_version: int = 8, **others: int) -> onnx.ModelProto:
    """Return a model of these versions; `others` are of other domains."""
    net = Net()
    proto = net.proto(net.op("Relu", net.input(SHAPE)))
    proto.ir_version = ir_version
    del proto.opset_import[:]
    imports = {"": opset, **{name.replace("_", "."): version for name, version in others.items()}}
    proto.opset_import.extend(helper.make_opsetid(*one) for one in imports.items())
    return proto


def test_versions_that_are_too_new_are_named() -> None:
    newest, ir_version = onnx.defs.onnx_opset_version(), onnx.IR_VERSION
    for proto, words in (
        (versions(newest + 1), f"of opset {newest + 1}, newer than the installed onnx .* takes \\(up to {newest}\\)"),
        (versions(ir_version=ir_version + 1), f"of IR version {ir_version + 1}, newer than .*up to {ir_version}"),
        (versions(2**40), "of opset 1099511627776, newer"),
        (versions(ai_onnx_ml=99), "of opset 99 of ai.onnx.ml, newer than the installed onnxruntime"),
    ):
        with pytest.raises(CaptureError, match=f"{words}.*upgrade: pip install --upgrade onnx onnxruntime"):
            capture(proto)
    with pytest.raises(CaptureError, match="of opset 0, which does not exist"):
        capture(versions(0))


def test_the_runtime_may_be_older_than_onnx() -> None:
    """These are messages of ONNX Runtime."""
    text = newer_than_runtime("Unsupported model IR version: 15, max supported IR version: 14")
    assert text is not None and "IR version 15, newer than the installed onnxruntime" in text
    text = newer_than_runtime("Opset 29 is under development and\n so on. Support for domain ai.onnx is till opset 28.")
    assert text is not None and "of opset 29, newer" in text and "(up to 28)" in text
    assert newer_than_runtime("no memory") is None
