"""Published schemes, each against its own rule by brute force, and all of them exact on irregular clusters."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given, note
from hypothesis import strategies as st
from nets import Net, check_split, examples, image, unsplit, zoo_image, zoo_model
from test_algorithm_1 import chain, dense_only, powers_of_ten, profiles, softmax_inside, synthetic_profile

from coedge.core.objective import Objective
from coedge.core.region import UNIT, UnitRect
from coedge.execution.program import Work
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage, check_plan, strips
from coedge.plan.tiles import tile_of
from coedge.profile.profile import LayerTime, Medium, Profile
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import Evaluator
from orchestrator.planner.planner import SCHEMES, make_plan
from orchestrator.schemes.aofl import cheapest_borders, runs_of
from orchestrator.schemes.fused_blocks import BlockNeeds, block_costs
from orchestrator.schemes.musical_chair import Need, choose, mean_of
from orchestrator.schemes.neurosurgeon import candidates
from orchestrator.schemes.scheme import best, evaluate, place_whole, single_device

# Networks and clusters


@functools.cache
def branches() -> Model:
    """Two parallel paths as in a residual block, a skip over three layers, odd heights, and a dense tail."""
    net = Net()
    x = net.input([1, 4, 37, 6])
    a = net.op("Relu", net.op("Conv", x, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1]))
    b = net.op("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2])
    c = net.op("Conv", b, net.weight(4, 4, 5, 5), pads=[2, 2, 2, 2])
    d = net.op("Conv", b, net.weight(4, 4, 1, 1))
    e = net.op("Conv", net.op("Add", c, d), net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    f = net.op("Concat", e, b, axis=1)
    return capture(net.proto(net.op("Gemm", net.op("Flatten", f), net.weight(8 * 18 * 3, 5))), name="branches")


@functools.cache
def squeeze() -> Model:
    """A squeeze-and-excite block: every device needs every device's partial mean."""
    net = Net()
    x = net.op("Conv", net.input([1, 4, 20, 6]), net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    gate = net.op("Sigmoid", net.op("Conv", net.op("GlobalAveragePool", x), net.weight(4, 4, 1, 1)))
    x = net.op("Conv", net.op("Mul", x, gate), net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(net.op("Conv", x, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])), name="squeeze")


@functools.cache
def two_outputs() -> Model:
    """One output is made early and read by later layers; the input is needed again at the end."""
    net = Net()
    x = net.input([1, 4, 24, 6])
    a = net.op("Conv", x, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    b = net.op("Conv", a, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1], strides=[1, 1])
    c = net.op("Conv", b, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(a, net.op("Add", c, x)), name="two outputs")


SMALL_NETS = (chain, branches, squeeze, two_outputs, softmax_inside, dense_only)


@st.composite
def clusters(draw: st.DrawFn, model: Model, least: int = 1, most: int = 5) -> Profile:
    """Any profile: asymmetric links, layers cheaper inside a stage, memory limits, shared media."""
    profile = draw(profiles(model, least, most))
    links = tuple(
        link.model_copy(update={"bytes_per_second": draw(powers_of_ten(4, 9)), "latency_seconds": draw(_LATENCIES)})
        for link in profile.links
    )
    devices = []
    for device in profile.devices:
        saved = draw(st.sampled_from([None, 0.5, 0.9]))
        fused = [t.model_copy(update={"fixed_seconds": t.fixed_seconds * (saved or 1.0)}) for t in device.layers]
        power = device.power.model_copy(update={"receive_watts": draw(_WATTS), "idle_watts": draw(_WATTS)})
        memory = draw(st.none() | powers_of_ten(4, 7))
        changed = {"fused": tuple(fused) if saved else (), "power": power, "memory_bytes": memory}
        devices.append(device.model_copy(update=changed))
    media = []
    for index in range(draw(st.integers(0, 2))):
        on_it = draw(st.lists(st.sampled_from(profile.names), min_size=1, unique=True))
        media.append(Medium(name=f"air {index}", devices=tuple(on_it), bytes_per_second=draw(powers_of_ten(4, 9))))
    joules = draw(st.sampled_from(["dynamic", "total"]))
    changed = {"links": links, "devices": tuple(devices), "media": tuple(media), "joules": joules}
    return profile.model_copy(update=changed)


_WATTS = st.sampled_from([0.0, 0.3, 2.0])
_LATENCIES = st.sampled_from([0.0, 1e-5, 1e-4, 2e-3])


@st.composite
def wishes(draw: st.DrawFn) -> Objective:
    return Objective(
        goal=draw(st.sampled_from(["latency", "energy"])),
        energy_weight=draw(st.sampled_from([0.0, 0.1])),
        deadline_ms=draw(st.none() | powers_of_ten(-1, 2)),
    )


# Every scheme


@pytest.mark.parametrize("make", SMALL_NETS)
@given(data=st.data())
@examples(6)
def test_plans_are_valid_and_exact_on_any_cluster(make, data: st.DataObject) -> None:
    model = make()
    profile, objective = data.draw(clusters(model)), data.draw(wishes())
    arrays = [image(tensor.shape) for tensor in model.inputs]
    expected = unsplit(model, arrays)
    for scheme in SCHEMES:
        plan = make_plan(model, profile, objective, scheme)
        check_plan(plan, model)
        assert plan.scheme == scheme and plan.source == plan.sink == profile.source
        assert plan.feasible or "limit" in plan.reason or "deadline" in plan.reason
        check_split(model, plan, arrays, expected)


@pytest.mark.parametrize("scheme", ["musical_chair", "aofl", "neurosurgeon"])
@pytest.mark.parametrize("name", ["googlenet", "unet", "mobilenet_v3"])
def test_networks_of_the_zoo_are_exact(name: str, scheme: str) -> None:
    model, x = zoo_model(name), zoo_image(name).numpy()
    profile = synthetic_profile(model, {"a": 0.02, "b": 0.05, "c": 0.03}, {"a": 3e7, "b": 1e8, "c": 1e7}, 1e-4)
    check_split(model, make_plan(model, profile, scheme=scheme), [x])


@pytest.mark.parametrize("make", [chain, branches])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_planning_is_deterministic(scheme: str, make) -> None:
    model = make()
    profile = synthetic_profile(model, {"a": 0.3, "b": 0.2, "c": 0.3, "d": 0.3}, 1e7)
    again = Profile.model_validate_json(profile.model_dump_json())
    for objective in (Objective(), Objective(goal="energy", deadline_ms=5), Objective(goal="throughput")):
        assert make_plan(model, profile, objective, scheme) == make_plan(model, again, objective, scheme)


@pytest.mark.parametrize("scheme", ["local", "offload", "aofl", "neurosurgeon"])
def test_a_device_without_room_is_avoided_or_named(scheme: str) -> None:
    """The dense layer does not fit the fastest device."""
    model = branches()
    speeds = {"a": 0.01, "b": 1.0, "c": 0.02}
    roomy = make_plan(model, synthetic_profile(model, speeds, 1e9, 1e-6), scheme=scheme)
    tight = make_plan(model, synthetic_profile(model, speeds, 1e9, 1e-6, memory={"b": 2000}), scheme=scheme)
    assert roomy.feasible and tight.feasible, tight.reason
    assert ("b" in _taking_part(roomy)) == (scheme != "local")
    assert "b" not in _taking_part(tight)
    nobody = synthetic_profile(model, speeds, 1e9, 1e-6, memory=dict.fromkeys(speeds, 2000))
    plan = make_plan(model, nobody, scheme=scheme)
    assert not plan.feasible and "its limit is 0.0 MB" in plan.reason


def _taking_part(plan: Plan) -> set[str]:
    return {name for stage in plan.stages for name, rect in stage.regions.items() if rect.row_stop > rect.row_start}


# Local, offload


def test_local_uses_the_source_however_slow_it_is() -> None:
    model = chain()
    profile = synthetic_profile(model, {"a": 1.0, "slow": 0.001, "b": 1.0}, 1e12, 0.0, source="slow")
    (stage,) = make_plan(model, profile, scheme="local").stages
    assert stage.regions == {"slow": UNIT}


def test_offload_does_not_use_the_source_however_fast_it_is() -> None:
    model = chain()
    profile = synthetic_profile(model, {"a": 0.1, "fast": 1.0, "b": 0.2}, 1e5, source="fast")
    (stage,) = make_plan(model, profile, scheme="offload").stages
    assert stage.regions == {"b": UNIT}


def test_offload_trades_speed_against_link_and_power() -> None:
    model = chain()
    profile = synthetic_profile(
        model, {"s": 0.1, "near": 0.2, "far": 1.0}, {"s": 1e9, "near": 1e9, "far": 1e5},
        watts={"s": (1.0, 0.0), "near": (9.0, 0.0), "far": (1.0, 0.0)},
    )  # fmt: skip
    assert make_plan(model, profile, Objective(), "offload").stages[0].regions == {"near": UNIT}
    assert make_plan(model, profile, Objective(goal="energy"), "offload").stages[0].regions == {"far": UNIT}


def test_offload_without_another_device_gives_the_reason() -> None:
    model = chain()
    plan = make_plan(model, synthetic_profile(model, {"only": 0.5}), scheme="offload")
    assert plan.feasible and plan.stages[0].regions == {"only": UNIT}
    assert plan.reason == "there is no device other than only"


def test_coedge_falls_back_to_the_best_of_all_devices() -> None:
    model = dense_only()
    profile = synthetic_profile(model, {"a": 0.1, "b": 1.0}, 1e9)
    plan = make_plan(model, profile, scheme="coedge")
    assert plan.stages == single_device("x", model, profile, Objective()).stages
    assert plan.stages[0].regions == {"b": UNIT}


def test_a_stream_is_ranked_by_its_rate() -> None:
    model = chain()
    profile = synthetic_profile(model, {"a": 0.5, "b": 0.5}, 1e8, 1e-5)
    last = len(model.layers) - 1
    cut = (Stage(first=0, last=3, regions={"a": UNIT}), Stage(first=4, last=last, regions={"b": UNIT}))
    whole = (Stage(first=0, last=last, regions={"a": UNIT}),)
    for goal, wanted in (("latency", whole), ("throughput", cut)):
        objective = Objective(goal=goal)
        plans = [evaluate("x", model, profile, objective, stages) for stages in (whole, cut)]
        assert best(plans, objective).stages == wanted


# Neurosurgeon


def all_cuts(model: Model, profile: Profile, keep_local: int = 0) -> Iterator[tuple[Stage, ...]]:
    last = len(model.layers) - 1
    yield (Stage(first=0, last=last, regions={profile.source: UNIT}),)
    for cut in range(min(keep_local, last + 1), last + 1):
        for server in profile.names:
            if server == profile.source:
                continue
            tail = Stage(first=cut, last=last, regions={server: UNIT})
            head = Stage(first=0, last=cut - 1, regions={profile.source: UNIT}) if cut else None
            yield (head, tail) if head else (tail,)


@pytest.mark.parametrize("make", SMALL_NETS)
@given(data=st.data())
@examples(25)
def test_neurosurgeon_is_the_best_of_all_cuts_and_servers(make, data: st.DataObject) -> None:
    model = make()
    profile = data.draw(clusters(model))
    objective = data.draw(wishes()).model_copy(update={"keep_local": data.draw(st.integers(0, len(model.layers) + 1))})
    check_best_cut(model, profile, objective)


def check_best_cut(model: Model, profile: Profile, objective: Objective) -> None:
    evaluator = Evaluator(model, profile, objective)
    plan = make_plan(model, profile, objective, "neurosurgeon")
    ranks = [evaluator.evaluate(stages).rank(objective) for stages in all_cuts(model, profile, objective.keep_local)]
    assert evaluator.evaluate(plan.stages).rank(objective) == min(ranks)


@pytest.mark.parametrize("make", SMALL_NETS)
@given(data=st.data())
@examples(15)
def test_neurosurgeon_bounds_agree_with_the_simulator(make, data: st.DataObject) -> None:
    """Latency and joules agree up to rounding, as one frame meets no queue. The rate of a stream is an upper bound."""
    model = make()
    profile = data.draw(clusters(model))
    objectives = [data.draw(wishes()), Objective(goal="throughput")]
    for candidate in candidates(model, profile, Objective()):
        for objective in objectives:
            evaluated = Evaluator(model, profile, objective).evaluate(candidate.stages)
            assert candidate.seconds == pytest.approx(evaluated.latency_seconds, rel=1e-9)
            assert candidate.joules == pytest.approx(evaluated.energy_joules, rel=1e-9, abs=1e-15)
            assert candidate.bound(profile, objective) <= evaluated.rank(objective)


@pytest.mark.parametrize("make", [chain, branches, two_outputs])
@given(data=st.data())
@examples(10)
def test_neurosurgeon_takes_the_cut_of_the_best_rate_for_a_stream(make, data: st.DataObject) -> None:
    model = make()
    check_best_cut(model, data.draw(clusters(model)), Objective(goal="throughput"))


def test_neurosurgeon_cut_follows_the_link() -> None:
    """Large maps come first: the cut moves from the server to the source as the link slows down."""
    net = Net()
    x = net.input([1, 8, 64, 64])
    x = net.op("Conv", x, net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    x = net.op("MaxPool", x, kernel_shape=[8, 8], strides=[8, 8])
    for _ in range(3):
        x = net.op("Conv", x, net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    model = capture(net.proto(x))
    found = []
    for rate in (1e9, 1e7, 1e3):
        profile = synthetic_profile(model, {"device": 0.1, "server": 1.0}, rate, 1e-5)
        stages = make_plan(model, profile, scheme="neurosurgeon").stages
        assert len(stages) <= 2
        found.append([(list(stage.regions), stage.first) for stage in stages])
    assert found == [[(["server"], 0)], [(["device"], 0), (["server"], 2)], [(["device"], 0)]]


def test_neurosurgeon_keeps_private_layers_on_the_source() -> None:
    model = chain()
    profile = synthetic_profile(model, {"a": 0.01, "b": 1.0}, 1e9, 1e-6)
    for keep in range(len(model.layers) + 2):
        plan = make_plan(model, profile, Objective(keep_local=keep), "neurosurgeon")
        kept = [stage for stage in plan.stages if list(stage.regions) == ["a"]]
        assert sum(stage.last - stage.first + 1 for stage in kept) == min(keep, len(model.layers))


# Aofl


@st.composite
def blocks_of(draw: st.DrawFn, model: Model) -> tuple[Profile, dict[str, UnitRect], str, int, int]:
    """A cluster, strips over some devices, the device for the other layers, and a run of layers that can be split."""
    profile = draw(clusters(model, 2, 5))
    names = draw(st.lists(st.sampled_from(profile.names), min_size=1, unique=True))
    shares = {name: draw(st.floats(0.01, 1)) for name in profile.names if name in names}
    runs = [(first, stop) for splittable, first, stop in runs_of(model) if splittable]
    assume(runs)
    return profile, strips(shares), draw(st.sampled_from(profile.names)), *draw(st.sampled_from(runs))


def all_borders(count: int) -> Iterator[list[int]]:
    for size in range(count):
        for inner in itertools.combinations(range(1, count), size):
            yield [0, *inner, count]


@pytest.mark.parametrize("make", [chain, branches, squeeze, two_outputs, softmax_inside])
@given(data=st.data())
@examples(10)
def test_aofl_borders_are_those_of_exhaustive_search(make, data: st.DataObject) -> None:
    model = make()
    assert len(model.layers) <= 8
    profile, regions, alone, first, stop = data.draw(blocks_of(model))
    costs = block_costs(BlockNeeds(model), CostTable.of(model, profile), regions, alone, first, stop)
    for objective in (Objective(), Objective(goal="energy"), Objective(energy_weight=0.1)):
        cost = costs.cost(objective)

        def total(borders: list[int], cost: np.ndarray = cost) -> float:
            return sum(cost[a, b] for a, b in itertools.pairwise(borders))

        chosen = cheapest_borders(cost)
        assert chosen in list(all_borders(stop - first))
        assert total(chosen) == pytest.approx(min(map(total, all_borders(stop - first))), rel=1e-12)


@pytest.mark.parametrize("make", [chain, branches, squeeze, two_outputs, softmax_inside])
@given(data=st.data())
@examples(10)
def test_block_costs_agree_with_lowering(make, data: st.DataObject) -> None:
    """Rows and bytes of every block are computed from tiles one by one; the tables come from one pass per block end."""
    model = make()
    profile, regions, alone, first, stop = data.draw(blocks_of(model))
    note(f"{regions} {alone} layers {first}..{stop}")
    costs = block_costs(BlockNeeds(model), CostTable.of(model, profile), regions, alone, first, stop)
    for a, b in itertools.combinations(range(first, stop + 1), 2):
        seconds, joules = block_by_hand(model, profile, regions, alone, a, b)
        assert costs.seconds[a - first, b - first] == pytest.approx(seconds, rel=1e-9)
        assert costs.joules[a - first, b - first] == pytest.approx(joules, rel=1e-9, abs=1e-15)


def block_by_hand(
    model: Model, profile: Profile, regions: dict[str, UnitRect], alone: str, first: int, stop: int
) -> tuple[float, float]:
    graph, layers = model.graph, model.layers
    nodes = graph.nodes[layers[first].first : layers[stop - 1].stop]
    made = {name for node in nodes for name in node.outputs}
    alive = model.cuts[stop].tensors if stop < len(layers) else graph.outputs
    unsplit_nodes = [n for layer in layers if not layer.splittable for n in graph.nodes[layer.first : layer.stop]]
    made_alone = {name for node in unsplit_nodes for name in node.outputs}
    ready, sent, joules = {}, dict.fromkeys(profile.names, 0.0), 0.0
    computing = dict.fromkeys(regions, 0.0)
    for device, rect in regions.items():
        wanted = {}
        for name in alive:
            tensor = graph.tensors[name]
            region = rect.of_extent(tensor.rows, tensor.cols)
            if name in made and not region.empty:
                wanted[name] = region
        tile, need = tile_of(model, nodes[0].index, nodes[-1].index + 1, wanted)
        # The tables count full rows, even if no layer reads the columns at the border.
        work = [Work(x.index, need[x.tensor].rows.length) for x in layers[first:stop] if x.tensor in need]
        computing[device] = profile.by_name[device].compute_seconds(work)
        joules += computing[device] * profile.by_name[device].power.compute_watts
        arriving: dict[str, float] = {}
        for name in tile.inputs:
            tensor = graph.tensors[name]
            owners = regions
            if name in graph.inputs:
                owners = {profile.source: UNIT}
            elif name in made_alone:
                owners = {alone: UNIT}
            for owner, held in owners.items():
                portion = (
                    need[name]
                    ._replace(col_start=0, col_stop=tensor.cols)
                    .intersection(held.of_extent(tensor.rows, tensor.cols))
                )
                if owner != device and not portion.empty:
                    arriving[owner] = arriving.get(owner, 0.0) + tensor.region_nbytes(portion)
        for owner, nbytes in arriving.items():
            wire = nbytes / profile.link(owner, device).bytes_per_second
            sent[owner] += wire
            joules += wire * profile.by_name[owner].power.transmit_watts
            joules += wire * profile.by_name[device].power.receive_watts
        ready[device] = arriving
    moved = [(owner, device, nbytes) for device, arriving in ready.items() for owner, nbytes in arriving.items()]
    on_medium = {
        medium.name: sum(n for o, d, n in moved if medium in profile.media_between(o, d)) / medium.bytes_per_second
        for medium in profile.media
    }
    slowest = 0.0
    for device, arriving in ready.items():
        wires = [nbytes / profile.link(o, device).bytes_per_second for o, nbytes in arriving.items()]
        latency = max((profile.link(o, device).latency_seconds for o in arriving), default=0.0)
        shared = [on_medium[m.name] for o in arriving for m in profile.media_between(o, device)]
        waiting = max([sum(wires), *(sent[o] for o in arriving), *shared]) + latency
        slowest = max(slowest, waiting + computing[device])
    return slowest, joules


def test_a_shared_medium_carries_one_transfer_at_a_time() -> None:
    model = chain()
    profile = synthetic_profile(model, {"a": 1.0, "b": 1.0, "c": 1.0}, 1e6, 0.0)
    regions = strips(dict.fromkeys("abc", 1.0))

    def seconds(media: tuple[Medium, ...]) -> float:
        shared = profile.model_copy(update={"media": media})
        return float(block_costs(BlockNeeds(model), CostTable.of(model, shared), regions, "a", 0, 5).seconds[1, 2])

    air = Medium(name="air", devices=("a", "b", "c"), bytes_per_second=1e6)
    # The second layer moves a row of 128 bytes over each border, in both directions; one device has two borders.
    assert seconds((air,)) - seconds(()) == pytest.approx((4 - 2) * 128 / 1e6, rel=1e-6)
    assert seconds((Medium(name="else", devices=("x",), bytes_per_second=1.0),)) == seconds(())


def test_expensive_exchanges_make_long_blocks_and_free_ones_short_blocks() -> None:
    model = chain()
    costly = synthetic_profile(model, dict.fromkeys("abcd", 0.01), 1e9, 3e-2)
    free = synthetic_profile(model, dict.fromkeys("abcd", 0.01), 1e15, 0.0)
    blocks = [
        [(s.first, s.last) for s in make_plan(model, profile, scheme="aofl").stages if len(s.regions) > 1]
        for profile in (costly, free)
    ]
    assert blocks[0] == [(0, 4)]
    # A 1x1 convolution recomputes nothing, so a border before it saves nothing.
    assert blocks[1] == [(0, 0), (1, 1), (2, 3), (4, 4)]


def test_aofl_shares_follow_speed_and_slow_devices_may_be_unused() -> None:
    model = chain()
    speeds = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.02}
    plan = make_plan(model, synthetic_profile(model, speeds, 1e12, 0.0), scheme="aofl")
    for name, rect in plan.stages[0].regions.items():
        assert rect.row_stop - rect.row_start == pytest.approx(speeds[name] / sum(speeds.values()))
    lame = synthetic_profile(model, speeds, {"a": 100.0, "b": 1e9, "c": 1e9, "d": 100.0}, 0.0, source="b")
    assert _taking_part(make_plan(model, lame, scheme="aofl")) == {"b", "c"}


def test_aofl_minimises_energy_if_the_deadline_allows_it() -> None:
    """Recomputed overlap costs joules and transfers cost none: least energy wants borders, a deadline forbids them."""
    model = chain()
    watts = dict.fromkeys("abcd", (5.0, 0.0))
    profile = synthetic_profile(model, dict.fromkeys("abcd", 0.001), 1e9, 1e-2, watts)
    quick, green = (make_plan(model, profile, Objective(goal=g), "aofl").predicted for g in ("latency", "energy"))
    assert quick is not None and green is not None
    assert green.energy_joules < quick.energy_joules and quick.latency_seconds < green.latency_seconds
    deadline = (quick.latency_seconds + green.latency_seconds) / 2 * 1e3
    plan = make_plan(model, profile, Objective(goal="energy", deadline_ms=deadline), "aofl")
    assert plan.feasible and plan.predicted is not None
    assert plan.predicted.latency_seconds <= deadline / 1e3


# Musical chair


@pytest.mark.parametrize("make", [chain, softmax_inside, dense_only])
@given(data=st.data())
@examples(10)
def test_musical_chair_choices_are_those_of_exhaustive_search(make, data: st.DataObject) -> None:
    """All ways to place the layers of a chain: on the source, whole on another device, or in equal rows."""
    model = make()
    profile, objective = data.draw(clusters(model, 2, 4)), data.draw(wishes())
    mean, source = mean_of(profile), {profile.source: UNIT}
    alone = {place_whole(model, profile, dict.fromkeys(profile.names, 1 / len(profile.names)), objective): UNIT}
    rows = strips(dict.fromkeys(profile.names, 1.0))
    options = [[source, alone, rows] if layer.splittable else [alone] for layer in model.layers]
    chosen = choose(model, profile, objective)

    def total(places: tuple[dict[str, UnitRect], ...]) -> float:
        cost, held = 0.0, dict.fromkeys(model.graph.inputs, source)
        for layer, place in zip(model.layers, places):
            need = Need.of_layer(model, layer, place)
            cost += need.cost(held, mean, objective)
            held |= dict.fromkeys(need.makes, place)
        return cost + Need.of_answer(model, profile.source).cost(held, mean, objective)

    mine = tuple(stage.regions for stage in chosen for _ in range(stage.first, stage.last + 1))
    assert total(mine) == pytest.approx(min(map(total, itertools.product(*options))), rel=1e-9, abs=1e-15)


def test_musical_chair_treats_devices_as_equal() -> None:
    """The devices' speeds change no choice, and shares are equal."""
    model = chain()
    speeds = {"a": 0.001, "b": 0.004, "c": 0.003}
    first = make_plan(model, synthetic_profile(model, speeds, 1e8, 1e-5), scheme="musical_chair")
    turned = {"a": 0.003, "b": 0.004, "c": 0.001}
    second = make_plan(model, synthetic_profile(model, turned, 1e8, 1e-5), scheme="musical_chair")
    assert first.stages == second.stages
    assert len(first.stages[0].regions) == 3
    for rect in first.stages[0].regions.values():
        assert rect.row_stop - rect.row_start == pytest.approx(1 / 3)


def test_musical_chair_splits_a_layer_if_it_pays() -> None:
    """On slow links, a heavy layer among light ones is split, and so is the layer after it that needs no halo."""
    model = chain()
    profile = synthetic_profile(model, dict.fromkeys("abc", 1.0), 1e5, 1e-5)
    heavy = LayerTime(fixed_seconds=0.0, seconds_per_row=1e-2)
    devices = tuple(d.model_copy(update={"layers": (*d.layers[:2], heavy, *d.layers[3:])}) for d in profile.devices)
    plan = make_plan(model, profile.model_copy(update={"devices": devices}), scheme="musical_chair")
    split = [stage.first for stage in plan.stages if len(stage.regions) > 1]
    assert split == [2, 3]


def test_musical_chair_uses_one_device_on_slow_links() -> None:
    model = two_outputs()
    plan = make_plan(model, synthetic_profile(model, dict.fromkeys("abc", 1.0), 1e4, 1e-1), scheme="musical_chair")
    assert [list(stage.regions) for stage in plan.stages] == [["a"]]
