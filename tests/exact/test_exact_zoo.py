"""Split output equals unsplit output: every network of the zoo, on strips, grids and stages of all kinds.

The reference is ONNX Runtime on the captured network before any rewrite, and the torch module. The output of a deep
network with random weights hardly depends on its borders. Therefore every patch that a device computes is compared with
its part of the unsplit tensor, too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from nets import (
    SUITE,
    TOLERANCE,
    check_split,
    deep_after,
    difference,
    examples,
    make_plan,
    one_stage,
    plans,
    unsplit,
    zoo_image,
    zoo_kernels,
    zoo_model,
    zoo_net,
    zoo_values,
)

import coedge
from coedge import zoo
from coedge.core.region import UNIT, Interval, UnitRect
from coedge.graph.axis_map import Window
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage, even_plan, strips

ALL = 10_000

# Arguments of `even_plan`. Boundaries 0.004 and 0.996 leave a device without rows, 0.01 and 0.99 with at most one.
SPLITS: dict[str, dict[str, Any]] = {
    **{f"{n} devices": {"devices": n} for n in range(1, 7)},
    "uneven": {"devices": 4, "boundaries": [0.07, 0.6, 0.71]},
    "one row at the top": {"devices": 3, "boundaries": [0.01, 0.5]},
    "none at the top": {"devices": 3, "boundaries": [0.004, 0.4]},
    "none in the middle": {"devices": 4, "boundaries": [0.3, 0.3, 0.8]},
    "none at the bottom": {"devices": 4, "boundaries": [0.5, 0.996, 1.0]},
    "grid 2x2": {"grid": (2, 2)},
    "grid 2x3": {"grid": (2, 3)},
}
SHORT_SPLITS = ("3 devices", "one row at the top", "none in the middle", "grid 2x3")


def check(name: str, plan: Plan, batch: int = 1) -> list[np.ndarray]:
    expected, inside = zoo_values(name, batch)
    x = zoo_image(name, batch).numpy()
    return check_split(zoo_model(name, batch), plan, [x], expected, inside, kernels=zoo_kernels(name, batch))


@pytest.mark.parametrize("stage_layers", [1, 3, ALL])
@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("splits", [SHORT_SPLITS, pytest.param(tuple(SPLITS), marks=pytest.mark.deep)], ids=len)
def test_split_is_exact(name: str, splits: tuple[str, ...], stage_layers: int) -> None:
    for split in splits:
        check(name, even_plan(zoo_model(name), stage_layers=stage_layers, **SPLITS[split]))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_agrees_with_torch(name: str) -> None:
    model, net, x = zoo_model(name), zoo_net(name), zoo_image(name)
    with torch.inference_mode():
        expected = net(x)
    got = coedge.run_in_process(model, even_plan(model, 3, stage_layers=2), x)
    assert type(got) is type(expected)
    pairs = [(got[k], expected[k]) for k in expected] if isinstance(expected, dict) else [(got, expected)]
    for a, b in pairs:
        assert isinstance(a, torch.Tensor)
        assert difference(a.numpy(), b.numpy()) <= 1e-3


@pytest.mark.parametrize("name", ["squeezenet", "ssd"])
def test_a_kept_export_gives_the_model_that_a_capture_gives(name: str, tmp_path: Path, monkeypatch) -> None:
    """Other tests read exported networks from disk. Here one process writes an export and reads it."""
    monkeypatch.setattr(SUITE, "captures", tmp_path)
    made, read = (zoo_model.__wrapped__(name) for _ in range(2))
    assert len(list(tmp_path.glob("*.onnx"))) == 1
    assert (read.hash, read.structure, read.layers, read.rules) == (made.hash, made.structure, made.layers, made.rules)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "unet", "ssd"])
@pytest.mark.parametrize("stage_layers", deep_after([1, 4], [4]))
def test_two_images_at_once(name: str, stage_layers: int) -> None:
    model = zoo_model(name, batch=2)
    for split in ({"devices": 3}, {"grid": (2, 2)}):
        outputs = check(name, even_plan(model, stage_layers=stage_layers, **split), batch=2)
        assert any(difference(value[0], value[1]) > 1e-3 for value in outputs), "the image matters"


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "mobilenet_v3", "ssd"])
def test_one_stage_of_splittable_and_whole_layers(name: str) -> None:
    """Layers that cannot be split are exact on strips, too: every device computes the whole layer."""
    model = zoo_model(name)
    splittable = {layer.splittable for layer in model.layers}
    assert splittable == {True, False}
    for regions in (
        strips({"a": 1, "b": 2, "c": 3}),
        {"a": UnitRect(0, 1, 0, 0.3), "b": UnitRect(0, 1, 0.3, 1)},
    ):
        check(name, one_stage(model, regions, "a"))
        check(name, make_plan(model, [(1, regions)] * len(model.layers), "b"))


@pytest.mark.parametrize("name", ["resnet18", "unet", "ssd"])
def test_the_sink_may_differ_from_the_source(name: str) -> None:
    model = zoo_model(name)
    count = len(model.layers)
    regions = strips({"b": 1, "c": 1})
    check(name, make_plan(model, [(2, regions), (count - 2, {"c": UNIT})], "a", "d"))
    check(name, make_plan(model, [(count // 2, {"a": UNIT}), (count - count // 2, {"b": UNIT})], "a", "b"))
    check(name, even_plan(model, 3, stage_layers=5).model_copy(update={"sink": "device-2"}))


@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet_v2", "unet"])
@given(data=st.data())
@examples(25)
def test_any_plan(name: str, data: st.DataObject) -> None:
    plan = data.draw(plans(zoo_model(name)))
    note(str(plan))
    check(name, plan)


def test_the_order_of_strips_may_change_at_every_stage() -> None:
    """The order of the strips changes at every stage, so each device fetches from all others."""
    model = zoo_model("squeezenet")
    turns = [strips(dict.fromkeys(names, 1.0)) for names in (["a", "b", "c"], ["c", "a"], ["b", "c", "a"])]
    check("squeezenet", make_plan(model, [(1, turns[i % 3]) for i in range(len(model.layers))], "a"))


@dataclasses.dataclass(frozen=True, slots=True)
class _Shifted(Window):
    """Window that is shifted by one row away from the border."""

    def needs(self, out: Interval) -> Interval:
        right = Window.needs(self, out)
        clear = right.start > 0 and right.stop < self.extent
        return Interval(right.start - 1, right.stop - 1) if clear else right


def test_a_wrong_halo_is_detected() -> None:
    """A layer in the middle reads its rows one row too high, and the comparison fails."""
    model = zoo_model("vgg16")
    index = next(n.index for n in model.graph.nodes if n.op == "Conv" and n.index > 4)
    rule = model.rules[index]
    ((source, (rows, cols)),) = rule.maps.items()
    assert isinstance(rows, Window)
    shifted = _Shifted(rows.extent, rows.kernel, rows.stride, rows.dilation, rows.pad)
    broken = dataclasses.replace(rule, maps={source: (shifted, cols)})
    rules = (*model.rules[:index], broken, *model.rules[index + 1 :])
    wrong: Model = dataclasses.replace(model, rules=rules)
    expected, inside = zoo_values("vgg16")
    with pytest.raises(AssertionError, match=r"differs by|device-1 made"):
        check_split(wrong, even_plan(wrong, 3), [zoo_image("vgg16").numpy()], expected, inside)


def test_the_unsplit_reference_agrees_with_torch() -> None:
    """The captured ONNX before any rewrite is compared with the module."""
    for name in zoo.NAMES:
        model, net, x = zoo_model(name), zoo_net(name), zoo_image(name)
        with torch.inference_mode():
            value = net(x)
        wanted = list(value.values()) if isinstance(value, dict) else [value]
        for a, b in zip(unsplit(model, [x.numpy()]), wanted, strict=True):
            assert difference(a, b.numpy()) <= 1e-3


def test_stages_that_are_one_layer_each_equal_one_stage() -> None:
    model = zoo_model("densenet")
    many = check("densenet", even_plan(model, 2, stage_layers=1))
    one = check("densenet", make_plan(model, [(len(model.layers), {"a": UNIT})], "a"))
    assert difference(many[0], one[0]) <= TOLERANCE
    assert (
        Stage(first=0, last=len(model.layers) - 1, regions={"a": UNIT})
        == make_plan(model, [(len(model.layers), {"a": UNIT})], "a").stages[0]
    )
