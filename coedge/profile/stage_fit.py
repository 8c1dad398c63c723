"""Fits the time of every layer to measured stages: at the end of a stage, and where the next layer is fused to it.

    stage [a, b, c]     fused(a) + fused(b) + layer(c)
    fused(a)            (layer(a) - u - v x bytes that would cross the border behind a) x scale(a)

A border between two stages costs one call of the runtime (u), and a time per byte (v) for writing rows to arrays and
reading them again, out of the cache. Both are the same for all layers of a model on one machine, so a few measured
stages suffice to fit them. The rest is a factor per layer, scale(a). A ridge keeps it near one.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from coedge.execution.program import Work
from coedge.profile.least_squares import Array, nonnegative_least_squares
from coedge.profile.profile import LayerTime, scaled

# Times below this are not told apart.
LEAST_SECONDS = 1e-9
ROUNDS = 20
# Residuals above this multiple of the median residual count less (Huber loss, by iterative reweighting).
TOLERANCE = 1.5
# Layers whose time is so many times that of their kind, or so much less, are fitted on their own. Disturbed medians of
# layers that are alike differ by up to a quarter.
MOST_UNLIKE = 1.4
# Ridge: cost of a scale of 2, in squared relative errors of one layer's time.
SCALE_COST = 0.1
LEAST_SCALE, MOST_SCALE = 0.2, 3.0


@dataclass(frozen=True, slots=True)
class StageTime:
    """The measured time of one stage on a device. `work` has the rows of each of its layers, in order."""

    work: tuple[Work, ...]
    seconds: float


def like_in_time(samples: Iterable[StageTime], alike: Sequence[int]) -> list[int]:
    """Return the kinds of the layers, without those whose time is another one than that of their kind.

    Layers with the same operators and shapes share their samples. Something else may decide their time too, such as
    the values of their weights. Each layer's own samples show it.

    Args:
        alike: the kind of each layer, as a number: the index of the first layer of the kind.
    """
    own: dict[tuple[int, float], list[float]] = defaultdict(list)
    for sample in samples:
        if len(sample.work) == 1:
            own[sample.work[0].layer, sample.work[0].rows].append(sample.seconds)
    medians = {key: statistics.median(seconds) for key, seconds in own.items()}
    of_kind: dict[tuple[int, float], list[float]] = defaultdict(list)
    for (layer, rows), seconds in medians.items():
        of_kind[alike[layer], rows].append(seconds)
    ratios: dict[int, list[float]] = defaultdict(list)
    for (layer, rows), seconds in medians.items():
        ratios[layer].append(seconds / max(statistics.median(of_kind[alike[layer], rows]), LEAST_SECONDS))
    kinds: list[int] = []
    apart: dict[int, int] = {}
    for layer, kind in enumerate(alike):
        ratio = statistics.median(ratios[layer]) if ratios[layer] else 1.0
        differs = not 1 / MOST_UNLIKE <= ratio <= MOST_UNLIKE
        # A kind is numbered by its first layer. If that layer leaves, the rest is numbered by the next one.
        kinds.append(layer if differs else apart.setdefault(kind, layer))
    return kinds


def fit_affine(points: Iterable[tuple[float, float]]) -> LayerTime:
    """Return the affine time through (rows, seconds): least squares of relative errors, neither part below zero.

    The fixed time is zero if all points have the same number of rows.
    """
    data = np.array(sorted(points), float).reshape(-1, 2)
    if not len(data):
        return LayerTime(fixed_seconds=0, seconds_per_row=0)
    rows, seconds = data.T
    if rows[0] == rows[-1]:
        return LayerTime(fixed_seconds=0, seconds_per_row=seconds[-1] / rows[-1])
    design = np.column_stack([np.ones(len(rows)), rows]) / np.maximum(seconds, LEAST_SECONDS)[:, None]
    fixed, per_row = nonnegative_least_squares(design, seconds / np.maximum(seconds, LEAST_SECONDS)).tolist()
    return LayerTime(fixed_seconds=fixed, seconds_per_row=per_row)


def fit_layers(samples: Iterable[StageTime], alike: Sequence[int]) -> tuple[LayerTime, ...]:
    """Fit the affine time of every layer at the end of its stage to stages of one layer.

    Args:
        alike: the kind of each layer, as a number. Layers of one kind share their samples.
    """
    seconds: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if len(sample.work) == 1:
            work = sample.work[0]
            seconds[alike[work.layer]][work.rows].append(sample.seconds)
    fits = {
        kind: fit_affine((rows, statistics.median(taken)) for rows, taken in points.items())
        for kind, points in seconds.items()
    }
    return tuple(fits.get(kind, LayerTime(fixed_seconds=0, seconds_per_row=0)) for kind in alike)


def fit_fused(
    samples: Iterable[StageTime],
    layers: Sequence[LayerTime],
    border_nbytes_per_row: Sequence[float],
    alike: Sequence[int],
) -> tuple[LayerTime, ...]:
    """Fit the affine time of every layer that is followed by another one in its stage, to stages of several layers.

    Args:
        layers: the times of the layers at the end of a stage.
        border_nbytes_per_row: bytes that a row of each layer adds to the transfer across the border behind it.
        alike: as in `fit_layers`. Layers of one kind have one scale.
    """
    taken: dict[tuple[Work, ...], list[float]] = defaultdict(list)
    for sample in samples:
        if len(sample.work) > 1:
            taken[sample.work].append(sample.seconds)
    if not taken:
        return tuple(layers)
    stages = [(work, statistics.median(times)) for work, times in taken.items()]
    borders, saved = [], []
    for work, seconds in stages:
        inner = work[:-1]
        borders.append((len(inner), sum(border_nbytes_per_row[w.layer] * w.rows for w in inner)))
        saved.append(sum(layers[w.layer].seconds(w.rows) for w in work) - seconds)
    u, v = _robust(np.array(borders, float), np.array(saved), np.array([seconds for _, seconds in stages]))
    without = [
        LayerTime(
            fixed_seconds=max(time.fixed_seconds - u, 0.0), seconds_per_row=max(time.seconds_per_row - v * nbytes, 0.0)
        )
        for time, nbytes in zip(layers, border_nbytes_per_row, strict=True)
    ]
    scales = _scales(stages, layers, without, alike)
    return tuple(scaled(time, scales[kind]) for time, kind in zip(without, alike))


def _scales(
    stages: Sequence[tuple[tuple[Work, ...], float]],
    layers: Sequence[LayerTime],
    without: Sequence[LayerTime],
    alike: Sequence[int],
) -> dict[int, float]:
    """Return the scale of each kind of layer that fits the stages: least squares of relative errors, ridge at one.

    A stage counts as many times as it has layers, because the errors of many layers even out.
    """
    kinds = sorted(set(alike))
    place = {kind: index for index, kind in enumerate(kinds)}
    parts = np.zeros((len(stages), len(kinds)))
    rest = np.zeros(len(stages))
    for row, (work, seconds) in enumerate(stages):
        for item in work[:-1]:
            parts[row, place[alike[item.layer]]] += without[item.layer].seconds(item.rows) / seconds
        rest[row] = 1 - layers[work[-1].layer].seconds(work[-1].rows) / seconds
    counts = np.array([len(work) for work, _ in stages], float)
    ridge = np.sqrt(SCALE_COST) * np.eye(len(kinds))
    scales, weights = np.ones(len(kinds)), np.ones(len(stages))
    for _ in range(ROUNDS):
        root = np.sqrt(weights * counts)
        terms = np.vstack([parts * root[:, None], ridge])
        wanted = np.concatenate([rest * root, ridge.sum(axis=1)])
        scales = np.clip(np.linalg.lstsq(terms, wanted, rcond=None)[0], LEAST_SCALE, MOST_SCALE)
        weights = _huber(np.abs(parts @ scales - rest))
    return dict(zip(kinds, scales.tolist()))


def _robust(borders: Array, saved: Array, seconds: Array) -> tuple[float, float]:
    """Return (u, v) >= 0 such that `borders` @ (u, v) is about `saved`. Errors count relative to `seconds`."""
    weights = np.ones(len(saved))
    solution = np.zeros(2)
    for _ in range(ROUNDS):
        scale = np.sqrt(weights) / seconds
        solution = nonnegative_least_squares(borders * scale[:, None], saved * scale)
        weights = _huber(np.abs(borders @ solution - saved) / seconds)
    return float(solution[0]), float(solution[1])


def _huber(errors: Array) -> Array:
    """Return weights by which large errors count linearly in least squares."""
    limit = max(TOLERANCE * float(np.median(errors)), 1e-9)
    return np.where(errors > limit, limit / np.maximum(errors, limit), 1.0)
