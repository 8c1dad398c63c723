"""Tests of `coedge plan`, `simulate` and `pareto` on saved profiles and test beds, without Ray and devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import fails, small_network

from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.plan import Plan, check_plan
from coedge.profile.layer_work import layer_costs
from coedge.profile.profile import Profile
from coedge.profile.reference_times import reference_times
from coedge.profile.testbed import load_testbed
from coedge.simulation.timeline import Timeline
from orchestrator.planner.planner import SCHEMES
from orchestrator.profiling import planning_times
from orchestrator.profiling.planning_times import MachineTimes, profile_of

pytestmark = pytest.mark.usefixtures("brief_search")

BED = """
devices:
  - name: camera
    speed: 0.05
    link: {mbps: 80, latency_ms: 0.1}
    power: {idle_watts: 1, compute_watts: 2, transmit_watts: 1}
    power_source: assumed
  - &board
    name: board-1
    speed: 0.04
    link: {mbps: 80, latency_ms: 0.1}
    power: {compute_watts: 1, transmit_watts: 0.5}
    power_source: the data sheet
  - {<<: *board, name: board-2}
  - name: far
    speed: 0.1
    link: {mbps: 0.5, latency_ms: 20}
"""
NAMES = ["camera", "board-1", "board-2", "far"]


@pytest.fixture(autouse=True)
def same_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the same times in place of measured ones in every run."""

    def machine_times(model: Model, folder: Path, budget_seconds: float) -> MachineTimes:
        known = reference_times(model)
        return MachineTimes(
            fingerprint="the reference machine",
            model_hash=model.hash,
            layers=known.layers,
            fused=known.fused,
            speeds={cost.family: 1.0 for cost in layer_costs(model)},
        )

    monkeypatch.setattr(planning_times, "machine_times", machine_times)


@pytest.fixture
def net(tmp_path: Path) -> str:
    return small_network(tmp_path / "net.onnx")


@pytest.fixture
def bed(tmp_path: Path, net: str) -> str:
    (tmp_path / "bed.yaml").write_text(BED)
    return "bed.yaml"


@pytest.fixture
def saved(tmp_path: Path, bed: str) -> str:
    """Save the profile of the test bed."""
    model = capture(tmp_path / "net.onnx")
    profile_of(load_testbed(tmp_path / bed), model).save(tmp_path / "bed.json")
    return "bed.json"


def read(result: Any) -> Any:
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_a_test_bed_and_its_profile_give_the_same_plan(cli, net: str, bed: str, saved: str) -> None:
    plans = [read(cli("plan", net, "--profile", path, "--json")) for path in (bed, saved)]
    assert plans[0] == plans[1]
    assert plans[0]["scheme"] == "auto" and plans[0]["devices"] == NAMES and plans[0]["source"] == "camera"


def test_set_changes_the_test_bed(cli, net: str, bed: str) -> None:
    args = ("plan", net, "--profile", bed, "--scheme", "offload", "--json")
    far = read(cli(*args, "--set", "devices.far.link={mbps: 1000, latency_ms: 0}", "--set", "devices.far.speed=9"))
    assert far["devices_used"] == ["far"] != read(cli(*args))["devices_used"]
    fails(cli(*args, "--set", "devices.far.speeed=9"), 1, "speeed", "did you mean `speed`?")


def test_the_profile_of_a_test_bed_can_be_saved(cli, net: str, bed: str, tmp_path: Path) -> None:
    args = ("plan", net, "--profile", bed, "--scheme", "local", "--without", "far")
    assert cli(*args, "--save-profile", "p.json", "--save", "plan.json").code == 0
    assert list(Profile.load(tmp_path / "p.json").names) == NAMES  # excluded devices are saved too
    assert Plan.load(tmp_path / "plan.json").devices == ("camera", "board-1", "board-2")


@pytest.mark.parametrize("command", ["plan", "simulate", "pareto"])
def test_options_that_exclude_each_other_are_refused(cli, net: str, bed: str, saved: str, command: str) -> None:
    fails(cli(command, net, "--profile", bed, "--cluster", "c.yaml"), 2, "--profile", "--cluster")
    fails(cli(command, net, "--profile", saved, "--set", "source=far"), 2, "--set", "test bed", "--profile")
    fails(cli(command, net, "--profile", "nowhere.yaml"), 1, "nowhere.yaml", "cannot be read")
    fails(cli(command, net, "--profile", "nowhere.json"), 1, "cannot read the profile nowhere.json")


@pytest.mark.parametrize("command", ["plan", "simulate", "pareto"])
@pytest.mark.parametrize("where", ["bed.yaml", "bed.json", None])
def test_excluded_devices_must_exist_and_not_be_the_source(cli, net: str, saved: str, command: str, where) -> None:
    """They are checked before the model, which does not exist, is captured and before Ray starts."""
    args = [command, "no_such_model.onnx", *(["--profile", where] if where else [])]
    near, source = ("board-2", "camera") if where else ("board-3", "laptop")
    fails(
        cli(*args, "--without", f"{near}x"), 1, f"--without {near}x: there is no such device", f"Did you mean '{near}'?"
    )
    fails(cli(*args, "--without", source), 1, f"{source} is the source", "cannot be excluded", "source=")


def test_excluded_devices_are_not_in_the_plan(cli, net: str, bed: str) -> None:
    args = ("plan", net, "--profile", bed, "--scheme", "equal", "--json")
    plan = read(cli(*args, "--without", "far", "--without", "board-1", "--without", "far"))
    assert plan["devices"] == plan["devices_used"] == ["camera", "board-2"]
    alone = read(cli("plan", net, "--profile", bed, "--json", *(w for n in NAMES[1:] for w in ("--without", n))))
    assert alone["devices_used"] == ["camera"]


def test_local_layers_stay_on_the_source(cli, net: str, bed: str) -> None:
    plan = read(cli("plan", net, "--profile", bed, "--keep-local", "3", "--json"))
    assert plan["feasible"]
    for stage in plan["stages"]:
        assert stage["first"] >= 3 or list(stage["regions"]) == ["camera"]
    fails(cli("plan", net, "--profile", bed, "--keep-local", "99"), 1, "--keep-local 99", "layers")
    fails(cli("plan", net, "--profile", bed, "--keep-local", "-1"), 2, "--keep-local")


def test_a_plan_is_shown_with_its_bound_and_energy_source(cli, net: str, bed: str) -> None:
    shown = cli("plan", net, "--profile", bed, "--scheme", "equal")
    assert shown.code == 0
    assert "x the divisible-load bound" in shown.out and "frames/s in a stream" in shown.out
    assert "(modelled, watts: assumed (camera, far); the data sheet (board-1, board-2))" in " ".join(shown.out.split())


@pytest.mark.parametrize("goal", ["latency", "energy", "throughput"])
def test_all_schemes_are_compared_with_auto(cli, net: str, bed: str, goal: str) -> None:
    rows = read(cli("plan", net, "--profile", bed, "--compare", "--goal", goal, "--json"))
    assert [row["scheme"] for row in rows] == [*SCHEMES, "auto"]
    for row in rows:
        assert {"scheme", "feasible", "reason", "predicted", "devices", "stages", "energy_source"} <= set(row)
        assert set(row["predicted"]) == {"latency_seconds", "energy_joules", "throughput_fps", "bound_seconds"}
        assert row["predicted"]["bound_seconds"] == rows[-1]["predicted"]["bound_seconds"] > 0
        assert {"first", "last", "regions"} <= set(row["stages"][0])
        assert row["ratio_to_auto"] >= 1 - 1e-9, "auto is never worse"
    assert rows[-1]["ratio_to_auto"] == 1


def test_a_comparison_is_shown_as_a_table(cli, net: str, bed: str) -> None:
    shown = cli("plan", net, "--profile", bed, "--compare", "--goal", "latency")
    assert shown.code == 0 and all(f" {scheme} " in shown.out for scheme in (*SCHEMES, "auto"))
    assert "divisible-load bound" in shown.out and "modelled, watts:" in shown.out


def test_for_throughput_the_mixture_is_shown_with_the_plan(cli, net: str, bed: str) -> None:
    args = ("plan", net, "--profile", bed, "--goal", "throughput")
    found = read(cli(*args, "--json"))
    assert found["mixture"]["rate_fps"] > found["predicted"]["throughput_fps"]
    assert sum(one["weight"] for one in found["mixture"]["plans"]) == pytest.approx(1)
    assert f"{found['mixture']['rate_fps']:.1f} frames/s; simulate it: coedge simulate ... --mixture" in cli(*args).out
    assert "mixture" not in read(cli(*args, "--scheme", "local", "--json"))


def test_schemes_that_miss_the_deadline_are_named_below_the_table(cli, net: str, bed: str) -> None:
    rows = read(cli("plan", net, "--profile", bed, "--compare", "--json"))
    limit = rows[-1]["predicted"]["latency_seconds"] * 1e3 * 1.1
    shown = cli("plan", net, "--profile", bed, "--compare", "--deadline", f"{limit:.4f}ms").out
    late = [row["scheme"] for row in rows if row["predicted"]["latency_seconds"] * 1e3 > limit]
    assert late
    # Some schemes change their plan under a deadline; equal strips stay the same.
    assert "* equal is infeasible: predicted" in shown and "auto *" not in shown


def test_an_explanation_names_the_bottleneck_and_all_unused_devices(cli, net: str, bed: str) -> None:
    args = ("plan", net, "--profile", bed, "--scheme", "local", "--without", "board-2", "--explain")
    shown = cli(*args)
    assert shown.code == 0
    for words in (
        "bottleneck: camera computing, 100% of the latency", "camera 1 % faster", "unused devices:",
        "adding board-1 would", "adding far would raise latency from", "without board-2",
    ):  # fmt: skip
        assert words in shown.out, words
    explained = read(cli(*args, "--json"))["explanation"]
    assert explained["path"][0] == {
        "kind": "compute", "device": "camera", "peer": "", "latency_seconds": 0.0,
        "seconds": explained["figures"]["latency_seconds"], "share": 1.0,
    }  # fmt: skip
    assert [item["devices"] for item in explained["unused_devices"]] == [["board-1"], ["far"]]
    assert explained["energy"][0]["source"] == "assumed watts, modelled"


def test_compare_explain_and_save_exclude_each_other(cli, net: str, bed: str) -> None:
    for other in (["--explain"], ["--save", "p.json"], ["--scheme", "local"]):
        fails(cli("plan", net, "--profile", bed, "--compare", *other), 2, "--compare", other[0])


def test_one_frame_takes_the_predicted_time(cli, net: str, bed: str, tmp_path: Path) -> None:
    plan = read(cli("plan", net, "--profile", bed, "--scheme", "modnn", "--save", "plan.json", "--json"))
    for args in (["--scheme", "modnn"], ["--plan", "plan.json"]):
        found = read(cli("simulate", net, "--profile", bed, *args, "--trace", "trace.json", "--json"))
        assert found["latency_seconds"]["p50"] == pytest.approx(plan["predicted"]["latency_seconds"])
        assert found["energy_joules_per_frame"] == pytest.approx(plan["predicted"]["energy_joules"])
        assert sum(item["joules"] for item in found["energy"]) == pytest.approx(found["energy_joules_per_frame"])
        assert {item["source"] for item in found["energy"]} == {
            "assumed watts, modelled",
            "the data sheet watts, modelled",
        }
        assert sum(p["seconds"] for p in found["critical_path"]) == pytest.approx(found["latency_seconds"]["mean"])
        assert set(found["idle_seconds"]) == set(found["utilisation"]["devices"]) == set(NAMES)
        assert found["frames"] == found["in_flight"] == 1 and found["measured"] is False
    trace = Timeline.load(tmp_path / "trace.json")
    assert trace.latency_seconds == pytest.approx(plan["predicted"]["latency_seconds"])


def test_a_stream_has_the_given_number_of_frames_in_flight(cli, net: str, bed: str) -> None:
    args = ("simulate", net, "--profile", bed, "--scheme", "local", "--frames", "30", "--json")
    one = read(cli(*args, "--in-flight", "1"))
    many = read(cli(*args))
    assert one["latency_seconds"]["max"] == pytest.approx(one["latency_seconds"]["p50"])
    assert many["in_flight"] == 2 * len(NAMES) + 2 and many["frames"] == 30
    assert many["latency_seconds"]["p95"] > 2 * one["latency_seconds"]["p95"], "frames queue"
    assert many["throughput_fps"] == pytest.approx(one["throughput_fps"], rel=1e-6), "one device, one rate"
    assert many["busiest"]["name"] == "camera"
    assert many["busiest"]["seconds_per_frame"] == pytest.approx(1 / one["throughput_fps"])
    assert many["throughput_fps"] <= many["saturated_fps"] * (1 + 1e-9)


def test_a_mixture_assigns_frames_to_several_plans(cli, net: str, bed: str) -> None:
    args = ("simulate", net, "--profile", bed, "--frames", "60", "--json")
    mixed, alone = read(cli(*args, "--mixture")), read(cli(*args, "--scheme", "local"))
    assert len(mixed["plans"]) > 1 and sum(plan["weight"] for plan in mixed["plans"]) == pytest.approx(1)
    assert mixed["throughput_fps"] > 1.3 * alone["throughput_fps"]


def test_a_simulation_is_shown_as_tables(cli, net: str, bed: str) -> None:
    shown = cli("simulate", net, "--profile", bed, "--scheme", "equal", "--frames", "3")
    assert shown.code == 0
    for words in (
        "3 frames, 10 in flight",
        "per frame, modelled, watts:",
        "up-",
        "0-9 compute",
        "busiest: ",
    ):
        assert words in shown.out, words


@pytest.mark.parametrize(("name", "begins"), [("g.png", b"\x89PNG"), ("g.svg", b"<?xml")])
@pytest.mark.parametrize("frames", ["1", "40"])
def test_a_timeline_is_drawn(cli, net: str, bed: str, tmp_path: Path, name: str, begins: bytes, frames: str) -> None:
    args = ("simulate", net, "--profile", bed, "--scheme", "equal", "--frames", frames, "--gantt", name, "--json")
    assert read(cli(*args))["frames"] == int(frames)
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--gantt", "g.pdf"], ["g.pdf", ".png or .svg"]),
        (["--gantt", "no/g.png"], ["no/g.png", "no folder"]),
        (["--trace", "no/t.json"], ["no/t.json", "no folder"]),
        (["--frames", "0"], ["--frames"]),
        (["--in-flight", "0"], ["--in-flight"]),
        (["--plan", "p.json", "--scheme", "local"], ["--plan", "--scheme"]),
        (["--plan", "p.json", "--without", "far"], ["--plan", "--without"]),
        (["--mixture", "--scheme", "local"], ["--mixture", "--scheme"]),
        (["--mixture", "--goal", "energy"], ["--mixture", "--goal"]),
    ],
)
def test_wrong_options_of_simulate_are_refused(cli, bed: str, args: list[str], words: list[str]) -> None:
    fails(cli("simulate", "no_such_model.onnx", "--profile", bed, *args), 2, *words)


def test_a_plan_for_other_devices_is_refused(cli, net: str, bed: str, tmp_path: Path) -> None:
    assert cli("plan", net, "--profile", bed, "--scheme", "equal", "--save", "plan.json").code == 0
    (tmp_path / "other.yaml").write_text(BED.replace("name: far", "name: near"))
    refused = cli("simulate", net, "--profile", "other.yaml", "--plan", "plan.json")
    fails(refused, 1, "the plan needs far", "the devices are camera, board-1, board-2, near", "--profile")
    fails(cli("simulate", net, "--profile", bed, "--plan", "nowhere.json"), 1, "cannot read the plan nowhere.json")


def test_a_front_trades_energy_against_latency(cli, net: str, bed: str, tmp_path: Path) -> None:
    found = read(cli("pareto", net, "--profile", bed, "--points", "5", "--save-plans", "plans", "--json"))
    costs = [(p["predicted"]["latency_seconds"], p["predicted"]["energy_joules"]) for p in found["plans"]]
    assert 1 <= len(costs) <= 5 and costs == sorted(costs) and costs == sorted(costs, key=lambda c: -c[1])
    assert [plan["scheme"] for plan in found["schemes"]] == list(SCHEMES)
    assert all("modelled, watts:" in plan["energy_source"] for plan in found["plans"] + found["schemes"])
    files = sorted((tmp_path / "plans").iterdir())
    assert [path.name for path in files] == [f"{i + 1:02d}.json" for i in range(len(costs))]
    model = capture(tmp_path / net)
    for path, row in zip(files, found["plans"]):
        plan = Plan.load(path)
        check_plan(plan, model)
        assert plan.predicted is not None and plan.predicted.latency_seconds == row["predicted"]["latency_seconds"]


def test_a_front_is_shown_with_the_named_schemes(cli, net: str, bed: str) -> None:
    shown = cli("pareto", net, "--profile", bed, "--without", "far", "--points", "4")
    assert shown.code == 0
    assert "energy against latency, predicted" in shown.out and "divisible-load bound" in shown.out
    assert all(scheme in shown.out for scheme in SCHEMES) and "--goal energy --deadline" in shown.out
    late = cli("pareto", net, "--profile", bed, "--deadline", "0.001ms")
    assert late.code == 0 and "infeasible:" in late.out and "the deadline is" in late.out


@pytest.mark.parametrize(("name", "begins"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_a_front_is_drawn(cli, net: str, bed: str, tmp_path: Path, name: str, begins: bytes) -> None:
    read(cli("pareto", net, "--profile", bed, "--points", "3", "--plot", name, "--json"))
    drawn = (tmp_path / name).read_bytes()
    assert drawn.startswith(begins)
    if name.endswith(".svg"):
        text = drawn.decode()
        for words in ("latency of a frame, ms", "energy of a frame, J", "neurosurgeon", "joules modelled, watts:"):
            assert words in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--plot", "p.jpg"], ["p.jpg", ".png or .svg"]),
        (["--plot", "no/p.png"], ["no/p.png", "no folder"]),
        (["--points", "1"], ["--points"]),
        (["--save-plans", "bed.yaml"], ["bed.yaml is a file"]),
        (["--save-plans", "no/such"], ["no/such", "no folder"]),
        (["--deadline", "soon"], ["--deadline", "'soon'"]),
    ],
)
def test_wrong_options_of_pareto_are_refused(cli, bed: str, args: list[str], words: list[str]) -> None:
    fails(cli("pareto", "no_such_model.onnx", "--profile", bed, *args), 2, *words)
