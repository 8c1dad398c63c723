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
        frame: the frame of that next answer.
    """

    fault: Fault
    next_seconds: float
    all_seconds: float
    frame: Frame


def held_up(faults: Sequence[Fault], frames: Sequence[Frame]) -> list[HeldUp]:
    """Return the faults that hit a device in use: the latest answer of a stream came by a plan with this device.

    Streams that begin after the fault are left out: their first frames may wait for new plans.
    """
    by_stream: dict[int, list[Frame]] = defaultdict(list)
    for frame in sorted(frames, key=lambda frame: frame.answered):
        by_stream[frame.stream].append(frame)
    times = {stream: [frame.answered for frame in own] for stream, own in by_stream.items()}
    found = []
    for fault in faults:
        following, rest = [], []
        for stream, own in by_stream.items():
            place = bisect.bisect_right(times[stream], fault.at)
            if (
                0 < place < len(own)
                and own[place].turn == own[place - 1].turn
                and fault.device in own[place - 1].devices
            ):
                under_way = [frame.answered for frame in own[place:] if frame.asked <= fault.at]
                following.append(own[place])
                rest.append(max(under_way, default=own[place].answered) - fault.at)
        if following:
            latest = max(following, key=lambda frame: frame.answered)
            found.append(HeldUp(fault, latest.answered - fault.at, max(rest), latest))
    return found


def kind_of(one: HeldUp, faults: Sequence[Fault]) -> str:
    """Return the kind of a fault. One that met the silence of another device before the next answer is of its own."""
    fault = one.fault
    ends = fault.at + one.next_seconds
    for other in faults:
        known = min(other.ends, other.over if other.noticed is None else other.noticed)
        if other is not fault and other.kind == "silence" and other.at < ends and known > fault.at:
            return "silence" if fault.kind == "silence" else f"{fault.kind} beside a silence"
    return fault.kind


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
    by_kind: dict[str, list[HeldUp]] = defaultdict(list)
    for one in held_up(harm.faults, tally.frames):
        by_kind[kind_of(one, harm.faults)].append(one)
    for kind, times in sorted(by_kind.items()):
        _enter_times(report, kind, times, limits.get(kind))
    for kind in ("death", "silence"):
        noticed = [f.noticed - f.at for f in harm.faults if f.kind == kind and f.noticed is not None]
        back = [f.over - f.ends for f in harm.faults if f.kind == kind and f.noticed is not None and f.over < np.inf]
        _enter_spread(report, f"{kind}: reported after", noticed)
        _enter_spread(report, f"{kind}: device back after", back)


def _enter_times(report: Report, kind: str, times: Sequence[HeldUp], limit: float | None) -> None:
    report.note(f"{kind}: faults of a device in use", len(times), "")
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
