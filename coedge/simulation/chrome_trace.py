"""Converts spans to Chrome's trace format, which https://ui.perfetto.dev opens, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from coedge.simulation.span import Span

# One process per device, with a thread for each of these.
_THREADS = ("compute", "send", "receive")
_FIELDS = ("frame", "stage", "peer", "nbytes", "channel", "cause", "start_seconds", "stop_seconds")


def to_events(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Return trace events: names of devices, spans, and an arrow from every send to its receive."""
    pids = {name: pid for pid, name in enumerate(sorted({span.device for span in spans}))}
    events: list[dict[str, Any]] = []
    for name, pid in pids.items():
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        for tid, thread in enumerate(_THREADS):
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": thread}})
    sends = {(span.frame, span.channel) for span in spans if span.kind == "send"}
    for span in spans:
        event = {
            "ph": "X",
            "name": span.label,
            "cat": span.kind,
            "pid": pids[span.device],
            "tid": _THREADS.index(span.kind) if span.kind in _THREADS else 0,
            "ts": span.start_seconds * 1e6,
            "dur": span.seconds * 1e6,
            # Seconds as well, because microseconds do not convert back to the same float.
            "args": {name: getattr(span, name) for name in _FIELDS},
        }
        events.append(event)
        if span.kind == "send" or (span.kind == "receive" and (span.frame, span.channel) in sends):
            arrow = {"ph": "s"} if span.kind == "send" else {"ph": "f", "bp": "e"}
            shared = {key: event[key] for key in ("pid", "tid", "ts")}
            events.append({**arrow, **shared, "name": "message", "cat": "message", "id": _arrow_id(span)})
    return events


def to_spans(events: Iterable[dict[str, Any]]) -> tuple[Span, ...]:
    """Return the spans in the events of a trace that `to_events` made.

    Raises:
        KeyError, TypeError, AttributeError: the trace is from another program.
    """
    events = list(events)
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    return tuple(
        Span(
            device=names[event["pid"]],
            kind=event["cat"],
            label=event["name"],
            **{name: event["args"][name] for name in _FIELDS},
        )
        for event in events
        if event["ph"] == "X"
    )


def _arrow_id(span: Span) -> str:
    return f"{span.frame}.{span.channel}"
