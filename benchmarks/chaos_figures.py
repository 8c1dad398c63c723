"""Figures of the chaos test: what became of the frames, and how long each fault held them up."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.chaos_faults import Fault, Harm
from benchmarks.chaos_streams import Frame, Tally
from benchmarks.report import Report

DEATH_SECONDS = 1.5
# Beyond `detect_seconds`.
SILENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class HeldUp:
    """How long a fault held up the streams that used its device.

    Attributes:
        next_seconds: until the next answer of the stream that waited longest for it.
        all_seconds: until all frames were answered that were under way at the fault.
    """

    fault: Fault
    next_seconds: float
    all_seconds: float


def held_up(faults: Sequence[Fault], frames: Sequence[Frame]) -> list[HeldUp]:
    """Return the faults that hit a device in use: the latest answer of a stream came by a plan with this device."""
    by_stream: dict[int, list[Frame]] = defaultdict(list)
    for frame in sorted(frames, key=lambda frame: frame.answered):
        by_stream[frame.stream].append(frame)
    times = {stream: [frame.answered for frame in own] for stream, own in by_stream.items()}
    found = []
    for fault in faults:
        following, rest = [], []
        for stream, own in by_stream.items():
            place = bisect.bisect_right(times[stream], fault.at)
            if 0 < place < len(own) and fault.device in own[place - 1].devices:
                under_way = [frame.answered for frame in own[place:] if frame.asked <= fault.at]
                following.append(own[place].answered - fault.at)
                rest.append(max(under_way, default=own[place].answered) - fault.at)
        if following:
            found.append(HeldUp(fault, max(following), max(rest)))
    return found


def enter(report: Report, tally: Tally, harm: Harm, hung: int, detect_seconds: float) -> None:
    """Enter all figures into a report."""
    answered, lost = len(tally.frames), sum(tally.lost.values())
    report.note("frames answered", answered, "")
    report.note("of these, sent more than once", sum(frame.attempts > 1 for frame in tally.frames), "")
    report.at_most("frames lost", lost, "", 0)
    for what in ("doubled", "out of order", "wrong"):
        report.at_most(f"frames {what}", tally.counts[what], "", 0)
    report.at_most("frames without an end", hung, "", 0)
    report.note("faults", len(harm.faults), "")
    report.note("of these, at the source", sum(fault.source for fault in harm.faults), "")
    report.note("devices reported lost without a fault", len(harm.false_alarms), "")
    report.note("devices not back in time", len(harm.missing), "")
    report.note("links that could not be set", len(harm.problems), "")
    limits = {"death": DEATH_SECONDS, "silence": detect_seconds + SILENCE_SECONDS}
    every = held_up(harm.faults, tally.frames)
    for kind in dict.fromkeys(fault.kind for fault in harm.faults):
        _enter_times(report, kind, [one for one in every if one.fault.kind == kind], limits.get(kind))
    for kind in ("death", "silence"):
        noticed = [f.noticed - f.at for f in harm.faults if f.kind == kind and f.noticed is not None]
        back = [f.over - f.ends for f in harm.faults if f.kind == kind and f.noticed is not None and f.over < np.inf]
        _enter_spread(report, f"{kind}: reported after", noticed)
        _enter_spread(report, f"{kind}: device back after", back)


def _enter_times(report: Report, kind: str, times: Sequence[HeldUp], limit: float | None) -> None:
    report.note(f"{kind}: faults of a device in use", len(times), "")
    if not times:
        return
    for what, values in (
        ("next answer after", [one.next_seconds for one in times]),
        ("frames under way answered after", [one.all_seconds for one in times]),
    ):
        report.note(f"{kind}: {what}, median", report.sample(f"{kind}: {what}, s", values), "s")
        worst = float(np.percentile(values, 95))
        if limit is None:
            report.note(f"{kind}: {what}, 95th percentile", worst, "s")
        else:
            report.at_most(f"{kind}: {what}, 95th percentile", worst, "s", limit)


def _enter_spread(report: Report, what: str, values: Sequence[float]) -> None:
    if values:
        report.note(f"{what}, median", report.sample(f"{what}, s", values), "s")
        report.note(f"{what}, 95th percentile", float(np.percentile(values, 95)), "s")
