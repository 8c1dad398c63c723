"""What a layer saves where the next layer runs in the same stage: fitted to measured networks.

    seconds saved  =  u  +  v moved_nbytes          u, v >= 0, the same for all layers and networks of a machine

A stage border costs one call of the runtime, and writing and reading rows out of the cache. The saving is fitted to
whole networks, because the measured times of layers inside stages are less certain than the time of a whole stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from coedge.profile.layer_work import LayerCost
from coedge.profile.least_squares import nonnegative_least_squares
from coedge.profile.profile import LayerTime, scaled

# Part of its time that a layer keeps at least. The fit subtracts nearly all of small layers otherwise.
_LEAST_SHARE = 0.4


@dataclass(frozen=True)
class BorderSaving:
    """The time that a stage border costs: per layer, and per byte that the layer moves."""

    seconds: float
    seconds_per_byte: float

    def fused(self, time: LayerTime, cost: LayerCost) -> LayerTime:
        """Return the time of a layer inside a stage from its time at the end of a stage."""
        whole = time.seconds(cost.rows)
        if whole <= 0:
            return time
        saved = self.seconds + self.seconds_per_byte * _moved_nbytes(cost)
        return scaled(time, max(_LEAST_SHARE, 1 - saved / whole))


def fit_border_saving(networks: Iterable[tuple[Sequence[LayerCost], float, float]]) -> BorderSaving:
    """Fit the saving to networks: least squares of errors relative to the time in one stage.

    Args:
        networks: of each network the costs of its layers, the sum of its layers' times at the end of stages, and its
            time in one stage.
    """
    design, saved = [], []
    for costs, apart, together in networks:
        design.append([len(costs) / together, sum(map(_moved_nbytes, costs)) / together])
        saved.append((apart - together) / together)
    seconds, per_byte = nonnegative_least_squares(np.array(design), np.array(saved)).tolist()
    return BorderSaving(seconds, per_byte)


def _moved_nbytes(cost: LayerCost) -> float:
    """Return the bytes that cross borders in some part. Most bytes of a dense layer are weights, which do not."""
    return 0.0 if cost.family == "dense" else cost.moved_nbytes
