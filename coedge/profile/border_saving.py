"""What a layer saves where the next layer runs in the same stage: fitted to measured networks.

    seconds inside a stage  =  max(s seconds, seconds - u - v moved_nbytes)          u, v >= 0, 0 <= s <= 1

A stage border costs one call of the runtime, and writing and reading rows out of the cache. A small layer keeps the
share s of its time. u, v and s are the same for all layers and networks of a machine. They are fitted to whole
networks, because the measured times of layers inside stages are less certain than the time of a whole stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from coedge.profile.layer_work import LayerCost
from coedge.profile.least_squares import Array
from coedge.profile.profile import LayerTime, scaled

# Units of the fit and where it starts: the saving per layer and per byte, and the share.
_UNITS = (1e-4, 1e-11, 1.0)
_STARTS = tuple(itertools.product((0.5, 1.5, 2.5), (1.0, 5.0), (0.4,)))


@dataclass(frozen=True)
class BorderSaving:
    """The time that a stage border costs.

    Attributes:
        seconds: per layer.
        seconds_per_byte: per byte that the layer moves.
        least_share: part of its time that a layer keeps at least.
    """

    seconds: float
    seconds_per_byte: float
    least_share: float

    def fused(self, time: LayerTime, cost: LayerCost) -> LayerTime:
        """Return the time of a layer inside a stage from its time at the end of a stage."""
        whole = time.seconds(cost.rows)
        if whole <= 0:
            return time
        saved = self.seconds + self.seconds_per_byte * _moved_nbytes(cost)
        return scaled(time, max(self.least_share, 1 - saved / whole))


def fit_border_saving(networks: Iterable[tuple[Sequence[LayerCost], Sequence[float], float]]) -> BorderSaving:
    """Fit the saving to networks: least squares of errors relative to the time in one stage.

    Args:
        networks: of each network the costs of its layers, the seconds of each layer at the end of a stage, and the
            seconds of the network in one stage.
    """
    # Only the machine that plans has scipy. Workers import this package without calling it.
    from scipy.optimize import least_squares

    known = list(networks)
    moved = np.array([_moved_nbytes(cost) for costs, _, _ in known for cost in costs])
    apart = np.array([seconds for _, times, _ in known for seconds in times])
    whole = np.array([seconds for _, _, seconds in known])
    stops = np.cumsum([len(costs) for costs, _, _ in known])

    def errors(terms: Array) -> Array:
        seconds, per_byte, share = terms * _UNITS
        inside = np.maximum(share * apart, apart - seconds - per_byte * moved)
        inside[stops - 1] = apart[stops - 1]  # the last layer ends the stage
        together: Array = np.add.reduceat(inside, np.append(0, stops[:-1])) / whole - 1
        return together

    fits = [least_squares(errors, start, bounds=((0, 0, 0), (np.inf, np.inf, 1))) for start in _STARTS]
    return BorderSaving(*(float(term) for term in min(fits, key=lambda fit: fit.cost).x * _UNITS))


def _moved_nbytes(cost: LayerCost) -> float:
    """Return the bytes that cross borders in some part. Most bytes of a dense layer are weights, which do not."""
    return 0.0 if cost.family == "dense" else cost.moved_nbytes
