"""What measured timelines show of a plan: the time of every stage on every device."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from coedge.execution.program import Program, Work
from coedge.profile.correction import StageObservation
from coedge.simulation.timeline import Timeline


def observed_stages(programs: Mapping[str, Program], measured: Sequence[Timeline]) -> list[StageObservation]:
    """Return the median time of every stage on every device over some frames of a plan.

    Args:
        programs: of the plan, by device.
        measured: one timeline per frame.
    """
    work: dict[tuple[str, int], list[tuple[Work, ...]]] = defaultdict(list)
    for name, program in programs.items():
        for step in program.computes:
            work[name, step.stage].append(step.work)
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    for timeline in measured:
        seconds: dict[tuple[str, int], float] = defaultdict(float)
        for span in timeline.spans:
            if span.kind == "compute":
                seconds[span.device, span.stage] += span.seconds
        for key, value in seconds.items():
            taken[key].append(value)
    return [
        StageObservation(name, tuple(work[name, stage]), statistics.median(values))
        for (name, stage), values in sorted(taken.items())
        if (name, stage) in work
    ]
