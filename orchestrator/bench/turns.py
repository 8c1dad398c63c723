"""Contenders run in turns, so that changes of the machine's load affect all of them alike.

A turn is a few consecutive frames. At its start caches hold the weights of another contender, so the first frame of a
turn does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from coedge.core.errors import CoEdgeError
from coedge.simulation.timeline import Timeline

# Frames of a turn that count.
COUNTED = 3


@dataclass(frozen=True, slots=True)
class FrameRun:
    """A frame of a contender.

    Attributes:
        seconds: latency as the client sees it.
        joules, sent_nbytes, difference: as in `Sample`.
    """

    seconds: float
    output: Any
    joules: float | None = None
    sent_nbytes: Mapping[str, int] | None = None
    timeline: Timeline | None = None
    difference: float = 0.0


class Contender(Protocol):
    """A way to compute the output of a model, which is measured."""

    def run(self) -> Any:
        """Run a frame that does not count, and return its output."""

    def measure(self) -> FrameRun:
        """Run and measure a frame."""


@dataclass(slots=True)
class Outcome:
    """The measurements of a contender.

    Attributes:
        runs: measured frames, without their outputs.
        problem: reason why frames are missing; empty if none are.
    """

    runs: list[FrameRun] = field(default_factory=list)
    problem: str = ""

    @property
    def timeline(self) -> Timeline | None:
        """Timeline of the frame with the median latency."""
        traced = sorted((run for run in self.runs if run.timeline is not None), key=lambda run: run.seconds)
        return traced[(len(traced) - 1) // 2].timeline if traced else None


def take_turns(
    contenders: Mapping[str, Contender],
    frames: int,
    difference: Callable[[Any], float],
    tolerance: float | None,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Outcome]:
    """Measure frames of every contender in turns. A contender that fails stops, and the others go on.

    Args:
        frames: measured frames per contender.
        difference: returns the relative difference of an output from the unsplit one.
        tolerance: a contender whose output differs by more fails. None records differences only, for lossy plans.
        done: called once per measured or missing frame.
    """
    outcomes = {name: Outcome() for name in contenders}
    active = dict(contenders)
    while active:
        for name, contender in list(active.items()):
            outcome = outcomes[name]
            count = min(COUNTED, frames - len(outcome.runs))
            try:
                _check(difference(contender.run()), tolerance)
                for _ in range(count):
                    run = contender.measure()
                    run_difference = difference(run.output)
                    _check(run_difference, tolerance)
                    outcome.runs.append(replace(run, output=None, difference=run_difference))
                    done()
            except CoEdgeError as error:
                outcome.problem = str(error)
                for _ in range(frames - len(outcome.runs)):
                    done()
            if outcome.problem or len(outcome.runs) >= frames:
                del active[name]
    return outcomes


def _check(difference: float, tolerance: float | None) -> None:
    if tolerance is not None and not difference <= tolerance:  # true for NaN as well
        raise CoEdgeError(
            f"its output differs from the unsplit one by {difference:.1e} of the largest value; {tolerance:.0e} is "
            "allowed"
        )
