"""`coedge`: rows by the linear programme of CoEdge, with its Algorithm 1 (Zeng et al., ToN 29(2), 2021).

    minimise    sum_l T_l + w E     or  E                  T_l: time of layer l on its slowest device
    subject to  T_l >= compute_l,i(share_i) + transfer_l,i             for every device i
                T_1 >= what the source's up-link carries altogether
                sum_l T_l <= deadline,  sum share = 1,  share >= 0,  share_i x activations <= memory_i

    Algorithm 1    solve on all devices. If every share is zero or large enough that a halo never spans a
                   whole neighbour, done. Otherwise leave out the devices with share zero and the smallest of
                   the others, and solve again. If infeasible to the last: all on the fastest single device.

Where the paper's formulae do not hold they are mended: time per layer is measured rather than derived from
cycles of the input image; transfers count bytes, not rows, from both neighbours, the gather before layers that
cannot be split, and the answer's way back; the padding principle holds at every layer, not only in the image;
halo terms are rebuilt whenever a device leaves, so that what is infeasible for all may be feasible for fewer.
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
from orchestrator.evaluation.convex_solver import solved
from orchestrator.schemes.scheme import best, evaluate, on_one_device, place_whole, single_device
from orchestrator.schemes.traffic import Traffic, made_whole, traffic

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """An optimum of the linear programme on some devices.

    Attributes:
        shares: by device, in the order of the strips; all devices of the subset.
        alone: the device for the layers that cannot be split; it need not have a share of the others.
        cost: the objective.
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
    """Problem P2 on a subset of the devices. None: infeasible."""

    def fits(name: str) -> bool:
        limit = profile.by_name[name].memory_bytes
        return limit is None or moved.whole_weights <= limit

    # What cannot be split goes where it costs least, in time or by the objective. That depends on the shares:
    # equal ones at first, then those of the best solution so far.
    able = [name for name in profile.names if fits(name)]
    shares: dict[str, float] = dict.fromkeys(names, 1 / len(names))
    found: Solution | None = None
    tried: set[str] = set()
    while able:
        places = {place_whole(model, profile, shares, o, able) for o in (Objective(), objective)} - tried
        solutions = [_solve(model, profile, objective, names, moved, place) for place in sorted(places)]
        tried |= places
        better = [s for s in (*solutions, found) if s is not None]
        if not places or not better:
            break
        found = min(better, key=lambda s: s.cost)
        shares = found.shares
    return found


def _solve(
    model: Model, profile: Profile, objective: Objective, names: tuple[str, ...], moved: Traffic, alone: str
) -> Solution | None:
    import cvxpy

    seconds_per_share, fixed_seconds, joules_per_share, fixed_joules = _coefficients(
        model, profile, names, moved, alone
    )
    layers, count = seconds_per_share.shape
    share = cvxpy.Variable(count, nonneg=True)
    layer_seconds = cvxpy.Variable(layers, nonneg=True)
    up_link = np.array(
        [0.0 if n == profile.source else moved.image / profile.link(profile.source, n).bytes_per_second for n in names]
    )
    # In units of the best single device, so that the solver's tolerances mean something for any cluster.
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
    # Equals do not share for nothing: where it makes no difference, the earlier device takes the rows.
    cost += 1e-6 * (np.arange(count) @ share)
    problem = cvxpy.Problem(cvxpy.Minimize(cost), constraints)
    if not solved(problem):
        return None
    # An interior-point solver leaves a hair where the optimum has none.
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
    model: Model, profile: Profile, names: tuple[str, ...], moved: Traffic, alone: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], Vector, float]:
    """Per layer and device, seconds = per_share * share + fixed; and the joules likewise, summed.

    The last row is the way of the answer to the source.
    """
    count, layers = len(names), len(model.layers) + 1
    per_share, fixed = np.zeros((layers, count)), np.zeros((layers, count))
    joules, fixed_joules = np.zeros(count), 0.0
    for i, name in enumerate(names):
        device, watts = profile.by_name[name], profile.by_name[name].power
        for layer in model.layers:
            time = device.layers[layer.index]
            if layer.splittable:
                per_share[layer.index, i] += time.seconds_per_row * layer.rows
                fixed[layer.index, i] += time.fixed_seconds
                joules[i] += watts.compute_watts * time.seconds_per_row * layer.rows
                fixed_joules += watts.compute_watts * time.fixed_seconds
            elif name != alone:
                # Gathering on the device that runs this layer; nobody else computes.
                link = profile.link(name, alone)
                seconds = moved.whole[layer.index] / link.bytes_per_second
                per_share[layer.index, i] += seconds
                fixed[layer.index, i] += link.latency_seconds if seconds else 0.0
                joules[i] += watts.transmit_watts * seconds
        if name != alone:
            link = profile.link(alone, name)
            per_share[:-1, i] += moved.scattered / link.bytes_per_second
            fixed[:-1, i] += np.where(moved.scattered > 0, link.latency_seconds, 0.0)
            sending = float(moved.scattered.sum()) / link.bytes_per_second
            joules[i] += profile.by_name[alone].power.transmit_watts * sending
        for other, nbytes in _arrivals(names, i, moved):
            link, sender = profile.link(other, name), profile.by_name[other]
            halo_seconds = nbytes / link.bytes_per_second
            fixed[:-1, i] += halo_seconds + np.where(nbytes > 0, link.latency_seconds, 0.0)
            fixed_joules += float(halo_seconds.sum()) * sender.power.transmit_watts
        if name != profile.source:
            link = profile.link(profile.source, name)
            seconds = moved.image / link.bytes_per_second
            per_share[0, i] += seconds
            fixed[0, i] += link.latency_seconds
            joules[i] += profile.by_name[profile.source].power.transmit_watts * seconds
            if moved.answer:
                link = profile.link(name, profile.source)
                seconds = moved.answer / link.bytes_per_second
                per_share[-1, i] += seconds
                fixed[-1, i] += link.latency_seconds
                joules[i] += watts.transmit_watts * seconds
    if moved.whole_answer and alone != profile.source:
        link = profile.link(alone, profile.source)
        seconds = moved.whole_answer / link.bytes_per_second
        fixed[-1] += seconds + link.latency_seconds
        fixed_joules += profile.by_name[alone].power.transmit_watts * seconds
    for layer in model.layers:
        if not layer.splittable:
            seconds = profile.by_name[alone].layers[layer.index].seconds(layer.rows)
            fixed[layer.index] += seconds
            fixed_joules += profile.by_name[alone].power.compute_watts * seconds
    return per_share, fixed, joules, fixed_joules


def _arrivals(names: tuple[str, ...], index: int, moved: Traffic) -> list[tuple[str, Vector]]:
    """Who sends to this device, and how many bytes at each layer: both neighbours, and shares from all."""
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
    """The threshold recursion. None: no subset that it visits is feasible."""
    moved = moved or traffic(model)
    names = profile.names
    quickest = Objective()
    while names:
        solution = solve(model, profile, objective, names, moved)
        # Infeasible with so many: those that least latency needs least leave first.
        draft = solution or solve(model, profile, quickest, names, moved)
        if draft is None:
            return None
        used = {name: share for name, share in draft.shares.items() if share > 0}
        everybody, legal = len(used) == len(names), is_legal(model, profile, used, moved)
        if everybody and legal and solution is not None:
            return solution
        if everybody or not legal:
            del used[min(used, key=lambda name: used[name])]
        # Who got nothing is nobody's neighbour: the halo terms are rebuilt without them.
        names = tuple(used)
    return None


def is_legal(model: Model, profile: Profile, shares: dict[str, float], moved: Traffic) -> bool:
    """The padding principle at every layer, rounding included: halos come from direct neighbours only."""
    if len(shares) == 1:
        return True
    if min(shares.values()) < moved.halo_share:
        return False
    names = list(shares)
    # A stage per splittable layer; what is gathered, what one device made whole, and the image may come from anywhere.
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
    """Inner boundaries of the strips, rounded to rows of the image."""
    rows = model.inputs[0].rows
    edges = [rect.row_stop for rect in strips(shares).values()]
    return [edge_to_row(edge, rows) / rows for edge in edges[:-1]]


def coedge(model: Model, profile: Profile, objective: Objective) -> Plan:
    """The paper's plan: a stage per layer, rows by the linear programme, the rest on one device.

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
    # The programme knows no queues on the links and no rounding; what is simulated decides.
    return best([plan, single("the split of the linear programme breaks a constraint when simulated")], objective)
