"""Plans in files and as text, checks of plans, and the programs of plans."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import Net, examples, make_plan, plans, zoo_model

from coedge.core.errors import PlanError
from coedge.core.region import UNIT, UnitRect
from coedge.execution.program import CLIENT, Answer, Compute, Program, Receive, Send
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, Prediction, Stage, check_plan, even_plan, strips

NETS = ["mobilenet_v3", "unet", "ssd"]


@pytest.fixture(scope="module")
def model() -> Model:
    return zoo_model("squeezenet")


def changed(plan: Plan, **fields: Any) -> Plan:
    return plan.model_copy(update=fields)


def test_a_plan_is_equal_after_saving_and_loading(model: Model, tmp_path: Path) -> None:
    predicted = Prediction(latency_seconds=0.0123, energy_joules=1 / 3, throughput_fps=80.0)
    plan = changed(
        even_plan(model, 3, boundaries=[1 / 3, 0.7], stage_layers=4), predicted=predicted, reason="because ö"
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.load(tmp_path / "plan.json", model) == plan


def test_a_plan_of_another_model_is_refused(model: Model, tmp_path: Path) -> None:
    even_plan(model, 2).save(tmp_path / "plan.json")
    other = zoo_model("alexnet")
    with pytest.raises(PlanError, match=f"{model.hash}.*this is 'alexnet' .{other.hash}.*make a plan"):
        Plan.load(tmp_path / "plan.json", other)
    with pytest.raises(PlanError, match="this is 'alexnet'"):
        lower(even_plan(model, 2), other)


def test_files_that_are_not_plans_are_refused(tmp_path: Path, model: Model) -> None:
    with pytest.raises(PlanError, match=r"nothing\.json"):
        Plan.load(tmp_path / "nothing.json")
    path = tmp_path / "plan.json"
    text = json.loads(even_plan(model, 2).model_dump_json())
    for content, words in [
        ("{not json", "is not a plan"),
        ("[]", "is not a plan"),
        (json.dumps(text | {"speed": 3}), "speed"),
        (json.dumps({k: v for k, v in text.items() if k != "sink"}), "sink"),
        (json.dumps(text | {"stages": [{"first": -1, "last": 0, "regions": {}}]}), r"stages\.0\.first"),
    ]:
        path.write_text(content)
        with pytest.raises(PlanError, match=words):
            Plan.load(path)
    path.write_bytes(b"\xff\xfe\x00 not text")
    with pytest.raises(PlanError, match=r"plan\.json"):
        Plan.load(path)


def test_unknown_devices_are_refused(model: Model) -> None:
    plan = even_plan(model, 2)
    with pytest.raises(PlanError, match=r"stage 0 names device 'pi-9', which is not one of: device-0, device-1"):
        check_plan(changed(plan, stages=(Stage(first=0, last=0, regions={"pi-9": UNIT}),)), model)
    with pytest.raises(PlanError, match="source 'pi-9' is not one of the plan's devices"):
        check_plan(changed(plan, source="pi-9"), model)
    with pytest.raises(PlanError, match="sink 'pi-9'"):
        check_plan(changed(plan, sink="pi-9"), model)
    with pytest.raises(PlanError, match="names a device twice: a, a"):
        even_plan(model, ["a", "a"])
    with pytest.raises(PlanError, match="source 'pi-9'"):
        even_plan(model, 2, source="pi-9")


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ({"a": UnitRect(0, 0.5), "b": UnitRect(0.4, 1)}, "stage 0: .*belongs to 2 devices"),
        ({"a": UnitRect(0, 0.5), "b": UnitRect(0.6, 1)}, "stage 0: .*belongs to no device"),
        ({"a": UnitRect(0, 0.5), "b": UnitRect(0.5, 1.5)}, "stage 0: .*outside of the unit square"),
        ({}, "stage 0: .*belongs to no device"),
    ],
)
def test_regions_that_do_not_cover_are_refused(model: Model, regions: dict[str, UnitRect], words: str) -> None:
    stages = (Stage(first=0, last=len(model.layers) - 1, regions=regions),)
    with pytest.raises(PlanError, match=words):
        check_plan(changed(even_plan(model, ["a", "b"]), stages=stages), model)


def test_stages_that_do_not_cover_the_layers_are_refused(model: Model) -> None:
    count = len(model.layers)
    everything = {"device-0": UNIT}

    def check(*ranges: tuple[int, int]) -> None:
        stages = tuple(Stage(first=a, last=b, regions=everything) for a, b in ranges)
        check_plan(changed(even_plan(model, 1), stages=stages), model)

    check((0, 2), (3, count - 1))
    for ranges, words in [
        ([(1, count - 1)], "must begin with layer 0"),
        ([(0, 2), (4, count - 1)], "must begin with layer 3"),
        ([(0, 2), (2, count - 1)], "must begin with layer 3"),
        ([(0, 2), (3, 1)], "stage 1 covers layers 3 to 1"),
        ([(0, count - 2)], f"cover {count - 1} layers, the model has {count}"),
        ([(0, count)], f"cover {count + 1} layers, the model has {count}"),
        ([], "cover 0 layers"),
    ]:
        with pytest.raises(PlanError, match=words):
            check(*ranges)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"devices": 0}, "0 devices"),
        ({"devices": []}, "empty list"),
        ({"devices": 3, "boundaries": [0.5]}, "do not make 3 strips: give 2 ascending numbers"),
        ({"devices": 3, "boundaries": [0.7, 0.3]}, "ascending"),
        ({"devices": 3, "boundaries": [0.5, 1.2]}, "ascending"),
        ({"devices": 3, "boundaries": [-0.1, 0.5]}, "ascending"),
        ({"devices": 2, "boundaries": [0.1, 0.5, 1]}, "do not make 2 strips"),
        ({"devices": 2, "boundaries": [float("nan")]}, "not a number"),
        ({"devices": ["a", "b", "c"], "grid": (2, 2)}, "grid of 2 x 2 does not fit 3 devices"),
        ({"grid": (2, 2), "boundaries": [0.5]}, "not both"),
        ({"grid": (0, 2)}, "0 devices"),
        ({"grid": (-1, -2)}, "grid of -1 x -2"),
        ({"devices": 2, "stage_layers": 0}, "stage_layers is 0"),
    ],
)
def test_even_plan_refuses_arguments_that_do_not_fit(model: Model, given: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        even_plan(model, **given)


def test_boundaries_may_include_both_ends(model: Model) -> None:
    inner = even_plan(model, 3, boundaries=[0.2, 0.6])
    assert even_plan(model, 3, boundaries=[0, 0.2, 0.6, 1]) == inner
    assert inner.stages[0].regions == {
        "device-0": UnitRect(0, 0.2), "device-1": UnitRect(0.2, 0.6), "device-2": UnitRect(0.6, 1),
    }  # fmt: skip


def test_layers_that_cannot_be_split_go_to_one_device() -> None:
    model = zoo_model("alexnet")
    for stage_layers in (1, 4, 100):
        plan = even_plan(model, 3, boundaries=[0.2, 0.9], stage_layers=stage_layers)
        for stage in plan.stages:
            layers = model.layers[stage.first : stage.last + 1]
            assert len(layers) <= stage_layers
            if not all(layer.splittable for layer in layers):
                assert stage.regions == {"device-1": UNIT}, "the device with the largest share"
            else:
                assert len(stage.regions) == 3


def test_a_printed_plan_lists_runs_of_equal_stages(model: Model) -> None:
    count = len(model.layers)
    plan = make_plan(
        model,
        [(2, strips({"a": 1, "b": 3})), (1, strips({"a": 1, "b": 3})), (count - 3, {"c": UNIT})],
        "a",
        "c",
    )
    lines = str(changed(plan, scheme="mine", feasible=False, reason="too slow by 3 ms")).splitlines()
    assert lines[0] == "plan mine for squeezenet, a -> c"
    assert lines[1] == "  infeasible: too slow by 3 ms"
    assert lines[2].split() == ["stages", "0-1", "layers", "0-2", "a", "0.0%..25.0%,", "b", "25.0%..100.0%"]
    assert lines[3].split() == ["stage", "2", "layers", f"3-{count - 1}", "c", "all"]
    predicted = Prediction(latency_seconds=0.0123, energy_joules=0.5, throughput_fps=80.0)
    assert "12.3 ms, 0.500 J predicted" in str(changed(plan, predicted=predicted))
    assert "0%..50% x 50%..100%" in str(even_plan(model, grid=(2, 2)))


def check_programs(model: Model, plan: Plan) -> dict[str, Program]:
    """Check the properties that the programs of any plan have."""
    programs = lower(plan, model)
    assert list(programs) == list(plan.devices)
    tensors = model.graph.tensors
    sends: dict[int, tuple[str, Send]] = {}
    receives: dict[int, tuple[str, Receive]] = {}
    for name, program in programs.items():
        assert program.device == name and program.model_hash == model.hash
        made: set[int] = set()
        for step in program.steps:
            # Steps are in dataflow order: patches are received or computed before they are read.
            if isinstance(step, Send):
                assert step.channel not in sends
                assert step.peer != name and step.parts
                sends[step.channel] = (name, step)
                parts = list(step.parts)
            elif isinstance(step, Receive):
                assert step.channel not in receives
                receives[step.channel] = (name, step)
                made |= set(step.writes)
                parts = []
            else:
                reads = step.inputs
                parts = [part for read in reads for part in read.parts]
                for read in reads:
                    assert sum(part.region.area for part in read.parts) == read.region.area
                    assert all(program.patches[part.patch].tensor == read.tensor for part in read.parts)
                    assert all(read.region.contains(part.region) for part in read.parts)
            for part in parts:
                assert part.patch in made
                assert not part.region.empty
                assert program.patches[part.patch].region.contains(part.region)
            if isinstance(step, Compute):
                assert len(step.writes) == len(step.tile.outputs)
                made |= set(step.writes)
        assert made == set(range(len(program.patches)))

    # Every send has one receive with equal patches, and every receive has one send.
    from_client = [c for c, (_, r) in receives.items() if r.peer == CLIENT]
    assert [receives[c][0] for c in from_client] == [plan.source]
    assert set(sends) == set(receives) - set(from_client)
    got: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for channel, (sender, send) in sends.items():
        receiver, receive = receives[channel]
        assert (send.peer, receive.peer, send.stage) == (receiver, sender, receive.stage)
        assert len(send.parts) == len(receive.writes)
        for part, patch_index in zip(send.parts, receive.writes):
            source = programs[sender].patches[part.patch]
            target = programs[receiver].patches[patch_index]
            tensor = tensors[source.tensor]
            assert target.tensor == source.tensor and target.region == part.region
            assert tensor.region_shape(target.region) == tensor.region_shape(part.region)
            if tensor.partial_extent:
                assert part.region == source.region, "a share of a sum is sent whole"
            got[receiver, source.tensor].append((target.region, channel))

    # Nothing is sent twice to a device.
    for regions in got.values():
        for i, (one, _) in enumerate(regions):
            assert all(one.intersection(other).empty for other, _ in regions[i + 1 :])
    answers = [(n, s) for n, p in programs.items() for s in p.steps if isinstance(s, Answer)]
    assert [name for name, _ in answers] == [plan.sink]
    assert [read.tensor for read in answers[0][1].inputs] == list(model.graph.outputs)
    assert all(read.region == tensors[read.tensor].whole for read in answers[0][1].inputs)
    return programs


def owned(plan: Plan, model: Model) -> dict[str, dict[str, Any]]:
    """Return the region that each device owns, by tensor and device."""
    regions: dict[str, dict[str, Any]] = {n: {plan.source: model.graph.tensors[n].whole} for n in model.graph.inputs}
    for stage in plan.stages:
        for node in model.graph.nodes[model.layers[stage.first].first : model.layers[stage.last].stop]:
            for name in filter(None, node.outputs):
                tensor = model.graph.tensors[name]
                regions[name] = {d: r.of_extent(tensor.rows, tensor.cols) for d, r in stage.regions.items()}
    return regions


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
@examples(30)
def test_programs_of_random_plans_are_consistent(name: str, data: st.DataObject) -> None:
    model = zoo_model(name)
    plan = data.draw(plans(model))
    programs = check_programs(model, plan)
    owners = owned(plan, model)
    for device, program in programs.items():
        for step in program.steps:
            if isinstance(step, Send):
                for part in step.parts:
                    mine = owners[program.patches[part.patch].tensor][device]
                    assert mine.contains(part.region), "only what a device owns is fetched from it"


@pytest.mark.parametrize("kwargs", [{"devices": 4}, {"devices": 4, "stage_layers": 5}, {"grid": (2, 3)}])
def test_programs_of_even_plans_are_consistent(model: Model, kwargs: dict[str, Any]) -> None:
    check_programs(model, even_plan(model, **kwargs))


def test_a_single_device_exchanges_messages_with_the_client_only(model: Model) -> None:
    for stage_layers in (1, 1000):
        (program,) = check_programs(model, even_plan(model, 1, stage_layers=stage_layers)).values()
        assert not any(isinstance(step, Send) for step in program.steps)
        assert [s.peer for s in program.steps if isinstance(s, Receive)] == [CLIENT]


def test_a_device_without_rows_has_no_steps(model: Model) -> None:
    plan = even_plan(model, 3, boundaries=[0.0, 0.5], source="device-1")
    programs = check_programs(model, plan)
    assert programs["device-0"].steps == () and programs["device-0"].patches == ()
    assert programs["device-0"].tiles() == []


def test_a_window_of_three_rows_needs_a_halo_of_one_row() -> None:
    net = Net()
    x = net.input((1, 2, 12, 10))
    for _ in range(2):
        x = net.op("Conv", x, net.weight(2, 2, 3, 3), pads=[1, 1, 1, 1])
    model = capture(net.proto(x))
    plan = make_plan(model, [(1, strips({"a": 1, "b": 1, "c": 1}))] * 2, "a")
    programs = check_programs(model, plan)
    halos = {
        (name, s.peer): [(p.region.row_start, p.region.row_stop) for p in s.parts]
        for name, program in programs.items()
        for s in program.steps
        if isinstance(s, Send) and s.stage == 1
    }
    assert halos == {("a", "b"): [(3, 4)], ("b", "a"): [(4, 5)], ("b", "c"): [(7, 8)], ("c", "b"): [(8, 9)]}


def test_a_device_does_not_fetch_a_tensor_twice() -> None:
    """A tensor that two stages read is sent once."""
    net = Net()
    x = net.input((1, 2, 12, 10))
    y = net.op("Conv", x, net.weight(2, 2, 3, 3), pads=[1, 1, 1, 1])
    z = net.op("Conv", x, net.weight(2, 2, 3, 3), pads=[1, 1, 1, 1])
    model = capture(net.proto(net.op("Add", y, z)))
    plan = make_plan(model, [(1, {"b": UNIT}), (1, {"b": UNIT})], "a")
    programs = check_programs(model, plan)
    sent = [p for s in programs["a"].steps if isinstance(s, Send) for p in s.parts]
    assert [part.region for part in sent] == [model.inputs[0].whole]


@pytest.mark.parametrize("name", NETS)
def test_pickled_programs_are_equal(name: str) -> None:
    """Programs are pickled on their way to the workers."""
    model = zoo_model(name)
    for plan in (even_plan(model, 3), even_plan(model, grid=(2, 2), stage_layers=3)):
        for program in lower(plan, model).values():
            again = pickle.loads(pickle.dumps(program))
            assert again == program
            assert [s.kind for s in again.steps] == [s.kind for s in program.steps]
            assert hash(again.steps) == hash(program.steps)


def test_work_counts_overlapping_rows(model: Model) -> None:
    plan = even_plan(model, 3, stage_layers=4)
    rows: dict[int, float] = defaultdict(float)
    for program in lower(plan, model).values():
        for step in program.steps:
            if isinstance(step, Compute):
                for work in step.work:
                    assert 0 < work.rows <= model.layers[work.layer].rows
                    rows[work.layer] += work.rows
    for layer in model.layers:
        assert rows[layer.index] >= layer.rows
    assert any(rows[layer.index] > layer.rows for layer in model.layers), "fused layers overlap"
