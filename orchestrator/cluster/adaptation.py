"""Adaptation: measured frames show lasting changes of devices and links, and plans follow.

    reports of a frame -> ratios to what was predicted -> change detectors -> slower or faster profile -> plans

A thread looks at the frames. It takes a small part of one core: frames that come too fast are left out.

Plans leave slow devices and links, which then no longer show in frames. From time to time these are tested by some
messages or kernels, about 1 % of the time.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from coedge.profile.profile import Profile
from coedge.profile.slowdown import Slowdown
from coedge.simulation.simulator import simulate
from coedge.simulation.timeline import Timeline
from orchestrator.adaptation.estimates import ChangeEvent, Estimates
from orchestrator.adaptation.ratios import ratios
from orchestrator.cluster.plan_cache import PlanCache
from orchestrator.runtime.job import Job

log = logging.getLogger(__name__)

# Frames that wait to be looked at, and the part of one core that looking may take.
MOST_WAITING, MOST_PART = 16, 0.1
# Frames that were under way at the same time are looked at together, up to so many.
MOST_TOGETHER = 6
KEPT_PREDICTIONS = 32
# Factors that have become more precise since the last change are used when they differ by this much, after so many
# frames.
REFINED, REFINED_FRAMES = 1.1, 20
# Pause between two tests of what frames no longer show. One that finds a change is repeated soon, until it is certain.
TEST_SECONDS, AGAIN_SECONDS = 20.0, 0.5

# Returns measured seconds over the profile's seconds of a device or a link, by a test; None: it cannot be tested.
Test = Callable[[tuple[str, ...]], float | None]


class Adaptation:
    """Finds lasting changes in the frames of a cluster, until `close`.

    Args:
        plan_cache: its profiles follow the changes.
        test: tests a device or a link that frames no longer show.
        on_change: called with the changes after the profiles have followed them; with none if levels are more precise.
    """

    def __init__(self, plan_cache: PlanCache, test: Test, on_change: Callable[[Sequence[ChangeEvent]], None]) -> None:
        self._plan_cache, self._test, self._on_change = plan_cache, test, on_change
        self._jobs: queue.Queue[Job | None] = queue.Queue(MOST_WAITING)
        self._estimates: Estimates | None = None
        self._observed: dict[tuple[str, ...], float] = {}  # when devices and links were observed last
        self._applied: dict[tuple[str, ...], float] = {}  # the factors that profiles have
        self._since = 0  # frames since they were applied
        self._test_at = 0.0
        self._together: deque[tuple[Job, Timeline]] = deque()
        self._predictions: OrderedDict[int, tuple[Profile, Timeline]] = OrderedDict()  # by epoch
        self._forget = threading.Event()
        threading.Thread(target=self._run, name="coedge-adapt", daemon=True).start()

    def look_at(self, job: Job) -> None:
        """Take note of a frame that was answered and reported by all its devices. Never waits."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            log.debug("frame %d was not looked at", job.frame)

    def forget(self) -> None:
        """Forget what was observed, after a measurement of the links."""
        self._forget.set()

    def close(self) -> None:
        """End the thread after the frame that it looks at."""
        while True:
            try:
                self._jobs.put_nowait(None)
                return
            except queue.Full:
                try:
                    self._jobs.get_nowait()
                except queue.Empty:
                    continue

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=AGAIN_SECONDS)
                if job is None:
                    return
                begun = time.monotonic()
                self._observe(job)
                time.sleep((time.monotonic() - begun) * (1 / MOST_PART - 1))
            except queue.Empty:
                pass
            except Exception:  # one strange frame must not end adaptation
                log.debug("a frame was not understood", exc_info=True)
            try:
                self._test_hidden()
            except Exception:  # such as the loss of all devices while plans follow
                log.debug("a test of a slow device or link failed", exc_info=True)

    def _test_hidden(self) -> None:
        """Test one device or link that is slower than in the profile and that frames have not shown for a while."""
        now = time.monotonic()
        hidden = [n for n, factor in self._applied.items() if factor > 1.0 and now - self._observed[n] > TEST_SECONDS]
        if self._estimates is None or not hidden or now < self._test_at:
            return
        names = min(hidden, key=lambda name: self._observed[name])
        try:
            ratio = self._test(names)
        except Exception:
            log.debug("the test of %s failed", names, exc_info=True)
            ratio = None
        self._test_at = time.monotonic() + AGAIN_SECONDS
        if ratio is not None and abs(math.log(ratio / self._level(names))) > math.log(REFINED):
            event = self._estimates.observe_ratio(names, ratio)
            if event is not None:
                self._apply([event])
        else:
            self._observed[names] = time.monotonic()

    def _observe(self, job: Job) -> None:
        base = self._plan_cache.base(job.model)
        if base is None:
            return
        if self._forget.is_set():
            self._forget.clear()
            self._estimates, self._observed, self._applied = None, {}, {}
            self._together.clear()
        if self._estimates is None:
            self._estimates = Estimates(base)
        measured, predicted = job.timeline, self._predicted(job, base)
        seen = ratios(measured, predicted, base)
        found = {(name,): ratio for name, ratio in seen.devices.items()}
        links = self._links_of(job, measured, predicted, base)
        events = [self._note(names, ratio) for names, ratio in (*found.items(), *links.items())]
        changes = [event for event in events if event is not None]
        self._since += 1
        if changes or (self._since >= REFINED_FRAMES and self._refined()):
            self._apply(changes)

    def _refined(self) -> bool:
        """Return whether a factor has become another one since it was applied."""
        now = {names: self._level(names) for names in self._observed}
        return any(abs(math.log(factor / self._applied.get(n, 1.0))) > math.log(REFINED) for n, factor in now.items())

    def _apply(self, changes: Sequence[ChangeEvent]) -> None:
        """Let profiles and plans follow the present factors."""
        self._since = 0
        self._applied = {names: factor for names in self._observed if (factor := self._level(names)) != 1.0}
        devices = {names[0]: factor for names, factor in self._applied.items() if len(names) == 1}
        links = {(names[0], names[1]): factor for names, factor in self._applied.items() if len(names) == 2}
        self._plan_cache.slow_down(Slowdown(devices, links))
        self._on_change(changes)

    def _links_of(
        self, job: Job, measured: Timeline, predicted: Timeline, base: Profile
    ) -> dict[tuple[str, ...], float]:
        """Return the ratios of links. Frames that were under way at the same time are taken together."""
        together = self._together
        overlaps = bool(together) and job.asked_seconds < max(other.answered_seconds or 0.0 for other, _ in together)
        if together and (not overlaps or together[0][0].loaded is not job.loaded):
            together.clear()
        together.append((job, measured))
        if overlaps and len(together) < MOST_TOGETHER:
            return {}
        seen = ratios(_merged(list(together)), predicted, base)
        if len(together) >= MOST_TOGETHER:
            together.clear()
        bounds = {link: ratio for link, ratio in seen.link_bounds.items() if ratio < self._level(link)}
        return {(sender, receiver): ratio for (sender, receiver), ratio in (*seen.links.items(), *bounds.items())}

    def _level(self, names: tuple[str, ...]) -> float:
        return 1.0 if self._estimates is None else self._estimates.factor(*names)

    def _note(self, names: tuple[str, ...], ratio: float) -> ChangeEvent | None:
        assert self._estimates is not None
        self._observed[names] = time.monotonic()
        return self._estimates.observe_ratio(names, ratio)

    def _predicted(self, job: Job, base: Profile) -> Timeline:
        """Return the timeline that the profile predicts for the plan of a frame."""
        kept = self._predictions.get(job.loaded.epoch)
        if kept is None or kept[0] is not base:
            kept = self._predictions[job.loaded.epoch] = (base, simulate(job.loaded.programs, base, job.model))
            while len(self._predictions) > KEPT_PREDICTIONS:
                self._predictions.popitem(last=False)
        return kept[1]


def _merged(frames: Sequence[tuple[Job, Timeline]]) -> Timeline:
    """Return the timelines of several frames as one, on the clock of the first one."""
    zero = frames[0][0].asked_seconds
    spans = [
        span._replace(start_seconds=span.start_seconds + shift, stop_seconds=span.stop_seconds + shift)
        for job, timeline in frames
        for shift in [job.asked_seconds - zero]
        for span in timeline.spans
    ]
    answered = {
        frame: (start + job.asked_seconds - zero, stop + job.asked_seconds - zero)
        for job, timeline in frames
        for frame, (start, stop) in timeline.answered.items()
    }
    uncertainty = max(timeline.clock_uncertainty_seconds for _, timeline in frames)
    return Timeline(tuple(spans), answered, True, uncertainty)
