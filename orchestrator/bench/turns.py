"""Contenders take turns, so that whatever else the machine does meets all of them alike.

A turn is a few frames one behind the other. Caches hold another contender's weights when it begins, so its first frame
does not count.
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
    """One frame of a contender.

    Attributes:
        seconds: from asked to answered.
        joules, sent_nbytes: as of a `Sample`.
    """

    seconds: float
    output: Any
    joules: float | None = None
    sent_nbytes: Mapping[str, int] | None = None
    timeline: Timeline | None = None
    difference: float = 0.0


class Contender(Protocol):
    """Something that answers frames."""

    def run(self) -> Any:
        """Answers one frame; its output. It does not count."""

    def measure(self) -> FrameRun:
        """Answers one frame that counts."""


@dataclass(slots=True)
class Outcome:
    """What became of a contender.

    Attributes:
        ran: its frames that count, without their outputs.
        timeline: of the frame with the median latency.
        problem: why it gave up; "": it did not.
    """

    ran: list[FrameRun] = field(default_factory=list)
    problem: str = ""

    @property
    def timeline(self) -> Timeline | None:
        traced = sorted((ran for ran in self.ran if ran.timeline is not None), key=lambda ran: ran.seconds)
        return traced[(len(traced) - 1) // 2].timeline if traced else None


def take_turns(
    contenders: Mapping[str, Contender],
    frames: int,
    difference: Callable[[Any], float],
    tolerance: float | None,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Outcome]:
    """So many frames that count of each contender, or the reason why it could not go on.

    Args:
        difference: of an output to the right one, relative.
        tolerance: an output that differs by more ends its contender's part: speed of wrong answers is worth
            nothing. None: differences are wanted, and only noted.
        done: called once per frame that counts, or that will not come.
    """
    outcomes = {name: Outcome() for name in contenders}
    racing = dict(contenders)
    while racing:
        for name, contender in list(racing.items()):
            outcome = outcomes[name]
            count = min(COUNTED, frames - len(outcome.ran))
            try:
                _check(difference(contender.run()), tolerance)
                for _ in range(count):
                    ran = contender.measure()
                    apart = difference(ran.output)
                    _check(apart, tolerance)
                    outcome.ran.append(replace(ran, output=None, difference=apart))
                    done()
            except CoEdgeError as error:
                outcome.problem = str(error)
                for _ in range(frames - len(outcome.ran)):
                    done()
            if outcome.problem or len(outcome.ran) >= frames:
                del racing[name]
    return outcomes


def _check(difference: float, tolerance: float | None) -> None:
    if tolerance is not None and not difference <= tolerance:  # nor is one that is no number
        raise CoEdgeError(
            f"its output differs from the unsplit one by {difference:.1e} of the largest value ({tolerance:.0e} is "
            "allowed), so its times do not count"
        )
