"""Least squares without negative coefficients: the coefficients of times are seconds, and none is below zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nonnegative_least_squares(design: Array, target: Array) -> Array:
    """Return the x >= 0 that minimises |design x - target|.

    Args:
        design: array of (samples, coefficients). Its columns may have different units; they are scaled.
    """
    # Only the machine that plans has scipy. Workers import this package without calling it.
    from scipy.optimize import nnls

    scale = np.abs(design).max(axis=0)
    scale[scale == 0] = 1.0
    solution: Array = nnls(design / scale, target)[0] / scale
    return solution
