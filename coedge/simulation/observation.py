"""A measured timeline beside the predicted one: the time of every stage on every device, the delay of every link."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from coedge.execution.program import Program, Work
from coedge.profile.correction import LinkDelay, StageObservation
from coedge.simulation.timeline import Timeline

# A receiver that was idle for less than this may have taken a message later than it came.
WAITED_SECONDS = 1e-4


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


def link_delays(predicted: Timeline, measured: Sequence[Timeline]) -> list[LinkDelay]:
    """Return by how much messages take longer on each link than predicted: the median over messages and frames.

    Only messages count that the receiver was waiting for. Others may have lain there.
    """
    expected = _transits(predicted, measured=False)
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    for timeline in measured:
        for (sender, receiver, channel), seconds in _transits(timeline, measured=True).items():
            if (sender, receiver, channel) in expected:
                errors[sender, receiver].append(seconds - expected[sender, receiver, channel])
    return [
        LinkDelay(sender=sender, receiver=receiver, seconds=statistics.median(values))
        for (sender, receiver), values in sorted(errors.items())
    ]


def _transits(timeline: Timeline, measured: bool) -> dict[tuple[str, str, int], float]:
    """Return the seconds between the two ends of every message, by (sender, receiver, channel); see `Span`."""
    sent = {(span.device, span.peer, span.channel): span for span in timeline.spans if span.kind == "send"}
    transits = {}
    stops: dict[str, float] = {}
    for span in sorted(timeline.spans, key=lambda span: span.start_seconds):
        send = sent.get((span.peer, span.device, span.channel)) if span.kind == "receive" else None
        if send is not None and not measured:
            transits[span.peer, span.device, span.channel] = span.stop_seconds - send.start_seconds
        elif send is not None and span.start_seconds - stops.get(span.device, span.start_seconds) > WAITED_SECONDS:
            transits[span.peer, span.device, span.channel] = span.start_seconds - send.stop_seconds
        if measured or span.kind == "compute":
            stops[span.device] = max(stops.get(span.device, 0.0), span.stop_seconds)
    return transits
