"""Comparison of schemes on one model and cluster: plans, turns, cases and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from coedge.core.errors import CoEdgeError
from coedge.core.progress import progress
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline
from orchestrator.bench.comparison import Case, Sample
from orchestrator.bench.contenders import PlanContender, UnsplitContender, best_single
from orchestrator.bench.turns import Contender, Outcome, take_turns
from orchestrator.cluster.cluster import Cluster
from orchestrator.control.worker_group import RemoteWorker
from orchestrator.evaluation.divisible_load import bound_seconds

ONNXRUNTIME = "onnxruntime"
# Relative difference of outputs that summing float32 values in another order explains.
TOLERANCE = 1e-4


@dataclass
class ModelRun:
    """The results of a model.

    Attributes:
        plans, timelines: by scheme; only schemes that ran have a timeline.
    """

    profile: Profile
    cases: list[Case] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    timelines: dict[str, Timeline] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """A contender that is not a plan, and its case. Without a contender, the case has the problem."""

    case: Case
    contender: Contender | None


def side_by_side(
    cluster: Cluster,
    model: Model,
    arrays: Sequence[NDArray[Any]],
    schemes: Sequence[str],
    frames: int,
    difference: Callable[[Any], float],
    onnxruntime: bool = False,
    baselines: Callable[[Profile], Sequence[Baseline]] | None = None,
) -> ModelRun:
    """Plan a model by every scheme, and measure the distinct plans in turns.

    Args:
        frames: measured frames per plan.
        difference: returns the relative difference of an output from the unsplit one.
        onnxruntime: whether to measure one ONNX Runtime session on the best single device as well.
        baselines: returns further contenders for a profile.

    Raises:
        DeviceLost: the source is gone.
    """
    profile = cluster.profile(model)
    result = ModelRun(profile, plans=_plans(cluster, model, schemes))
    bound = bound_seconds(model, profile)
    runners = _runners(result.plans)
    cases = {scheme: _case(plan, scheme, bound, runners.get(plan.digest, "")) for scheme, plan in result.plans.items()}
    contenders: dict[str, Contender] = {
        scheme: PlanContender(cluster, model, arrays, result.plans[scheme], profile) for scheme in runners.values()
    }
    with ExitStack() as closing:
        others = [_onnxruntime(cluster, model, arrays, profile, bound, closing)] if onnxruntime else []
        for other in [*others, *(baselines(profile) if baselines else ())]:
            cases[other.case.scheme] = other.case.model_copy(update={"bound_seconds": bound})
            if other.contender is not None:
                contenders[other.case.scheme] = other.contender
        tolerance = None if cluster.config.objective.lossy else TOLERANCE
        with progress(f"running {model.name} in turns", frames * len(contenders)) as done:
            outcomes = take_turns(contenders, frames, difference, tolerance, done)
    result.cases = [_with_problem(case, outcomes) for case in cases.values()]
    for scheme, outcome in outcomes.items():
        result.samples += _samples(model.name, scheme, outcome)
        if outcome.timeline is not None:
            result.timelines[scheme] = outcome.timeline
    return result


def single_device_case(
    model: Model, profile: Profile, name: str, worker: RemoteWorker, seconds: float | None, bound: float
) -> Case:
    """Return the case of the whole network on one device, which has the input."""
    device, speed = worker.name, worker.config.speed
    power = profile.by_name[device].power
    watts = power.compute_watts + (power.idle_watts if profile.joules == "total" else 0.0)
    return Case(
        model=model.name, scheme=name, devices=(device,), predicted_seconds=seconds,
        predicted_joules=None if seconds is None else watts * seconds, bound_seconds=bound, alone=True,
        note=f"the whole network on {device}, the fastest device, which already has the input"
        + ("" if speed is None else f"; emulated, x {speed:g} of the real speed, as for plans"),
    )  # fmt: skip


def _plans(cluster: Cluster, model: Model, schemes: Sequence[str]) -> dict[str, Plan]:
    plans = {}
    with progress(f"planning {model.name}", len(schemes)) as done:
        for scheme in schemes:
            plans[scheme] = cluster.plan(model, scheme=scheme)
            done()
    return plans


def _onnxruntime(
    cluster: Cluster,
    model: Model,
    arrays: Sequence[NDArray[Any]],
    profile: Profile,
    bound: float,
    closing: ExitStack,
) -> Baseline:
    """Prepare one ONNX Runtime session on the best single device; `closing` unloads it."""
    device, seconds = best_single(model, profile)
    worker = cluster.worker(device)
    case = single_device_case(model, profile, ONNXRUNTIME, worker, seconds, bound)
    try:
        contender = UnsplitContender(worker, model, arrays, profile)
    except CoEdgeError as error:
        return Baseline(case.model_copy(update={"problem": str(error)}), None)
    closing.callback(contender.close)
    return Baseline(case, contender)


def _runners(plans: Mapping[str, Plan]) -> dict[str, str]:
    """Return the first scheme with each distinct feasible plan, by digest."""
    runners: dict[str, str] = {}
    for scheme, plan in plans.items():
        if plan.feasible:
            runners.setdefault(plan.digest, scheme)
    return runners


def _case(plan: Plan, scheme: str, bound: float, runner: str) -> Case:
    predicted = plan.predicted
    return Case(
        model=plan.model_name, scheme=scheme, devices=plan.used_devices,
        predicted_seconds=None if predicted is None else predicted.latency_seconds,
        predicted_joules=None if predicted is None else predicted.energy_joules,
        bound_seconds=bound, same_as=runner if plan.feasible and runner != scheme else "",
        problem="" if plan.feasible else f"infeasible: {plan.reason}",
        note=plan.reason if plan.feasible else "",
    )  # fmt: skip


def _with_problem(case: Case, outcomes: Mapping[str, Outcome]) -> Case:
    """Add the problem of the contender that ran the case, if any."""
    outcome = outcomes.get(case.same_as or case.scheme)
    if case.problem or outcome is None or not outcome.problem:
        return case
    return case.model_copy(update={"problem": outcome.problem})


def _samples(model: str, scheme: str, outcome: Outcome) -> list[Sample]:
    return [
        Sample(model, scheme, frame, run.seconds, run.joules, run.difference, run.sent_nbytes)
        for frame, run in enumerate(outcome.runs)
    ]
