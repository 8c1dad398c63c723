"""What schemes share: turning stages into an evaluated plan, and placing what cannot be split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.execution.program import Work
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluator

Scheme = Callable[[Model, Profile, Objective], Plan]


def best_of(
    name: str,
    model: Model,
    profile: Profile,
    objective: Objective,
    drafts: Iterable[tuple[Stage, ...]],
    reason: str = "",
) -> Plan:
    """The best of these drafts when simulated; marked infeasible where even that breaks a constraint.

    Args:
        name: of the scheme.
        reason: why the scheme chose what it chose, where there is something to say.
    """
    evaluator = Evaluator(model, profile, objective)
    evaluated = (evaluator.evaluate(stages, name, reason) for stages in drafts)
    return evaluator.plan(min(evaluated, key=lambda found: found.rank(objective)))


def evaluate(
    name: str,
    model: Model,
    profile: Profile,
    objective: Objective,
    stages: tuple[Stage, ...],
    reason: str = "",
) -> Plan:
    """The plan of these stages with its prediction, marked infeasible where it breaks a constraint."""
    return best_of(name, model, profile, objective, [stages], reason)


def rank(plan: Plan, objective: Objective) -> tuple[bool, float]:
    """What plans are compared by, less is better: cost where feasible, otherwise the time that is needed."""
    assert plan.predicted is not None
    latency, energy = plan.predicted.latency_seconds, plan.predicted.energy_joules
    cost = objective.cost(latency, energy, plan.predicted.throughput_fps)
    return (not plan.feasible, cost if plan.feasible else latency)


def best(plans: Iterable[Plan], objective: Objective) -> Plan:
    """The feasible plan of least cost; if there is none, the one that needs the least time."""
    return min(plans, key=lambda plan: rank(plan, objective))


def on_one_device(model: Model, device: str) -> tuple[Stage, ...]:
    """One stage: everything there."""
    return (Stage(first=0, last=len(model.layers) - 1, regions={device: UNIT}),)


def single_device(
    name: str,
    model: Model,
    profile: Profile,
    objective: Objective,
    among: Iterable[str] | None = None,
    reason: str = "",
) -> Plan:
    """Everything on the one device that does it best, with the way of the input there and of the output back.

    Args:
        name: of the scheme that asks.
        among: the devices to choose from; all of the profile by default.
    """
    candidates = profile.names if among is None else among
    drafts = (on_one_device(model, device) for device in candidates)
    return best_of(name, model, profile, objective, drafts, reason)


def full_seconds(model: Model, profile: Profile, device: str, splittable: bool) -> float:
    """Time of all layers that can be split (or all that cannot) on one device, a stage each."""
    times = profile.by_name[device]
    return sum(
        times.layers[layer.index].seconds(layer.rows) for layer in model.layers if layer.splittable == splittable
    )


def place_whole(
    model: Model,
    profile: Profile,
    shares: Mapping[str, float],
    objective: Objective | None = None,
    among: Sequence[str] | None = None,
) -> str:
    """The device for layers that cannot be split: least cost there, with gathering their inputs.

    Args:
        shares: who holds which part of the inputs.
        objective: least latency by default.
        among: the devices to choose from; all of the profile by default.
    """
    objective = objective or Objective()
    whole = [layer for layer in model.layers if not layer.splittable]
    if not whole:
        return max(shares, key=lambda name: shares[name])
    gathered = model.cuts[whole[0].index].nbytes

    def cost(name: str) -> float:
        compute = profile.by_name[name].compute_seconds(Work(layer.index, layer.rows) for layer in whole)
        seconds, joules = compute, compute * profile.by_name[name].power.compute_watts
        for other, share in shares.items():
            if other != name and share > 0:
                link = profile.link(other, name)
                sending = share * gathered / link.bytes_per_second
                seconds += sending + link.latency_seconds
                joules += sending * profile.by_name[other].power.transmit_watts
        if name != profile.source:
            seconds += profile.link(name, profile.source).latency_seconds
        return objective.cost(seconds, joules)

    return min(among or profile.names, key=cost)
