"""Planning by every scheme: valid plans, correct predictions, errors, files, and the memory that plans take."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from nets import examples, plans, zoo_model
from test_algorithm_1 import dense_only, objectives, profiles, softmax_inside, synthetic_profile

import coedge
from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.execution.program import Answer, Compute, Program, Receive, Send
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import activation_nbytes, program_nbytes, weight_nbytes
from coedge.plan.plan import Plan, check_plan
from coedge.profile.profile import Profile
from coedge.simulation.simulator import simulate
from orchestrator.planner.planner import AUTO, SCHEMES, make_plan

MODELS = ("resnet18", "alexnet", "mobilenet_v3", "unet", "ssd", "densenet")


# Every scheme


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
@examples(4, 1)
def test_every_scheme_makes_valid_plans_and_auto_is_never_worse(name: str, data: st.DataObject) -> None:
    model = zoo_model(name)
    profile = data.draw(profiles(model))
    objective = data.draw(objectives(0.05))
    made = {scheme: make_plan(model, profile, objective, scheme) for scheme in SCHEMES}
    for scheme, plan in made.items():
        assert plan.scheme == scheme
        check(plan, model, profile, objective)
    auto = make_plan(model, profile, objective, AUTO)
    note(str(auto))
    check(auto, model, profile, objective)
    if any(plan.feasible for plan in made.values()):
        assert auto.feasible
        assert cost(auto, objective) <= min(cost(plan, objective) for plan in made.values() if plan.feasible)
    elif not auto.feasible and all(device.memory_bytes is None for device in profile.devices):
        assert auto.predicted is not None
        least = min(plan.predicted.latency_seconds for plan in made.values() if plan.predicted)
        assert auto.predicted.latency_seconds <= least, "the nearest one"


def cost(plan: Plan, objective: Objective) -> float:
    assert plan.predicted is not None
    return objective.cost(plan.predicted.latency_seconds, plan.predicted.energy_joules)


def check(plan: Plan, model: Model, profile: Profile, objective: Objective) -> None:
    check_plan(plan, model)
    assert plan.source == plan.sink == profile.source
    assert plan.devices == profile.names
    timeline = simulate(lower(plan, model), profile, model)
    assert plan.predicted is not None
    assert plan.predicted.latency_seconds == timeline.latency_seconds > 0
    assert plan.predicted.energy_joules == timeline.energy_joules(profile) >= 0
    assert plan.predicted.throughput_fps >= (1 - 1e-9) / plan.predicted.latency_seconds
    late = objective.deadline_seconds is not None and timeline.latency_seconds > objective.deadline_seconds
    assert plan.feasible != late, "no limit but the deadline"
    assert ("deadline" in plan.reason) == late


@given(data=st.data())
@examples(15)
def test_local_and_offload_by_hand(data: st.DataObject) -> None:
    """The latency is the sum of the layers; on another device than the source, the image and the answer travel too."""
    model = zoo_model("unet")
    profile = data.draw(profiles(model))
    objective = data.draw(st.sampled_from([Objective(), Objective(goal="energy"), Objective(energy_weight=0.1)]))
    nbytes = {"image": model.inputs[0].region_nbytes(model.inputs[0].whole)}
    nbytes["answer"] = sum(t.region_nbytes(t.whole) for t in model.outputs)
    found = {}
    for device in profile.devices:
        busy = sum(time.seconds(layer.rows) for time, layer in zip(device.layers, model.layers, strict=True))
        seconds, joules = busy, busy * device.power.compute_watts
        if device.name != profile.source:
            there, back = profile.link(profile.source, device.name), profile.link(device.name, profile.source)
            sending = nbytes["image"] / there.bytes_per_second, nbytes["answer"] / back.bytes_per_second
            seconds += sum(sending) + there.latency_seconds + back.latency_seconds
            joules += sending[0] * profile.by_name[profile.source].power.transmit_watts
            joules += sending[1] * device.power.transmit_watts
        found[device.name] = (objective.cost(seconds, joules), seconds, joules)
    others = [cost for name, (cost, _, _) in found.items() if name != profile.source]
    for scheme in ("local", "offload"):
        plan = make_plan(model, profile, objective, scheme)
        (stage,) = plan.stages
        (chosen,) = stage.regions
        assert plan.predicted is not None
        assert plan.predicted.latency_seconds == pytest.approx(found[chosen][1], rel=1e-9)
        assert plan.predicted.energy_joules == pytest.approx(found[chosen][2], rel=1e-9, abs=1e-15)
        assert (chosen == profile.source) == (scheme == "local")
        if scheme == "offload":
            assert found[chosen][0] <= min(others) * (1 + 1e-9) + 1e-15


def test_modnn_shares_follow_speed() -> None:
    model = zoo_model("resnet18")
    speeds = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2}
    plan = make_plan(model, synthetic_profile(model, speeds), scheme="modnn")
    for stage in plan.stages[:-2]:
        assert list(stage.regions) == list(speeds)
        for name, rect in stage.regions.items():
            assert rect.row_stop - rect.row_start == pytest.approx(speeds[name], rel=1e-9)


def test_modnn_ignores_links() -> None:
    model = zoo_model("resnet18")
    fast, slow = (
        make_plan(model, synthetic_profile(model, {"a": 0.1, "b": 0.4}, rate), scheme="modnn") for rate in (1e9, 1e3)
    )
    assert fast.stages[0] == slow.stages[0]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_shares_are_equal(count: int) -> None:
    model = zoo_model("resnet18")
    speeds = {f"d{i}": 0.1 * (i + 1) for i in range(count)}
    plan = make_plan(model, synthetic_profile(model, speeds), scheme="equal")
    for layer, stage in zip(model.layers, plan.stages, strict=True):
        assert (stage.first, stage.last) == (layer.index, layer.index), "a stage per layer"
        wanted = 1 / count if layer.splittable else 1.0
        assert len(stage.regions) == (count if layer.splittable else 1)
        for rect in stage.regions.values():
            assert rect.row_stop - rect.row_start == pytest.approx(wanted)


@pytest.mark.parametrize("scheme", ["equal", "modnn", "coedge"])
def test_layers_that_cannot_be_split_go_to_the_device_on_which_they_cost_least(scheme: str) -> None:
    model = zoo_model("alexnet")
    profile = synthetic_profile(model, {"a": 0.01, "b": 1.0, "c": 0.02}, 1e9, 1e-5)
    plan = make_plan(model, profile, scheme=scheme)
    dense = next(layer.index for layer in model.layers if not layer.splittable)
    stage = next(s for s in plan.stages if s.first <= dense <= s.last)
    assert list(stage.regions) == ["b"]


@pytest.mark.parametrize("make", [dense_only, softmax_inside])
@pytest.mark.parametrize("scheme", [*SCHEMES, AUTO])
def test_models_that_cannot_be_split(make, scheme: str) -> None:
    model = make()
    profile = synthetic_profile(model, {"a": 0.2, "b": 0.1, "c": 0.3}, 1e8)
    check(make_plan(model, profile, Objective(), scheme), model, profile, Objective())


# Refusals


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("modn", "modnn"), ("co-edge", "coedge"), ("CoEdge", "coedge"), ("LOCAL", "local"), ("automatic", "auto")],
)
def test_an_unknown_scheme_names_the_nearest(wrong: str, near: str) -> None:
    model = zoo_model("resnet18")
    with pytest.raises(PlanError) as caught:
        make_plan(model, synthetic_profile(model, {"a": 1.0}), scheme=wrong)
    message = str(caught.value)
    assert f"Did you mean {near!r}?" in message
    assert all(scheme in message for scheme in (AUTO, *SCHEMES))


def test_an_unknown_scheme_without_a_near_name_gets_no_suggestion() -> None:
    model = zoo_model("resnet18")
    with pytest.raises(PlanError, match="there is no scheme 'xyz'") as caught:
        make_plan(model, synthetic_profile(model, {"a": 1.0}), scheme="xyz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("scheme", [*SCHEMES, AUTO])
def test_the_profile_of_another_model_is_refused(scheme: str) -> None:
    other = synthetic_profile(zoo_model("alexnet"), {"a": 1.0, "b": 1.0})
    with pytest.raises(PlanError, match=r"the profile is of model 'alexnet' .*, not of 'resnet18'"):
        make_plan(zoo_model("resnet18"), other, scheme=scheme)


def test_an_incomplete_profile_is_refused() -> None:
    model = zoo_model("resnet18")
    profile = synthetic_profile(model, {"a": 1.0, "b": 1.0})
    with pytest.raises(PlanError, match="no link from 'b' to 'a'"):
        make_plan(model, profile.model_copy(update={"links": profile.links[:1]}))
    with pytest.raises(PlanError, match="the source 'z' is not one of the profile's devices: a, b"):
        make_plan(model, profile.model_copy(update={"source": "z"}))
    short = profile.devices[0].model_copy(update={"layers": profile.devices[0].layers[:-1]})
    with pytest.raises(PlanError, match="layers"):
        make_plan(model, profile.model_copy(update={"devices": (short, profile.devices[1])}))


@pytest.mark.parametrize("scheme", [*SCHEMES, AUTO])
def test_an_infeasible_plan_names_every_violated_constraint(scheme: str) -> None:
    model = zoo_model("alexnet")
    profile = synthetic_profile(model, {"a": 1.0, "b": 0.5}, memory={"a": 1e5, "b": 1e5})
    plan = make_plan(model, profile, Objective(deadline_ms=0.05), scheme)
    assert not plan.feasible and plan.predicted is not None
    check_plan(plan, model)
    assert f"predicted {plan.predicted.latency_seconds * 1e3:.4g} ms, the deadline is 0.05 ms" in plan.reason
    assert "limit is 0.1 MB" in plan.reason


# Files


@pytest.mark.parametrize("scheme", [*SCHEMES, AUTO])
def test_the_json_of_a_plan(scheme: str, tmp_path) -> None:
    model = zoo_model("alexnet")
    plan = make_plan(model, synthetic_profile(model, {"a": 0.3, "b": 0.2}), scheme=scheme)
    plan.save(tmp_path / "plan.json")
    read = json.loads((tmp_path / "plan.json").read_text())
    assert {"scheme", "feasible", "reason", "predicted", "devices", "stages", "source", "sink"} <= set(read)
    assert {"latency_seconds", "energy_joules", "throughput_fps"} <= set(read["predicted"])
    assert read["devices"] == ["a", "b"] and read["feasible"] is True
    assert len(read["stages"]) == len(plan.stages)
    assert all({"first", "last", "regions"} <= set(stage) for stage in read["stages"])
    assert read["stages"][0]["first"] == 0 and read["stages"][-1]["last"] == len(model.layers) - 1
    assert Plan.load(tmp_path / "plan.json", model) == plan
    with pytest.raises(PlanError, match="the plan is for model 'alexnet'"):
        Plan.load(tmp_path / "plan.json", zoo_model("resnet18"))


def test_planning_is_deterministic() -> None:
    model = zoo_model("mobilenet_v3")
    profile = synthetic_profile(model, {"a": 0.3, "b": 0.2, "c": 0.25}, 1e8)
    again = Profile.model_validate_json(profile.model_dump_json())
    assert make_plan(model, profile) == make_plan(model, again)


# Memory


def walked_nbytes(program: Program, model: Model) -> int:
    """Walk the steps with a set of live patches; each is alive from the step that makes it to its last reader."""

    def nbytes(tensor: str, region) -> int:
        info = model.graph.tensors[tensor]
        return info.region_nbytes(region)

    def reads(step) -> set[int]:
        if isinstance(step, Send):
            return {part.patch for part in step.parts}
        if isinstance(step, (Compute, Answer)):
            return {part.patch for read in step.inputs for part in read.parts}
        return set()

    def comes(step) -> set[int]:
        if isinstance(step, Receive):
            return set(step.writes)
        return set(step.writes) if isinstance(step, Compute) else set()

    most = 0
    for now, step in enumerate(program.steps):
        alive = set()
        for patch in range(len(program.patches)):
            born = min((i for i, s in enumerate(program.steps) if patch in comes(s)), default=None)
            last = max((i for i, s in enumerate(program.steps) if patch in reads(s)), default=born)
            if born is not None and last is not None and born <= now <= last:
                alive.add(patch)
        total = sum(nbytes(program.patches[p].tensor, program.patches[p].region) for p in alive)
        if isinstance(step, (Compute, Answer)):
            total += sum(nbytes(read.tensor, read.region) for read in step.inputs if len(read.parts) > 1)
        most = max(most, total)
    return most


@pytest.mark.parametrize("name", ["alexnet", "squeezenet", "unet", "mobilenet_v3"])
@given(data=st.data())
@examples(8, 2)
def test_activation_bytes_agree_with_a_walk_over_the_steps(name: str, data: st.DataObject) -> None:
    model = zoo_model(name)
    plan = data.draw(plans(model))
    note(str(plan))
    for program in lower(plan, model).values():
        assert activation_nbytes(program, model) == walked_nbytes(program, model)


def test_memory_by_hand() -> None:
    """Two convolutions of 4 channels on 8 x 8 pixels in float32 on one device: 1 KiB per tensor."""
    from nets import Net

    net = Net()
    x = net.input([1, 4, 8, 8])
    for _ in range(2):
        x = net.op("Conv", x, net.weight(4, 4, 1, 1))
    model = coedge.capture(net.proto(x))
    alone = coedge.even_plan(model, 1)
    (program,) = lower(alone, model).values()
    assert weight_nbytes(program, model) == 2 * 4 * 4 * 4
    assert activation_nbytes(program, model) == 2 * 1024, "input and output of a layer"
    assert program_nbytes(program, model) == 2 * 1024 + 128


def test_weights_count_only_where_they_are_used() -> None:
    model = zoo_model("alexnet")
    profile = synthetic_profile(model, {"a": 0.01, "b": 1.0, "c": 0.02}, 1e9, 1e-5)
    programs = lower(make_plan(model, profile, scheme="equal"), model)
    dense = weight_nbytes(programs["b"], model)
    assert dense == model.weight_nbytes
    assert 0 < weight_nbytes(programs["a"], model) == weight_nbytes(programs["c"], model) < dense / 2
