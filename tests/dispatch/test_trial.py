"""Trials: plans with nearly the same prediction run before one is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import coedge
from benchmarks.instances import chain
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Prediction
from coedge.simulation.timeline import Timeline
from orchestrator.cluster.cluster import Cluster
from orchestrator.planner.planner import named_plans
from orchestrator.runtime.trial import MARGIN, MOST, measured_best, rank, run_in_turns, worth_trying

DEVICES = [{"name": "a", "speed": 0.5}, {"name": "b", "speed": 0.5}]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with coedge.connect({"devices": DEVICES, "trial_frames": 2, "profile_budget_seconds": 0.5}) as joined:
        yield joined


@pytest.fixture(scope="module")
def model() -> Model:
    return chain(1, layers=4, rows=64)


def predicted(plan: Plan, milliseconds: float) -> Plan:
    prediction = Prediction(
        latency_seconds=milliseconds / 1e3, energy_joules=1.0, throughput_fps=1.0, bound_seconds=0.0
    )
    return plan.model_copy(update={"predicted": prediction, "feasible": True})


def test_different_plans_with_nearly_the_best_prediction_are_tried(cluster: Cluster, model: Model) -> None:
    made = {plan.digest: plan for plan in named_plans(model, cluster.profile(model), Objective())}
    best, *others = made.values()
    assert others
    best, near, far = predicted(best, 10), predicted(others[0], 10 * MARGIN), predicted(others[0], 10 * MARGIN + 1)
    assert worth_trying(best, [far], Objective()) == [best]
    assert worth_trying(best, [near, best, near], Objective()) == [best, near]
    assert worth_trying(best, [near.model_copy(update={"feasible": False})], Objective()) == [best]
    assert len(worth_trying(best, [predicted(plan, 10) for plan in others], Objective())) <= MOST


class Frame:
    """A frame that took some seconds."""

    def __init__(self, plan: Plan, seconds: float) -> None:
        self.loaded = SimpleNamespace(programs={})
        self.timeline = Timeline((), {0: (0.0, seconds)}, measured=True)
        self.plan = plan

    def result(self) -> None:
        pass


def test_the_least_median_wins_and_the_first_frame_after_another_plan_does_not_count(
    cluster: Cluster, model: Model
) -> None:
    profile = cluster.profile(model)
    a, b = list({p.digest: p for p in named_plans(model, profile, Objective())}.values())[:2]
    frames = {a.digest: iter([0.0, 5.0, 0.0, 4.0, 0.0, 90.0]), b.digest: iter([70.0, 3.0, 70.0, 80.0, 70.0, 3.5])}
    order: list[str] = []

    def run_frame(plan: Plan) -> Any:
        order.append(plan.digest)
        return Frame(plan, next(frames[plan.digest]))

    runs = run_in_turns([a, b], run_frame, 3)
    assert order == 3 * [a.digest, a.digest, b.digest, b.digest]
    assert [run.latency_seconds for run in runs] == [5.0, 3.5]
    assert measured_best(runs, profile, Objective()).plan is b
    in_time = Objective(goal="energy", deadline_ms=4e3)
    assert rank(runs[0].timelines[0], profile, in_time) > rank(runs[1].timelines[0], profile, in_time)


def test_auto_is_chosen_by_measurement(cluster: Cluster, model: Model) -> None:
    """The choice is the best plan or that of a named scheme, under the name `auto`; its answers are exact."""
    plan = cluster.plan(model)
    assert plan.scheme == "auto" and plan.feasible and plan is cluster.plan(model)
    assert plan.predicted is not None and plan.predicted.latency_seconds > 0
    x = np.random.default_rng(0).standard_normal(model.inputs[0].shape).astype(np.float32)
    split, whole = cluster.submit(model, x).result(), cluster.submit(model, x, scheme="local").result()
    np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-5)


def test_a_plan_that_cannot_meet_its_deadline_is_not_tried(cluster: Cluster, model: Model) -> None:
    plan = cluster.plan(model, Objective(deadline_ms=1e-3))
    assert not plan.feasible and "deadline" in plan.reason
