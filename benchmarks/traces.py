"""Traces of a link: its rate during each frame of a stream, in bytes per second. Equal seeds give equal traces."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

KILOBYTE, MEGABYTE, MEGABIT = 1e3, 1e6, 1e6 / 8

# The bandwidths of the CoEdge paper's dynamic experiment (Zeng et al., IEEE/ACM ToN 29(2), 2021), in turn.
PAPER_RATES = tuple(rate * KILOBYTE for rate in (1000, 750, 500, 1250, 1500, 1000))

# Random walk: standard deviation of the logarithm of the rate from one frame to the next, and bounds of the rate.
WALK_STEP, WALK_BOUNDS = 0.03, (0.25 * MEGABYTE, 4 * MEGABYTE)
# Mobile network: states, mean number of frames in one, and standard deviation of the logarithm of the rate in a state.
MOBILE_RATES = tuple(rate * MEGABIT for rate in (2, 5, 10, 20, 50))
MOBILE_FRAMES, MOBILE_NOISE = 60, 0.1


def steps(count: int, seed: int = 0, rates: Sequence[float] = PAPER_RATES) -> list[float]:
    """Return a trace that has each rate for the same number of frames."""
    return [rates[frame * len(rates) // count] for frame in range(count)]


def halving(count: int, seed: int = 0) -> list[float]:
    """Return a trace of 1 MB/s that falls to half in the middle."""
    return steps(count, seed, (MEGABYTE, MEGABYTE / 2))


def random_walk(count: int, seed: int = 0) -> list[float]:
    """Return a trace whose logarithm walks at random from 1 MB/s, reflected at `WALK_BOUNDS`."""
    generator, at = random.Random(f"walk {seed}"), math.log(MEGABYTE)
    least, most = map(math.log, WALK_BOUNDS)
    trace = []
    for _ in range(count):
        trace.append(math.exp(at))
        at += generator.gauss(0, WALK_STEP)
        at = 2 * least - at if at < least else 2 * most - at if at > most else at
    return trace


def mobile(count: int, seed: int = 0) -> list[float]:
    """Return a trace like that of a 4G network: a Markov chain between rates of 2 to 50 Mbit/s, with noise."""
    generator, state = random.Random(f"mobile {seed}"), len(MOBILE_RATES) // 2
    trace = []
    for _ in range(count):
        trace.append(MOBILE_RATES[state] * math.exp(generator.gauss(0, MOBILE_NOISE)))
        if generator.random() < 1 / MOBILE_FRAMES:
            near = [other for other in (state - 1, state + 1) if 0 <= other < len(MOBILE_RATES)]
            state = generator.choice(near)
    return trace


TRACES: dict[str, Callable[[int, int], list[float]]] = {
    "paper": steps, "halving": halving, "random walk": random_walk, "mobile": mobile,
}  # fmt: skip
