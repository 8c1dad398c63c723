"""`auto` as a whole: never worse than a scheme, near the best of all plans, monotone, within its constraints."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import EFFORT, deep_after, examples

from benchmarks.branch_and_bound import best_by_bound
from benchmarks.enumeration import best_of_all
from benchmarks.instances import chain, small_profile
from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.plan.plan import Plan
from orchestrator.evaluation.evaluator import Evaluator
from orchestrator.planner.planner import SCHEMES, make_plan

GOALS = (
    Objective(),
    Objective(energy_weight=0.05),
    Objective(goal="energy"),
    Objective(goal="throughput"),
)
# (devices, layers, rows), small enough to try every plan.
SIZES = ((2, 3, 4), (2, 4, 4), (3, 3, 3), (2, 4, 3), (3, 2, 6), (4, 2, 4))


def cost(plan: Plan, objective: Objective) -> float:
    assert plan.predicted is not None
    return objective.cost(plan.predicted.latency_seconds, plan.predicted.energy_joules, plan.predicted.throughput_fps)


@pytest.mark.usefixtures("full_search")
@pytest.mark.parametrize("seed", deep_after(range(8 * EFFORT), range(4)))
def test_auto_is_near_the_best_of_all_plans(seed: int) -> None:
    """The cost is within 3 % of exhaustive search. It may be lower, because exhaustive search has no halo first."""
    devices, layers, rows = SIZES[seed % len(SIZES)]
    model = chain(seed, layers, rows)
    profile = small_profile(seed, model, devices)
    objective = GOALS[seed % 3]
    evaluator = Evaluator(model, profile, objective)
    best = best_of_all(evaluator, rows)
    if seed % 4 == 3:
        objective = objective.model_copy(update={"deadline_ms": best.latency_seconds * 1.1e3})
        evaluator = Evaluator(model, profile, objective)
        best = best_of_all(evaluator, rows)
    exhaustive, plan = evaluator.plan(best), make_plan(model, profile, objective)
    assert plan.feasible >= exhaustive.feasible
    if exhaustive.feasible:
        assert cost(plan, objective) <= 1.03 * cost(exhaustive, objective), f"{exhaustive}\n{plan}"


@given(data=st.data())
@examples(4, 2)
def test_branch_and_bound_finds_the_best_of_all_plans(data: st.DataObject) -> None:
    """Deadlines lie around the least latency; some cannot be met."""
    seed = data.draw(st.integers(0, 10_000))
    devices, layers, rows = data.draw(st.sampled_from(SIZES))
    model = chain(seed % 20, layers, rows)
    tried = Evaluator(model, small_profile(seed, model, devices), Objective())
    least = best_of_all(tried, rows).latency_seconds
    for goal in GOALS[:3]:
        for slack in (None, 0.9, 1.0, 1.1, 1.5):
            objective = goal.model_copy(update={"deadline_ms": slack and least * slack * 1e3})
            expected = tried.best(objective)
            evaluator = Evaluator(model, tried.profile, objective)
            found = best_by_bound(evaluator, rows, most=10_000)
            if not objective.meets_deadline(expected.latency_seconds):
                assert found.evaluated is None and found.bound == float("inf")
                continue
            assert found.evaluated is not None
            best = objective.cost(found.evaluated.latency_seconds, found.evaluated.energy_joules)
            cost = objective.cost(expected.latency_seconds, expected.energy_joules)
            assert best == found.bound == pytest.approx(cost)


@given(data=st.data())
@examples(4, 1)
def test_branch_and_bound_that_is_cut_short_returns_a_lower_bound(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    model = chain(seed % 20, 4, 4)
    evaluator = Evaluator(model, small_profile(seed, model, 3), data.draw(st.sampled_from(GOALS[:3])))
    best = best_by_bound(evaluator, 4, most=10_000)
    bounds = [best_by_bound(evaluator, 4, most).bound for most in range(4)]
    assert all(before <= after * (1 + 1e-9) for before, after in itertools.pairwise((*bounds, best.bound)))


@given(data=st.data())
@examples(4, 2)
def test_auto_is_never_worse_than_a_scheme(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    model = chain(seed % 20, layers=5, rows=12)
    profile = small_profile(seed, model, data.draw(st.integers(1, 4)))
    objective = data.draw(st.sampled_from(GOALS))
    made = [make_plan(model, profile, objective, scheme) for scheme in SCHEMES]
    auto = make_plan(model, profile, objective)
    assert auto.feasible and auto.scheme == "auto"
    assert cost(auto, objective) <= min(cost(plan, objective) for plan in made)


@given(data=st.data())
@examples(3, 1)
def test_a_faster_link_or_one_more_device_costs_no_time(data: st.DataObject) -> None:
    """Small steps of the search may miss 1 %."""
    seed = data.draw(st.integers(0, 10_000))
    model = chain(seed % 20, layers=4, rows=12)
    profile = small_profile(seed, model, 3)
    now = cost(make_plan(model, profile, Objective()), Objective())
    fewer = profile.without(["d2"])
    assert now <= 1.01 * cost(make_plan(model, fewer, Objective()), Objective())
    chosen = data.draw(st.integers(0, len(profile.links) - 1))
    links = list(profile.links)
    links[chosen] = links[chosen].model_copy(update={"bytes_per_second": 2 * links[chosen].bytes_per_second})
    faster = profile.model_copy(update={"links": tuple(links)})
    assert cost(make_plan(model, faster, Objective()), Objective()) <= 1.01 * now


def test_constraints_that_cannot_be_met_are_named_with_the_nearest_plan() -> None:
    model = chain(5, layers=3, rows=12)
    profile = small_profile(5, model, 3)
    quickest = make_plan(model, profile, Objective())
    assert quickest.predicted is not None
    half = quickest.predicted.latency_seconds * 0.5e3
    plan = make_plan(model, profile, Objective(deadline_ms=half))
    assert not plan.feasible and "the deadline is" in plan.reason and plan.predicted is not None
    assert plan.predicted.latency_seconds <= quickest.predicted.latency_seconds * 1.01
    small = profile.model_copy(
        update={"devices": tuple(d.model_copy(update={"memory_bytes": 10.0}) for d in profile.devices)}
    )
    plan = make_plan(model, small, Objective())
    assert not plan.feasible and "its limit is" in plan.reason


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_first_layers_stay_on_the_source(keep: int) -> None:
    model = chain(7, layers=4, rows=24)
    profile = small_profile(7, model, 3)
    plan = make_plan(model, profile, Objective(keep_local=keep))
    assert plan.feasible
    for stage in plan.stages:
        if stage.first < keep:
            assert stage.regions == {profile.source: UNIT}


def test_a_device_that_does_not_help_is_not_used() -> None:
    model = chain(2, layers=4, rows=24)
    profile = small_profile(2, model, 3)
    slow = profile.model_copy(
        update={
            "links": tuple(
                link.model_copy(update={"bytes_per_second": 10.0}) if "d2" in (link.sender, link.receiver) else link
                for link in profile.links
            )
        }
    )
    plan = make_plan(model, slow, Objective())
    assert all("d2" not in stage.regions for stage in plan.stages)


@pytest.mark.parametrize(("layers", "rows"), deep_after([(3, 6), (4, 16)], [(3, 6)]))
def test_planning_is_deterministic_across_processes(layers: int, rows: int) -> None:
    code = (
        "from benchmarks.instances import chain, small_profile\n"
        "from coedge.core.objective import Objective\n"
        "from orchestrator.planner.planner import make_plan\n"
        f"model = chain(3, {layers}, {rows})\n"
        "print(make_plan(model, small_profile(3, model, 3), Objective()).digest)\n"
    )
    found = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        found.add(done.stdout.strip())
    assert len(found) == 1
