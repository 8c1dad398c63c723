"""New boundaries for plans and mixtures after a change of links: the same cuts and devices, in tens of milliseconds.

A full search takes seconds. After a change of bandwidth or latency the stages and devices are often still right, and
only the shares are not; the convex programme of `linear_programme` finds these at once.
"""

from __future__ import annotations

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import Evaluator, shared_memo
from orchestrator.planner.mixture import Mixture, mix
from orchestrator.search.draft import DraftStage, as_draft, as_stages, with_options_of
from orchestrator.search.linear_programme import BoundaryProblem
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.rounding import fair, nearest


class BoundarySolver:
    """The convex programme of one plan, which is built once and solved for one profile after another."""

    def __init__(self, plan: Plan, model: Model, profile: Profile) -> None:
        self._plan, self._model, self._receptive_fields = plan, model, ReceptiveFields(model)
        self._memo = shared_memo(model)  # the lowered plan is kept from one solution to the next
        draft = as_draft(plan.stages)  # None for a grid, whose boundaries are not in one row
        split = draft is not None and any(len(stage.layout.devices) > 1 for stage in draft)
        table = CostTable.of(model, profile)
        self._problem = BoundaryProblem(table, self._receptive_fields, draft, again=True) if draft and split else None

    def resolve(self, profile: Profile, objective: Objective) -> Plan:
        """Solve again; see `resolve_boundaries`."""
        evaluator = Evaluator(self._model, profile, objective)
        table, before = evaluator.table, self._plan.stages
        candidates = [evaluator.evaluate(before, reason=self._plan.reason)]
        solved = self._problem.solve(table, objective) if self._problem is not None else None
        if solved is not None:
            rounded: tuple[tuple[DraftStage, ...], ...] = (
                nearest(self._model, solved.stages),
                fair(table, self._receptive_fields, solved.stages),
            )
            candidates += [evaluator.evaluate(with_options_of(as_stages(stages), before)) for stages in rounded]
        best = min(candidates, key=lambda evaluation: evaluation.rank(objective))
        return evaluator.plan(best, self._plan.scheme)


class MixtureSolver:
    """The boundary solvers of the plans of one mixture."""

    def __init__(self, mixture: Mixture, model: Model, profile: Profile) -> None:
        self._mixture, self._model = mixture, model
        self._solvers = [BoundarySolver(plan, model, profile) for plan in mixture.plans]

    def resolve(self, profile: Profile, objective: Objective) -> Mixture:
        """Return the best mixture for a profile of the plans with their boundaries of before and with new ones.

        Raises:
            InfeasibleError: none of them meets the constraints.
        """
        resolved = [solver.resolve(profile, objective) for solver in self._solvers]
        return mix(self._model, profile, objective, [*self._mixture.plans, *resolved])


def resolve_boundaries(plan: Plan, model: Model, profile: Profile, objective: Objective) -> Plan:
    """Return a plan with the cuts, device sets and transfer options of `plan`, and boundaries for `profile`.

    The result is never predicted worse than `plan` itself: where rounding to rows loses what the programme gained,
    the boundaries stay. Grids and stages on one device keep their regions.

    Raises:
        PlanError: the profile is of another model, or lacks a device of the plan.
    """
    profile.check(model)
    return BoundarySolver(plan, model, profile).resolve(profile, objective)
