"""The convex core: where the strips of given stages on given devices should meet.

    minimise    latency + w joules
    over        edges x, rows r, start times g, times u at which transfers have left, d at which they have come
    subject to  r >= G x + r0,  r >= 0                            rows of every transfer (see `flow`)
                g[c] >= g[p] + seconds[p]                         p: what the device did before
                u[t] >= g[p] + seconds[p] + wire[t]               t: a transfer of what p made
                u[t] >= u[t'] + wire[t]                           t': before it on the sender's up-link, or the medium
                d[t] >= u[t] + latency[t],  d[t] >= d[t'] + wire[t]     t': before it on the receiver's down-link
                g[c] >= d[t]                                      c: what needs the transfer
                latency <= deadline,  strips of one row at least,  weights fit the devices

The longest path through the real schedule: no barrier stands between stages. Measured figures are parameters
(DPP), so that a change of bandwidth needs no new canonicalisation. The order on links is that of the draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.evaluation.convex_solver import solved
from orchestrator.search.draft import DraftStage
from orchestrator.search.flow import SOURCE, AffineExpression, make_flow, message_seconds
from orchestrator.search.layout import Layout
from orchestrator.search.link_order import order_of
from orchestrator.search.receptive_field import ReceptiveFields

Vector = NDArray[np.float64]
# What of a device's memory weights may take: rows need some too.
FULL = 0.9


@dataclass(frozen=True)
class Certificate:
    """Proof of an optimum. The Lagrangian of a linear programme, at multipliers under which no variable can lower
    it, is a bound from below; at an optimum it meets the objective.

    Attributes:
        objective, bound: in units of the draft's latency.
        slackness: largest product of a multiplier and the slack of its constraint.
        tilt: how much the Lagrangian changes with the variables: zero, but for the solver's tolerance.
    """

    objective: float
    bound: float
    slackness: float
    tilt: float

    @property
    def gap(self) -> float:
        return abs(self.objective - self.bound) / max(abs(self.objective), 1e-12)


@dataclass(frozen=True)
class Boundaries:
    """An optimum: the same stages with edges where they cost least, as the programme counts.

    Attributes:
        deadline_price: what a second more would save while nothing else changes: the multiplier of the deadline.
            Joules for the goal of energy, weighted seconds otherwise; 0 where it does not bind.
    """

    stages: tuple[DraftStage, ...]
    seconds: float
    certificate: Certificate
    deadline_price: float = 0.0


@dataclass(frozen=True)
class _Parameters:
    """Everything measured or wished for; the rest of the programme is geometry.

    Times are in units of the draft's latency, bytes in megabytes: numbers of one size suit the solver.
    """

    base: Any
    slope: Any
    wire: Any
    medium: Any
    latency: Any
    deadline: Any
    second: Any
    priced_share: Any
    priced_bytes: Any


class BoundaryProblem:
    """The linear programme of one draft. With another profile only its parameters change.

    Args:
        again: whether it will be solved again, for other profiles.
    """

    def __init__(
        self,
        model: Model,
        profile: Profile,
        receptive_fields: ReceptiveFields,
        stages: Sequence[DraftStage],
        again: bool = False,
    ) -> None:
        self.model, self.receptive_fields, self.stages, self._again = model, receptive_fields, tuple(stages), again
        self.flow = make_flow(model, profile, receptive_fields, stages)
        self._limits = {d.name: FULL * d.memory_bytes for d in profile.devices if d.memory_bytes is not None}
        self.order = order_of(self.flow, profile)
        self._build()

    def solve(self, profile: Profile, objective: Objective) -> Boundaries | None:
        """The best edges; None: infeasible, or the solver gave up."""
        unit = self._set(profile, objective)
        if not solved(self.problem, self._again):
            return None
        edges = [float(value) for value in self._edges.value]
        seconds, price = float(self._latency.value) * unit, float(np.sum(self._in_time.dual_value))
        return Boundaries(self._stages_at(edges), seconds, self._certify(), price)

    def _build(self) -> None:
        import cvxpy
        from scipy import sparse

        flow, order = self.flow, self.order
        computes, channels = len(flow.computes), max(len(flow.channels), 1)
        terms = [(c, weight, rows) for c, channel in enumerate(flow.channels) for weight, rows in channel.rows]
        count = max(len(flow.edges), 1)
        self._edges = cvxpy.Variable(count)
        rows, start = cvxpy.Variable(max(len(terms), 1)), cvxpy.Variable(computes + 1)
        left, came = cvxpy.Variable(channels), cvxpy.Variable(channels)
        self._parameters = given = _Parameters(
            base=cvxpy.Parameter(computes), slope=cvxpy.Parameter(computes, nonneg=True),
            wire=cvxpy.Parameter(channels, nonneg=True), medium=cvxpy.Parameter(channels, nonneg=True),
            latency=cvxpy.Parameter(channels, nonneg=True), deadline=cvxpy.Parameter(nonneg=True),
            second=cvxpy.Parameter(nonneg=True), priced_share=cvxpy.Parameter(computes, nonneg=True),
            priced_bytes=cvxpy.Parameter(channels, nonneg=True),
        )  # fmt: skip
        shares, constant = _matrix([c.share for c in flow.computes], count)
        share = shares @ self._edges + constant
        finish = start[:computes] + given.base + cvxpy.multiply(given.slope, share)
        weights = sparse.csr_matrix(
            ([w / 1e6 for _, w, _ in terms], ([c for c, _, _ in terms], range(len(terms)))),
            shape=(channels, max(len(terms), 1)),
        )
        megabytes = weights @ rows + np.array([c.nbytes / 1e6 for c in flow.channels] or [0.0])
        wire, medium = cvxpy.multiply(given.wire, megabytes), cvxpy.multiply(given.medium, megabytes)
        self._latency = start[computes]
        self._in_time = self._latency <= given.deadline
        constraints: list[Any] = [rows >= 0, start >= 0, left >= 0, self._in_time]
        if not flow.edges:
            constraints.append(self._edges == 0)
        if terms:
            matrix, constant = _matrix([linear for _, _, linear in terms], count)
            constraints.append(rows >= matrix @ self._edges + constant)
        if flow.apart:
            matrix, constant = _matrix(flow.apart, count)
            constraints.append(matrix @ self._edges + constant <= 0)
        strips = [i for i, c in enumerate(flow.computes) if c.share.terms]
        if strips:
            # A row at least, and no more than is there at the draft where that is less.
            least = [min(self._row(flow.computes[i].stage), flow.computes[i].share.at(flow.edges)) for i in strips]
            constraints.append(share[strips] >= np.array(least))

        for device, limit in self._limits.items():
            mine = [i for i, c in enumerate(flow.computes) if c.device == device]
            room = limit - sum(flow.computes[i].held_nbytes for i in mine)
            each = np.array([flow.computes[i].shared_nbytes for i in mine])
            if room > 0 and each.any():
                constraints.append((each / room) @ share[mine] <= 1)

        def not_before(times: Any, pairs: Sequence[tuple[int, int]], after: Any, extra: Any = None) -> None:
            """times[b] >= after[a] (+ extra[b]) for all pairs (a, b)."""
            if pairs:
                before, at = [a for a, _ in pairs], [b for _, b in pairs]
                constraints.append(times[at] >= after[before] + (0 if extra is None else extra[at]))

        not_before(start, [(c.previous, i) for i, c in enumerate(flow.computes) if c.previous is not None], finish)
        not_before(start, [(i, computes) for i in flow.last_at_sink], finish)
        made = [(c.producer, i) for i, c in enumerate(flow.channels) if c.producer != SOURCE]
        given_inputs = [i for i, c in enumerate(flow.channels) if c.producer == SOURCE]
        for amount in (wire, medium) if order.medium else (wire,):
            not_before(left, made, finish, amount)
            if given_inputs:
                constraints.append(left[given_inputs] >= amount[given_inputs])
        not_before(left, order.up, left, wire)
        not_before(left, order.medium, left, medium)
        constraints.append(came >= left + given.latency)
        not_before(came, order.down, came, wire)
        not_before(start, [(i, c.consumer) for i, c in enumerate(flow.channels)], came)
        cost = given.second * self._latency + given.priced_share @ share + given.priced_bytes @ megabytes
        self.problem = cvxpy.Problem(cvxpy.Minimize(cost), constraints)

    def _set(self, profile: Profile, objective: Objective) -> float:
        """Puts the measured figures in; returns the unit of time, seconds."""
        flow, given = make_flow(self.model, profile, self.receptive_fields, self.stages), self._parameters
        unit = max(sum(c.base + c.slope * c.share.at(flow.edges) for c in flow.computes), 1e-9)
        # Joules in the same unit, as the objective weighs them; with the goal of energy, seconds break ties.
        joule = 1.0 if objective.goal == "energy" else objective.energy_weight
        second = 1e-3 if objective.goal == "energy" else 1.0
        devices = profile.by_name
        given.base.value = np.array([c.base / unit for c in flow.computes])
        given.slope.value = np.array([c.slope / unit for c in flow.computes])
        watts = np.array([devices[c.device].power.compute_watts for c in flow.computes])
        given.priced_share.value = joule * watts * given.slope.value
        pairs = [(c.sender, c.receiver) for c in flow.channels]
        links = [profile.link(*pair) for pair in pairs]
        given.wire.value = np.array([1e6 / link.bytes_per_second / unit for link in links] or [0.0])
        shared = [[m.bytes_per_second for m in profile.media_between(*pair)] for pair in pairs]
        given.medium.value = np.array([1e6 / min(rates) / unit if rates else 0.0 for rates in shared] or [0.0])
        given.latency.value = np.array([message_seconds(profile, *pair) / unit for pair in pairs] or [0.0])
        sending = [devices[a].power.transmit_watts + devices[b].power.receive_watts for a, b in pairs]
        given.priced_bytes.value = joule * np.array(sending or [0.0]) * given.wire.value
        used = {c.device for c in flow.computes} | {profile.source}
        idle = sum(devices[name].power.idle_watts for name in used) if profile.joules == "total" else 0.0
        given.second.value = second + joule * idle
        given.deadline.value = 1e6 if objective.deadline_seconds is None else objective.deadline_seconds / unit
        return float(unit)

    def _row(self, stage: int) -> float:
        """The height of one row of the last layer of a stage, of the unit square."""
        return 1 / self.model.layers[self.stages[stage].stop - 1].rows

    def _stages_at(self, edges: Sequence[float]) -> tuple[DraftStage, ...]:
        moved, taken = [], 0
        for stage in self.stages:
            inner = len(stage.layout.edges) - 2
            values = (0.0, *edges[taken : taken + inner], 1.0)
            taken += inner
            moved.append(DraftStage(stage.first, stage.stop, Layout(stage.layout.devices, values)))
        return tuple(moved)

    def _certify(self) -> Certificate:
        """Checks the optimum by the multipliers of its constraints."""
        variables = self.problem.variables()
        at = [np.array(v.value) for v in variables]
        objective = float(self.problem.objective.value)
        slackness = max(float(np.abs(c.dual_value * _slack(c)).max()) for c in self.problem.constraints)
        bound = self._lagrangian()
        generator = np.random.default_rng(0)
        tilt = 0.0
        for _ in range(3):
            for variable, value in zip(variables, at):
                variable.value = value + generator.uniform(-1, 1, value.shape)
            tilt = max(tilt, abs(self._lagrangian() - bound))
        for variable, value in zip(variables, at):
            variable.value = value
        return Certificate(objective, bound, slackness, tilt)

    def _lagrangian(self) -> float:
        value = float(self.problem.objective.expr.value)
        return value + sum(float(np.sum(c.dual_value * _slack(c))) for c in self.problem.constraints)


def _slack(constraint: Any) -> Vector:
    """The left side of `expression <= 0` or `expression == 0`."""
    return np.asarray(constraint.expr.value)


def _matrix(rows: Sequence[AffineExpression], count: int) -> tuple[Any, Vector]:
    """The linear functions as a matrix and constants."""
    from scipy import sparse

    entries = [(i, index, value) for i, row in enumerate(rows) for index, value in row.terms]
    data, at = [v for _, _, v in entries], ([i for i, _, _ in entries], [j for _, j, _ in entries])
    return sparse.csr_matrix((data, at), shape=(len(rows), count)), np.array([row.constant for row in rows])
