"""Tests of the Pareto front of energy against latency."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples, one_stage
from test_algorithm_1 import chain, profiles, synthetic_profile
from virtual import halos

from benchmarks import instances
from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.graph.model import Model
from coedge.plan.plan import Plan, check_plan
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.planner.pareto import TOLERANCE, frontier, pareto, progress_steps, spread
from orchestrator.planner.planner import SCHEMES, make_plan

pytestmark = pytest.mark.usefixtures("brief_search")


@functools.cache
def rack() -> tuple[Model, Profile]:
    """Return a fast device with high power and two slow ones with low power."""
    watts = {"a": (20.0, 0.1), "b": (1.0, 0.1), "c": (1.5, 0.1)}
    return chain(), synthetic_profile(chain(), {"a": 1.0, "b": 0.3, "c": 0.5}, 1e7, 1e-5, watts)


@functools.cache
def pair() -> tuple[Model, Profile]:
    """Return the rack without one of its slow devices. Plans of two devices are found much sooner."""
    return chain(), synthetic_profile(chain(), {"a": 1.0, "b": 0.3}, 1e7, 1e-5, {"a": (20.0, 0.1), "b": (1.0, 0.1)})


def costs(plans: list[Plan]) -> list[tuple[float, float]]:
    return [(p.predicted.latency_seconds, p.predicted.energy_joules) for p in plans if p.predicted]


def test_the_front_reaches_from_least_latency_to_least_energy() -> None:
    model, profile = pair()
    plans = pareto(model, profile, Objective(), 6)
    found = costs(plans)
    assert len(found) > 3
    fastest, least_energy = make_plan(model, profile), make_plan(model, profile, Objective(goal="energy"))
    assert fastest.predicted and least_energy.predicted
    assert found[0][0] <= fastest.predicted.latency_seconds * (1 + 1e-9)
    assert found[-1][1] <= least_energy.predicted.energy_joules * (1 + 2 * TOLERANCE)
    assert all(plan.feasible and plan.predicted and plan.predicted.bound_seconds for plan in plans)


@pytest.mark.deep
@given(data=st.data())
@examples(3, 1)
def test_a_later_deadline_never_costs_energy(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    model = instances.chain(seed % 20, layers=4, rows=12)
    profile = instances.small_profile(seed, model, 3)
    quickest = make_plan(model, profile, Objective())
    assert quickest.predicted is not None
    joules = []
    for factor in (1.05, 1.3, 2.0, 4.0):
        limit = quickest.predicted.latency_seconds * factor * 1e3
        plan = make_plan(model, profile, Objective(goal="energy", deadline_ms=limit))
        assert plan.feasible and plan.predicted is not None and plan.predicted.latency_seconds * 1e3 <= limit
        joules.append(plan.predicted.energy_joules)
    assert all(after <= 1.01 * before for before, after in itertools.pairwise(joules)), joules


@given(data=st.data())
@examples(6, 1)
def test_no_plan_dominates_another_and_no_scheme_dominates_the_ends(data: st.DataObject) -> None:
    model = chain()
    profile = data.draw(profiles(model))
    points = data.draw(st.integers(2, 20))
    parts: list[None] = []
    plans = pareto(model, profile, Objective(), points, lambda: parts.append(None))
    found = costs(plans)
    assert 1 <= len(plans) <= points and len(parts) <= progress_steps(points)
    for plan in plans:
        check_plan(plan, model)
    for (seconds, joules), (later, fewer) in zip(found, found[1:]):
        assert seconds <= later and fewer < joules
    # The ends are always included; plans between them may be dropped.
    for scheme in SCHEMES.values():
        for goal in ("latency", "energy"):
            ((seconds, joules),) = costs([scheme(model, profile, Objective(goal=goal))])
            assert seconds >= found[0][0] * (1 - 1e-9) and joules >= found[-1][1] * (1 - 2 * TOLERANCE)


@pytest.mark.deep
@pytest.mark.parametrize("points", (4, 20))
def test_constraints_hold_for_every_plan(points: int) -> None:
    model, profile = rack()
    free = costs(pareto(model, profile, Objective(), points))
    limit = (free[0][0] + free[-1][0]) / 2 * 1e3
    within = pareto(model, profile, Objective(deadline_ms=limit), points)
    assert all(plan.feasible for plan in within)
    assert max(seconds for seconds, _ in costs(within)) * 1e3 <= limit
    kept = pareto(model, profile, Objective(keep_local=3), points)
    assert all(plan.feasible for plan in kept)
    assert all(stage.regions == {"a": UNIT} for plan in kept for stage in plan.stages if stage.first < 3)


@pytest.mark.deep
def test_if_no_plan_is_feasible_the_nearest_is_returned() -> None:
    model, profile = rack()
    (plan,) = pareto(model, profile, Objective(deadline_ms=1e-6), 3)
    assert not plan.feasible and "the deadline is" in plan.reason


def test_a_plan_with_least_latency_and_least_energy_is_the_only_one() -> None:
    model = chain()
    profile = synthetic_profile(model, {"a": 1.0, "b": 0.001}, 1e3)
    (plan,) = pareto(model, profile, Objective(), 4)
    assert plan.used_devices == ("a",)


def test_the_profile_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="the profile is of model"):
        pareto(halos(), rack()[1], Objective())


def evaluated(seconds: float, joules: float, problems: tuple[str, ...] = ()) -> Evaluation:
    model, profile = rack()
    real = Evaluator(model, profile, Objective()).evaluate(one_stage(model, {"a": UNIT}, "a").stages)
    return replace(real, latency_seconds=seconds, energy_joules=joules, problems=problems)


def test_the_frontier_drops_dominated_plans() -> None:
    cloud = [evaluated(s, j) for s, j in ((3, 1), (1, 5), (2, 5), (2, 3), (2.5, 4), (4, 1), (4, 0.9999), (9, 0.5))]
    cloud += [evaluated(0.5, 9, ("too much memory",))]
    assert [(j.latency_seconds, j.energy_joules) for j in frontier(cloud, Objective())] == [
        (1, 5), (2, 3), (3, 1), (9, 0.5)
    ]  # fmt: skip
    assert [j.latency_seconds for j in frontier(cloud, Objective(deadline_ms=2500))] == [1, 2]


def test_spread_keeps_the_ends_and_the_plans_furthest_apart() -> None:
    # Three at one end, one in the middle, three at the other.
    places = [(0.0, 10.0), (0.1, 9.9), (0.2, 9.8), (5.0, 5.0), (9.8, 0.2), (9.9, 0.1), (10.0, 0.0)]
    line = [evaluated(*place) for place in places]
    assert [j.latency_seconds for j in spread(line, 3)] == [0.0, 5.0, 10.0]
    assert [j.latency_seconds for j in spread(line, 2)] == [0.0, 10.0]
    assert spread(line, 7) == line and spread(line, 50) == line and spread([], 5) == []
    assert len(spread(line, 5)) == 5
