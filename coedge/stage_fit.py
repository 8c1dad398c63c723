"""From measured stages to the time of every layer: where its stage ends with it, and where the next layer follows.

    stage [a, b, c]     layer(a) + layer(b) + layer(c) - saved(a) - saved(b)
    saved(a)            u + v x bytes that would cross the border behind a

A border costs a call of the runtime (u), and for each byte (v) that rows are laid out as arrays and back again, out of
the cache. Both are the same for all layers of a model on one machine, so a few measured stages tell them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coedge.profile import LayerTime, fit
from coedge.program import Work

Floats = NDArray[np.float64]

ROUNDS = 20
# Residuals beyond so many times the median one count less (Huber's loss, by reweighting).
TOLERANCE = 1.5


@dataclass(frozen=True, slots=True)
class StageTime:
    """What a device took for one stage: `work` is how many rows of each of its layers, in order."""

    work: tuple[Work, ...]
    seconds: float


def fit_layers(samples: Iterable[StageTime], alike: Sequence[int]) -> tuple[LayerTime, ...]:
    """The affine time of every layer at the end of its stage, from stages of one layer.

    Args:
        alike: for each layer, the number of a kind; layers of one kind share their samples.
    """
    seconds: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if len(sample.work) == 1:
            work = sample.work[0]
            seconds[alike[work.layer]][work.rows].append(sample.seconds)
    fits = {
        kind: fit((rows, statistics.median(taken)) for rows, taken in points.items())
        for kind, points in seconds.items()
    }
    return tuple(fits.get(kind, LayerTime(fixed_seconds=0, seconds_per_row=0)) for kind in alike)


def fit_fused(
    samples: Iterable[StageTime], layers: Sequence[LayerTime], border_nbytes_per_row: Sequence[float]
) -> tuple[LayerTime, ...]:
    """The affine time of every layer where the next one runs in the same stage, from stages of several layers.

    Args:
        layers: their times at the end of a stage.
        border_nbytes_per_row: what a row of each layer adds to what crosses the border behind it.
    """
    taken: dict[tuple[Work, ...], list[float]] = defaultdict(list)
    for sample in samples:
        if len(sample.work) > 1:
            taken[sample.work].append(sample.seconds)
    if not taken:
        return tuple(layers)
    borders, saved, seconds = [], [], []
    for work, times in taken.items():
        stage = statistics.median(times)
        inner = work[:-1]
        borders.append((len(inner), sum(border_nbytes_per_row[w.layer] * w.rows for w in inner)))
        saved.append(sum(layers[w.layer].seconds(w.rows) for w in work) - stage)
        seconds.append(stage)
    per_border, per_byte = _robust(np.array(borders, float), np.array(saved), np.array(seconds))
    return tuple(
        LayerTime(
            fixed_seconds=max(time.fixed_seconds - per_border, 0.0),
            seconds_per_row=max(time.seconds_per_row - per_byte * nbytes, 0.0),
        )
        for time, nbytes in zip(layers, border_nbytes_per_row, strict=True)
    )


def _robust(terms: Floats, saved: Floats, seconds: Floats) -> tuple[float, float]:
    """(u, v), neither below zero, so that terms @ (u, v) is about `saved`: errors count relative to `seconds`."""
    weights = np.ones(len(saved))
    found = (0.0, 0.0)
    for _ in range(ROUNDS):
        found = _not_negative(terms, saved, weights / seconds**2)
        errors = np.abs(terms @ found - saved) / seconds
        limit = TOLERANCE * float(np.median(errors))
        weights = np.where(errors > limit, limit / np.maximum(errors, 1e-12), 1.0)
    return found


def _not_negative(terms: Floats, saved: Floats, weights: Floats) -> tuple[float, float]:
    """Weighted least squares in two unknowns; where one of them would be negative, it is zero."""
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    scaled = terms / scale
    square, target = scaled.T @ (scaled * weights[:, None]), scaled.T @ (saved * weights)
    both = np.linalg.lstsq(square, target, rcond=None)[0]
    if (both < 0).any():
        alone = np.maximum(target / np.maximum(np.diag(square), 1e-300), 0.0)
        losses = [square[i, i] * alone[i] ** 2 - 2 * target[i] * alone[i] for i in (0, 1)]
        both = np.where(np.arange(2) == int(np.argmin(losses)), alone, 0.0)
    return float(both[0] / scale[0]), float(both[1] / scale[1])
