"""Functions that the schemes share: evaluate stages, and place layers that cannot be split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.execution.program import Work
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage
from coedge.profile.profile import Profile
from orchestrator.evaluation.cost_table import CostTable
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
    """Return the best of these drafts by simulation, marked infeasible if even that violates a constraint.

    Args:
        name: of the scheme.
        reason: why the scheme chose these drafts, if there is something to say.
    """
    evaluator = Evaluator(model, profile, objective)
    evaluated = (evaluator.evaluate(stages, name, reason) for stages in drafts)
    return evaluator.plan(min(evaluated, key=lambda candidate: candidate.rank(objective)))


def evaluate(
    name: str,
    model: Model,
    profile: Profile,
    objective: Objective,
    stages: tuple[Stage, ...],
    reason: str = "",
) -> Plan:
    """Return the plan of these stages with its prediction, marked infeasible if it violates a constraint."""
    return best_of(name, model, profile, objective, [stages], reason)


def rank(plan: Plan, objective: Objective) -> tuple[bool, float]:
    """Return a sort key of plans, lower is better: the cost if feasible, the latency otherwise."""
    assert plan.predicted is not None
    latency, energy = plan.predicted.latency_seconds, plan.predicted.energy_joules
    cost = objective.cost(latency, energy, plan.predicted.throughput_fps)
    return (not plan.feasible, cost if plan.feasible else latency)


def best(plans: Iterable[Plan], objective: Objective) -> Plan:
    """Return the feasible plan of least cost; if there is none, the plan of least latency."""
    return min(plans, key=lambda plan: rank(plan, objective))


def on_one_device(model: Model, device: str) -> tuple[Stage, ...]:
    """Return one stage with everything on one device."""
    return (Stage(first=0, last=len(model.layers) - 1, regions={device: UNIT}),)


def single_device(
    name: str,
    model: Model,
    profile: Profile,
    objective: Objective,
    among: Iterable[str] | None = None,
    reason: str = "",
) -> Plan:
    """Return the best plan with everything on one device, including the way of the input there and of the output back.

    Args:
        name: of the scheme that asks.
        among: the devices to choose from; all of the profile by default.
    """
    candidates = profile.names if among is None else among
    drafts = (on_one_device(model, device) for device in candidates)
    return best_of(name, model, profile, objective, drafts, reason)


def speeds(model: Model, profile: Profile) -> dict[str, float]:
    """Return the measured speed of each device on the layers that can be split, a stage each, in runs per second."""
    table = CostTable.of(model, profile)
    layers = [layer.index for layer in model.layers if layer.splittable]
    times = table.at_end.fixed + table.at_end.per_row * table.rows[:, None]
    seconds = times[layers].sum(axis=0)
    return {name: 1 / max(float(value), 1e-12) for name, value in zip(table.names, seconds)}


def place_whole(
    model: Model,
    profile: Profile,
    shares: Mapping[str, float],
    objective: Objective | None = None,
    among: Sequence[str] | None = None,
) -> str:
    """Return the device on which layers that cannot be split cost least, including the gather of their inputs.

    Args:
        shares: part of the inputs that each device holds.
        objective: least latency by default.
        among: the devices to choose from; all of the profile by default.
    """
    objective = objective or Objective()
    whole = [layer for layer in model.layers if not layer.splittable]
    if not whole:
        return max(shares, key=lambda name: shares[name])
    gathered, table, devices = model.cuts[whole[0].index].nbytes, CostTable.of(model, profile), profile.by_name

    def cost(name: str) -> float:
        receiver = table.position[name]
        compute = devices[name].compute_seconds(Work(layer.index, layer.rows) for layer in whole)
        seconds, joules = compute, compute * devices[name].power.compute_watts
        for other, share in shares.items():
            if other != name and share > 0:
                pair = (table.position[other], receiver)
                nbytes = share * gathered
                seconds += nbytes * float(table.seconds_per_byte[pair]) + float(table.latency[pair])
                # A sender draws power while it sends, not while it waits for the medium.
                joules += nbytes * float(table.link_seconds[pair]) * devices[other].power.transmit_watts
        seconds += float(table.latency[receiver, table.source])
        return objective.cost(seconds, joules)

    return min(among or profile.names, key=cost)
