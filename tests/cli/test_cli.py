"""Tests of the command line: output, exit codes, and error messages."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import fails, small_network
from nets import Net
from test_algorithm_1 import synthetic_profile

from coedge.config.loading import load_config
from coedge.core.version import VERSION
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.cli.defaults import demo_config
from orchestrator.cli.models import load_model
from orchestrator.cli.options import seconds

COMMANDS = ("demo", "devices", "plan", "simulate", "pareto", "run", "bench", "version")
MODEL, SIZE = "squeezenet", "64"

CLUSTER = """
devices:
  - {name: big, speed: 0.5, link: {mbps: 200, latency_ms: 0.2}, power: {compute_watts: 8.0, transmit_watts: 1.0}}
  - {name: small, speed: 0.25, link: {mbps: 100, latency_ms: 0.2}, power: {compute_watts: 2.0, transmit_watts: 0.5}}
source: big
"""


@functools.cache
def small_profile() -> Profile:
    model = load_model(MODEL, int(SIZE))
    return synthetic_profile(model, {"big": 0.5, "small": 0.25}, 1e8, watts={"big": (8.0, 1.0), "small": (2.0, 0.5)})


@pytest.fixture
def profile(tmp_path: Path) -> str:
    small_profile().save(tmp_path / "profile.json")
    return "profile.json"


def test_help_lists_the_commands(cli) -> None:
    result = cli("--help")
    assert result.code == 0
    assert all(f"  {command} " in result.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert f"Example: coedge {command}" in result.out
    assert "--json" in result.out


def test_no_command_shows_help(cli) -> None:
    result = cli()
    assert result.code == 2
    assert all(command in result.err + result.out for command in ("plan", "run", "bench", "devices"))


def test_version(cli) -> None:
    assert cli("version") == (0, f"{VERSION}\n", "")
    assert json.loads(cli("version", "--json").out) == {"version": VERSION}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["frobnicate"], ["No such command", "frobnicate", "coedge --help"]),
        (["plan"], ["Missing argument", "coedge plan --help"]),
        (["plan", MODEL, "--frob"], ["No such option", "--frob"]),
        (["plan", MODEL, "--size", "big"], ["--size", "integer"]),
        (["plan", MODEL, "--size", "0"], ["--size"]),
        (["run", MODEL, "--size", "-3"], ["--size"]),
        (["run", MODEL, "--repeat", "0"], ["--repeat"]),
        (["plan", MODEL, "--deadline", "soon"], ["--deadline", "'soon'", "100ms"]),
        (["plan", MODEL, "--deadline", "-5ms"], ["--deadline", "100ms"]),
        (["run", MODEL, "--deadline", "0s"], ["'0s' is not a duration"]),
        (["run", MODEL, "--deadline", "5min"], ["'5min' is not a duration"]),
        (["run", MODEL, "--budget", "soon"], ["--budget", "'soon' is not a duration"]),
        (["plan", MODEL, "--profile", "p.json", "--budget", "5s"], ["--budget limits the measuring of a cluster"]),
        (["run", MODEL, "--goal", "speed"], ["--goal is latency, energy or throughput", "'speed'"]),
        (["bench", "--frames", "0"], ["--frames"]),
        (["bench", "--models", ","], ["--models is empty"]),
        (["bench", "--against", "tflite"], ["--against is onnxruntime, torch", "'tflite'"]),
        (["bench", "--out", "no/such"], ["no/such", "no folder"]),
        (["plan", MODEL, "--save", "no/such/plan.json"], ["no/such/plan.json", "no folder"]),
        (["plan", MODEL, "--save-profile", "no/p.json"], ["no/p.json", "no folder"]),
        (["plan", MODEL, "--save", "."], ["is a folder"]),
        (["run", MODEL, "--trace", "no/trace.json"], ["no/trace.json", "no folder"]),
        (["plan", MODEL, "--profile", "p.json", "--cluster", "c.yaml"], ["--profile", "--cluster"]),
        (["plan", MODEL, "--profile", "p.json", "--set", "devices.0.speed=1"], ["--profile", "--set"]),
        (["plan", MODEL, "--compare", "--save", "p.json"], ["--compare", "--save"]),
        (["run", MODEL, "--plan", "p.json", "--scheme", "local"], ["--plan", "--scheme"]),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_usage_exits_with_2(cli, args: list[str], words: list[str], as_json: bool) -> None:
    result = cli(*args, *["--json"] * as_json)
    fails(result, 2, *words)
    if as_json:
        said = json.loads(result.out)
        assert said["error"] and said["message"]
    else:
        assert result.out == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["plan", "resnet19"], ["unknown network 'resnet19'", "did you mean 'resnet18'?", ".onnx", "package.module"]),
        (["run", "mobilenetv2"], ["did you mean 'mobilenet_v2'?"]),
        (["run", "resnet18.pth"], [".pth files hold weights", ".onnx"]),
        (["run", "missing.onnx"], ["missing.onnx does not exist"]),
        (["run", "missing.pt2"], ["missing.pt2 does not exist"]),
        (["run", "junk.onnx"], ["junk.onnx cannot be read as ONNX"]),
        (["run", "vgg16", "--size", "8"], ["vgg16", "8 x 8 is too small", "--size"]),
        (["run", MODEL, "nowhere.jpg", "--size", SIZE], ["there is no image nowhere.jpg"]),
        (["run", MODEL, "junk.onnx", "--size", SIZE], ["junk.onnx cannot be read as an image"]),
        (["run", MODEL, "--size", SIZE, "--plan", "nowhere.json"], ["cannot read the plan nowhere.json"]),
        (["run", MODEL, "--size", SIZE, "--plan", "junk.json"], ["junk.json is not a plan"]),
        (["plan", MODEL, "--profile", "nowhere.json"], ["cannot read the profile nowhere.json"]),
        (["plan", MODEL, "--profile", "junk.json"], ["junk.json is not a profile"]),
        (["plan", MODEL, "--profile", "."], ["cannot read the profile ."]),
        (["plan", MODEL, "--scheme", "modn"], ["there is no scheme 'modn'", "Did you mean 'modnn'?"]),
        (["run", MODEL, "--scheme", "best"], ["there is no scheme 'best'", "auto, local, offload, equal"]),
        (["devices", "--cluster", "nowhere.yaml"], ["nowhere.yaml: cannot be read", "give the path of a YAML file"]),
        (["devices", "--cluster", "junk.onnx"], ["junk.onnx"]),
        (["plan", MODEL, "--cluster", "."], [".: cannot be read"]),
        (["plan", MODEL, "--set", "devices.0.speed=2"], ["devices.0.speed", "less than or equal to 1", "given 2"]),
        (["plan", MODEL, "--set", "devices.9.speed=1"], ["devices.9"]),
        (["run", MODEL, "--set", "scheem=local"], ["scheem", "did you mean `scheme`?"]),
        (["run", MODEL, "--set", "speed"], ["'speed'", "key=value"]),
        (["devices", "--set", "scheme=modn"], ["there is no scheme 'modn'"]),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_errors_exit_with_1(cli, tmp_path: Path, args: list[str], words: list[str], as_json: bool) -> None:
    (tmp_path / "junk.onnx").write_text("this is no model")
    (tmp_path / "junk.json").write_text("{")
    result = cli(*args, *["--json"] * as_json)
    fails(result, 1, *words)
    if as_json:
        said = json.loads(result.out)
        assert set(said) == {"error", "message"}
        assert said["error"].endswith("Error") and said["message"] in result.err
    else:
        assert result.out == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100ms", 0.1), ("0.1s", 0.1), ("100", 0.1), (".5s", 0.5), (" 20 ms ", 0.02), ("1S", 1.0), ("5MS", 0.005)],
)
def test_durations_are_parsed(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


FACTORIES = """
import torch

def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())

ready = small()
number = 3

def broken():
    raise RuntimeError("the weights are not here")

def of_size(size):
    return small()

def text():
    return "resnet18"
"""


@pytest.fixture
def factories(tmp_path: Path) -> str:
    """Write a module to the folder of the command, under a name that no other test imports."""
    name = f"nets_of_{abs(hash(tmp_path.name)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / f"{name}_syntax.py").write_text("def f(:\n")
    (tmp_path / f"{name}_import.py").write_text("import there_is_no_such_package\n")
    return name


@pytest.mark.parametrize("attribute", ["small", "ready"])
def test_a_factory_in_the_current_folder_is_a_model(cli, tmp_path: Path, factories: str, attribute: str) -> None:
    missing = cli("run", f"{factories}:{attribute}", "nowhere.jpg", "--size", "16")
    fails(missing, 1, "there is no image nowhere.jpg")  # the model was found and captured before
    model = load_model(f"{factories}:{attribute}", 16)
    assert model.name == attribute and model.inputs[0].dtype == "uint8"
    synthetic_profile(model, {"a": 0.5, "b": 0.5}).save(tmp_path / "own.json")
    result = cli("plan", f"{factories}:{attribute}", "--size", "16", "--profile", "own.json", "--json")
    assert result.code == 0 and json.loads(result.out)["model_name"] == attribute


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}:smal", ["has no 'smal'", "did you mean 'small'?"]),
        ("{}:broken", ["raised RuntimeError: the weights are not here"]),
        ("{}:of_size", ["raised TypeError", "size", "called without arguments"]),
        ("{}:text", ["made a str, not a torch.nn.Module"]),
        ("{}:number", ["made a int, not a torch.nn.Module"]),
        ("{}_syntax:f", ["cannot import", "SyntaxError"]),
        ("{}_import:f", ["cannot import", "there_is_no_such_package"]),
        ("nowhere_at_all:f", ["cannot import 'nowhere_at_all'", "ModuleNotFoundError"]),
        ("{}:", ["is not package.module:factory"]),
        (":small", ["is not package.module:factory"]),
        (".nets:small", ["is not package.module:factory"]),
        ("{}.py:small", ["cannot import"]),
        ("nets/own:small", ["is not package.module:factory"]),
    ],
)
def test_broken_factories_are_reported(cli, factories: str, spec: str, words: list[str]) -> None:
    fails(cli("run", spec.format(factories), "--size", "16"), 1, *words)


def onnx_file(path: Path, shape: list[Any], dtype: str = "float32") -> str:
    net = Net()
    x = net.input(shape, dtype)
    if dtype == "uint8":
        x = net.op("Cast", x, to=onnx.TensorProto.FLOAT)
    net.op("Conv", x, net.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])
    onnx.save(net.proto(net.nodes[-1].output[0]), str(path))
    return str(path)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_an_onnx_file_with_open_dimensions_takes_the_size(tmp_path: Path, dtype: str) -> None:
    model = load_model(onnx_file(tmp_path / "open.onnx", ["N", 3, "H", "W"], dtype), 48)
    assert model.inputs[0].shape == (1, 3, 48, 48) and model.inputs[0].dtype == dtype


def test_an_onnx_file_with_fixed_dimensions_keeps_them(cli, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "fixed.onnx", [1, 3, 20, 24])
    model = load_model(path, 48)
    assert model.inputs[0].shape == (1, 3, 20, 24)
    synthetic_profile(model, {"a": 0.5}).save(tmp_path / "fixed.json")
    result = cli("plan", path, "--profile", "fixed.json", "--json")
    assert result.code == 0 and json.loads(result.out)["devices"] == ["a"]


def test_an_onnx_file_that_takes_no_single_image_is_refused(cli, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "five.onnx", [2, 3, 20, 24])
    fails(cli("run", path), 1, "[2, 3, 20, 24]", "not one image")


def test_plan_on_a_saved_profile(cli, profile: str) -> None:
    result = cli("plan", MODEL, "--size", SIZE, "--profile", profile, "--scheme", "coedge", "--json")
    assert result.code == 0, result.err
    read = json.loads(result.out)
    assert read["scheme"] == "coedge" and read["devices"] == ["big", "small"] and read["feasible"] is True
    assert set(read["predicted"]) == {"latency_seconds", "energy_joules", "throughput_fps", "bound_seconds"}
    assert 0 < read["predicted"]["bound_seconds"] <= read["predicted"]["latency_seconds"]
    assert read["energy_source"] == "modelled, watts: configured"


def test_a_plan_is_shown_as_a_table(cli, profile: str) -> None:
    result = cli("plan", MODEL, "--size", SIZE, "--profile", profile, "--scheme", "equal")
    assert result.code == 0
    assert "plan equal" in result.out and "big 50%, small 50%" in result.out
    assert "predicted:" in result.out and " ms" in result.out and "(modelled, watts: configured)" in result.out
    assert "x the divisible-load bound" in result.out


@pytest.mark.deep
def test_an_infeasible_deadline_shows_the_nearest_plan(cli, profile: str) -> None:
    args = ("plan", MODEL, "--size", SIZE, "--profile", profile, "--goal", "energy", "--deadline", "0.01ms")
    read = json.loads(cli(*args, "--json").out)
    assert read["feasible"] is False and "the deadline is 0.01 ms" in read["reason"] and read["stages"]
    shown = cli(*args).out
    assert "infeasible:" in shown and "infeasible, the nearest plan" in shown


def test_a_saved_plan_is_loaded_again(cli, profile: str, tmp_path: Path) -> None:
    assert cli("plan", MODEL, "--size", SIZE, "--profile", profile, "--save", "plan.json").code == 0
    model = load_model(MODEL, int(SIZE))
    assert Plan.load(tmp_path / "plan.json", model).predicted is not None
    fails(cli("run", MODEL, "--size", "96", "--plan", "plan.json"), 1, "the plan is for model", "this is")


def test_the_profile_of_another_size_is_refused(cli, profile: str) -> None:
    fails(cli("plan", MODEL, "--size", "96", "--profile", profile), 1, "the profile is of model", "measure this one")


def in_a_process(folder: Path, *args: str) -> str:
    """Run a command as a user does, and return what it printed."""
    command = [sys.executable, "-m", "coedge", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
def test_a_command_in_a_process_of_its_own_prints_json_only(tmp_path: Path) -> None:
    """The process starts Ray and ends it. What Ray prints does not reach the standard output."""
    (tmp_path / "two.yaml").write_text(CLUSTER + f"cache_dir: {tmp_path / 'cache'}\n")
    network = small_network(tmp_path / "small.onnx", flat=True)
    args = ("run", network, "--size", SIZE, "--scheme", "equal", "--repeat", "2", "--cluster", "two.yaml", "--json")
    run = json.loads(in_a_process(tmp_path, *args))
    assert run["scheme"] == "equal" and run["largest_relative_difference"] <= 1e-5
    assert set(run["compute_seconds"]) == {"big", "small"}


@pytest.mark.ray
def test_end_to_end(cli, one_ray: None, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(CLUSTER + f"cache_dir: {tmp_path / 'cache'}\n")
    network = small_network(tmp_path / "small.onnx", flat=True)

    def coedge(*args: str) -> Any:
        done = cli(*args, "--cluster", "two.yaml", "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    devices = coedge("devices")
    assert [row["name"] for row in devices] == ["big", "small"]
    assert all(row["state"] == "ready" and row["gflops"] > 0 for row in devices)
    assert set(devices[0]["links"]) == {"small"} and devices[0]["links"]["small"]["bytes_per_second"] > 0

    plan = coedge("plan", network, "--size", SIZE, "--scheme", "equal", "--save", "plan.json")
    assert plan["scheme"] == "equal" and json.loads((tmp_path / "plan.json").read_text()).items() <= plan.items()

    own = ("--plan", "plan.json", "--repeat", "2", "--trace", "trace.json")
    run = coedge("run", network, "--size", SIZE, *own)
    assert run["scheme"] == "equal" and run["largest_relative_difference"] <= 1e-5
    assert len(run["latency_seconds"]["all"]) == 2 and len(run["top"]) == 5
    assert set(run["compute_seconds"]) == {"big", "small"}
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]

    run = coedge("run", network, "--size", SIZE, "--goal", "throughput", "--repeat", "30")
    assert run["largest_relative_difference"] <= 1e-5 and run["throughput_fps"] > 0
    assert sum(one["frames"] for one in run["plans"]) == 30 == len(run["latency_seconds"]["all"])
    assert all(abs(one["frames"] - 30 * one["weight"]) < 1 for one in run["plans"])


@pytest.mark.deep
@pytest.mark.ray
def test_run_without_a_plan_uses_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(CLUSTER + f"cache_dir: {tmp_path / 'cache'}\nscheme: modnn\n")
    args = ("run", MODEL, "--size", SIZE, "--repeat", "1", "-c", "two.yaml", "--set", "devices.small.speed=0.5")
    printed = in_a_process(tmp_path, *args)
    assert "plan modnn" in printed
    assert "largest difference from the unsplit output" in printed


def test_a_budget_overrides_the_configuration() -> None:
    from orchestrator.cli.options import with_budget

    assert with_budget(None, None) == []
    for text, expected in (("20s", 20.0), ("5", 5.0), ("500ms", 0.5)):
        overrides = with_budget(["source=laptop"], text)
        config = load_config(demo_config(), overrides, environment={})
        assert (config.profile_budget_seconds, config.source) == (expected, "laptop")
