"""Assigns the frames of a stream to several plans, in proportion to weights and as evenly as whole frames allow.

    weights 2 : 1 : 1     frame  0 1 2 3 4 5 6 7
                          plan   0 1 0 2 0 1 0 2

Let w be the weight of a plan, as a share of all weights. The k-th frame of the plan, counted from 0, belongs in the
window from k / w to (k + 1) / w. Among the plans whose window has begun, the one with the earliest deadline gets the
next frame. No deadline is ever missed (one processor, load 1), so no plan is ever a whole frame ahead or behind. This
is Pfair scheduling (Baruah, Cohen, Plaxton, Varvel, "Proportionate progress", 1996). Smooth weighted round robin,
which serves the plan that is furthest behind, does not guarantee it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice

from coedge.core.errors import PlanError


def assign_frames(weights: Sequence[float], frames: int) -> tuple[int, ...]:
    """Return the index of the plan for each of the first `frames` frames.

    After any n frames, a plan has more than n w - 1 and less than n w + 1 of them, where w is its share of the
    weights.

    Raises:
        PlanError: a weight is negative or not finite, or all weights are zero.
    """
    return tuple(islice(frame_assignment(weights), frames))


def frame_assignment(weights: Sequence[float]) -> Iterator[int]:
    """Yield the index of the plan for each frame of an endless stream. Raises as `assign_frames`."""
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise PlanError(
            f"frames cannot be assigned by the weights {list(weights)}: give weights >= 0, not all of them 0"
        )
    return _frame_assignment(weights)


def _frame_assignment(weights: Sequence[float]) -> Iterator[int]:
    # Integers, because shares as floats would drift over a long stream.
    exact = [Fraction(weight) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    shares = [int(weight * scale) for weight in exact]
    total = sum(shares)
    counts = [0] * len(shares)
    frame = 0
    while True:
        frame += 1
        begun = [plan for plan, share in enumerate(shares) if counts[plan] * total < frame * share]
        chosen = min(begun, key=lambda plan: -((counts[plan] + 1) * -total // shares[plan]))
        counts[chosen] += 1
        yield chosen
