"""Tests of explanations: critical paths, energy, sensitivities, constraints and unused devices."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples, one_stage
from nets import make_plan as plan_of
from test_algorithm_1 import chain as long_chain
from test_algorithm_1 import objectives, profiles, synthetic_profile
from virtual import LOWER, UPPER, cases, cluster, halos, layer_split, run
from virtual import chain as two_layers

from coedge.config.sections import PowerConfig
from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, check_plan
from coedge.profile.profile import Medium, Profile
from coedge.simulation.simulator import simulate
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import Evaluator
from orchestrator.planner.explain import sensitivity
from orchestrator.planner.explain.constraints import check_constraints
from orchestrator.planner.explain.explain import busiest_of, explain, path_of, progress_steps
from orchestrator.planner.explain.explanation import Explanation
from orchestrator.planner.explain.figures import Figures, energy_source, figures_of
from orchestrator.planner.explain.unused_devices import unused, unused_devices
from orchestrator.planner.explain.wording import goal_words, joules, mbps
from orchestrator.planner.explain.wording import milliseconds as ms
from orchestrator.planner.planner import SCHEMES, make_plan
from orchestrator.search.draft import DraftStage
from orchestrator.search.forced_inclusion import work_share
from orchestrator.search.layout import in_proportion
from orchestrator.search.linear_programme import BoundaryProblem
from orchestrator.search.receptive_field import ReceptiveFields

pytestmark = pytest.mark.usefixtures("brief_search")


def made(plan: Plan, model: Model, profile: Profile, objective: Objective | None = None) -> Plan:
    """Return the plan with its prediction, as the planner does."""
    evaluator = Evaluator(model, profile, objective or Objective())
    return evaluator.plan(evaluator.evaluate(plan.stages, plan.scheme))


@given(case=cases())
@examples(30)
def test_the_parts_of_the_path_add_up_to_the_latency(case: tuple[Plan, Profile]) -> None:
    plan, profile = case
    timeline = run(plan, profile, halos())
    path = path_of(timeline)
    assert sum(part.seconds for part in path) == pytest.approx(timeline.latency_seconds)
    assert sum(part.share for part in path) == pytest.approx(1.0)
    assert [part.seconds for part in path] == sorted((part.seconds for part in path), reverse=True)
    sent = timeline.sent_nbytes()
    for part in path:
        assert 0 <= part.latency_seconds <= part.seconds * (1 + 1e-9)
        assert part.kind in (("transfer",) if part.peer else ("compute", "client"))
        assert not part.peer or (part.device, part.peer) in sent
        assert part.peer or part.device in timeline.compute_seconds()


def test_the_path_of_a_layer_split_has_both_devices_and_both_directions() -> None:
    model = two_layers(2)
    # 8 rows at 1 and 2 s; 1024 bytes each way at 1024 and 512 bytes/s, with half a second of latency.
    rates = {("a", "b"): 1024.0, ("b", "a"): 512.0}
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 2.0}, rates=rates, latency=0.5)
    path = path_of(run(layer_split(model, 1, sink="a"), profile, model))
    found = {(part.device, part.peer): (part.seconds, part.latency_seconds) for part in path}
    assert found == {
        ("a", ""): (8.0, 0.0), ("b", ""): (16.0, 0.0), ("a", "b"): (1.5, 0.5), ("b", "a"): (2.5, 0.5)
    }  # fmt: skip


def test_the_time_between_client_and_source_is_part_of_the_path() -> None:
    model = two_layers(1)
    profile = cluster(model, ("a",)).model_copy(update={"client_seconds": 0.5})
    timeline = run(one_stage(model, {"a": UNIT}, "a"), profile, model)
    path = path_of(timeline)
    assert sum(part.seconds for part in path) == pytest.approx(timeline.latency_seconds)
    assert [(part.kind, part.words) for part in path] == [("compute", "a computing"), ("client", "client <-> a")]


def test_waiting_for_a_medium_counts_for_the_link_of_the_message() -> None:
    model = two_layers(1)
    profile = cluster(
        model, ("a", "b", "c"), rate=1e6, media=(Medium(name="air", devices=("b", "c"), bytes_per_second=64.0),)
    )
    thirds = in_proportion(dict.fromkeys("abc", 1.0)).regions
    timeline = run(one_stage(model, thirds, "a"), profile, model)
    assert sum(part.seconds for part in path_of(timeline)) == pytest.approx(timeline.latency_seconds)
    assert {(part.device, part.peer) for part in path_of(timeline)} >= {("a", "b"), ("a", "c")}
    assert busiest_of(timeline, profile)[0] == "air"


@given(case=cases())
@examples(20)
def test_the_busiest_resource_limits_a_stream(case: tuple[Plan, Profile]) -> None:
    plan, profile = case
    timeline = run(plan, profile, halos())
    _, seconds = busiest_of(timeline, profile)
    assert 1 / seconds == pytest.approx(timeline.saturated_fps(profile))


def test_sensitivity_of_a_single_device() -> None:
    model = two_layers(2)
    profile = cluster(model, ("a",), power=PowerConfig(compute_watts=3.0))
    found = explain(made(one_stage(model, {"a": UNIT}, "a"), model, profile), model, profile, Objective())
    (worth,) = found.sensitivities
    assert worth.change == "a 1 % faster"
    assert worth.saves.latency_seconds == pytest.approx(16 - 16 / 1.01)
    assert worth.saves.energy_joules == pytest.approx(3 * (16 - 16 / 1.01))
    assert found.bottleneck == "a computing, 100% of the latency"


def test_only_resources_on_the_critical_path_have_a_sensitivity() -> None:
    model = two_layers(2)
    # b is far slower than a, so the frame waits for messages of a but not for its computing.
    profile = cluster(model, seconds_per_row={"a": 0.001, "b": 1.0}, rate=100.0, latency=0.1)
    plan = plan_of(model, [(1, {"a": UPPER, "b": LOWER}), (1, {"b": UNIT})], "a", "a")
    found = explain(made(plan, model, profile), model, profile, Objective())
    saved = {worth.change: worth.saves.latency_seconds for worth in found.sensitivities}
    before = figures_of(run(plan, profile, model), profile)
    for change, changed in {
        "b 1 % faster": sensitivity.faster_device(profile, "b", 1.01),
        "10 % more bandwidth a -> b": sensitivity.faster_link(profile, "a", "b", 1.1),
        "10 % more bandwidth b -> a": sensitivity.faster_link(profile, "b", "a", 1.1),
        "10 % less latency of all links": sensitivity.lower_latency(profile, 1.1),
    }.items():
        after = figures_of(run(plan, changed, model), changed)
        assert saved[change] == pytest.approx(before.latency_seconds - after.latency_seconds) and saved[change] > 0
    assert "a 1 % faster" not in saved
    assert [w.saves.latency_seconds for w in found.sensitivities] == sorted(saved.values(), reverse=True)


def test_a_medium_that_limits_its_links_has_the_sensitivity() -> None:
    model = two_layers(1)
    air = Medium(name="air", devices=("a", "b"), bytes_per_second=64.0)
    profile = cluster(model, rate=64.0, media=(air,))
    plan = made(one_stage(model, {"b": UNIT}, "a"), model, profile)
    saved = {w.change: w.saves.latency_seconds for w in explain(plan, model, profile, Objective()).sensitivities}
    wire = 2 * model.inputs[0].region_nbytes(model.inputs[0].whole) / 64
    assert saved["10 % more bandwidth of air"] == pytest.approx(wire * (1 - 1 / 1.1))
    assert "10 % more bandwidth a -> b" not in saved


def test_for_throughput_only_the_busiest_resource_has_a_sensitivity() -> None:
    model = two_layers(2)
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 3.0}, rate=1e6)
    goal = Objective(goal="throughput")
    found = explain(made(layer_split(model, 1, "a"), model, profile, goal), model, profile, goal)
    assert found.busiest == "b" and found.busiest_seconds == pytest.approx(24)
    assert [worth.change for worth in found.sensitivities] == ["b 1 % faster"]
    assert found.sensitivities[0].saves.throughput_fps == pytest.approx(0.01 / 24)
    assert "b, busy for 24000 ms per frame" in str(found) and "gains" in str(found)


@given(data=st.data())
@examples(20)
def test_changed_profiles_differ_in_one_figure_only(data: st.DataObject) -> None:
    plan, profile = data.draw(cases())
    model, timeline = halos(), run(plan, profile, halos())
    name = data.draw(st.sampled_from(profile.names))
    _ = profile.by_name, profile.link("a", "b")  # fills the caches of the profile, which copies must not keep
    faster = run(plan, sensitivity.faster_device(profile, name, 2.0), model)
    for device, seconds in timeline.compute_seconds().items():
        assert faster.compute_seconds()[device] == pytest.approx(seconds / 2 if device == name else seconds)
    efficient = sensitivity.fewer_watts(profile, name, 4.0)
    for item, other in zip(timeline.energy(profile), timeline.energy(efficient), strict=True):
        assert other.joules == pytest.approx(item.joules / 4 if item.device == name else item.joules)
    nearer = sensitivity.lower_latency(profile, 2.0, [name])
    for link in profile.links:
        half = link.latency_seconds / 2 if name in (link.sender, link.receiver) else link.latency_seconds
        assert nearer.link(link.sender, link.receiver).latency_seconds == pytest.approx(half)
    doubled = sensitivity.faster_link(profile, "a", "b", 2.0)
    assert doubled.link("a", "b").bytes_per_second == 2 * profile.link("a", "b").bytes_per_second
    assert [x for x in doubled.links if (x.sender, x.receiver) != ("a", "b")] == [
        x for x in profile.links if (x.sender, x.receiver) != ("a", "b")
    ]


def test_joules_add_up_and_have_a_source() -> None:
    model = two_layers(2)
    profile = cluster(
        model, power=PowerConfig(idle_watts=1.0, compute_watts=2.0, transmit_watts=1.0, receive_watts=0.5)
    )
    devices = [
        device.model_copy(update={"power_source": source})
        for device, source in zip(profile.devices, ("a meter", "the data sheet"))
    ]
    profile = profile.model_copy(update={"devices": tuple(devices), "joules": "total"})
    found = explain(made(layer_split(model, 1, "a"), model, profile), model, profile, Objective(goal="energy"))
    assert sum(item.joules for item in found.energy) == pytest.approx(found.figures.energy_joules)
    assert {item.cause for item in found.energy} == {"compute", "transmit", "receive", "idle"}
    assert found.energy_source == "modelled, watts: a meter (a); the data sheet (b)"
    assert energy_source(profile, ["b"]) == "modelled, watts: the data sheet"
    assert found.energy_source in str(found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (ms(0.0412), "41.2 ms"), (ms(0.9996), "1000 ms"), (ms(12.3456), "12346 ms"), (ms(0.0), "0 ms"),
        (ms(0.000999999999), "1.00 ms"), (joules(0.5), "500 mJ"), (joules(12.34), "12.3 J"),
        (joules(2e-7), "0.000200 mJ"),
        (mbps(1.5e6), "12 Mbit/s"), (mbps(1.25e9), "10000 Mbit/s"), (mbps(6250.0), "0.05 Mbit/s"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_exponent(words: str, expected: str) -> None:
    assert words == expected


@functools.cache
def rack() -> tuple[Model, Profile]:
    """Return a fast source with high power and two slow boards with low power, on fast links."""
    model = long_chain()
    watts = {"a": (20.0, 0.1), "b": (1.0, 0.1), "c": (1.0, 0.1)}
    return model, synthetic_profile(model, {"a": 1.0, "b": 0.4, "c": 0.4}, 1e7, 1e-5, watts)


@functools.cache
def pair() -> tuple[Model, Profile]:
    """Return the rack without one of its boards. Plans of two devices are found much sooner than plans of three."""
    model = long_chain()
    return model, synthetic_profile(model, {"a": 1.0, "b": 0.4}, 1e7, 1e-5, {"a": (20.0, 0.1), "b": (1.0, 0.1)})


@functools.cache
def rack_plan(objective: Objective) -> Plan:
    """Return the planner's plan for the rack; several tests begin with the same one."""
    return make_plan(*rack(), objective)


def constraint(objective: Objective, model: Model, profile: Profile, full_profile: Profile | None = None):
    plan = make_plan(model, profile, objective)
    assert plan.predicted is not None
    figures = figures_of(simulate(lower(plan, model), profile, model), profile)
    return plan, {c.name: c for c in check_constraints(plan, model, profile, objective, figures, full_profile)}


def test_a_binding_deadline_has_the_savings_of_a_later_one() -> None:
    model, profile = pair()
    free = make_plan(model, profile, Objective(goal="energy"))
    least = make_plan(model, profile, Objective())
    assert free.predicted and least.predicted
    between = (free.predicted.latency_seconds + least.predicted.latency_seconds) / 2 * 1e3
    plan, found = constraint(Objective(goal="energy", deadline_ms=between), model, profile)
    (deadline,) = found.values()
    assert plan.feasible and deadline.state == "binds" and deadline.sensitivity is not None
    assert "to spare" in deadline.text and "less for every ms" in deadline.text
    # With that deadline the planner does find a plan that saves at least as much.
    assert plan.predicted is not None
    later = (plan.predicted.latency_seconds - deadline.sensitivity.saves.latency_seconds) * 1e3
    assert later > between
    again = make_plan(model, profile, Objective(goal="energy", deadline_ms=later * (1 + 1e-9)))
    assert again.predicted is not None and again.feasible
    saved = plan.predicted.energy_joules - again.predicted.energy_joules
    assert saved >= deadline.sensitivity.saves.energy_joules * (1 - 1e-3) > 0


def test_a_deadline_is_broken_or_met() -> None:
    model, profile = pair()
    _, found = constraint(Objective(deadline_ms=1e-3), model, profile)
    assert next(iter(found.values())).state == "broken" and "no plan found takes less than" in str(found)
    _, found = constraint(Objective(deadline_ms=1e6), model, profile)
    assert next(iter(found.values())).state == "met" and "a later deadline would not help" in str(found)


def test_a_plan_that_misses_its_deadline_is_explained_for_least_latency() -> None:
    model, profile = pair()
    objective = Objective(goal="energy", deadline_ms=1e-3)
    found = explain(make_plan(model, profile, objective), model, profile, objective)
    assert found.objective.goal == "latency" and "of the latency; and deadline" in found.bottleneck


@pytest.mark.deep
def test_keep_local_has_the_savings_of_a_plan_without_it() -> None:
    model, profile = rack()
    objective = Objective(goal="energy", keep_local=4)
    plan, found = constraint(objective, model, profile)
    kept = found["keep_local 4"]
    fewer = make_plan(model, profile, Objective(goal="energy", keep_local=3))
    assert kept.state == "binds" and kept.sensitivity is not None and kept.sensitivity.change == "keep_local 3"
    assert plan.predicted and fewer.predicted
    saved = plan.predicted.energy_joules - fewer.predicted.energy_joules
    assert kept.sensitivity.saves.energy_joules == pytest.approx(saved)
    assert goal_words(_figures(rack_plan(Objective(goal="energy"))), objective) in kept.text


def test_an_excluded_device_binds_only_if_it_would_improve_the_plan() -> None:
    model, profile = pair()
    objective = Objective(goal="energy")
    useless = synthetic_profile(model, {"a": 1.0, "slow": 1e-3}, 1e7, 1e-5, {"a": (20.0, 0.1)})
    _, found = constraint(objective, model, profile.without(["b"]), profile)
    assert found["without b"].state == "binds" and found["without b"].sensitivity is not None
    assert found["without b"].sensitivity.saves.energy_joules > 0
    _, found = constraint(Objective(), model, useless.without(["slow"]), useless)
    assert found["without slow"].state == "met"


@pytest.mark.deep
def test_a_binding_memory_limit_has_the_savings_of_a_higher_one() -> None:
    model, profile = rack()
    plan = rack_plan(Objective(goal="energy"))
    everything = made(one_stage(model, {"b": UNIT}, "a"), model, profile)
    assert plan.predicted and everything.predicted
    from coedge.plan.memory import program_nbytes

    needed = program_nbytes(lower(everything, model)["b"], model)
    tight = profile
    for name in ("b", "c"):
        tight = sensitivity.more_memory(_limited(tight, name, needed * 0.98), name, 1.0)
    _, found = constraint(Objective(goal="energy"), model, tight)
    states = {name: c.state for name, c in found.items()}
    assert "binds" in states.values(), states
    bound = next(c for c in found.values() if c.state == "binds")
    assert bound.sensitivity is not None and bound.sensitivity.saves.energy_joules > 0
    _, found = constraint(Objective(goal="energy"), model, _limited(profile, "b", 1e9))
    assert [c.state for c in found.values()] == ["met"]


def _limited(profile: Profile, name: str, nbytes: float) -> Profile:
    devices = [d.model_copy(update={"memory_bytes": nbytes}) if d.name == name else d for d in profile.devices]
    return profile.model_copy(update={"devices": tuple(devices)})


def _figures(plan: Plan) -> Figures:
    assert plan.predicted is not None
    return Figures(**plan.predicted.model_dump(exclude={"bound_seconds"}))


def test_the_multiplier_of_the_deadline_is_the_derivative_of_the_optimum() -> None:
    """The derivative is estimated by a finite difference."""
    model, profile = rack()
    layout = in_proportion({"a": 1.0, "b": 0.4, "c": 0.4})
    alone = in_proportion({"a": 1.0})
    last = next(layer.index for layer in model.layers if not layer.splittable)
    draft = (DraftStage(0, last, layout), DraftStage(last, len(model.layers), alone))
    table = CostTable.of(model, profile)
    programme = BoundaryProblem(table, ReceptiveFields(model), draft)
    fast = programme.solve(table, Objective())
    assert fast is not None and fast.deadline_price == pytest.approx(0, abs=1e-6)

    def joules_within(seconds: float) -> tuple[float, float]:
        solved = programme.solve(table, Objective(goal="energy", deadline_ms=seconds * 1e3))
        assert solved is not None
        value = float(programme.problem.objective.value)
        unit = solved.seconds / float(programme._latency.value)
        return value * unit, solved.deadline_price

    limit, step = fast.seconds * 1.05, fast.seconds * 1e-3
    before, price = joules_within(limit)
    after, _ = joules_within(limit + step)
    assert price == pytest.approx((before - after) / step, rel=0.02) and price > 0


def test_unused_devices_with_the_same_figures_are_grouped() -> None:
    model = long_chain()
    profile = synthetic_profile(model, {"a": 1.0, "b": 0.01, "c": 0.01, "d": 0.02}, 1e5)
    plan = SCHEMES["local"](model, profile, Objective())
    assert unused(plan, profile) == [("b", "c"), ("d",)]
    found = unused_devices(plan, model, profile, Objective())
    assert [item.devices for item in found] == [("b", "c"), ("d",)]
    assert progress_steps(plan, profile) == 4
    assert unused(SCHEMES["equal"](model, profile, Objective()), profile) == []


def slow_link(rate: float) -> tuple[Model, Profile]:
    """Return two equal devices with a link of a given rate."""
    model = long_chain()
    return model, synthetic_profile(model, {"a": 0.2, "b": 0.2}, rate, 0.0)


def test_a_slow_link_is_the_reason_and_the_rate_from_which_it_pays_is_right() -> None:
    model, profile = slow_link(2e5)
    plan = SCHEMES["local"](model, profile, Objective())
    (item,) = unused_devices(plan, model, profile, Objective())
    words = item.words(Objective())
    assert item.with_device is not None and item.with_device.latency_seconds > item.current.latency_seconds
    assert words.startswith(f"adding b would raise latency from {ms(item.current.latency_seconds)} to ")
    assert "its link carries 1.6 Mbit/s; it would pay from about" in words
    rate = float(words.split("from about ")[1].split(" Mbit/s")[0]) * 1e6 / 8
    for factor, pays in ((1.05, True), (0.8, False)):
        other = slow_link(rate * factor)[1]
        (changed,) = unused_devices(SCHEMES["local"](model, other, Objective()), model, other, Objective())
        assert changed.with_device is not None
        assert (changed.with_device.latency_seconds < changed.current.latency_seconds) == pays


@pytest.mark.parametrize(
    ("speeds", "rate", "latency", "objective", "words"),
    [
        ({"a": 1.0, "b": 1e-3}, 1e9, 0.0, Objective(), ["it computes at 0.001 x the speed of a"]),
        ({"a": 1.0, "b": 1.0}, 1e9, 5e-3, Objective(), ["its link has a latency of 5.00 ms"]),
        (
            {"a": 1.0, "b": 1.0}, 1e9, 0.0, Objective(goal="energy"),
            ["would raise energy", "it takes 9 W to compute (configured)", "W or less"],
        ),
    ],
)  # fmt: skip
def test_the_reason_is_the_limiting_figure(
    speeds: Mapping[str, float], rate: float, latency: float, objective: Objective, words: list[str]
) -> None:
    model = long_chain()
    profile = synthetic_profile(model, speeds, rate, latency, {"a": (1.0, 0.0), "b": (9.0, 0.0)})
    (item,) = unused_devices(SCHEMES["local"](model, profile, objective), model, profile, objective)
    for word in words:
        assert word in item.words(objective)


def test_memory_is_the_reason_if_the_device_cannot_hold_its_part() -> None:
    model = long_chain()
    profile = synthetic_profile(model, {"a": 0.1, "b": 1.0}, 1e9, 0.0, memory={"b": 10.0})
    (item,) = unused_devices(SCHEMES["local"](model, profile, Objective()), model, profile, Objective())
    assert "b would need" in item.reason and "its limit is 0.0 MB" in item.reason


def test_a_better_plan_outside_the_scheme_is_named() -> None:
    model = long_chain()
    profile = synthetic_profile(model, {"a": 0.1, "b": 1.0}, 1e9, 0.0)
    (item,) = unused_devices(SCHEMES["local"](model, profile, Objective()), model, profile, Objective())
    assert "would lower latency" in item.words(Objective()) and item.reason == "local does not look for such a plan"


def test_a_device_that_cannot_take_part_has_the_reason() -> None:
    model, profile = slow_link(1e9)
    objective = Objective(keep_local=len(model.layers))
    plan = make_plan(model, profile, objective)
    (item,) = unused_devices(plan, model, profile, objective)
    assert item.with_device is None
    assert item.words(objective) == f"b cannot take part: all {len(model.layers)} layers have to stay on a"


@given(data=st.data())
@examples(10, 2)
def test_any_plan_of_any_cluster_is_explained(data: st.DataObject) -> None:
    """Every device is used or explained, and the figures are those of the planner."""
    model = long_chain()
    profile = data.draw(profiles(model))
    objective = data.draw(objectives(0.01))
    scheme = data.draw(st.sampled_from([*SCHEMES, "auto"]))
    plan = make_plan(model, profile, objective, scheme)
    parts: list[None] = []
    found = explain(plan, model, profile, objective, done=lambda: parts.append(None))
    assert len(parts) == progress_steps(plan, profile)
    assert plan.predicted is not None
    assert found.figures.latency_seconds == pytest.approx(plan.predicted.latency_seconds)
    assert found.figures.energy_joules == pytest.approx(plan.predicted.energy_joules)
    assert {n for item in found.unused_devices for n in item.devices} == set(profile.names) - set(plan.used_devices)
    for item in found.unused_devices:
        assert item.reason
        assert item.with_device is None or item.share > 0
    assert str(found).startswith("bottleneck: ") and Explanation.model_validate_json(found.model_dump_json()) == found


def test_shares_of_the_work_add_up_to_one() -> None:
    model, profile = rack()
    plan = SCHEMES["modnn"](model, profile, Objective())
    assert sum(work_share(plan.stages, n, model, profile) for n in profile.names) == pytest.approx(1)


def test_plans_of_other_devices_and_models_are_refused() -> None:
    model = two_layers(2)
    profile = cluster(model)
    elsewhere = layer_split(model, 1)  # ends on b
    check_plan(elsewhere, model)
    with pytest.raises(PlanError, match="to b, but only a plan from a and back"):
        explain(elsewhere, model, profile, Objective())
    with pytest.raises(PlanError, match="the profile is of model"):
        explain(elsewhere, halos(), profile, Objective())
    with pytest.raises(PlanError, match=r"by devices of the profile \(b\)"):
        explain(made(layer_split(model, 1, "a"), model, profile), model, cluster(model, ("b",)), Objective())
