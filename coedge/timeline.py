"""What happened, or would happen: one span per step, per device, per frame."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coedge.profile import Profile

SpanKind = Literal["compute", "send", "answer"]


@dataclass(frozen=True, slots=True)
class Span:
    """One step of one device. Seconds are of the client's clock, from the start of the first frame.

    Attributes:
        nbytes: what a send carried.
        stage: of a computation; of a send, the stage that needs what is sent.
    """

    device: str
    frame: int
    kind: SpanKind
    label: str
    start_seconds: float
    stop_seconds: float
    stage: int = -1
    peer: str = ""
    nbytes: int = 0

    @property
    def seconds(self) -> float:
        return self.stop_seconds - self.start_seconds


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans of one or more frames, predicted (virtual time) or measured.

    Attributes:
        answered: (asked, answered) of every frame.
        clock_uncertainty_seconds: how well the clocks of the devices were aligned; 0 for virtual time.
    """

    spans: tuple[Span, ...]
    answered: Mapping[int, tuple[float, float]]
    measured: bool
    clock_uncertainty_seconds: float = 0.0

    @property
    def latency_seconds(self) -> float:
        """Mean over the frames, from asked to answered."""
        return sum(stop - start for start, stop in self.answered.values()) / max(len(self.answered), 1)

    @property
    def throughput_fps(self) -> float:
        """Answers per second; where there are several, without the time until the first one."""
        stops = sorted(stop for _, stop in self.answered.values())
        if len(stops) < 2:
            return 1 / self.latency_seconds if self.latency_seconds > 0 else 0.0
        return (len(stops) - 1) / max(stops[-1] - stops[0], 1e-12)

    def compute_seconds(self) -> dict[str, float]:
        """Time in kernels, by device."""
        busy: dict[str, float] = defaultdict(float)
        for span in self.spans:
            if span.kind == "compute":
                busy[span.device] += span.seconds
        return dict(busy)

    def sent_nbytes(self) -> dict[tuple[str, str], int]:
        """Bytes on every link, by (sender, receiver)."""
        total: dict[tuple[str, str], int] = defaultdict(int)
        for span in self.spans:
            if span.kind == "send":
                total[span.device, span.peer] += span.nbytes
        return dict(total)

    def energy_joules(self, profile: Profile) -> float:
        """Joules per frame of computing and transmitting, from the profile's watts: modelled, not metered."""
        joules = sum(
            seconds * profile.by_name[device].power.compute_watts for device, seconds in self.compute_seconds().items()
        )
        for (sender, receiver), nbytes in self.sent_nbytes().items():
            rate = profile.link(sender, receiver).bytes_per_second
            joules += nbytes / rate * profile.by_name[sender].power.transmit_watts
        return joules / max(len(self.answered), 1)

    def save(self, path: str | Path) -> None:
        """Writes Chrome's trace format, which https://ui.perfetto.dev opens."""
        devices = sorted({span.device for span in self.spans})
        events: list[dict[str, object]] = []
        for index, name in enumerate(devices):
            events.append({"ph": "M", "name": "process_name", "pid": index, "args": {"name": name}})
            for thread, label in enumerate(("compute", "send")):
                events.append({"ph": "M", "name": "thread_name", "pid": index, "tid": thread, "args": {"name": label}})
        for span in self.spans:
            events.append(
                {
                    "ph": "X",
                    "name": span.label,
                    "cat": span.kind,
                    "pid": devices.index(span.device),
                    "tid": 1 if span.kind == "send" else 0,
                    "ts": span.start_seconds * 1e6,
                    "dur": span.seconds * 1e6,
                    "args": {
                        "frame": span.frame,
                        "stage": span.stage,
                        "peer": span.peer,
                        "nbytes": span.nbytes,
                    },
                }
            )
        other = {"measured": self.measured, "clock_uncertainty_seconds": self.clock_uncertainty_seconds}
        Path(path).write_text(json.dumps({"traceEvents": events, "otherData": other}), encoding="utf-8")
