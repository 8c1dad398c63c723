"""Test beds: the files in `configs/testbeds`, and the layer times of devices that do not exist.

Capturing takes seconds, so a few networks are tried on every test bed; the deep suite tries the whole zoo.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import Net, deep_after, examples, kept, zoo_model

from coedge import zoo
from coedge.config.key_reference import describe_keys
from coedge.core.errors import ConfigError, PlanError
from coedge.core.objective import Objective
from coedge.core.package_data import REFERENCE_TIMES
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.plan import Prediction
from coedge.profile.cost_model import fit_cost_model
from coedge.profile.layer_work import LayerCost, layer_costs, multiply_adds
from coedge.profile.least_squares import nonnegative_least_squares
from coedge.profile.profile import LayerTime, Profile
from coedge.profile.reference_times import ReferenceModel, leaving, reference_models, reference_times
from coedge.profile.testbed import Testbed as Bed
from coedge.profile.testbed import load_testbed, profile_of
from orchestrator.cli.models import load_model
from orchestrator.planner.planner import make_plan

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "testbeds").glob("*.yaml"))
PAPER = ROOT / "configs" / "testbeds" / "paper.yaml"
PAPERS_NETWORKS = ("alexnet", "vgg_f", "googlenet", "mobilenet_v1")
NETWORKS = deep_after(zoo.NAMES, ("alexnet", "mobilenet_v1", "squeezenet"))

ONE = """\
devices:
  - name: pi
    speed: 0.125
    link: {mbps: 100}
  - name: pc
    speed: 2
    link: {mbps: 1000}
"""


@functools.cache
def network(name: str, size: int | None = None) -> Model:
    """Capture a network as the command line does: uint8 input, normalisation inside."""
    extent = size or zoo.example(name).shape[-1]
    return kept(f"command-line-{name}-{extent}", lambda: load_model(name, extent))


@functools.cache
def plain(name: str) -> Model:
    """Capture a network with float32 input, as the Python API does by default."""
    return kept(f"plain-{name}", lambda: capture(zoo.build(name), zoo.example(name), name="somebody's"))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Bed]:
    def load(text: str, overrides: Sequence[str] = ()) -> Bed:
        path = tmp_path / "bed.yaml"
        path.write_text(text, encoding="utf-8")
        return load_testbed(path, overrides)

    return load


@pytest.fixture
def refusal(load: Callable[..., Bed], tmp_path: Path) -> Callable[..., str]:
    """Return a function that gives the text of the error, without the folder of the file."""

    def refusal(text: str, overrides: Sequence[str] = ()) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, overrides)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refusal


def test_the_expected_test_beds_exist() -> None:
    names = {path.stem for path in FILES}
    assert names >= {"paper", "rack-1000mbps", "rack-100mbps", "home-wifi", "device-edge"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_test_bed_gives_a_profile_of_every_network(path: Path, name: str, tmp_path: Path) -> None:
    testbed, model = load_testbed(path), network(name)
    profile = profile_of(testbed, model)
    profile.check(model)
    assert profile.names == tuple(device.name for device in testbed.devices)
    for device in profile.devices:
        assert len(device.layers) == len(device.fused) == len(model.layers)
        assert all(time.seconds(layer.rows) > 0 for time, layer in zip(device.layers, model.layers))
        assert device.power_source != "configured", "the file says where its watts come from"
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_test_bed_can_be_planned_on(path: Path) -> None:
    model = network("squeezenet")
    plan = make_plan(model, profile_of(load_testbed(path), model), Objective(), "coedge")
    assert plan.predicted is not None
    assert plan.predicted.latency_seconds > 0


def alone(name: str, device: str) -> Prediction:
    """Return the prediction for a network on one device of the paper, which also has the image."""
    profile = profile_of(load_testbed(PAPER, [f"source={device}"]), network(name))
    plan = make_plan(network(name), profile.without(set(profile.names) - {device}), Objective(), "local")
    assert plan.predicted is not None
    return plan.predicted


@pytest.mark.parametrize("name", deep_after(PAPERS_NETWORKS, ("alexnet", "mobilenet_v1")))
@pytest.mark.parametrize(("device", "column"), [("pi-1", 0), ("pi-4", 0), ("tx2", 1), ("pc", 2)])
def test_devices_of_the_paper_take_as_long_as_in_the_paper(name: str, device: str, column: int) -> None:
    printed = {
        "alexnet": (302, 89, 46), "vgg_f": (276, 83, 44), "googlenet": (769, 227, 114), "mobilenet_v1": (226, 71, 37),
    }  # fmt: skip
    predicted = alone(name, device)
    assert predicted.latency_seconds * 1e3 == pytest.approx(printed[name][column], rel=0.01)


def test_a_pi_of_the_paper_takes_the_joules_of_its_figure() -> None:
    """0.891 J in 307 ms for AlexNet, 2.417 J in 833 ms for GoogLeNet: the bars "Local"."""
    for name, joules, milliseconds in (("alexnet", 0.891, 307), ("googlenet", 2.417, 833)):
        predicted = alone(name, "pi-1")
        watts = predicted.energy_joules / predicted.latency_seconds
        assert watts == pytest.approx(joules / milliseconds * 1e3, rel=0.02)


@pytest.mark.parametrize("mbps", [0.05, 0.4, 10, 100])
def test_the_link_of_the_device_is_a_parameter(mbps: float) -> None:
    testbed = load_testbed(ROOT / "configs" / "testbeds" / "device-edge.yaml", [f"devices.device.link.mbps={mbps}"])
    profile = profile_of(testbed, network("squeezenet"))
    assert profile.link("device", "server").bytes_per_second == pytest.approx(mbps * 125_000)
    assert profile.link("server", "device").bytes_per_second == pytest.approx(mbps * 125_000)


def test_the_home_test_bed_has_a_shared_medium() -> None:
    profile = profile_of(load_testbed(ROOT / "configs" / "testbeds" / "home-wifi.yaml"), network("squeezenet"))
    (air,) = profile.media
    assert air.bytes_per_second == 6_250_000
    assert set(air.devices) == set(profile.names)
    assert profile.media_between("phone", "pi-2") == (air,)


def test_times_are_those_of_the_reference_machine_over_the_speed(load: Callable[..., Bed]) -> None:
    model = network("squeezenet")
    times = reference_times(model)
    profile = profile_of(load(ONE), model)
    pi, pc = profile.devices
    for index, (end, inside) in enumerate(zip(times.layers, times.fused)):
        assert pi.layers[index].fixed_seconds == end.fixed_seconds * 8
        assert pi.fused[index].seconds_per_row == inside.seconds_per_row * 8
        assert pc.layers[index].fixed_seconds == end.fixed_seconds / 2
        assert pc.layers[index].seconds_per_row == end.seconds_per_row / 2


def test_a_time_for_a_network_beats_the_speed_and_holds_at_other_sizes(load: Callable[..., Bed]) -> None:
    testbed = load(ONE, ["devices.pi.milliseconds.squeezenet=50"])
    usual, larger = (profile_of(testbed, network("squeezenet", size)) for size in (224, 320))
    assert one_stage(usual, network("squeezenet"), "pi") == pytest.approx(0.050, rel=1e-3)
    slower = one_stage(larger, network("squeezenet", 320), "pi") / one_stage(usual, network("squeezenet"), "pi")
    pc = one_stage(larger, network("squeezenet", 320), "pc") / one_stage(usual, network("squeezenet"), "pc")
    assert slower == pytest.approx(pc), "it is the same factor as of any device"
    other = profile_of(testbed, network("googlenet"))
    seconds = reference_models()["googlenet"].seconds
    assert one_stage(other, network("googlenet"), "pi") == pytest.approx(seconds * 8, rel=1e-3)


def test_without_a_speed_other_networks_run_at_the_mean_of_those_with_times(load: Callable[..., Bed]) -> None:
    of = reference_models()
    milliseconds = {"resnet18": of["resnet18"].seconds * 1e3 / 0.1, "unet": of["unet"].seconds * 1e3 / 0.4}
    testbed = load(ONE, ["devices.pi.speed=null", f"devices.pi.milliseconds={json.dumps(milliseconds)}"])
    seconds = one_stage(profile_of(testbed, network("squeezenet")), network("squeezenet"), "pi")
    assert seconds == pytest.approx(of["squeezenet"].seconds / 0.2, rel=1e-3)


def one_stage(profile: Profile, model: Model, device: str) -> float:
    times = profile.by_name[device]
    last = len(model.layers) - 1
    return sum(times.layer_time(layer.index, layer.index == last).seconds(layer.rows) for layer in model.layers)


def test_a_transfer_is_as_slow_as_the_slower_end(load: Callable[..., Bed]) -> None:
    testbed = load(
        "devices:\n"
        "- {name: a, speed: 1, link: {mbps: 8, down_mbps: 80, latency_ms: 3}}\n"
        "- {name: b, speed: 1, link: {mbps: 40, latency_ms: 0.5}}\n"
        "- {name: c, speed: 1, link: {mbps: 800}}\n"
        "media:\n"
        "- {name: air, devices: [c], mbps: 16}\n"
    )
    profile = profile_of(testbed, network("squeezenet"))
    rates = {(link.sender, link.receiver): link.bytes_per_second / 1e6 for link in profile.links}
    assert rates == {("a", "b"): 1, ("b", "a"): 5, ("a", "c"): 1, ("c", "a"): 2, ("b", "c"): 2, ("c", "b"): 2}
    assert profile.link("a", "b").latency_seconds == pytest.approx(0.0035)
    assert profile.media[0].bytes_per_second == 2e6


def test_a_test_bed_says_what_else_a_profile_has(load: Callable[..., Bed]) -> None:
    changes = [
        "source=pc", "joules=total", "devices.pi.memory_mb=800", "devices.pi.power.compute_watts=3.5",
        "devices.pi.power_source=a guess",
    ]  # fmt: skip
    first, profile = (profile_of(load(ONE, given), network("squeezenet")) for given in ([], changes))
    assert (first.source, first.joules, first.devices[0].memory_bytes) == ("pi", "dynamic", None)
    assert (profile.source, profile.joules) == ("pc", "total")
    assert profile.devices[0].memory_bytes == 8e8
    assert profile.devices[0].power.compute_watts == 3.5
    assert (profile.devices[0].power_source, profile.devices[1].power_source) == ("a guess", "assumed")


def test_a_test_bed_can_be_a_mapping_or_loaded_again(load: Callable[..., Bed]) -> None:
    testbed = load(ONE)
    assert load_testbed(testbed) == testbed
    assert load_testbed({"devices": [{"name": "a", "speed": 1, "link": {"mbps": 1}}]}).devices[0].speed == 1
    assert load_testbed(testbed, ["devices.pc.speed=3", "devices.pc.speed=4"]).devices[1].speed == 4


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("devices: []\n", [], ["bed.yaml:1: devices: must have at least one item"]),
        ("joules: total\n", [], ["bed.yaml:1: devices: must be given", "add `devices: ...`"]),
        ("devices:\n- name: a\n  link: {mbps: 1}\n", [], ["bed.yaml:2: devices.0.speed: must be given"]),
        ("devices:\n- {name: a, speed: 1}\n", [], ["bed.yaml:2: devices.0.link: must be given"]),
        ("devices:\n- {name: a, speed: 1, link: {}}\n", [], ["devices.0.link.mbps: must be given"]),
        (ONE, ["devices.pi.speed=0"], ["devices.0.speed: must be greater than 0; given 0", "number > 0"]),
        (ONE, ["devices.pi.speed=fast"], ["override", "devices.0.speed: must be a number"]),
        (ONE, ["devices.pi.sped=1"], ["devices.0.sped: there is no such key", "did you mean `speed`?"]),
        (ONE, ["devices.pi.mbps=1"], ["devices.0.mbps", "did you mean `devices.N.link.mbps`?"]),
        (ONE, ["devices.0.name=pc"], ["devices.1.name: is also the name of devices.0 (pc)"]),
        (
            ONE,
            ["devices.pi.milliseconds.alexnett=302"],
            [
                "devices.0.milliseconds.alexnett: must be of a network of the zoo: alexnet, vgg_f",
                "Allowed: names, each with a number > 0. By name of a network of the zoo",
                "did you mean `alexnet`?",
            ],
        ),
        (ONE, ["devices.pi.milliseconds.alexnet=0"], ["devices.0.milliseconds.alexnet: must be greater than 0"]),
        (ONE, ["devices.pi.milliseconds=302"], ["devices.0.milliseconds: must be a section, with keys and values"]),
        (ONE, ["source=pii"], ["source: must be a device: pi, pc; given pii", "did you mean `pi`?"]),
        (ONE, ["joules=some"], ["joules: must be one of the allowed values; given some", "dynamic or total"]),
        (
            ONE + "media:\n- {name: air, devices: [pi, pcc], mbps: 5}\n",
            [],
            ["bed.yaml:9: media.0.devices.1: must be a device: pi, pc; given pcc", "did you mean `pc`?"],
        ),
        (ONE + "media:\n- {name: air, devices: pi, mbps: 5}\n", [], ["media.0.devices: must be a list", "[a, b]"]),
        (ONE + "media:\n- {name: air, devices: [], mbps: 5}\n", [], ["media.0.devices: must have at least one item"]),
        (ONE + "media:\n- {name: air, devices: [7], mbps: 5}\n", [], ["bed.yaml:9: media.0.devices.0: must be text"]),
        (
            ONE + "media:\n- {name: m, devices: [pi], mbps: 5}\n- {name: m, devices: [pc], mbps: 5}\n",
            [],
            ["bed.yaml:10: media.1.name: is also the name of media.0 (m)"],
        ),
        ("ray: {address: auto}\n" + ONE, [], ["bed.yaml:1: ray: there is no such key", "keys devices, media, source"]),
    ],
)  # fmt: skip
def test_a_bad_test_bed_is_refused(
    refusal: Callable[..., str], text: str, overrides: list[str], parts: list[str]
) -> None:
    message = refusal(text, overrides)
    assert [part for part in parts if part not in message] == [], message
    assert "\n    Next: " in message


def test_all_problems_are_listed_together(refusal: Callable[..., str]) -> None:
    message = refusal(ONE, ["devices.pi.speed=-1", "devices.pc.link.mbps=0", "devices.mac.speed=1", "joule=1"])
    for key in ("devices.0.speed", "devices.1.link.mbps", "`devices` has no item `mac`", "joule: there is no such"):
        assert key in message


def test_the_error_names_a_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_testbed("nowhere.yaml")


def test_the_environment_of_clusters_does_not_reach_test_beds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COEDGE_SET", "ray.address=auto")
    assert load_testbed(PAPER).devices[0].name == "pi-1"


def test_every_key_is_described_with_its_unit() -> None:
    rows = {row["key"]: row for row in describe_keys(Bed)}
    assert all(row["description"] and row["type"] for row in rows.values())
    assert rows["devices.N.milliseconds"]["type"] == "names, each with a number > 0"
    assert rows["media.N.devices"]["type"] == "list, each text"


def test_the_whole_zoo_was_measured_on_one_machine() -> None:
    found = reference_models()
    assert set(found) == set(zoo.NAMES)
    assert len({model.machine["processor"] for model in found.values()}) == 1
    for name, model in found.items():
        assert (REFERENCE_TIMES / f"{name}.json").exists()
        assert (model.input_dtype, model.input_shape) == ("uint8", tuple(zoo.example(name).shape))
        assert all(layer.layer.time.seconds(layer.cost.rows) > 0 for layer in model.layers)


def test_the_reference_is_small_and_names_no_host() -> None:
    files = list(REFERENCE_TIMES.glob("*.json"))
    assert sum(path.stat().st_size for path in files) < 300_000
    host = os.uname().nodename
    assert len(host) < 4 or not any(host in path.read_text(encoding="utf-8") for path in files)


def test_the_reference_is_installed_with_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["coedge"]
    shipped = {path for pattern in patterns for path in (ROOT / "coedge").glob(pattern)}
    assert shipped >= set(REFERENCE_TIMES.glob("*.json"))


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("alexnet", 0.714), ("vgg16", 15.47), ("mobilenet_v1", 0.569), ("mobilenet_v2", 0.301), ("resnet18", 1.814),
        ("resnet50", 4.089), ("squeezenet", 0.349), ("shufflenet_v2", 0.146),
    ],
)  # fmt: skip
def test_multiply_adds_are_those_that_are_published(name: str, billions: float) -> None:
    layers = reference_models()[name].layers
    counted = sum(layer.cost.multiply_adds for layer in layers if layer.cost.family != "pool")
    assert counted / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_zoo_finds_its_own_times(name: str) -> None:
    times, reference = reference_times(network(name)), reference_models()[name]
    assert (times.like, times.measured, times.estimated) == (name, len(reference.layers), False)
    assert list(times.layers) == [layer.layer.time for layer in reference.layers]
    assert list(times.fused) == [layer.fused.time for layer in reference.layers]
    assert times.seconds == reference.seconds
    assert str(times) == (
        f"layer times of {name} on the reference machine: {times.measured} of {times.measured} layers measured"
    )


@pytest.mark.parametrize("name", deep_after(zoo.NAMES, ("squeezenet",)))
def test_a_renamed_network_without_normalisation_finds_its_own_times(name: str) -> None:
    assert plain(name).inputs[0].dtype == "float32"
    bare, usual = reference_times(plain(name)), reference_times(network(name))
    assert (bare.like, bare.measured, bare.layers, bare.fused) == (name, len(usual.layers), usual.layers, usual.fused)


@pytest.mark.parametrize("size", [112, 320])
def test_another_size_takes_longer_row_by_row_as_it_has_more_columns(size: int) -> None:
    usual, other = network("squeezenet"), network("squeezenet", size)
    times = reference_times(other)
    assert (times.like, times.estimated, times.modelled) == ("squeezenet", True, 0)
    for known, time, a, b in zip(reference_times(usual).layers, times.layers, usual.layers, other.layers):
        if layer_costs(usual)[a.index].multiply_adds:
            assert time.fixed_seconds == known.fixed_seconds
            assert time.seconds_per_row == pytest.approx(known.seconds_per_row * b.cols / a.cols)
    assert "29 of 30 layers scaled from measured ones of their kind" in str(times)


def test_layers_that_are_known_from_other_networks_keep_their_times() -> None:
    """SqueezeNet for ten classes: only its classifier was not measured."""
    model = capture(zoo.build("squeezenet", num_classes=10), zoo.example("squeezenet"))
    times = reference_times(model)
    assert (times.like, times.measured, times.scaled, times.modelled) == (None, 28, 0, 2)
    seen: dict[str, list[LayerTime]] = {}
    for layer in (layer for reference in reference_models().values() for layer in reference.layers):
        seen.setdefault(layer.cost.kind, []).append(layer.layer.time)
    for cost, time in zip(layer_costs(model)[:28], times.layers):
        assert time in seen[cost.kind]
    assert "2 of 30 layers from a regression over all measured layers" in str(times)


@pytest.mark.parametrize(
    "name", deep_after(["resnet18", "shufflenet_v2", "unet", "mobilenet_v3", "densenet"], ["resnet18", "unet"])
)
def test_any_network_has_times(name: str) -> None:
    """A quarter of the width and an odd size: few similar layers were measured."""
    model = zoo_model(name)
    times = reference_times(model)
    assert times.like is None
    assert times.modelled > 0
    assert times.scaled + times.modelled > len(model.layers) / 2
    assert len(times.layers) == len(times.fused) == len(model.layers)
    assert all(time.seconds(layer.rows) > 0 for time, layer in zip(times.layers, model.layers))
    assert 1e-4 < times.seconds < reference_models()[name].seconds
    profile_of(load_testbed(PAPER), model).check(model)


def test_a_network_of_unknown_operators_has_times() -> None:
    net = Net()
    x = net.op("Einsum", net.input((1, 8, 16, 16)), equation="nchw->ncwh")
    model = capture(net.proto(net.op("CumSum", x, net.const(2, "int64"))))
    times = reference_times(model)
    assert times.modelled == len(model.layers)
    assert all(time.seconds(1) > 0 for time in times.layers)


def test_the_error_without_a_reference_says_how_to_make_one() -> None:
    with pytest.raises(PlanError, match=r"python -m benchmarks\.reference"):
        reference_times(network("squeezenet"), {})


def test_ratios_of_codecs_belong_to_the_tensors_at_their_places() -> None:
    model = network("squeezenet")
    known = reference_models()["squeezenet"]
    layers = tuple(
        layer.model_copy(update={"codec_ratios": tuple({"zero_mask": index + 0.5} for _ in leaving(model, index))})
        for index, layer in enumerate(known.layers)
    )
    speeds = {"zero_mask": {"encode_bytes_per_second": 1e9, "decode_bytes_per_second": 2e9}}
    whole = known.model_dump() | {"layers": layers, "codecs": speeds, "input_codec_ratios": {"zero_mask": 0.9}}
    times = reference_times(model, {"squeezenet": ReferenceModel.model_validate(whole)})
    assert times.codec_ratios[model.inputs[0].name] == {"zero_mask": 0.9}
    for cut in model.cuts:
        assert set(cut.tensors) <= set(times.codec_ratios)
    first = leaving(model, 0)
    assert times.codec_ratios[first[0]] == {"zero_mask": 0.5}
    profile = profile_of(load_testbed(PAPER, ["devices.pc.milliseconds={}", "devices.pc.speed=2"]), model, times)
    assert profile.codec_ratios == times.codec_ratios
    assert profile.by_name["pc"].codecs["zero_mask"].decode_bytes_per_second == 4e9
    without = reference_times(plain("squeezenet"), {"squeezenet": ReferenceModel.model_validate(whole)})
    assert plain("squeezenet").inputs[0].name not in without.codec_ratios, "that was the ratio of uint8 pixels"


@pytest.mark.deep
def test_the_benchmark_that_measures_it_writes_such_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.reference", "squeezenet", "--rounds", "1", "--budget", "0.1"]
    subprocess.run([*command, "--folder", str(tmp_path)], cwd=ROOT, check=True, capture_output=True, timeout=200)
    made = ReferenceModel.model_validate_json((tmp_path / "squeezenet.json").read_text(encoding="utf-8"))
    shipped = reference_models()["squeezenet"]
    assert [layer.cost for layer in made.layers] == [layer.cost for layer in shipped.layers]
    assert made.seconds > 0


def costs_of(net: Net, output: str) -> tuple[LayerCost, ...]:
    return layer_costs(capture(net.proto(output)))


def test_a_convolution_counts_its_multiply_adds_and_its_bytes() -> None:
    net = Net()
    x = net.input((1, 4, 20, 10))
    y = net.op("Conv", x, net.weight(8, 4, 3, 3), net.vector(8), pads=[1, 1, 1, 1], strides=[2, 1])
    (cost,) = costs_of(net, net.op("Relu", y))
    assert (cost.family, cost.kind, cost.rows) == ("stem", "Conv 8x4x3x3 s2x1", 10)
    assert cost.multiply_adds == 10 * 10 * 8 * 4 * 9
    assert cost.moved_nbytes == 4 * (4 * 20 * 10 + 8 * 10 * 10), "the convolution's kernel does the Relu"
    assert cost.weight_nbytes == 4 * (8 * 4 * 9 + 8)


@pytest.mark.parametrize(
    ("shape", "attributes", "family", "adds"),
    [
        ((16, 1, 3, 3), {"group": 16, "pads": [1, 1, 1, 1]}, "depthwise", 144 * 16 * 9),
        ((16, 8, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}, "conv", 144 * 16 * 72),
        ((32, 16, 1, 1), {}, "pointwise", 144 * 32 * 16),
        ((5, 16, 5, 5), {"pads": [2, 2, 2, 2]}, "conv", 144 * 5 * 400),
        ((4, 16, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, "conv", 144 * 4 * 144),
    ],
)
def test_convolutions_of_all_kinds(shape: tuple[int, ...], attributes: dict[str, Any], family: str, adds: int) -> None:
    net = Net()
    (cost,) = costs_of(net, net.op("Conv", net.input((1, 16, 12, 12)), net.weight(*shape), **attributes))
    assert (cost.family, cost.multiply_adds) == (family, adds)


def test_a_transposed_convolution_counts_by_its_input() -> None:
    net = Net()
    y = net.op("ConvTranspose", net.input((1, 6, 8, 8)), net.weight(6, 3, 2, 2), strides=[2, 2])
    (cost,) = costs_of(net, y)
    assert (cost.family, cost.rows, cost.multiply_adds) == ("transposed", 16, 64 * 6 * 3 * 4)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_dense_layers_read_a_row_of_weights_for_each_output(op: str) -> None:
    net = Net()
    x = net.op("Flatten", net.op("GlobalAveragePool", net.input((1, 24, 6, 6))))
    given = {"transB": 1} if op == "Gemm" else {}
    weight = net.weight(10, 24) if op == "Gemm" else net.weight(24, 10)
    cost = costs_of(net, net.op(op, x, weight, **given))[-1]
    assert (cost.family, cost.multiply_adds, cost.weight_nbytes) == ("dense", 240, 0)
    assert cost.moved_nbytes >= 4 * 240


def test_pooling_counts_the_elements_of_its_windows() -> None:
    net = Net()
    y = net.op("MaxPool", net.input((1, 4, 12, 12)), kernel_shape=[3, 2], strides=[2, 2])
    (cost,) = costs_of(net, y)
    assert (cost.family, cost.kind, cost.multiply_adds) == ("pool", "MaxPool 3x2 s2x2", 5 * 6 * 4 * 6)


def test_work_on_one_pixel_is_no_part_of_what_grows_with_the_rows() -> None:
    """Squeeze and excite: two dense layers as 1x1 convolutions, whose result scales an image."""
    net = Net()
    x = net.op("Conv", net.input((1, 8, 16, 16)), net.weight(32, 8, 1, 1))
    pooled = net.op("GlobalAveragePool", x)
    squeezed = net.op("Relu", net.op("Conv", pooled, net.weight(4, 32, 1, 1)))
    y = net.op("Mul", x, net.op("Sigmoid", net.op("Conv", squeezed, net.weight(32, 4, 1, 1))))
    excite = costs_of(net, y)[-1]
    assert (excite.family, excite.rows, excite.multiply_adds) == ("other", 16, 0)
    assert excite.weight_nbytes >= 4 * 2 * 32 * 4
    assert excite.moved_nbytes >= 4 * 2 * 32 * 16 * 16


def test_views_and_unknown_operators_multiply_nothing() -> None:
    net = Net()
    y = net.op("CumSum", net.input((1, 2, 8, 8)), net.const(1, "int64"))
    model = capture(net.proto(y))
    assert multiply_adds(model, model.graph.nodes[0]) == 0
    (cost,) = layer_costs(model)
    assert (cost.family, cost.moved_nbytes) == ("other", 2 * 4 * 128)


def test_the_fit_recovers_a_machine_that_follows_the_model() -> None:
    def cost(adds: float, moved: float, weights: float) -> LayerCost:
        return LayerCost("conv", "", 8, adds, moved, weights)

    def seconds(c: LayerCost) -> LayerTime:
        per_row = (2e-11 * c.multiply_adds + 5e-11 * c.moved_nbytes) / c.rows
        return LayerTime(fixed_seconds=3e-11 * c.weight_nbytes + 4e-5, seconds_per_row=per_row)

    random = np.random.default_rng(0)
    costs = [cost(*(10 ** random.uniform(low, 8) for low in (6, 5, 3))) for _ in range(20)]
    model = fit_cost_model((c, seconds(c)) for c in costs)
    unseen = cost(3e7, 2e6, 1e5)
    assert model.time(unseen).seconds(8) == pytest.approx(seconds(unseen).seconds(8), rel=1e-6)
    assert model.time(unseen).seconds(2) == pytest.approx(seconds(unseen).seconds(2), rel=1e-6)
    assert model.anything == pytest.approx((2e-11, 5e-11, 3e-11, 4e-5), rel=1e-6)


@examples(100)
@given(st.data())
def test_non_negative_least_squares_is_optimal(data: st.DataObject) -> None:
    """The optimality conditions: x >= 0; the gradient is >= 0 where x = 0, and 0 where x > 0."""
    values = st.floats(-10, 10).map(lambda value: round(value, 2))
    rows, columns = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    design = np.array(data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns)))
    design = design.reshape(rows, columns)
    target = np.array(data.draw(st.lists(values, min_size=rows, max_size=rows)))
    x = nonnegative_least_squares(design, target)
    slope = design.T @ (design @ x - target)
    small = 1e-6 * (1 + np.abs(design).max() ** 2 * (1 + np.abs(x).max()) + np.abs(design.T @ target).max())
    assert (x >= 0).all()
    assert (slope >= -small).all()
    assert (np.abs(slope[x > 0]) <= small).all()


def test_networks_that_were_held_out_are_predicted() -> None:
    """Each network is predicted by a cost model of the other thirteen."""
    errors = {}
    for name, held_out in reference_models().items():
        others = [layer for other, model in reference_models().items() if other != name for layer in model.layers]
        ends = fit_cost_model((layer.cost, layer.layer.time) for layer in others)
        inside = fit_cost_model((layer.cost, layer.fused.time) for layer in others)
        predicted = sum(inside.time(layer.cost).seconds(layer.cost.rows) for layer in held_out.layers[:-1])
        predicted += ends.time(held_out.layers[-1].cost).seconds(held_out.layers[-1].cost.rows)
        errors[name] = predicted / held_out.seconds - 1
    print(", ".join(f"{name} {error:+.0%}" for name, error in errors.items()))
    assert statistics.median(abs(error) for error in errors.values()) < 0.25
    assert max(abs(error) for error in errors.values()) < 0.6


def test_layers_of_networks_that_were_held_out_are_predicted() -> None:
    errors = []
    for name, held_out in reference_models().items():
        others = [layer for other, model in reference_models().items() if other != name for layer in model.layers]
        ends = fit_cost_model((layer.cost, layer.layer.time) for layer in others)
        for layer in held_out.layers:
            rows = layer.cost.rows
            errors.append(abs(ends.time(layer.cost).seconds(rows) / layer.layer.time.seconds(rows) - 1))
    print(f"layers: median error {statistics.median(errors):.1%}, p95 {sorted(errors)[int(0.95 * len(errors))]:.0%}")
    assert statistics.median(errors) < 0.25


def test_predictions_grow_with_the_work() -> None:
    model = fit_cost_model((layer.cost, layer.layer.time) for m in reference_models().values() for layer in m.layers)
    for family in ("conv", "pointwise", "depthwise", "dense", "pool", "other", "never seen"):
        small = LayerCost(family, "", 8, 1e6, 1e5, 1e4)  # type: ignore[arg-type]
        large = LayerCost(family, "", 8, 1e7, 1e6, 1e5)  # type: ignore[arg-type]
        assert 0 < model.time(small).seconds(8) < model.time(large).seconds(8)
        assert math.isfinite(model.time(large).seconds(8))
