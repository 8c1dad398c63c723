"""Deals the frames of a stream to several plans, in proportion and as evenly as whole frames allow.

    weights 2 : 1 : 1     frame  0 1 2 3 4 5 6 7
                          part   0 1 0 2 0 1 0 2

In a stream of weights w (of sum 1) the k-th frame of a part, counted from 0, belongs in the window from
k / w to (k + 1) / w. The earliest deadline among the parts whose window has begun goes first: of such windows
none is ever missed (one processor, load 1), so no part is ever a whole frame ahead or behind. That is Pfair
scheduling (Baruah, Cohen, Plaxton, Varvel, "Proportionate progress", 1996); the usual smooth weighted round
robin, which serves the part that is furthest behind, does not promise it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice

from coedge.core.errors import PlanError


def assign_frames(weights: Sequence[float], frames: int) -> tuple[int, ...]:
    """The part that each of so many frames goes to. After any n frames a part has more than n w - 1 and less
    than n w + 1 of them, where w is its share of the weights.

    Raises:
        PlanError: a weight is negative or not finite, or none is above zero.
    """
    return tuple(islice(frame_assignment(weights), frames))


def frame_assignment(weights: Sequence[float]) -> Iterator[int]:
    """The same without end: one part per frame."""
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise PlanError(f"frames cannot be dealt by the weights {list(weights)}: give shares >= 0, not all of them 0")
    return _frame_assignment(weights)


def _frame_assignment(weights: Sequence[float]) -> Iterator[int]:
    # Whole numbers: shares as floats would drift over a long stream.
    exact = [Fraction(weight) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    shares = [int(weight * scale) for weight in exact]
    total = sum(shares)
    counts = [0] * len(shares)
    frame = 0
    while True:
        frame += 1
        begun = [part for part, share in enumerate(shares) if counts[part] * total < frame * share]
        chosen = min(begun, key=lambda part: -((counts[part] + 1) * -total // shares[part]))
        counts[chosen] += 1
        yield chosen
