"""Solving convex programmes: one solver first, another where it gives up."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any


def solved(problem: Any, again: bool = False) -> bool:
    """Solves a linear programme.

    Args:
        again: with other values of its parameters, later on: quick then, but the first time takes half as long again.

    Returns:
        False where it is infeasible.
    """
    import cvxpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(cvxpy.SolverError):
            problem.solve(solver=cvxpy.CLARABEL, ignore_dpp=not again)
        if problem.status not in (cvxpy.OPTIMAL, cvxpy.INFEASIBLE):
            # A simplex method is slower, but not put off by times that are millions apart.
            problem.solve(solver=cvxpy.SCIPY, ignore_dpp=not again, scipy_options={"method": "highs"})
    return bool(problem.status in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE))
