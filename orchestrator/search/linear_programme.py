"""The convex programme: the edges between the strips of given stages on given devices.

    minimise    latency + w joules
    over        edges x, rows r, start times g, times u at which transfers have left, d at which they have arrived
    subject to  r >= G x + r0,  r >= 0                            rows of every transfer (see `flow`)
                g[c] >= g[p] + seconds[p]                         p: the computation of the same device before
                u[t] >= g[p] + seconds[p] + wire[t]               p: the computation that makes transfer t
                u[t] >= u[t'] + wire[t]                           t': before t on the sender's up-link, or the medium
                d[t] >= u[t] + latency[t],  d[t] >= d[t'] + wire[t]     t': before t on the receiver's down-link
                g[c] >= d[t]                                      c: the computation that needs t
                latency <= deadline,  every strip has a row,  weights fit the devices

The latency is the longest path through the schedule; there is no barrier between stages. Measured figures are
parameters (DPP), so a change of bandwidth needs no new canonical form. Transfers take the links in the order that
they have in the draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.objective import Objective
from orchestrator.evaluation.convex_solver import solve_linear_programme
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.search.draft import DraftStage
from orchestrator.search.flow import SOURCE, AffineExpression, make_flow
from orchestrator.search.layout import Layout
from orchestrator.search.link_order import order_of
from orchestrator.search.receptive_field import ReceptiveFields

Vector = NDArray[np.float64]
# Part of a device's memory that weights may take. The rest is for activations.
FULL = 0.9


@dataclass(frozen=True)
class Boundaries:
    """An optimum: the stages of the draft with the edges of least cost.

    Attributes:
        seconds: latency as the programme counts it.
        deadline_price: cost saved per second that the deadline is extended (its multiplier). Joules for the goal of
            energy, weighted seconds otherwise; 0 if the deadline does not bind.
    """

    stages: tuple[DraftStage, ...]
    seconds: float
    deadline_price: float = 0.0


@dataclass(frozen=True)
class _Parameters:
    """cvxpy parameters: all measured figures and the objective. The rest of the programme is geometry.

    Times are in units of the draft's computing time and bytes in megabytes, so that the coefficients are of similar
    size.
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
        again: the programme will be solved again, for other profiles.
    """

    def __init__(
        self,
        table: CostTable,
        receptive_fields: ReceptiveFields,
        stages: Sequence[DraftStage],
        again: bool = False,
    ) -> None:
        self.table, self.model = table, table.model
        self.receptive_fields, self.stages, self._again = receptive_fields, tuple(stages), again
        self.flow = make_flow(table, receptive_fields, stages)
        devices = table.profile.devices
        self._limits = {d.name: FULL * d.memory_bytes for d in devices if d.memory_bytes is not None}
        self.order = order_of(self.flow, table)
        self._build()

    def solve(self, table: CostTable, objective: Objective) -> Boundaries | None:
        """Return the best edges; None if the programme is infeasible or the solver gave up."""
        unit = self._set(table, objective)
        if not solve_linear_programme(self.problem, self._again):
            return None
        edges = [float(value) for value in self._edges.value]
        seconds, price = float(self._latency.value) * unit, float(np.sum(self._in_time.dual_value))
        return Boundaries(self._stages_at(edges), seconds, price)

    def _build(self) -> None:
        import cvxpy

        flow = self.flow
        computes, channels = len(flow.computes), max(len(flow.channels), 1)
        terms = [(c, weight, rows) for c, channel in enumerate(flow.channels) for weight, rows in channel.rows]
        self._edges = cvxpy.Variable(max(len(flow.edges), 1))
        rows, start = cvxpy.Variable(max(len(terms), 1)), cvxpy.Variable(computes + 1)
        left, arrived = cvxpy.Variable(channels), cvxpy.Variable(channels)
        self._parameters = given = _parameters(computes, channels)
        share = self._at_edges([c.share for c in flow.computes])
        megabytes = _weighted(terms, channels) @ rows + np.array([c.nbytes / 1e6 for c in flow.channels] or [0.0])
        self._latency = start[computes]
        self._in_time = self._latency <= given.deadline
        constraints: list[Any] = [rows >= 0, start >= 0, left >= 0, self._in_time]
        constraints += self._geometry(rows, share, [linear for _, _, linear in terms])
        constraints += self._memory(share)
        constraints += self._schedule(start, left, arrived, share, megabytes)
        cost = given.second * self._latency + given.priced_share @ share + given.priced_bytes @ megabytes
        self.problem = cvxpy.Problem(cvxpy.Minimize(cost), constraints)

    def _at_edges(self, expressions: Sequence[AffineExpression]) -> Any:
        matrix, constant = _matrix(expressions, self._edges.size)
        return matrix @ self._edges + constant

    def _geometry(self, rows: Any, share: Any, terms: Sequence[AffineExpression]) -> list[Any]:
        """Return the constraints on the edges: rows of transfers, edges in order, a row for every strip."""
        flow, constraints = self.flow, list[Any]()
        if not flow.edges:
            constraints.append(self._edges == 0)
        if terms:
            constraints.append(rows >= self._at_edges(terms))
        if flow.apart:
            constraints.append(self._at_edges(flow.apart) <= 0)
        strips = [i for i, c in enumerate(flow.computes) if c.share.terms]
        if strips:
            # At least one row, or the strip's height in the draft if that is less.
            least = [min(self._row(flow.computes[i].stage), flow.computes[i].share.at(flow.edges)) for i in strips]
            constraints.append(share[strips] >= np.array(least))
        return constraints

    def _memory(self, share: Any) -> list[Any]:
        """Return the constraints that weights fit the devices."""
        flow, constraints = self.flow, list[Any]()
        for device, limit in self._limits.items():
            mine = [i for i, c in enumerate(flow.computes) if c.device == device]
            room = limit - sum(flow.computes[i].held_nbytes for i in mine)
            each = np.array([flow.computes[i].shared_nbytes for i in mine])
            if room > 0 and each.any():
                constraints.append((each / room) @ share[mine] <= 1)
        return constraints

    def _schedule(self, start: Any, left: Any, arrived: Any, share: Any, megabytes: Any) -> list[Any]:
        """Return the constraints on the times of computations and transfers."""
        import cvxpy

        flow, order, given = self.flow, self.order, self._parameters
        computes = len(flow.computes)
        finish = start[:computes] + given.base + cvxpy.multiply(given.slope, share)
        wire, medium = cvxpy.multiply(given.wire, megabytes), cvxpy.multiply(given.medium, megabytes)
        constraints = list[Any]()

        def not_before(times: Any, pairs: Sequence[tuple[int, int]], after: Any, extra: Any = None) -> None:
            """Require times[b] >= after[a] (+ extra[b]) for all pairs (a, b)."""
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
        constraints.append(arrived >= left + given.latency)
        not_before(arrived, order.down, arrived, wire)
        not_before(start, [(i, c.consumer) for i, c in enumerate(flow.channels)], arrived)
        return constraints

    def _set(self, table: CostTable, objective: Objective) -> float:
        """Set the parameters, and return the unit of time in seconds."""
        flow = self.flow if table is self.table else make_flow(table, self.receptive_fields, self.stages)
        given = self._parameters
        unit = max(sum(c.base + c.slope * c.share.at(flow.edges) for c in flow.computes), 1e-9)
        # Joules are weighted by the objective. For the goal of energy, seconds only break ties.
        joule = 1.0 if objective.goal == "energy" else objective.energy_weight
        second = 1e-3 if objective.goal == "energy" else 1.0
        given.base.value = np.array([c.base / unit for c in flow.computes])
        given.slope.value = np.array([c.slope / unit for c in flow.computes])
        watts = table.compute_watts[[table.position[c.device] for c in flow.computes]]
        given.priced_share.value = joule * watts * given.slope.value
        if flow.channels:
            pairs = tuple(np.array([(table.position[c.sender], table.position[c.receiver]) for c in flow.channels]).T)
            given.wire.value = 1e6 * table.link_seconds[pairs] / unit
            given.medium.value = 1e6 * table.medium_seconds[pairs] / unit
            given.latency.value = table.message_seconds[pairs] / unit
            given.priced_bytes.value = joule * table.transfer_watts[pairs] * given.wire.value
        else:
            for parameter in (given.wire, given.medium, given.latency, given.priced_bytes):
                parameter.value = np.zeros(1)
        used = {table.position[c.device] for c in flow.computes} | {table.source}
        idle = float(table.idle_watts[sorted(used)].sum()) if table.profile.joules == "total" else 0.0
        given.second.value = second + joule * idle
        given.deadline.value = 1e6 if objective.deadline_seconds is None else objective.deadline_seconds / unit
        return float(unit)

    def _row(self, stage: int) -> float:
        """Return the height of a row of a stage's last layer in the unit square."""
        return 1 / self.model.layers[self.stages[stage].stop - 1].rows

    def _stages_at(self, edges: Sequence[float]) -> tuple[DraftStage, ...]:
        """Return the stages with these inner edges."""
        stages, passed = [], 0
        for stage in self.stages:
            inner = len(stage.layout.edges) - 2
            values = (0.0, *edges[passed : passed + inner], 1.0)
            passed += inner
            stages.append(DraftStage(stage.first, stage.stop, Layout(stage.layout.devices, values)))
        return tuple(stages)


def _parameters(computes: int, channels: int) -> _Parameters:
    """Return parameters without values."""
    import cvxpy

    return _Parameters(
        base=cvxpy.Parameter(computes), slope=cvxpy.Parameter(computes, nonneg=True),
        wire=cvxpy.Parameter(channels, nonneg=True), medium=cvxpy.Parameter(channels, nonneg=True),
        latency=cvxpy.Parameter(channels, nonneg=True), deadline=cvxpy.Parameter(nonneg=True),
        second=cvxpy.Parameter(nonneg=True), priced_share=cvxpy.Parameter(computes, nonneg=True),
        priced_bytes=cvxpy.Parameter(channels, nonneg=True),
    )  # fmt: skip


def _weighted(terms: Sequence[tuple[int, float, AffineExpression]], channels: int) -> Any:
    """Return the matrix [channel, term] of megabytes per row."""
    from scipy import sparse

    data, at = [w / 1e6 for _, w, _ in terms], ([c for c, _, _ in terms], range(len(terms)))
    return sparse.csr_matrix((data, at), shape=(channels, max(len(terms), 1)))


def _matrix(rows: Sequence[AffineExpression], count: int) -> tuple[Any, Vector]:
    """Return the expressions as a sparse matrix [expression, edge] and constants."""
    from scipy import sparse

    entries = [(i, index, value) for i, row in enumerate(rows) for index, value in row.terms]
    data, at = [v for _, _, v in entries], ([i for i, _, _ in entries], [j for _, j, _ in entries])
    return sparse.csr_matrix((data, at), shape=(len(rows), count)), np.array([row.constant for row in rows])
