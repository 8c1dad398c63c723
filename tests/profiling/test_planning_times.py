"""Layer times to plan a test bed with: known, measured on this machine once, or estimated with their error."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from command_line import fails, small_network
from nets import Net

from coedge import zoo
from coedge.core.errors import PlanError
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.profile.layer_work import layer_costs
from coedge.profile.profile import scaled
from coedge.profile.reference_times import reference_times
from coedge.profile.testbed import load_testbed
from coedge.profile.testbed import profile_of as profile_from_times
from orchestrator.planner.planner import make_plan
from orchestrator.profiling import planning_times as module
from orchestrator.profiling.planning_times import machine_times, planning_times, profile_of
from orchestrator.profiling.yardstick import speeds_from, yardstick

BED = """
devices:
  - {name: near, speed: 0.5, link: {mbps: 80}}
  - {name: far, speed: 2, link: {mbps: 80}}
"""
BUDGET_SECONDS = 0.5


@pytest.fixture
def net(tmp_path: Path) -> Model:
    return capture(tmp_path / small_network(tmp_path / "net.onnx"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the networks that are measured."""
    names: list[str] = []
    measure = module.measure_beside_yardstick

    def counting(model: Model, budget_seconds: float) -> object:
        names.append(model.name)
        return measure(model, budget_seconds)

    monkeypatch.setattr(module, "measure_beside_yardstick", counting)
    return names


def test_every_layer_of_the_yardstick_has_a_reference_time() -> None:
    times = reference_times(yardstick())
    assert times.measured == len(yardstick().layers)
    assert {cost.family for cost in layer_costs(yardstick())} >= {"conv", "pointwise", "depthwise", "pool", "dense"}


def test_the_reference_machine_has_speed_one() -> None:
    times = reference_times(yardstick())
    assert list(speeds_from(times.layers, times.fused).values()) == pytest.approx([1.0] * 8)
    slower = tuple(scaled(time, 4) for time in times.layers), tuple(scaled(time, 4) for time in times.fused)
    assert list(speeds_from(*slower).values()) == pytest.approx([0.25] * 8)


def test_a_network_is_measured_once_and_converted_to_the_reference_machine(
    net: Model, counted: list[str], tmp_path: Path
) -> None:
    first = planning_times(net, folder=tmp_path / "cache", budget_seconds=BUDGET_SECONDS)
    second = planning_times(net, folder=tmp_path / "cache", budget_seconds=BUDGET_SECONDS)
    assert counted == [net.name]
    assert first == second
    assert (first.measured, first.estimated, first.error) == (len(net.layers), False, None)
    assert "on this machine" in str(first)
    machine = machine_times(net, tmp_path / "cache")
    for cost, own, time in zip(layer_costs(net), machine.layers, first.layers):
        assert time.seconds(cost.rows) == pytest.approx(own.seconds(cost.rows) * machine.speeds[cost.family])
    assert first.seconds > 0 and all(speed > 0 for speed in machine.speeds.values())


def test_the_profile_has_the_measured_times_over_the_speed_of_each_device(
    net: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "user_cache_folder", lambda: tmp_path / "home")
    times = planning_times(net, budget_seconds=BUDGET_SECONDS)
    (tmp_path / "bed.yaml").write_text(BED)
    profile = profile_of(load_testbed(tmp_path / "bed.yaml"), net)  # reads the same times
    assert profile.estimate_error is None
    for index, layer in enumerate(net.layers):
        for name, speed in (("near", 0.5), ("far", 2)):
            seconds = profile.by_name[name].layer_time(index).seconds(layer.rows)
            assert seconds == pytest.approx(times.layers[index].seconds(layer.rows) / speed)


def test_times_of_another_machine_are_not_used(net: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    costs = layer_costs(net)
    known = reference_times(net)
    taken: list[str] = []

    def measured(model: Model, budget_seconds: float) -> tuple[object, object]:
        taken.append(model.name)
        reference = reference_times(yardstick())
        return known, reference

    monkeypatch.setattr(module, "measure_beside_yardstick", measured)
    machine = machine_times(net, tmp_path)
    assert machine.layers == known.layers and len(costs) == len(machine.layers)
    machine_times(net, tmp_path)
    monkeypatch.setattr(module, "fingerprint", lambda threads: "another machine")
    machine_times(net, tmp_path)
    assert len(taken) == 2


@pytest.mark.parametrize("estimate", [False, True])
def test_a_network_with_reference_times_is_never_measured(estimate: bool, counted: list[str], tmp_path: Path) -> None:
    model = capture(zoo.build("squeezenet"), zoo.example("squeezenet"))
    known = reference_times(model)
    assert asdict(planning_times(model, estimate, tmp_path)) == asdict(known)
    (tmp_path / "bed.yaml").write_text(BED)
    testbed = load_testbed(tmp_path / "bed.yaml")
    profiles = profile_of(testbed, model, estimate=estimate), profile_from_times(testbed, model)
    assert profiles[0] == profiles[1]
    plans = [make_plan(model, profile, scheme="offload") for profile in profiles]
    assert plans[0] == plans[1]
    assert (counted, profiles[0].estimate_error) == ([], None)


def test_a_network_that_cannot_be_measured_can_be_estimated(
    net: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails_to_run(model: Model, budget_seconds: float) -> object:
        raise RuntimeError("a calibration run failed: no kernel")

    monkeypatch.setattr(module, "measure_beside_yardstick", fails_to_run)
    with pytest.raises(PlanError, match=r"cannot be measured on this machine: .*no kernel(.|\n)*--estimate"):
        planning_times(net, folder=tmp_path)
    times = planning_times(net, estimate=True, folder=tmp_path)
    assert times.error is not None and 0 < times.error.median < times.error.p95


def test_an_unknown_operator_has_no_reference_times() -> None:
    graph = Net()
    x = graph.op("CumSum", graph.input((1, 8, 16, 16)), graph.const(2, "int64"))
    assert reference_times(capture(graph.proto(x))).error is not None


@pytest.mark.usefixtures("brief_search")
@pytest.mark.parametrize("command", ["plan", "simulate", "pareto"])
def test_the_command_line_says_the_error_of_an_estimate(cli, command: str, net: Model, tmp_path: Path) -> None:
    (tmp_path / "bed.yaml").write_text(BED)
    args = [command, "net.onnx", "--profile", "bed.yaml", "--estimate"]
    args += ["--points", "2"] if command == "pareto" else ["--scheme", "offload"]
    shown = cli(*args)
    assert shown.code == 0, shown.err
    error = reference_times(net).error
    assert error is not None
    assert error.brief in shown.out and f"{error.p95:.0%}" in shown.out
    assert f"ms {error.brief}" in shown.out or f"{error.brief} " in shown.out
    printed = json.loads(cli(*args, "--json").out)
    rows = printed["plans"] if command == "pareto" else [printed]
    assert all(row["estimate_error"] == error.model_dump() for row in rows)


@pytest.mark.usefixtures("brief_search")
def test_the_command_line_measures_by_default(cli, counted: list[str], monkeypatch, tmp_path: Path, net: Model) -> None:
    monkeypatch.setattr(module, "user_cache_folder", lambda: tmp_path / "home")
    (tmp_path / "bed.yaml").write_text(BED)
    args = ("plan", "net.onnx", "--profile", "bed.yaml", "--scheme", "offload", "--json")
    plans = [cli(*args, "--budget", "0.5s"), cli(*args)]
    assert [plan.code for plan in plans] == [0, 0], plans
    assert counted == [net.name], "the second command reads the cache"
    assert plans[0].out == plans[1].out
    assert json.loads(plans[0].out)["estimate_error"] is None
    compared = cli("plan", "net.onnx", "--profile", "bed.yaml", "--compare")
    assert compared.code == 0 and "±" not in compared.out


def test_estimates_are_for_test_beds(cli, net: Model, tmp_path: Path) -> None:
    (tmp_path / "bed.yaml").write_text(BED)
    fails(cli("plan", "net.onnx", "--profile", "p.json", "--estimate"), 2, "--estimate is for a test bed")
    fails(cli("plan", "net.onnx", "--estimate"), 2, "--estimate is for a test bed")
    fails(cli("plan", "net.onnx", "--profile", "bed.yaml", "--estimate", "--budget", "1s"), 2, "exclude each other")
