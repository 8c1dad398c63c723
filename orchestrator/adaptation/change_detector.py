"""Finds lasting changes of a positive quantity, such as the seconds of a stage, sample by sample.

Bayesian online change-point detection (R. P. Adams and D. J. C. MacKay, "Bayesian Online Changepoint Detection",
arXiv:0710.3742, 2007) on the logarithm of the samples. A run is the hypothesis that the level changed last at a certain
sample. Each run has a Normal-Gamma posterior of its level and noise, so it predicts the next sample by a Student-t
distribution. A run's probability is multiplied by what it predicted for the sample that came. There are four
differences from the paper:

outliers     A sample is an outlier with a small probability. It then lies anywhere, and it says nothing about its run.
             A run learns from each sample as much as the sample is likely to be none. So one frame that the operating
             system held up ends no run.
correlation  Samples that follow each other may resemble each other. Ten of them then say less than ten independent
             ones, so what they say is raised to a power below 1. The power follows from the correlation measured.
noise        A new run expects the noise of the current segment, not one that is fixed in advance.
bounded cost Only the most probable runs are kept.

The current segment is the run that the detector believes in. It changes when this run is almost certainly wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Probability that the level changes at a sample.
HAZARD = 1 / 500
# Probability that a sample is an outlier, and the density of the logarithm of outliers: within a factor of 20.
OUTLIERS, OUTLIER_DENSITY = 0.02, 1 / 6
# The current segment is left when younger runs have this probability together, or all other runs the second one.
CERTAIN, MORE_CERTAIN = 0.97, 0.9999
# Samples that a segment must have before it is reported.
LEAST_SAMPLES = 4
# Runs that are kept. When there are more than MOST_RUNS, the FEWER_RUNS most probable ones stay.
MOST_RUNS, FEWER_RUNS = 64, 32
# Prior of a new run. The weight of its level is in samples: the level may be a multiple of the level before. The shape
# of its noise counts half samples.
PRIOR_SAMPLES, PRIOR_SHAPE = 0.02, 2.0
# Noise that is expected before there are samples, and bounds of the noise that a new run expects (of the logarithm).
USUAL_NOISE, LEAST_NOISE, MOST_NOISE = 0.1, 0.02, 0.5
# Correlation of a sample with the one before: expected before there are samples, and the most that is believed.
USUAL_CORRELATION, MOST_CORRELATION = 0.15, 0.8
# The correlation is the mean over about so many samples, of deviations up to so many times the noise.
CORRELATION_SAMPLES, MOST_DEVIATION = 300, 2.0
# How many samples a level that is known in advance counts for, and the shape of the noise that is then expected.
KNOWN_SAMPLES, KNOWN_SHAPE = 20.0, 10.0
# Samples are kept between these, so that products and quotients of levels stay finite.
SMALLEST, LARGEST = 1e-150, 1e150


@dataclass(frozen=True, slots=True)
class Change:
    """A lasting change of a level.

    Attributes:
        before, after: level of the last reported segment and of the current one, in the unit of the samples.
        samples: number of samples since the change.
    """

    before: float
    after: float
    samples: int

    @property
    def factor(self) -> float:
        """The level after the change over the level before it."""
        return self.after / self.before


class ChangeDetector:
    """A detector of lasting changes in a stream of positive samples.

    The level of a segment is the exponential of the mean logarithm without outliers: for log-normal noise, the median.
    Multiplying all samples by a constant multiplies all levels by it and changes nothing else.

    A sample costs some 35 microseconds, however many came before.
    """

    def __init__(self, dwell: int = 10, hysteresis: float = 0.15, level: float | None = None) -> None:
        """Begin without samples.

        Args:
            dwell: least number of samples between two reports.
            hysteresis: least relative difference of two levels that is reported; the same up and down: 0.15 is a
                factor of 1.15 or of 1 / 1.15.
            level: what the samples are expected to be. If the first ones are lastingly something else, that is a
                change. None: the first segment is not reported.

        Raises:
            ValueError: an argument is not in its range.
        """
        if dwell < 1 or not 0 <= hysteresis < math.inf:
            raise ValueError(f"dwell is {dwell} and hysteresis {hysteresis}; give at least 1 sample, and at least 0")
        if level is not None and not 0 < level < math.inf:
            raise ValueError(f"level is {level}; give a positive number, or None")
        self._dwell, self._threshold = dwell, math.log1p(hysteresis)
        self._expects = level is not None
        self._count = 0  # samples so far
        # The current segment: number of its first sample, logarithm of its level, noise.
        self._start, self._noise = 0, USUAL_NOISE
        self._level = 0.0 if level is None else math.log(_within(level))
        # The last reported segment, and when it was reported.
        self._reported_start, self._reported_level, self._reported_at = 0, self._level, -dwell
        # The last deviation from the level over the noise. Running means of its square and of successive products.
        self._deviation, self._squares, self._products = 0.0, 1.0, USUAL_CORRELATION
        # One column per run, in the order of their starts; the first `_stop` are in use. Rows: start, probability, and
        # the posterior: weight of the level in samples, level, shape and rate of the precision.
        self._runs: NDArray[np.float64] = np.zeros((6, MOST_RUNS + 1))
        weight, shape = (KNOWN_SAMPLES, KNOWN_SHAPE) if self._expects else (PRIOR_SAMPLES, PRIOR_SHAPE)
        self._runs[:, 0] = _new_run(0, 1.0, weight, self._level, USUAL_NOISE, shape)
        self._stop = 1

    @property
    def samples(self) -> int:
        """Number of samples of the current segment."""
        return self._count - self._start

    @property
    def level(self) -> float:
        """Level of the current segment, in the unit of the samples.

        Without samples it is the level that was expected, or NaN.
        """
        return math.exp(self._level) if self._count or self._expects else math.nan

    @property
    def reported_level(self) -> float:
        """Level of the segment that was reported last, in the unit of the samples.

        It becomes more precise as long as this segment is the current one. Before the first report it is the level
        that was expected; without one, as `level` in the first segment.
        """
        return math.exp(self._reported_level) if self._count or self._expects else math.nan

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of the samples in the current segment, without outliers."""
        return self._noise

    def update(self, value: float) -> Change | None:
        """Take a sample. Return the change that it makes certain, if it does.

        Zero, negative numbers, infinity and NaN are no samples and are ignored.
        """
        if not 0 < value < math.inf:
            return None
        x = math.log(_within(value))
        if not self._count and not self._expects:
            self._runs[3, 0] = self._level = self._reported_level = x
        self._take(x, self._information(x))
        self._count += 1
        self._follow()
        return self._report()

    def _information(self, x: float) -> float:
        """Return how many independent samples one sample is worth (first-order autoregression)."""
        before = self._deviation
        self._deviation = min(max((x - self._level) / self._noise, -MOST_DEVIATION), MOST_DEVIATION)
        self._squares += (self._deviation**2 - self._squares) / CORRELATION_SAMPLES
        self._products += (self._deviation * before - self._products) / CORRELATION_SAMPLES
        correlation = min(max(self._products / self._squares, 0.0), MOST_CORRELATION)
        return (1 - correlation) / (1 + correlation)

    def _take(self, x: float, information: float) -> None:
        """Add the run that begins with this sample, and update all runs by the sample."""
        if self._count:
            noise = min(max(self._noise, LEAST_NOISE), MOST_NOISE)
            odds = HAZARD / (1 - HAZARD)
            self._runs[:, self._stop] = _new_run(self._count, odds, PRIOR_SAMPLES, self._level, noise)
            self._stop += 1
        _, probability, samples, level, shape, rate = self._runs[:, : self._stop]
        # The Student-t density of each run.
        distance = x - level
        surprise = 0.5 * distance * distance
        precision = samples / ((samples + 1.0) * rate)
        density = np.sqrt(precision * _gamma_ratio_squared(shape) / (2 * math.pi))
        density *= (1.0 + surprise * precision) ** -(shape + 0.5)
        density *= 1.0 - OUTLIERS
        total = density + OUTLIERS * OUTLIER_DENSITY
        probability *= total**information
        probability /= probability.sum()
        # The posterior of each run, as if it had seen `weight` of a sample.
        weight = density / total
        share = weight / (samples + weight)
        rate += surprise * share * samples
        level += distance * share
        samples += weight
        shape += 0.5 * weight
        if self._stop > MOST_RUNS:
            self._prune()

    def _prune(self) -> None:
        """Keep the most probable runs and the current segment, in the order of their starts."""
        starts, probability = self._runs[:2, : self._stop]
        worth = np.where(starts == self._start, 2.0, probability)
        kept = np.sort(np.argpartition(worth, -FEWER_RUNS)[-FEWER_RUNS:])
        self._runs[:, :FEWER_RUNS] = self._runs[:, kept]
        self._stop = FEWER_RUNS

    def _follow(self) -> None:
        """Move to another segment if it is almost certain that the current one is wrong; take its level and noise.

        That may be an older one: some samples that seemed to begin a segment were outliers then.
        """
        starts, probability = self._runs[:2, : self._stop]
        at = int(starts.searchsorted(self._start))
        younger = probability[at + 1 :]
        if younger.sum() > CERTAIN:
            at += 1 + int(younger.argmax())
        elif probability[at] < 1.0 - MORE_CERTAIN:
            at = int(probability.argmax())
        self._start = int(starts[at])
        _, _, _, level, shape, rate = self._runs[:, at].tolist()
        self._level, self._noise = level, math.sqrt(rate / shape)

    def _report(self) -> Change | None:
        """Return the change from the last reported segment to the current one, if it is one to report."""
        if self._start == self._reported_start:
            if self._start or not self._expects:
                self._reported_level = self._level
            return None
        if abs(self._level - self._reported_level) < self._threshold or self.samples < LEAST_SAMPLES:
            return None
        if self._count - self._reported_at < self._dwell:
            return None
        change = Change(math.exp(self._reported_level), math.exp(self._level), self.samples)
        self._reported_start, self._reported_level, self._reported_at = self._start, self._level, self._count
        return change


def _new_run(
    start: int, probability: float, samples: float, level: float, noise: float, shape: float = PRIOR_SHAPE
) -> tuple[float, ...]:
    return start, probability, samples, level, shape, shape * noise * noise


def _gamma_ratio_squared(shape: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (gamma(shape + 1/2) / gamma(shape)) squared, to 0.1 % from a shape of 1 on (asymptotic series)."""
    return shape - 0.25 + 0.03125 / shape


def _within(value: float) -> float:
    return min(max(value, SMALLEST), LARGEST)
