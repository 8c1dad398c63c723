"""The cost model: predicts the times of layers that were not measured from those of measured layers.

    seconds of r of R rows  =  (r / R) (a multiply_adds + b moved_nbytes)  +  c weight_nbytes  +  d

with a, b, c, d >= 0 for each family of operators, by least squares of relative errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from coedge.profile.layer_work import LayerCost
from coedge.profile.least_squares import Array, nonnegative_least_squares
from coedge.profile.profile import LayerTime

# Weight of a layer of another family. It decides coefficients that the layers of the family leave open, such as the
# cost of weights where all of them are small, and does not change the others noticeably.
_OTHER_FAMILY_WEIGHT = 0.003
# Times below this count with absolute errors: smaller errors do not matter.
_FLOOR_SECONDS = 1e-5
_SHARES = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class CostModel:
    """Coefficients (a, b, c, d) by family; `anything` is for families that were not measured."""

    families: Mapping[str, tuple[float, ...]]
    anything: tuple[float, ...]

    def time(self, cost: LayerCost) -> LayerTime:
        """Return the predicted time of a layer on the machine that was measured."""
        adds, moved, weights, once = self.families.get(cost.family, self.anything)
        return LayerTime(
            fixed_seconds=weights * cost.weight_nbytes + once,
            seconds_per_row=(adds * cost.multiply_adds + moved * cost.moved_nbytes) / cost.rows,
        )


def fit_cost_model(measured: Iterable[tuple[LayerCost, LayerTime]]) -> CostModel:
    """Fit the cost model of a machine.

    Args:
        measured: the cost and the measured time of each layer. One layer is enough to fit, many different ones are
            needed for a useful model.
    """
    features, seconds, families = [], [], []
    for cost, time in measured:
        for share in _SHARES if cost.rows >= 1 / min(_SHARES) else (1.0,):
            features.append([share * cost.multiply_adds, share * cost.moved_nbytes, cost.weight_nbytes, 1.0])
            seconds.append(time.seconds(share * cost.rows))
            families.append(cost.family)
    design, target, of = np.array(features), np.array(seconds), np.array(families)
    relative = 1 / np.maximum(target, _FLOOR_SECONDS)

    def coefficients(importance: Array) -> tuple[float, ...]:
        weight = relative * np.sqrt(importance)
        return tuple(nonnegative_least_squares(design * weight[:, None], target * weight).tolist())

    return CostModel(
        {str(family): coefficients(np.where(of == family, 1.0, _OTHER_FAMILY_WEIGHT)) for family in np.unique(of)},
        coefficients(np.ones(len(target))),
    )
