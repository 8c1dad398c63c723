"""Estimates of what devices and links are lastingly like, by measured frames next to predicted ones."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Literal

from coedge.profile.profile import Profile
from coedge.profile.slowdown import Slowdown
from coedge.simulation.timeline import Timeline
from orchestrator.adaptation.change_detector import ChangeDetector
from orchestrator.adaptation.ratios import ratios

# A link that has shown nothing for so many frames is expected to be as its neighbours are.
LATELY_FRAMES = 20

EventKind = Literal["device", "link"]


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """A device or a link that has lastingly become faster or slower.

    Attributes:
        names: the device, or the sender and the receiver of the link.
        before, after: its seconds over those of the profile, before the change and since. 2 is half as fast as
            the profile says: kernels take twice as long, a link has half of its rate.
        samples: number of observations since the change.
    """

    kind: EventKind
    names: tuple[str, ...]
    before: float
    after: float
    samples: int

    @property
    def what(self) -> str:
        """What has changed, and how, for people."""
        name = self.names[0] if self.kind == "device" else f"link from {self.names[0]} to {self.names[1]}"
        times = self.after / self.before
        return f"{name} is {times if times > 1 else 1 / times:.2f} times as {'slow' if times > 1 else 'fast'}"


class Estimates:
    """Estimates of every device and link that has been observed, relative to one profile.

    Before the first observation, each is expected to be as the profile says. A new plan may leave a link without
    messages, so nothing shows when it recovers. Links often change together, since they share an interface or the air:
    an unused link is expected to be like the used links of its two devices. So the profile may change without an event,
    LATELY_FRAMES after a plan has left a link.
    """

    def __init__(self, base: Profile, dwell: int = 10, hysteresis: float = 0.15) -> None:
        """Begin without observations.

        Args:
            base: the profile that the estimates are relative to.
            dwell, hysteresis: of each detector; see `ChangeDetector`.

        Raises:
            ValueError: `dwell` or `hysteresis` is not in its range.
        """
        ChangeDetector(dwell, hysteresis)
        self._base, self._dwell, self._hysteresis = base, dwell, hysteresis
        self._detectors: dict[tuple[str, ...], ChangeDetector] = {}
        self._frames = 0
        self._seen_at: dict[tuple[str, ...], int] = {}  # number of the frame that last showed something

    def observe(self, measured: Timeline, predicted: Timeline) -> list[ChangeEvent]:
        """Take a frame. Return the changes that it makes certain.

        Args:
            measured: of the frame.
            predicted: of the plan that the frame ran, by the profile that the estimates are relative to, not by an
                estimated one.
        """
        self._frames += 1
        seen = ratios(measured, predicted, self._base)
        events = [self.observe_ratio((name,), ratio) for name, ratio in seen.devices.items()]
        events += [self.observe_ratio(link, ratio) for link, ratio in seen.links.items()]
        # A bound says something if it is less than what is believed.
        events += [
            self.observe_ratio(link, bound) for link, bound in seen.link_bounds.items() if bound < self._level(link)
        ]
        return [event for event in events if event is not None]

    def observe_ratio(self, names: tuple[str, ...], ratio: float) -> ChangeEvent | None:
        """Take one observation, of a frame or of a test message. Return the change that it makes certain, if it does.

        Args:
            names: the device, or the sender and the receiver of a link.
            ratio: measured seconds over the profile's seconds, positive.
        """
        if names not in self._detectors:
            self._detectors[names] = ChangeDetector(self._dwell, self._hysteresis, level=1.0)
        self._seen_at[names] = self._frames
        change = self._detectors[names].update(ratio)
        if change is None:
            return None
        kind: EventKind = "device" if len(names) == 1 else "link"
        return ChangeEvent(kind, names, change.before, change.after, change.samples)

    def factor(self, *names: str) -> float:
        """Return the seconds of a device or a link (sender, receiver) over those of the profile.

        It is 1 for what was not observed, and for what differs from the profile by less than the hysteresis. A link
        that was not observed lately has the median factor of the links with a device in common that were.
        """
        near = [] if len(names) == 1 or self._seen_lately(names) else self._neighbours(names)
        return statistics.median(map(self._own_factor, near)) if near else self._own_factor(names)

    def profile(self) -> Profile:
        """Return the profile as devices and links are now."""
        devices = {device.name: self.factor(device.name) for device in self._base.devices}
        links = {(a, b): self.factor(a, b) for a, b in ((link.sender, link.receiver) for link in self._base.links)}
        return Slowdown(devices, links).of(self._base)

    def _own_factor(self, names: tuple[str, ...]) -> float:
        detector = self._detectors.get(names)
        if detector is None or abs(math.log(detector.reported_level)) < math.log1p(self._hysteresis):
            return 1.0
        return detector.reported_level

    def _neighbours(self, link: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return the links of the profile that were observed lately and have a device in common with a link."""
        return [
            other
            for other in ((one.sender, one.receiver) for one in self._base.links)
            if set(other) & set(link) and self._seen_lately(other)
        ]

    def _seen_lately(self, names: tuple[str, ...]) -> bool:
        return self._frames - self._seen_at.get(names, -LATELY_FRAMES) < LATELY_FRAMES

    def _level(self, names: tuple[str, ...]) -> float:
        detector = self._detectors.get(names)
        return 1.0 if detector is None else detector.level
