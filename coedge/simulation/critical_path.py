"""The critical path: the chain of steps that an answer waited for, found from the answer backwards.

    device a  [compute]                                 compute <- send <- compute <- answer
    up-link a          [ send ]
    latency                    ...
    device b                      [compute][answer]     the gap is the latency

In a prediction, every span has its cause. In a measurement, causes are inferred from the times: a step waited for the
step before it on its device, or for a message that arrived after that step had ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from coedge.simulation.span import Span

# A message that a device takes within this time after a step had arrived before: it waited for the device.
HANDLING_SECONDS = 2e-4


def critical_path(spans: Sequence[Span], frame: int, asked_seconds: float, measured: bool) -> tuple[Span, ...]:
    """Return the spans that the answer to a frame waited for, first to last.

    Spans and the gaps between them add up to the latency of the frame. For this, a span that the path leaves before
    its end is cut there, and the first span is cut at the time when the frame was asked for. A gap is the latency of a
    link; in a measurement also unmeasured time, such as the wire and the client. A receive is on the path only if it
    queued for its down-link behind another message. Otherwise its send stands for both.
    """
    index = next((i for i in reversed(range(len(spans))) if spans[i].kind == "answer" and spans[i].frame == frame), -1)
    causes = _causes(spans) if measured else [span.cause for span in spans]
    path: list[Span] = []
    until = spans[index].stop_seconds if index >= 0 else asked_seconds
    for _ in spans:  # every span is on the path at most once
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
    """Return the index of the span that each span of a measurement waited for; -1 for none."""
    causes = [-1] * len(spans)
    sends = {(span.frame, span.channel): i for i, span in enumerate(spans) if span.kind == "send"}
    by_device: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(spans)), key=lambda i: (spans[i].start_seconds, spans[i].stop_seconds)):
        by_device[spans[i].device].append(i)
    for indices in by_device.values():
        busy, busy_until = -1, float("-inf")
        arrived: dict[int, int] = {}  # the last message, by frame
        for i in indices:
            span = spans[i]
            if span.kind == "receive":
                causes[i] = sends.get((span.frame, span.channel), -1)
                arrived[span.frame] = i
                continue
            message = arrived.get(span.frame, -1)
            waited = message >= 0 and spans[message].stop_seconds > busy_until + HANDLING_SECONDS
            causes[i] = message if waited else busy
            busy, busy_until = i, span.stop_seconds
    return causes
