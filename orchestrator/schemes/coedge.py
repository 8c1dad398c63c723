"""`coedge`: rows by the linear programme of CoEdge, with its Algorithm 1 (Zeng et al., ToN 29(2), 2021).

    minimise    sum_l T_l + w E     or  E                  T_l: time of layer l on its slowest device
    subject to  T_l >= compute_l,i(share_i) + transfer_l,i             for every device i
                T_1 >= total time of the source's up-link
                sum_l T_l <= deadline,  sum share = 1,  share >= 0,  share_i x activations <= memory_i

    Algorithm 1    solve on all devices. If every share is zero or so large that a halo never spans more than one
                   neighbour, done. Otherwise remove the devices with share zero and the device with the smallest of
                   the other shares, and solve again. If all subsets are infeasible: everything on the fastest device.

Corrections where the paper's formulae do not hold: the time per layer is measured, not derived from cycles of the
input image. Transfers count bytes, not rows, from both neighbours; the gather before layers that cannot be split and
the return of the answer are included. The padding principle holds at every layer, not only in the image. Halo terms
are rebuilt whenever a device is removed, so a smaller set may be feasible although a larger one is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coedge.core.objective import Objective
from coedge.core.region import UnitRect, edge_to_row
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, even_plan, stages_of, strips
from coedge.profile.profile import Profile
from orchestrator.evaluation.convex_solver import solve_linear_programme
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.schemes.scheme import best, evaluate, on_one_device, place_whole, single_device
from orchestrator.schemes.traffic import Traffic, made_whole, traffic

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """An optimum of the linear programme on a subset of the devices.

    Attributes:
        shares: by device, in the order of the strips, for all devices of the subset.
        alone: the device for the layers that cannot be split; it may have no share of the others.
        cost: the objective's cost.
        seconds, joules: as the programme counts them.
    """

    shares: dict[str, float]
    alone: str
    cost: float
    seconds: float
    joules: float


def solve(
    model: Model, profile: Profile, objective: Objective, names: tuple[str, ...], moved: Traffic
) -> Solution | None:
    """Solve problem P2 on a subset of the devices; return None if it is infeasible."""

    def fits(name: str) -> bool:
        limit = profile.by_name[name].memory_bytes
        return limit is None or moved.whole_weights <= limit

    # Layers that cannot be split go to the device on which they cost least, in time or by the objective. That depends
    # on the shares: equal ones at first, then those of the best solution so far.
    able = [name for name in profile.names if fits(name)]
    shares: dict[str, float] = dict.fromkeys(names, 1 / len(names))
    best_solution: Solution | None = None
    tried: set[str] = set()
    while able:
        places = {place_whole(model, profile, shares, o, able) for o in (Objective(), objective)} - tried
        solutions = [_solve(model, profile, objective, names, moved, place) for place in sorted(places)]
        tried |= places
        feasible = [s for s in (*solutions, best_solution) if s is not None]
        if not places or not feasible:
            break
        best_solution = min(feasible, key=lambda s: s.cost)
        shares = best_solution.shares
    return best_solution


def _solve(
    model: Model, profile: Profile, objective: Objective, names: tuple[str, ...], moved: Traffic, alone: str
) -> Solution | None:
    import cvxpy

    table = CostTable.of(model, profile)
    seconds_per_share, fixed_seconds, joules_per_share, fixed_joules = _coefficients(table, names, moved, alone)
    layers, count = seconds_per_share.shape
    share = cvxpy.Variable(count, nonneg=True)
    layer_seconds = cvxpy.Variable(layers, nonneg=True)
    up_link = moved.image * table.link_seconds[table.source, [table.position[name] for name in names]]
    # Seconds and joules are in units of the best single device, to suit the solver's tolerances.
    second = max(float((seconds_per_share + fixed_seconds).sum(axis=0).min()), 1e-12)
    joule = max(float(joules_per_share.min() + fixed_joules), 1e-12)
    constraints = [
        cvxpy.reshape(layer_seconds, (layers, 1), order="C") @ np.ones((1, count))
        >= (seconds_per_share / second) @ cvxpy.diag(share) + fixed_seconds / second,
        cvxpy.sum(share) == 1,
        layer_seconds[0] >= (up_link / second) @ share,
    ]
    if objective.deadline_seconds is not None:
        constraints.append(cvxpy.sum(layer_seconds) <= objective.deadline_seconds / second)
    for index, name in enumerate(names):
        limit = profile.by_name[name].memory_bytes
        if limit is not None:
            left = limit - moved.weights - (moved.whole_weights if name == alone else 0.0)
            constraints.append(share[index] * moved.largest <= max(left, 0.0))
    joules = joules_per_share @ share + fixed_joules
    if objective.goal == "energy":
        cost = joules / joule
    else:
        cost = cvxpy.sum(layer_seconds) + objective.energy_weight / second * joules
    # Ties: if the split makes no difference, the earlier device takes the rows.
    cost += 1e-6 * (np.arange(count) @ share)
    problem = cvxpy.Problem(cvxpy.Minimize(cost), constraints)
    if not solve_linear_programme(problem):
        return None
    # An interior-point solver returns tiny shares where the optimum has none.
    values = np.where(share.value < 1e-5, 0.0, share.value)
    values = values / values.sum()
    slowest = (seconds_per_share * values + fixed_seconds).max(axis=1)
    slowest[0] = max(slowest[0], float(up_link @ values))
    used = float(joules_per_share @ values + fixed_joules)
    return Solution(
        {name: float(value) for name, value in zip(names, values)},
        alone,
        objective.cost(float(slowest.sum()), used),
        float(slowest.sum()),
        used,
    )


def _coefficients(
    table: CostTable, names: tuple[str, ...], moved: Traffic, alone: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], Vector, float]:
    """Return seconds = per_share * share + fixed, per layer and device, and the joules likewise, summed over layers.

    The last row of the seconds is the return of the answer to the source.
    """
    model, at = table.model, [table.position[name] for name in names]
    layers, whole_device, source = len(model.layers), table.position[alone], table.source
    per_share, fixed = np.zeros((layers + 1, len(names))), np.zeros((layers + 1, len(names)))
    splits = np.array([layer.splittable for layer in model.layers])
    transmit = np.array([device.power.transmit_watts for device in table.profile.devices])

    # Computing.
    varying = np.where(splits[:, None], table.at_end.per_row * table.rows[:, None], 0.0)[:, at]
    starting = np.where(splits[:, None], table.at_end.fixed, 0.0)[:, at]
    per_share[:-1] += varying
    fixed[:-1] += starting
    joules = table.compute_watts[at] * varying.sum(axis=0)
    fixed_joules = float((table.compute_watts[at] * starting.sum(axis=0)).sum())

    def send(rows: slice, column: int, nbytes: Vector, sender: int, receiver: int) -> float:
        """Add transfers whose size is proportional to the share, and return their joules per share."""
        seconds = nbytes * table.link_seconds[sender, receiver]
        per_share[rows, column] += seconds
        fixed[rows, column] += np.where(nbytes > 0, table.latency[sender, receiver], 0.0)
        return float(transmit[sender] * seconds.sum())

    gathered = np.where(splits, 0.0, moved.whole)
    for column, device in enumerate(at):
        if device != whole_device:
            # Layers that cannot be split gather their inputs on one device and scatter their results from there.
            joules[column] += send(slice(layers), column, gathered, device, whole_device)
            joules[column] += send(slice(layers), column, moved.scattered, whole_device, device)
        for other, nbytes in _arrivals(names, column, moved):
            sender = table.position[other]
            halo_seconds = nbytes * table.link_seconds[sender, device]
            fixed[:-1, column] += halo_seconds + np.where(nbytes > 0, table.latency[sender, device], 0.0)
            fixed_joules += float(halo_seconds.sum() * transmit[sender])
        if device != source:
            joules[column] += send(slice(1), column, np.array([moved.image]), source, device)
            joules[column] += send(slice(layers, None), column, np.array([moved.answer]), device, source)
    if moved.whole_answer and whole_device != source:
        seconds = moved.whole_answer * float(table.link_seconds[whole_device, source])
        fixed[-1] += seconds + table.latency[whole_device, source]
        fixed_joules += float(transmit[whole_device]) * seconds
    whole = table.at_end.fixed[:, whole_device] + table.at_end.per_row[:, whole_device] * table.rows
    whole = np.where(splits, 0.0, whole)
    fixed[:-1] += whole[:, None]
    fixed_joules += float(table.compute_watts[whole_device] * whole.sum())
    return per_share, fixed, joules, fixed_joules


def _arrivals(names: tuple[str, ...], index: int, moved: Traffic) -> list[tuple[str, Vector]]:
    """Return the senders to a device, and their bytes at each layer: both neighbours, and partial results of all."""
    arrivals = []
    for other, name in enumerate(names):
        if other == index:
            continue
        nbytes = moved.gathered.copy()
        if other == index - 1:
            nbytes += moved.down
        if other == index + 1:
            nbytes += moved.up
        arrivals.append((name, nbytes))
    return arrivals


def algorithm_1(model: Model, profile: Profile, objective: Objective, moved: Traffic | None = None) -> Solution | None:
    """Run the threshold recursion; return None if no subset that it visits is feasible."""
    moved = moved or traffic(model)
    names = profile.names
    quickest = Objective()
    while names:
        solution = solve(model, profile, objective, names, moved)
        # If infeasible, the devices that least latency needs least are removed first.
        draft = solution or solve(model, profile, quickest, names, moved)
        if draft is None:
            return None
        used = {name: share for name, share in draft.shares.items() if share > 0}
        all_used, legal = len(used) == len(names), is_legal(model, used, moved)
        if all_used and legal and solution is not None:
            return solution
        if all_used or not legal:
            del used[min(used, key=lambda name: used[name])]
        # The halo terms are rebuilt without the devices that got no share.
        names = tuple(used)
    return None


def is_legal(model: Model, shares: dict[str, float], moved: Traffic) -> bool:
    """Check the padding principle at every layer, after rounding: halos come from direct neighbours only."""
    if len(shares) == 1:
        return True
    if min(shares.values()) < moved.halo_share:
        return False
    names = list(shares)
    # Partial results, tensors that one device made whole, and the image may come from any device.
    anywhere = {*model.graph.inputs, *made_whole(model)}
    draft = even_plan(model, names, boundaries=_boundaries(model, shares), source=names[0])
    for name, program in lower(draft, model).items():
        for step in program.steps:
            if step.kind != "send" or step.stage >= len(model.layers):
                continue
            if not model.layers[step.stage].splittable or abs(names.index(step.peer) - names.index(name)) == 1:
                continue
            for part in step.parts:
                tensor = model.graph.tensors[program.patches[part.patch].tensor]
                if tensor.spatial and not tensor.partial_extent and tensor.name not in anywhere:
                    return False
    return True


def _boundaries(model: Model, shares: dict[str, float]) -> list[float]:
    """Return the inner boundaries of the strips, rounded to rows of the image."""
    rows = model.inputs[0].rows
    edges = [rect.row_stop for rect in strips(shares).values()]
    return [edge_to_row(edge, rows) / rows for edge in edges[:-1]]


def coedge(model: Model, profile: Profile, objective: Objective) -> Plan:
    """Return the paper's plan: a stage per layer, rows by the linear programme, the other layers on one device.

    Raises:
        PlanError: the profile is not of this model.
    """
    profile.check(model)

    def single(reason: str) -> Plan:
        quickest = single_device("coedge", model, profile, Objective()).stages
        return evaluate("coedge", model, profile, objective, quickest, reason)

    if not any(layer.splittable for layer in model.layers):
        return single("no layer of this model can be split")
    solution = algorithm_1(model, profile, objective)
    if solution is None:
        return single("no split meets the constraints: the device of least latency takes everything")
    shares = solution.shares
    if list(shares) == [solution.alone]:
        stages = on_one_device(model, solution.alone)
    else:
        edges = [0.0, *_boundaries(model, shares), 1.0]
        regions = {name: UnitRect(a, b) for name, a, b in zip(shares, edges, edges[1:])}
        stages = stages_of(model, regions, solution.alone)
    plan = evaluate("coedge", model, profile, objective, stages)
    if plan.feasible:
        return plan
    # The programme has no queues on the links and no rounding, so the simulation decides.
    return best([plan, single("the split of the linear programme breaks a constraint when simulated")], objective)
