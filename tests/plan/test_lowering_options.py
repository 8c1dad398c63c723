"""Halo-first stages and codecs per channel: equal output, in another order and with fewer bytes.

Random networks, plans and options; schedules worked out by hand; and the pieces themselves.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx.printer
import pytest
from hypothesis import given, note, reject
from hypothesis import strategies as st
from nets import (
    DEVICES,
    TOLERANCE,
    Array,
    Net,
    check_split,
    difference,
    examples,
    intermediates,
    make_plan,
    plans,
    unsplit,
    zoo_image,
    zoo_kernels,
    zoo_model,
    zoo_values,
)
from test_exact_random import BLOCKS, arrays_for, captured, nets
from virtual import LOWER, ROW_NBYTES, UPPER, cases, chain, cluster, halos, layer_split

from coedge.core.errors import PlanError
from coedge.core.region import UNIT, Region, UnitRect
from coedge.execution.program import RAW, Compute, Program, Receive, Send
from coedge.frontend.capture import capture
from coedge.graph.graph import Tensor
from coedge.graph.model import Model
from coedge.plan.codec import LOSSLESS, channel_key
from coedge.plan.halo_first import Portion, split_halo_first
from coedge.plan.lowering import lower
from coedge.plan.memory import activation_nbytes
from coedge.plan.plan import Plan, even_plan, strips
from coedge.profile.profile import CodecSpeed, Profile
from coedge.simulation.simulator import simulate
from coedge.simulation.step_costs import message_nbytes
from coedge.simulation.timeline import Timeline
from workers.runtime.in_process import InProcess
from workers.runtime.kernels import Kernels

Codecs = dict[str, str]


def with_options(plan: Plan, halo_first: bool | Sequence[bool] = True, codecs: Any = ()) -> Plan:
    """Return the plan with halo first in all or some of its stages, and with codecs for all or each of them."""
    count = len(plan.stages)
    firsts = [halo_first] * count if isinstance(halo_first, bool) else halo_first
    each = [dict(codecs)] * count if isinstance(codecs, dict) or not codecs else codecs
    stages = [
        stage.model_copy(update={"halo_first": first, "codecs": codec})
        for stage, first, codec in zip(plan.stages, firsts, each, strict=True)
    ]
    return plan.model_copy(update={"stages": tuple(stages)})


def everywhere(codec: str, names: Sequence[str] = DEVICES) -> Codecs:
    return {channel_key(a, b): codec for a, b in itertools.permutations(names, 2)}


@st.composite
def options(draw: st.DrawFn, plan: Plan) -> Plan:
    """Draw options for a plan: halo first in some stages, a lossless codec on some channels."""
    choice = st.sampled_from([RAW, *LOSSLESS])
    count = len(plan.stages)
    firsts = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    keys = list(everywhere(RAW))
    codecs = [
        dict(zip(keys, draw(st.lists(choice, min_size=len(keys), max_size=len(keys))))) if draw(st.booleans()) else {}
        for _ in range(count)
    ]
    return with_options(plan, firsts, codecs)


def outputs_of(model: Model, plan: Plan, arrays: Sequence[Array], kernels: Kernels | None = None) -> list[Array]:
    return InProcess(model, lower(plan, model), kernels or Kernels(model)).run(model.check_inputs(arrays))


def steps_of(programs: Mapping[str, Program], device: str, stage: int) -> list[Compute]:
    """Return the computations of a device in a stage, in program order."""
    return [step for step in programs[device].steps if isinstance(step, Compute) and step.stage == stage]


def rows_made(programs: Mapping[str, Program], device: str, stage: int) -> list[tuple[int, int]]:
    """Return the rows of the first result that each computation makes."""
    regions = (programs[device].patches[step.writes[0]].region for step in steps_of(programs, device, stage))
    return [(region.row_start, region.row_stop) for region in regions]


@given(proto=nets(tuple(name for name in BLOCKS if name != "quantised")), data=st.data())
@examples(150)
def test_random_networks_under_random_options(proto: onnx.ModelProto, data: st.DataObject) -> None:
    note(onnx.printer.to_text(proto))
    model = captured(proto)
    arrays = arrays_for(model)
    plan = data.draw(plans(model).flatmap(options))
    note(plan.model_dump_json())
    try:
        outputs_of(model, with_options(plan, False), arrays)
    except Exception:
        reject()  # ONNX Runtime fuses operators of some tiles wrongly, options or not
    packed = check_split(model, plan, arrays, unsplit(model, arrays), intermediates(model, arrays))
    raw = outputs_of(model, with_options(plan, [stage.halo_first for stage in plan.stages]), arrays)
    # ONNX Runtime's order of summation depends on the memory address of an array.
    sums = any(kind in node.op for node in model.graph.nodes for kind in ("Reduce", "Global", "Norm", "Softmax"))
    for got, expected in zip(packed, raw, strict=True):
        assert difference(got, expected) <= (1e-6 if sums else 0.0), "lossless codecs change no bit"


ZOO = ["resnet18", "mobilenet_v3", "unet", "ssd", "densenet"]
SPLITS: list[dict[str, Any]] = [
    {"devices": 3},
    {"devices": 4, "stage_layers": 3, "boundaries": [0.07, 0.6, 0.71]},
    {"grid": (2, 2), "stage_layers": 2},
    {"grid": (2, 3)},
]


@pytest.mark.parametrize("name", ZOO)
def test_zoo_with_halo_first_and_codecs(name: str) -> None:
    model, x = zoo_model(name), zoo_image(name).numpy()
    expected, inside = zoo_values(name)
    for split, codec in zip(SPLITS, itertools.cycle(LOSSLESS)):
        plan = even_plan(model, **split)
        cut = with_options(plan, True, everywhere(codec, plan.devices))
        check_split(model, cut, [x], expected, inside, kernels=zoo_kernels(name))


@pytest.mark.parametrize("name", ["mobilenet_v3", "unet"])
@given(data=st.data())
@examples(20)
def test_zoo_under_random_plans_and_options(name: str, data: st.DataObject) -> None:
    model, x = zoo_model(name), zoo_image(name).numpy()
    plan = data.draw(plans(model).flatmap(options))
    note(plan.model_dump_json())
    check_split(model, plan, [x], *zoo_values(name), kernels=zoo_kernels(name))


@pytest.mark.parametrize("name", ["resnet18", "unet"])
def test_float16_changes_the_output_by_rounding_only(name: str) -> None:
    model, x = zoo_model(name), zoo_image(name).numpy()
    plan = even_plan(model, 3, stage_layers=4)
    half = with_options(plan, False, everywhere("float16", plan.devices))
    expected = zoo_values(name)[0]
    for got, wanted in zip(outputs_of(model, half, [x], zoo_kernels(name)), expected, strict=True):
        assert TOLERANCE < difference(got, wanted) < 0.02


def test_the_options_are_part_of_the_digest() -> None:
    model = halos()
    plan = even_plan(model, 2)
    assert len({plan.digest, with_options(plan).digest, with_options(plan, False, {"a>b": "blosc2"}).digest}) == 3


@functools.cache
def windows(layers: int) -> Model:
    """Return 3x3 convolutions with 4 channels and 16 rows of 128 bytes: a halo of one row on each side."""
    net = Net()
    x = net.input([1, 4, 16, 8])
    for _ in range(layers):
        x = net.op("Conv", x, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(x), name="windows")


def test_borders_are_computed_and_sent_before_the_interior() -> None:
    model = windows(3)
    plan = make_plan(model, [(1, strips(dict.fromkeys("abc", 1.0)))] * 3, "a")
    program = lower(with_options(plan), model)["b"]
    order = [
        (type(step).__name__, step.peer if isinstance(step, Send) else program.patches[step.writes[0]].region[:2])
        for step in program.steps
        if isinstance(step, (Compute, Send)) and (step.stage if isinstance(step, Compute) else step.stage - 1) == 1
    ]
    assert order == [
        ("Compute", (5, 6)),
        ("Send", "a"),
        ("Compute", (10, 11)),
        ("Send", "c"),
        ("Compute", (6, 10)),
    ]
    # The sink fetches the whole last stage, but its interior does not wait for rows of a neighbour.
    assert rows_made({"b": program}, "b", 2) == [(5, 6), (10, 11), (6, 10)]


def test_an_interior_reads_no_fetched_rows() -> None:
    model = windows(4)
    plan = make_plan(model, [(1, strips({"a": 2, "b": 3, "c": 1}))] * 4, "a")
    programs = lower(with_options(plan), model)
    for device, stage in itertools.product("ab", (1, 2, 3)):
        program = programs[device]
        coming = {p for s in program.steps if isinstance(s, Receive) and s.stage == stage for p in s.writes}
        for step, (start, stop) in zip(steps_of(programs, device, stage), rows_made(programs, device, stage)):
            waits = bool(coming & set(step.reads))
            assert waits == (stop - start == 1), "a border is one row; it alone needs what comes"


def test_rows_that_are_computed_twice_count_twice() -> None:
    model = windows(3)
    halves = {"a": UPPER, "b": LOWER}
    plan = make_plan(model, [(2, halves), (1, halves)], "a")
    plain, cut = lower(plan, model), lower(with_options(plan), model)
    assert [[(w.layer, w.rows) for w in s.work] for s in steps_of(plain, "a", 0)] == [[(0, 9), (1, 8)]]
    # Row 7, which b waits for, needs rows 6, 7 and 8 of the layer before; rows 0..6 need its rows 0..7.
    assert [[(w.layer, w.rows) for w in s.work] for s in steps_of(cut, "a", 0)] == [[(0, 3), (1, 1)], [(0, 8), (1, 7)]]


@pytest.mark.parametrize("name", [*ZOO, "vgg16", "googlenet"])
def test_halo_first_sends_the_same_bytes_between_the_same_devices(name: str) -> None:
    model = zoo_model(name)
    for split in SPLITS:
        plan = even_plan(model, **split)
        plain, cut = lower(plan, model), lower(with_options(plan), model)
        assert transfers(plain, model) == transfers(cut, model)
        assert sum(len(p.tiles()) for p in cut.values()) > sum(len(p.tiles()) for p in plain.values())


def transfers(programs: Mapping[str, Program], model: Model) -> dict[tuple[str, str, int], int]:
    total: dict[tuple[str, str, int], int] = {}
    for name, program in programs.items():
        for step in program.steps:
            if isinstance(step, Send):
                key = (name, step.peer, step.stage)
                total[key] = total.get(key, 0) + message_nbytes(program, step, model)
    return total


def test_programs_are_equal_where_no_share_can_be_split() -> None:
    model = windows(3)
    count = len(model.layers)
    uncut = [
        make_plan(model, [(count, {"a": UNIT})], "a"),
        make_plan(model, [(count, strips({"a": 1, "b": 1}))], "a"),  # all is fetched, and all needs the image
        make_plan(model, [(1, {"a": UNIT}), (count - 1, {"b": UNIT})], "a", "b"),
    ]
    for plan in uncut:
        assert lower(with_options(plan), model) == lower(plan, model)
    pooled = halos()  # its last stage has a share of a mean in it
    plan = make_plan(pooled, [(len(pooled.layers), {"a": UPPER, "b": LOWER})], "a")
    assert lower(with_options(plan), pooled) == lower(plan, pooled)


def test_only_halo_first_stages_are_split() -> None:
    model = windows(3)
    plan = make_plan(model, [(1, {"a": UPPER, "b": LOWER})] * 3, "a")
    programs = lower(with_options(plan, [False, True, False]), model)
    assert [len(steps_of(programs, "b", stage)) for stage in range(3)] == [1, 2, 1]


def test_partial_sums_of_a_reduction_are_not_split() -> None:
    """A mean over portions would sum in another order."""
    model = zoo_model("mobilenet_v3")
    programs = lower(with_options(even_plan(model, 3)), model)
    reducing = {
        index
        for index, layer in enumerate(model.layers)
        if any(rule.kind in ("partial", "combine", "whole") for rule in model.rules[layer.first : layer.stop])
    }
    assert reducing
    counts = {stage: len(steps_of(programs, "device-1", stage)) for stage in range(len(model.layers))}
    assert all(counts[stage] <= 1 for stage in reducing)
    assert any(count > 1 for count in counts.values())


def test_portions_need_little_more_memory() -> None:
    model = zoo_model("vgg16")
    plan = even_plan(model, 3)
    plain, cut = lower(plan, model), lower(with_options(plan), model)
    for name in plan.devices:
        assert activation_nbytes(cut[name], model) < 1.2 * activation_nbytes(plain[name], model)


def tensor(name: str, rows: int, cols: int) -> Tensor:
    return Tensor(name, "float32", (1, 1, rows, cols), 2, 3)


@st.composite
def shares(draw: st.DrawFn) -> tuple[UnitRect, list[Tensor], list[tuple[str, Region]], dict[str, Region]]:
    """Draw a share, its results, the regions that others fetch, and the rows that can be computed locally."""
    edges = st.floats(0, 1)
    (top, bottom), (left, right) = (sorted(draw(st.tuples(edges, edges))) for _ in range(2))
    rect = UnitRect(top, bottom, *draw(st.sampled_from([(0.0, 1.0), (left, right)])))
    sizes = st.integers(1, 40)
    tensors = [tensor(f"t{i}", draw(sizes), draw(sizes)) for i in range(draw(st.integers(1, 3)))]

    def part(region: Region) -> Region:
        rows = sorted(draw(st.tuples(*[st.integers(region.row_start, region.row_stop)] * 2)))
        cols = sorted(draw(st.tuples(*[st.integers(region.col_start, region.col_stop)] * 2)))
        return Region(*rows, *cols)

    own = {t.name: rect.of_extent(t.rows, t.cols) for t in tensors}
    there = [t.name for t in tensors if not own[t.name].empty]
    names = draw(st.lists(st.sampled_from(there), max_size=4)) if there else []
    fetched = [(name, region) for name in names if not (region := part(own[name])).empty]
    return rect, tensors, fetched, {name: part(own[name]) for name in there}


@given(share=shares())
@examples(400)
def test_portions_make_up_the_region(share: tuple[Any, ...]) -> None:
    rect, tensors, fetched, local = share

    def is_local(wanted: Mapping[str, Region]) -> bool:
        return all(local[name].contains(region) for name, region in wanted.items())

    portions = split_halo_first(rect, tensors, fetched, is_local)
    assert sum(portion.inner for portion in portions) == 1 and len(portions) <= 5
    for t in tensors:
        own = rect.of_extent(t.rows, t.cols)
        regions = [portion.wanted[t.name] for portion in portions if t.name in portion.wanted]
        assert all(not region.empty and own.contains(region) for region in regions)
        assert all(a.intersection(b).empty for a, b in itertools.combinations(regions, 2))
        assert sum(region.area for region in regions) == own.area
    if len(portions) > 1:
        check_order(portions, fetched)
        inner = next(portion for portion in portions if portion.inner)
        free = not any(meets(inner, name, region) for name, region in fetched)
        assert inner.wanted and (free or is_local(inner.wanted))
    assert all(portion.wanted for portion in portions if not portion.inner)


def check_order(portions: Sequence[Portion], fetched: Sequence[tuple[str, Region]]) -> None:
    """Awaited portions come first, then the interior, then the portions that no device waits for."""
    position = next(i for i, portion in enumerate(portions) if portion.inner)
    awaited = [any(meets(portion, name, region) for name, region in fetched) for portion in portions]
    assert all(awaited[:position]) and not any(awaited[position + 1 :])


def meets(portion: Portion, name: str, region: Region) -> bool:
    return name in portion.wanted and not portion.wanted[name].intersection(region).empty


def test_a_grid_has_borders_on_all_sides() -> None:
    t = tensor("t", 40, 40)
    rect = UnitRect(0.25, 0.75, 0.25, 0.75)
    sides = [Region(10, 11, 10, 30), Region(29, 30, 10, 30), Region(10, 30, 10, 11), Region(10, 30, 29, 30)]
    portions = split_halo_first(rect, [t], [("t", side) for side in sides], lambda wanted: True)
    assert [portion.wanted["t"] for portion in portions] == [
        Region(10, 11, 10, 30),
        Region(29, 30, 10, 30),
        Region(11, 29, 10, 11),
        Region(11, 29, 29, 30),
        Region(11, 29, 11, 29),
    ]


def test_results_of_different_heights_are_split_at_the_same_edge() -> None:
    tensors = [tensor("fine", 40, 8), tensor("coarse", 10, 8)]
    fetched = [("fine", Region(20, 21, 0, 8)), ("coarse", Region(9, 10, 0, 8))]
    portions = split_halo_first(UnitRect(row_start=0.5), tensors, fetched, lambda wanted: True)
    assert [{name: region[:2] for name, region in portion.wanted.items()} for portion in portions] == [
        {"fine": (20, 21)},
        {"fine": (36, 40), "coarse": (9, 10)},
        {"fine": (21, 36), "coarse": (5, 9)},
    ]


def spans(timeline: Timeline, device: str, kind: str) -> list[tuple[float, float]]:
    return sorted((s.start_seconds, s.stop_seconds) for s in timeline.spans if (s.device, s.kind) == (device, kind))


def halves_of(model: Model) -> Plan:
    return make_plan(model, [(1, {"a": UPPER, "b": LOWER})] * len(model.layers), "a", "b")


#   The image takes one second to b (9 rows at 9 rows/s). A row takes 1 s to compute, and 1, 2 or 8 s from b to a.
def two_halves(seconds_per_row_back: float) -> Profile:
    rates = {("a", "b"): 9.0 * ROW_NBYTES, ("b", "a"): ROW_NBYTES / seconds_per_row_back}
    return cluster(windows(2), rates=rates)


def test_halo_first_hides_a_transfer() -> None:
    model, profile = windows(2), two_halves(2.0)
    plan = halves_of(model)
    plain = simulate(lower(plan, model), profile, model)
    # b has its rows at 1 and computes until 9. Row 8 arrives at a at 11; a has waited for it since 8.
    assert spans(plain, "a", "compute") == [(0, 8), (11, 19)]
    assert spans(plain, "b", "send") == [(9, 11)]
    assert plain.latency_seconds == pytest.approx(19 + 8 / 9)

    first = simulate(lower(with_options(plan), model), profile, model)
    # Row 8 is computed by 2 and sent until 4, while both devices compute the rest: a never waits.
    assert spans(first, "b", "send") == [(2, 4)]
    assert spans(first, "a", "compute") == [(0, 1), (1, 8), (8, 9), (9, 16)]
    assert spans(first, "b", "compute") == [(1, 2), (2, 9), (9, 16), (16, 17)]
    assert first.latency_seconds == 17.0
    assert first.idle_seconds()["a"] == 1.0 < plain.idle_seconds()["a"]


def test_an_interior_is_computed_while_its_halo_is_on_the_way() -> None:
    model, profile = windows(2), two_halves(8.0)
    plan = halves_of(model)
    assert simulate(lower(plan, model), profile, model).latency_seconds == pytest.approx(17 + 8 + 8 / 9)
    first = simulate(lower(with_options(plan), model), profile, model)
    # Row 8 is at a at 10. From 8 to 15 a computes rows 0..6 of its second stage, which do not need it, then row 7.
    assert spans(first, "b", "send") == [(2, 10)]
    made = [s for s in first.spans if (s.device, s.kind, s.stage) == ("a", "compute", 1)]
    assert [(s.start_seconds, s.stop_seconds) for s in made] == [(8, 15), (15, 16)]
    assert first.latency_seconds == 17.0


def packing(profile: Profile, ratio: float, speed: CodecSpeed, codec: str = "zero_mask") -> Profile:
    devices = tuple(d.model_copy(update={"codecs": {codec: speed}}) for d in profile.devices)
    ratios = {tensor: {codec: ratio} for tensor in chain(2).graph.tensors}
    return profile.model_copy(update={"devices": devices, "codec_ratios": ratios})


def test_packing_takes_time_at_both_ends_and_saves_it_in_between() -> None:
    model = chain(2)
    speed = CodecSpeed(encode_bytes_per_second=2048.0, decode_bytes_per_second=1024.0)
    profile = packing(cluster(model, rate=512.0), 0.5, speed)
    plan = with_options(layer_split(model, 1), False, {"a>b": "zero_mask"})
    timeline = simulate(lower(plan, model), profile, model)
    # 1024 bytes: packed in half a second, half of them sent in one (raw: two), unpacked in one.
    assert spans(timeline, "a", "compute") == [(0, 8), (8, 8.5)]
    assert spans(timeline, "a", "send") == spans(timeline, "b", "receive") == [(8.5, 9.5)]
    assert spans(timeline, "b", "compute") == [(9.5, 10.5), (10.5, 18.5)]
    assert timeline.sent_nbytes() == {("a", "b"): 512}
    assert timeline.compute_seconds() == {"a": 8.5, "b": 9.0}
    assert timeline.latency_seconds == 18.5


def test_unpacking_waits_for_the_kernel_that_runs_and_goes_before_the_next() -> None:
    model = chain(2)
    speed = CodecSpeed(encode_bytes_per_second=2048.0, decode_bytes_per_second=1024.0)
    profile = packing(cluster(model, seconds_per_row={"a": 0.5}, rate=512.0), 0.5, speed)
    plan = with_options(layer_split(model, 1), False, {"a>b": "zero_mask"})
    timeline = simulate(lower(plan, model), profile, model, frames=3, in_flight=3)
    # a: 4 s a frame and 0.5 s of packing. b: at 5.5 it unpacks frame 0 and computes it from 6.5 to 14.5; by then
    # frames 1 and 2 have come (at 10 and 14.5), and both are unpacked before frame 1 is computed.
    assert spans(timeline, "a", "send") == [(4.5, 5.5), (9, 10), (13.5, 14.5)]
    assert spans(timeline, "b", "compute")[:5] == [(5.5, 6.5), (6.5, 14.5), (14.5, 15.5), (15.5, 16.5), (16.5, 24.5)]
    assert timeline.answered[2] == (0.0, 32.5)


def test_tensors_without_a_measured_ratio_count_as_raw() -> None:
    model = chain(2)
    speed = CodecSpeed(encode_bytes_per_second=1e12, decode_bytes_per_second=1e12)
    profile = packing(cluster(model, rate=512.0), 0.5, speed).model_copy(update={"codec_ratios": {}})
    plan = with_options(layer_split(model, 1), False, {"a>b": "zero_mask"})
    assert simulate(lower(plan, model), profile, model).sent_nbytes() == {("a", "b"): 8 * ROW_NBYTES}


@pytest.mark.parametrize("without", ["a", "b"])
def test_a_codec_without_a_measured_speed_is_an_error(without: str) -> None:
    model = chain(2)
    speed = CodecSpeed(encode_bytes_per_second=2048.0, decode_bytes_per_second=1024.0)
    profile = packing(cluster(model), 0.5, speed)
    devices = tuple(d.model_copy(update={"codecs": {}}) if d.name == without else d for d in profile.devices)
    plan = with_options(layer_split(model, 1), False, {"a>b": "zero_mask"})
    with pytest.raises(PlanError, match=f"how fast '{without}' packs as 'zero_mask'; measure the cluster again"):
        simulate(lower(plan, model), profile.model_copy(update={"devices": devices}), model)


@given(case=cases(), data=st.data())
@examples(60)
def test_every_schedule_respects_its_resources(case: tuple[Plan, Profile], data: st.DataObject) -> None:
    """A device does one thing at a time, every message is packed and unpacked once, and every frame is answered."""
    model, (plan, profile) = halos(), case
    speed = CodecSpeed(encode_bytes_per_second=2048.0, decode_bytes_per_second=1024.0)
    devices = tuple(d.model_copy(update={"codecs": dict.fromkeys(LOSSLESS, speed)}) for d in profile.devices)
    programs = lower(data.draw(options(plan)), model)
    timeline = simulate(programs, profile.model_copy(update={"devices": devices}), model, frames=3, in_flight=2)
    assert set(timeline.answered) == {0, 1, 2}
    for name, program in programs.items():
        packed = [s for s in program.steps if isinstance(s, (Send, Receive)) and s.codec != RAW]
        kernels = [s for s in program.steps if isinstance(s, Compute)]
        busy = spans(timeline, name, "compute")
        assert len(busy) == 3 * (len(packed) + len(kernels))
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(busy))
