"""Solving convex programmes: one solver first, another where it gives up."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any


def solved(problem: Any) -> bool:
    """Solves a linear programme. False: infeasible."""
    import cvxpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(cvxpy.SolverError):
            problem.solve(solver=cvxpy.CLARABEL)
        if problem.status not in (cvxpy.OPTIMAL, cvxpy.INFEASIBLE):
            # A simplex method is slower, but not put off by times that are millions apart.
            problem.solve(solver=cvxpy.SCIPY, scipy_options={"method": "highs"})
    return bool(problem.status in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE))
