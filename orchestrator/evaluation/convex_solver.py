"""Solve linear programmes: an interior-point solver first, a simplex solver if that one gives up."""

from __future__ import annotations

import contextlib
from typing import Any

from coedge.core.silence import silenced_warnings


def solve_linear_programme(problem: Any, again: bool = False) -> bool:
    """Solve a cvxpy problem in place.

    Args:
        again: keep the canonical form for later solves with other parameter values. The first solve then takes half
            as long again, later ones are fast.

    Returns:
        False if the programme is infeasible or both solvers gave up.
    """
    import cvxpy

    with silenced_warnings("cvxpy", "scipy", "clarabel"):
        with contextlib.suppress(cvxpy.SolverError):
            problem.solve(solver=cvxpy.CLARABEL, ignore_dpp=not again)
        if problem.status not in (cvxpy.OPTIMAL, cvxpy.INFEASIBLE):
            # The simplex method is slower, but it copes with coefficients that differ by a factor of a million.
            problem.solve(solver=cvxpy.SCIPY, ignore_dpp=not again, scipy_options={"method": "highs"})
    return bool(problem.status in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE))
