"""The zoo: seeded weights, published sizes, outputs of normal magnitude. Small widths keep the tests short."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from coedge import zoo
from coedge.zoo._common import feature_size

FIXED_SIZE = ("alexnet", "vgg_f", "vgg16")
PUBLISHED = {
    "alexnet": 61.10e6,  # the single-tower variant; the two-tower one of 2012, joined up, has 62.4e6
    "vgg16": 138.36e6,
    "googlenet": 7.00e6,  # 1.0e6 of it in the classifier
    "mobilenet_v1": 4.23e6,
    "mobilenet_v2": 3.50e6,
    "mobilenet_v3": 5.48e6,
    "resnet18": 11.69e6,
    "resnet50": 25.56e6,
    "squeezenet": 1.235e6,
    "shufflenet_v2": 2.28e6,
}


def light(name: str, size: int | tuple[int, int] = 96, **options: Any) -> torch.nn.Module:
    if name in FIXED_SIZE:
        options["image_size"] = size
    return zoo.build(name, width=0.25, **options)


def outputs(net: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        out = net(x)
    return out if isinstance(out, dict) else {"out": out}


@pytest.mark.parametrize("name", zoo.NAMES)
def test_weights_are_the_same_each_time_and_the_global_random_state_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    first = light(name)
    torch.rand(3)
    moved = torch.get_rng_state()
    second = light(name)
    assert torch.equal(torch.get_rng_state(), moved)
    torch.set_rng_state(before)

    assert not any(module.training for module in first.modules())
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    other = light(name, seed=1).state_dict()
    assert not any(torch.equal(a[key], other[key]) for key in a if a[key].is_floating_point())


@pytest.mark.parametrize("name", zoo.NAMES)
def test_batch_norm_is_not_the_identity(name: str) -> None:
    for module in light(name).modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            assert (module.running_mean != 0).any() and (module.running_var != 1).any()
            assert (module.running_var > 0.1).all()


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("size", [96, (65, 91)])
def test_outputs_have_shape_and_normal_magnitude(name: str, size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    net = light(name, size, num_classes=7)
    got = outputs(net, zoo.example(name, batch=2, image_size=size))

    if name == "ssd":
        anchors = got["scores"].shape[1]
        assert anchors > 0
        expected = {"scores": (2, anchors, 7), "boxes": (2, anchors, 4)}
    elif name == "unet":
        expected = {"out": (2, 7, height, width)}
    else:
        expected = {"out": (2, 7)}
    assert {key: tuple(value.shape) for key, value in got.items()} == expected
    for value in got.values():
        assert value.isfinite().all()
        assert value.std() > 0.01
        assert 0.1 < value.abs().max() < 100
        assert not torch.allclose(value[0], value[1], rtol=1e-4)  # the image matters


@pytest.mark.parametrize("name", sorted(set(zoo.NAMES) - set(FIXED_SIZE)))
def test_networks_take_small_images(name: str) -> None:
    got = outputs(light(name), zoo.example(name, image_size=32))
    assert all(value.isfinite().all() for value in got.values())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "ssd", "unet"])
def test_networks_of_full_width_take_images_of_the_usual_size(name: str) -> None:
    shapes = {key: tuple(value.shape) for key, value in outputs(zoo.build(name), zoo.example(name)).items()}
    anchors = 4 * 19**2 + 6 * 10**2 + 6 * 5**2 + 4 * 3**2
    expected = {
        "ssd": {"scores": (1, anchors, 21), "boxes": (1, anchors, 4)},
        "unet": {"out": (1, 2, 224, 224)},
    }
    assert shapes == expected.get(name, {"out": (1, 1000)})


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_those_of_the_papers(name: str) -> None:
    with torch.device("meta"):  # counting needs no memory
        count = sum(parameter.numel() for parameter in zoo.build(name).parameters())
    assert count == pytest.approx(PUBLISHED[name], rel=0.01)


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'resnet50'") as caught:
        zoo.build("resnet-50")
    assert all(name in str(caught.value) for name in zoo.NAMES)
    with pytest.raises(ValueError, match="unknown network 'nothing'"):
        zoo.example("nothing")


def test_an_image_that_is_too_small_is_refused() -> None:
    for name in FIXED_SIZE:
        with pytest.raises(ValueError, match="too small"):
            light(name, 10)


def test_feature_size_agrees_with_torch() -> None:
    for ceil_mode in (False, True):
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 1, (5, 3), (2, 1), (1, 0)),
            torch.nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode),
            torch.nn.MaxPool2d(2, 3, ceil_mode=ceil_mode),
        )
        for side in range(12, 40):
            shape = layers(torch.zeros(1, 1, side, side + 5)).shape[2:]
            assert feature_size(layers, (side, side + 5)) == tuple(shape)


def test_examples_are_seeded_and_of_the_given_shape() -> None:
    state = torch.get_rng_state()
    assert zoo.example("ssd").shape == (1, 3, 300, 300)
    assert zoo.example("vgg16", batch=3).shape == (3, 3, 224, 224)
    half = zoo.example("unet", image_size=(32, 48), dtype=torch.float16)
    assert half.shape == (1, 3, 32, 48) and half.dtype == torch.float16
    assert torch.equal(zoo.example("alexnet"), zoo.example("alexnet"))
    assert torch.equal(torch.get_rng_state(), state)


def test_listing_the_networks_does_not_import_torch() -> None:
    code = "import sys; from coedge import zoo; assert zoo.NAMES; sys.exit('torch' in sys.modules)"
    environment_path = [path for path in sys.path if path]
    assert (
        subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {environment_path!r}; {code}"]).returncode
        == 0
    )
