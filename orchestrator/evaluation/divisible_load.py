"""The divisible-load bound: the latency if the work could be divided arbitrarily.

Each device receives a share x of the input over the wire, computes at its measured speed and returns its share of the
answer. There are no halos, no rounding and no waiting, except that all shares pass the source's up-link:

    minimise T    subject to    x_k (in / rate_k + work_k + out / rate'_k) <= T,    sum of x_k in / rate_k <= T

`in` is the size of the input in bytes and `out` that of the answer, both as small as a lossless codec makes them.
`work` is the time of the whole network in seconds. Results are printed beside this bound.
"""

from __future__ import annotations

import numpy as np

from coedge.graph.graph import Tensor
from coedge.graph.model import Model
from coedge.plan.codec import LOSSLESS
from coedge.profile.profile import Profile
from orchestrator.evaluation.cost_table import CostTable

# Each bisection halves the error of the bound; 60 of them reach the precision of a float.
BISECTIONS = 60


def bound_seconds(model: Model, profile: Profile) -> float:
    """Return the divisible-load bound of a network on a cluster, in seconds."""
    table = CostTable.of(model, profile)
    image = sum(_packed_nbytes(tensor, profile) for tensor in model.inputs)
    answer = sum(_packed_nbytes(tensor, profile) for tensor in model.outputs)
    times = (times.fixed + times.per_row * table.rows[:, None] for times in (table.inside, table.at_end))
    work = np.minimum(*times).sum(axis=0)
    sending = image * table.seconds_per_byte[table.source]
    returning = answer * table.seconds_per_byte[:, table.source]
    # (share per second of latency, seconds of the up-link per share)
    rates = [(1 / max(total, 1e-12), up) for total, up in zip(work + sending + returning, sending)]
    # For a given T every device takes all it can; those whose share costs the up-link least come first. The sum of
    # shares is then increasing in T: bisection finds the T at which it reaches one.
    rates.sort(key=lambda item: item[1])
    low, high = 0.0, 1 / max(rate for rate, _ in rates)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _finished_share(rates, middle) >= 1:
            high = middle
        else:
            low = middle
    return float(high)


def _packed_nbytes(tensor: Tensor, profile: Profile) -> float:
    """Return the size of a tensor under the best lossless codec, in bytes."""
    ratios = profile.codec_ratios.get(tensor.name, {})
    return tensor.region_nbytes(tensor.whole) * min(1.0, *(ratios.get(codec, 1.0) for codec in LOSSLESS))


def _finished_share(rates: list[tuple[float, float]], seconds: float) -> float:
    """Return the share of the work that is finished within `seconds`."""
    total, link = 0.0, seconds
    for rate, up in rates:
        share = rate * seconds
        if up > 0:
            share = min(share, link / up)
            link -= share * up
        total += share
    return total
