"""The critical path: from the answer back, what each step really waited for.

    device a  [compute]                                 compute <- send <- compute <- answer
    up-link a          [ send ]
    latency                    ...
    device b                      [compute][answer]     the gap is the latency

A prediction knows what every span waited for. Of a measurement it follows from the times: a step waited for
the step before it on its device, or for the message that came after that one had ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from coedge.simulation.span import Span

# A message that a device takes so soon after a step had been lying there: the device was what kept it waiting.
HANDLING_SECONDS = 2e-4


def critical_path(spans: Sequence[Span], frame: int, asked_seconds: float, measured: bool) -> tuple[Span, ...]:
    """The spans that the answer to a frame waited for, one after another, first to last.

    A span that the path leaves before its end is cut there, and the first one where the frame was asked for, so
    that spans and the gaps between them add up to the latency. A gap is a latency, and of a measurement also
    what is not measured: the wire, the client. A receive stands on the path where it queued for its down-link
    behind another one; otherwise its send stands for it.
    """
    index = next((i for i in reversed(range(len(spans))) if spans[i].kind == "answer" and spans[i].frame == frame), -1)
    causes = _causes(spans) if measured else [span.cause for span in spans]
    path: list[Span] = []
    until = spans[index].stop_seconds if index >= 0 else asked_seconds
    for _ in spans:  # each at most once
        if index < 0 or (path and spans[index].stop_seconds <= asked_seconds):
            break
        span, cause = spans[index], causes[index]
        if not (span.kind == "receive" and cause >= 0 and spans[cause].kind == "send"):
            start = min(max(span.start_seconds, asked_seconds), until)
            path.append(span._replace(start_seconds=start, stop_seconds=min(span.stop_seconds, until)))
            until = start
        index = cause
    return tuple(reversed(path))


def _causes(spans: Sequence[Span]) -> list[int]:
    """What each span of a measurement waited for, as places in it."""
    causes = [-1] * len(spans)
    sends = {(span.frame, span.channel): i for i, span in enumerate(spans) if span.kind == "send"}
    by_device: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(spans)), key=lambda i: (spans[i].start_seconds, spans[i].stop_seconds)):
        by_device[spans[i].device].append(i)
    for indices in by_device.values():
        busy, busy_until = -1, float("-inf")
        came: dict[int, int] = {}  # the last message, by frame
        for i in indices:
            span = spans[i]
            if span.kind == "receive":
                causes[i] = sends.get((span.frame, span.channel), -1)
                came[span.frame] = i
                continue
            message = came.get(span.frame, -1)
            waited = message >= 0 and spans[message].stop_seconds > busy_until + HANDLING_SECONDS
            causes[i] = message if waited else busy
            busy, busy_until = i, span.stop_seconds
    return causes
