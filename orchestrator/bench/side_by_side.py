"""A model by every scheme on one cluster: plans, turns, cases and samples."""

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
from orchestrator.bench.contenders import OneSession, Planned, best_single
from orchestrator.bench.turns import Contender, Outcome, take_turns
from orchestrator.cluster.cluster import Cluster
from orchestrator.control.worker_group import RemoteWorker
from orchestrator.evaluation.divisible_load import bound_seconds

ONE_SESSION = "onnxruntime"
# Sums of float32 in another order.
TOLERANCE = 1e-4


@dataclass
class ModelRun:
    """What came of a model.

    Attributes:
        plans, timelines: by scheme; timelines only of those that ran.
    """

    profile: Profile
    cases: list[Case] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    timelines: dict[str, Timeline] = field(default_factory=dict)


@dataclass(frozen=True)
class Guest:
    """A contender that is no plan, and the case that it is; what it is not able to do is the problem of the case."""

    case: Case
    contender: Contender | None


def side_by_side(
    cluster: Cluster,
    model: Model,
    arrays: Sequence[NDArray[Any]],
    schemes: Sequence[str],
    frames: int,
    difference: Callable[[Any], float],
    one_session: bool = False,
    guests: Callable[[Profile], Sequence[Guest]] | None = None,
) -> ModelRun:
    """Plans by every scheme, and measures the distinct plans in turns.

    Args:
        frames: that count, of each plan.
        difference: of an output to the right one, relative.
        one_session: whether the network in one ONNX Runtime session on the best single device takes part.
        guests: others that take part, given the profile.

    Raises:
        DeviceLost: the source is gone.
    """
    profile = cluster.profile(model)
    ran = ModelRun(profile)
    with progress(f"planning {model.name}", len(schemes)) as planned:
        for scheme in schemes:
            ran.plans[scheme] = cluster.plan(model, scheme=scheme)
            planned()
    bound = bound_seconds(model, profile)
    runners = _runners(ran.plans)
    cases = {scheme: _case(plan, scheme, bound, runners.get(plan.digest, "")) for scheme, plan in ran.plans.items()}
    contenders: dict[str, Contender] = {
        scheme: Planned(cluster, model, arrays, ran.plans[scheme], profile) for scheme in runners.values()
    }
    with ExitStack() as closing:
        if one_session:
            device, seconds = best_single(model, profile)
            worker = cluster.worker(device)
            case = alone_case(model, profile, ONE_SESSION, worker, seconds, bound)
            try:
                session = OneSession(worker, model, arrays, profile)
                closing.callback(session.close)
                contenders[ONE_SESSION] = session
            except CoEdgeError as error:
                case = case.model_copy(update={"problem": str(error)})
            cases[ONE_SESSION] = case
        for guest in guests(profile) if guests else ():
            cases[guest.case.scheme] = guest.case.model_copy(update={"bound_seconds": bound})
            if guest.contender is not None:
                contenders[guest.case.scheme] = guest.contender
        tolerance = None if cluster.config.objective.lossy else TOLERANCE
        with progress(f"running {model.name}, in turns", frames * len(contenders)) as done:
            outcomes = take_turns(contenders, frames, difference, tolerance, done)
    ran.cases = [_ended(case, outcomes) for case in cases.values()]
    for scheme, outcome in outcomes.items():
        ran.samples += _samples(model.name, scheme, outcome)
        if outcome.timeline is not None:
            ran.timelines[scheme] = outcome.timeline
    return ran


def alone_case(
    model: Model, profile: Profile, name: str, worker: RemoteWorker, seconds: float | None, bound: float
) -> Case:
    """The whole network on one device, which has the input."""
    device, speed = worker.name, worker.config.speed
    power = profile.by_name[device].power
    watts = power.compute_watts + (power.idle_watts if profile.joules == "total" else 0.0)
    return Case(
        model=model.name, scheme=name, devices=(device,), predicted_seconds=seconds,
        predicted_joules=None if seconds is None else watts * seconds, bound_seconds=bound, alone=True,
        note=f"all of it in one piece on {device}, the fastest, where the input is already"
        + ("" if speed is None else f"; emulated, x {speed:g} of the real speed, as for plans"),
    )  # fmt: skip


def _runners(plans: Mapping[str, Plan]) -> dict[str, str]:
    """By digest, the first scheme with a plan that can be run."""
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


def _ended(case: Case, outcomes: Mapping[str, Outcome]) -> Case:
    outcome = outcomes.get(case.same_as or case.scheme)
    if case.problem or outcome is None or not outcome.problem:
        return case
    return case.model_copy(update={"problem": outcome.problem})


def _samples(model: str, scheme: str, outcome: Outcome) -> list[Sample]:
    return [
        Sample(model, scheme, frame, ran.seconds, ran.joules, ran.difference, ran.sent_nbytes)
        for frame, ran in enumerate(outcome.ran)
    ]
