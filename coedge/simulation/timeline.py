"""The timeline of a run, measured or predicted: one span per step, device and frame, and figures derived from them."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from coedge.core.errors import PlanError
from coedge.profile.profile import Profile
from coedge.simulation.chrome_trace import to_events, to_spans
from coedge.simulation.critical_path import critical_path
from coedge.simulation.span import Span, SpanKind

__all__ = ["EnergyCause", "EnergyItem", "Span", "SpanKind", "Timeline", "Utilisation"]

EnergyCause = Literal["compute", "transmit", "receive", "idle"]


@dataclass(frozen=True, slots=True)
class EnergyItem:
    """The energy of one device for one cause, over all frames of a timeline.

    Attributes:
        source: where the joules come from: the source of the watts, and that they are modelled.
    """

    device: str
    cause: EnergyCause
    joules: float
    source: str


@dataclass(frozen=True, slots=True)
class Utilisation:
    """The fraction of the makespan in which each resource was in use, 0 to 1, by name.

    Attributes:
        devices: time in kernels.
        up_links, down_links: time of messages on the links of each device.
        media: time of messages on shared media.
    """

    devices: Mapping[str, float]
    up_links: Mapping[str, float]
    down_links: Mapping[str, float]
    media: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans of one or more frames, predicted (virtual time) or measured.

    Attributes:
        answered: the times (asked, answered) of every frame.
        clock_uncertainty_seconds: uncertainty of the alignment of the devices' clocks; 0 for virtual time.
        clock_offsets: seconds subtracted from the clock of each device to align it with the client's.
    """

    spans: tuple[Span, ...]
    answered: Mapping[int, tuple[float, float]]
    measured: bool
    clock_uncertainty_seconds: float = 0.0
    clock_offsets: Mapping[str, float] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that take part, sorted by name."""
        return tuple(sorted({span.device for span in self.spans}))

    @property
    def latency_seconds(self) -> float:
        """Mean time over the frames from asked to answered."""
        return sum(stop - start for start, stop in self.answered.values()) / max(len(self.answered), 1)

    @property
    def makespan_seconds(self) -> float:
        """Time from the first frame asked to the last frame answered."""
        if not self.answered:
            return 0.0
        return max(stop for _, stop in self.answered.values()) - min(start for start, _ in self.answered.values())

    @property
    def throughput_fps(self) -> float:
        """Answers per second. The time until the first answer does not count if there are several."""
        stops = sorted(stop for _, stop in self.answered.values())
        if len(stops) < 2:
            return 1 / self.latency_seconds if self.latency_seconds > 0 else 0.0
        return (len(stops) - 1) / max(stops[-1] - stops[0], 1e-12)

    def steady_fps(self, in_flight: int) -> float:
        """Return the answers per second in the middle of a stream.

        A round is `in_flight` frames. The first two rounds (filling) and the last one (emptying) do not count. Whole
        rounds are counted, because answers often come in bursts of one round.

        Args:
            in_flight: number of frames in flight. Six rounds or more give a good estimate. A stream of up to four
                rounds is taken as a whole.
        """
        stops = sorted(stop for _, stop in self.answered.values())
        first, rounds = 2 * in_flight, (len(stops) - 1) // in_flight - 3
        if rounds < 1:
            return self.throughput_fps
        count = rounds * in_flight
        return count / max(stops[first + count] - stops[first], 1e-12)

    def saturated_fps(self, profile: Profile) -> float:
        """Return the frames per second at which the busiest device, link or medium is fully used.

        This is an upper bound for streams. With enough frames in flight, a stream comes close to it.
        """
        used = self.utilisation(profile)
        shares = [*used.devices.values(), *used.up_links.values(), *used.down_links.values(), *used.media.values()]
        busiest_seconds = max(shares, default=0.0) * self.makespan_seconds
        return len(self.answered) / busiest_seconds if busiest_seconds > 0 else math.inf

    def compute_seconds(self) -> dict[str, float]:
        """Return the time in kernels, by device."""
        busy: dict[str, float] = defaultdict(float)
        for span in self.spans:
            if span.kind == "compute":
                busy[span.device] += span.seconds
        return dict(busy)

    def idle_seconds(self) -> dict[str, float]:
        """Return the time outside of kernels while frames were under way, by device that takes part."""
        busy = self.compute_seconds()
        return {name: max(self.makespan_seconds - busy.get(name, 0.0), 0.0) for name in self.devices}

    def sent_nbytes(self) -> dict[tuple[str, str], int]:
        """Return the bytes on every link, by (sender, receiver)."""
        total: dict[tuple[str, str], int] = defaultdict(int)
        for span in self.spans:
            if span.kind == "send":
                total[span.device, span.peer] += span.nbytes
        return dict(total)

    def utilisation(self, profile: Profile) -> Utilisation:
        """Return the utilisation of devices, links and media. A message takes nbytes / rate of its link."""
        devices = dict.fromkeys(self.devices, 0.0)
        up_links, down_links = dict(devices), dict(devices)
        media = {medium.name: 0.0 for medium in profile.media}
        makespan = self.makespan_seconds
        if makespan > 0:
            for name, seconds in self.compute_seconds().items():
                devices[name] = seconds / makespan
            for (sender, receiver), nbytes in self.sent_nbytes().items():
                share = nbytes / profile.link(sender, receiver).bytes_per_second / makespan
                up_links[sender] += share
                down_links[receiver] = down_links.get(receiver, 0.0) + share
                for medium in profile.media_between(sender, receiver):
                    media[medium.name] += nbytes / medium.bytes_per_second / makespan
        return Utilisation(devices, up_links, down_links, media)

    def energy(self, profile: Profile) -> tuple[EnergyItem, ...]:
        """Return the joules of all frames by device and cause, modelled from the watts of the profile.

        If the profile counts `total` joules, every device that takes part also draws its idle watts from the first
        frame asked to the last frame answered.
        """
        seconds: dict[tuple[str, EnergyCause], float] = defaultdict(float)
        for name, busy in self.compute_seconds().items():
            seconds[name, "compute"] = busy
        for (sender, receiver), nbytes in self.sent_nbytes().items():
            wire = nbytes / profile.link(sender, receiver).bytes_per_second
            seconds[sender, "transmit"] += wire
            seconds[receiver, "receive"] += wire
        if profile.joules == "total":
            for name in self.devices:
                seconds[name, "idle"] = self.makespan_seconds
        items = []
        for (name, cause), spent in sorted(seconds.items()):
            device = profile.by_name[name]
            watts: float = getattr(device.power, f"{cause}_watts")
            if watts * spent > 0:
                items.append(EnergyItem(name, cause, watts * spent, f"{device.power_source} watts, modelled"))
        return tuple(items)

    def energy_joules(self, profile: Profile) -> float:
        """Return the joules per frame: the sum of `energy` over the number of frames."""
        return sum(item.joules for item in self.energy(profile)) / max(len(self.answered), 1)

    def critical_path(self, frame: int | None = None) -> tuple[Span, ...]:
        """Return the spans that the answer to a frame waited for, in order (see `coedge.simulation.critical_path`).

        Args:
            frame: number of the frame; the first one by default.

        Raises:
            PlanError: the frame was not answered.
        """
        if frame is None and self.answered:
            frame = min(self.answered)
        if frame is None or frame not in self.answered:
            raise PlanError(f"frame {frame} was not answered in this timeline of {len(self.answered)} frames")
        return critical_path(self.spans, frame, self.answered[frame][0], self.measured)

    def save(self, path: str | Path) -> None:
        """Write the timeline in Chrome's trace format, which https://ui.perfetto.dev opens (gzipped for .gz)."""
        other = {
            "measured": self.measured,
            "clock_uncertainty_seconds": self.clock_uncertainty_seconds,
            "clock_offsets": dict(self.clock_offsets),
            "answered": [[frame, *times] for frame, times in self.answered.items()],
        }
        text = json.dumps({"traceEvents": to_events(self.spans), "otherData": other})
        data = text.encode()
        # Without a time stamp, equal timelines give equal files.
        Path(path).write_bytes(gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)

    @classmethod
    def load(cls, path: str | Path) -> Timeline:
        """Read a timeline that `save` wrote.

        Raises:
            PlanError: the file cannot be read, or is not a timeline.
        """
        try:
            data = Path(path).read_bytes()
            trace = json.loads(gzip.decompress(data) if Path(path).suffix == ".gz" else data)
            other = trace["otherData"]
            return cls(
                spans=to_spans(trace["traceEvents"]),
                answered={frame: (asked, answered) for frame, asked, answered in other["answered"]},
                measured=other["measured"],
                clock_uncertainty_seconds=other["clock_uncertainty_seconds"],
                clock_offsets=other["clock_offsets"],
            )
        except OSError as error:
            raise PlanError(f"cannot read the timeline {path}: {error.strerror or error}") from error
        except (ValueError, EOFError, zlib.error, KeyError, TypeError, AttributeError) as error:
            raise PlanError(
                f"{path} is not a timeline that coedge saved ({error!r}); write one with Timeline.save"
            ) from error
