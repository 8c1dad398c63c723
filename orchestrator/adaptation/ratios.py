"""The ratios of measured to predicted seconds of some frames: per device that computes, per link that carries.

Devices     Kernel time of the stages that both timelines have.
Links       Messages are sent when their senders hand them over, as measured. How long would they be under way with the
            profile's rates, if every up-link, down-link and medium carried one message at a time, as the simulator
            assumes? The ratio is the time in which messages were under way over the time in which they should have
            been. Latency is subtracted from both.

Messages that share an up-link, a down-link or a medium at the same time make a group. What is known of a group is when
the bytes on a shared resource had passed, since transports differ in how they share one. So all links of a group have
one ratio: the sum over its shared resources. Groups of one link tell more: if a link has such groups, its other groups
do not count.

Assumptions:

- Latencies stay as predicted. A group whose bytes take less than twice its latency says nothing about rates.
- A device that waits takes a message as it arrives. A message that a busy device takes had arrived by then: a group
  with such messages gives no more than an upper bound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coedge.profile.profile import Profile
from coedge.simulation.critical_path import HANDLING_SECONDS
from coedge.simulation.span import Span
from coedge.simulation.timeline import Timeline

Pair = tuple[str, str]

# A group of messages says something about rates if its bytes take this long: seconds, times the latency of its links,
# and times the uncertainty of the devices' clocks.
LEAST_WIRE_SECONDS, LEAST_LATENCIES, LEAST_UNCERTAINTIES = 1e-3, 2.0, 4.0
# A device says something about its speed if it should compute this long.
LEAST_COMPUTE_SECONDS = 1e-4


@dataclass(frozen=True, slots=True)
class FrameRatios:
    """Measured seconds over predicted seconds. Above 1 is slower than predicted.

    Attributes:
        devices: of kernels, by device.
        links: of the bytes of messages, by (sender, receiver).
        link_bounds: upper bounds of the ratios of links that are not in `links`.
    """

    devices: Mapping[str, float]
    links: Mapping[Pair, float]
    link_bounds: Mapping[Pair, float]


def ratios(measured: Timeline, predicted: Timeline, profile: Profile) -> FrameRatios:
    """Return the ratios that a measured timeline shows of the devices and links of a profile.

    Args:
        measured: of one or more frames.
        predicted: of the same plan by the same profile, one or more frames, which need not have the same numbers.
    """
    links, bounds = _link_ratios(measured, profile)
    return FrameRatios(_device_ratios(measured, predicted), links, bounds)


def _device_ratios(measured: Timeline, predicted: Timeline) -> dict[str, float]:
    taken, expected = _stage_seconds(measured), _stage_seconds(predicted)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (device, stage), seconds in taken.items():
        if (device, stage) in expected:
            sums[device][0] += seconds
            sums[device][1] += expected[device, stage]
    return {
        device: seconds / should for device, (seconds, should) in sums.items()
        if should >= LEAST_COMPUTE_SECONDS and seconds > 0
    }  # fmt: skip


def _stage_seconds(timeline: Timeline) -> dict[tuple[str, int], float]:
    """Return the kernel time of every stage on every device, per frame that has it."""
    seconds: dict[tuple[str, int], float] = defaultdict(float)
    frames: dict[tuple[str, int], set[int]] = defaultdict(set)
    for span in timeline.spans:
        if span.kind == "compute" and span.channel < 0:  # one with a channel packs or unpacks a message
            seconds[span.device, span.stage] += span.seconds
            frames[span.device, span.stage].add(span.frame)
    return {key: total / len(frames[key]) for key, total in seconds.items()}


@dataclass(slots=True)
class _Passage:
    """A message on its way.

    Attributes:
        resources: names of its up-link, its down-link and its media.
        handed, passed: when its sender handed it over, and when its last byte had passed, without latency.
        exact: whether `passed` is known; otherwise it is an upper bound.
        ends: when its last byte should have passed, with predicted rates, without latency.
    """

    link: Pair
    nbytes: int
    resources: frozenset[str]
    handed: float
    passed: float
    exact: bool
    ends: float = 0.0


@dataclass(slots=True)
class _Group:
    """Messages that share links at the same time."""

    passages: list[_Passage] = field(default_factory=list)

    @property
    def links(self) -> set[Pair]:
        return {passage.link for passage in self.passages}

    @property
    def exact(self) -> bool:
        return all(passage.exact for passage in self.passages)

    @property
    def measured_seconds(self) -> float:
        return sum(_covered((one.handed, one.passed) for one in sharing) for sharing in self._sharing())

    @property
    def predicted_seconds(self) -> float:
        return sum(_covered((one.handed, one.ends) for one in sharing) for sharing in self._sharing())

    def _sharing(self) -> list[list[_Passage]]:
        """Return the messages on each resource that several messages share; a message alone counts once."""
        on: dict[str, list[_Passage]] = defaultdict(list)
        for passage in self.passages:
            for name in passage.resources:
                on[name].append(passage)
        return [sharing for sharing in on.values() if len(sharing) > 1] or [self.passages]


def _link_ratios(measured: Timeline, profile: Profile) -> tuple[dict[Pair, float], dict[Pair, float]]:
    """Return the ratios of links, and the upper bounds."""
    groups: dict[Pair, list[_Group]] = defaultdict(list)
    for group in _groups(_passages(measured, profile)):
        _predict(group.passages, profile)
        latency = max(profile.link(*link).latency_seconds for link in group.links)
        uncertain = LEAST_UNCERTAINTIES * measured.clock_uncertainty_seconds
        if group.predicted_seconds >= max(LEAST_WIRE_SECONDS, LEAST_LATENCIES * latency, uncertain):
            for link in group.links:
                groups[link].append(group)
    exact: dict[Pair, float] = {}
    bounds: dict[Pair, float] = {}
    for link, its in groups.items():
        certain = [group for group in its if group.exact]
        chosen = certain or its
        alone = [group for group in chosen if len(group.links) == 1]
        (exact if certain else bounds)[link] = _ratio(alone or chosen)
    return exact, bounds


def _ratio(groups: Sequence[_Group]) -> float:
    # Clocks that are off by more than they say could make a time 0.
    least = LEAST_WIRE_SECONDS / 100
    return max(sum(group.measured_seconds for group in groups), least) / sum(g.predicted_seconds for g in groups)


def _passages(measured: Timeline, profile: Profile) -> list[_Passage]:
    """Return the messages between devices of the profile, in the order in which they were handed over."""
    sends = {(span.frame, span.channel): span for span in measured.spans if span.kind == "send"}
    waiting = _waiting_receives(measured.spans)
    found = []
    for receive in measured.spans:
        send = sends.get((receive.frame, receive.channel)) if receive.kind == "receive" else None
        if send is None or not {send.device, receive.device} <= profile.by_name.keys():
            continue
        link = profile.link(send.device, receive.device)
        media = profile.media_between(link.sender, link.receiver)
        names = {f"from {link.sender}", f"to {link.receiver}", *(f"medium {medium.name}" for medium in media)}
        passed = receive.start_seconds - link.latency_seconds
        pair = (link.sender, link.receiver)
        found.append(
            _Passage(pair, send.nbytes, frozenset(names), send.stop_seconds, passed, id(receive) in waiting)
        )  # fmt: skip
    return sorted(found, key=lambda passage: passage.handed)


def _waiting_receives(spans: Sequence[Span]) -> set[int]:
    """Return the identities of the receives that their devices waited for."""
    waiting = set()
    busy_until: dict[str, float] = {}
    for span in sorted(spans, key=lambda span: (span.start_seconds, span.stop_seconds)):
        until = busy_until.get(span.device, float("-inf"))
        if span.kind == "receive" and span.start_seconds > until + HANDLING_SECONDS:
            waiting.add(id(span))
        else:
            busy_until[span.device] = max(until, span.stop_seconds)
    return waiting


def _predict(passages: Iterable[_Passage], profile: Profile) -> None:
    """Let the messages of a group pass with the profile's rates, each once it was handed over (see the simulator)."""
    free: dict[str, float] = defaultdict(lambda: float("-inf"))
    for passage in passages:
        sender, receiver = passage.link
        wire = passage.nbytes / profile.link(sender, receiver).bytes_per_second
        media = profile.media_between(sender, receiver)
        seconds = max([wire, *(passage.nbytes / medium.bytes_per_second for medium in media)])
        up, down = f"from {sender}", f"to {receiver}"
        begins = max([passage.handed, free[up], *(free[f"medium {medium.name}"] for medium in media)])
        free[up] = begins + seconds
        for medium in media:
            free[f"medium {medium.name}"] = begins + passage.nbytes / medium.bytes_per_second
        passage.ends = free[down] = max(begins + seconds - wire, free[down]) + wire


def _groups(passages: Sequence[_Passage]) -> list[_Group]:
    """Return the groups of messages that share a resource while both are under way, as measured."""
    groups: list[_Group] = []
    for passage in passages:
        joined = [
            group for group in groups
            if any(one.resources & passage.resources and one.passed > passage.handed for one in group.passages)
        ]  # fmt: skip
        groups = [group for group in groups if group not in joined]
        earlier = sorted((one for group in joined for one in group.passages), key=lambda one: one.handed)
        groups.append(_Group([*earlier, passage]))
    return groups


def _covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of some intervals. Those that end before they begin are empty."""
    total, until = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        if stop > max(start, until):
            total += stop - max(start, until)
            until = stop
    return total
