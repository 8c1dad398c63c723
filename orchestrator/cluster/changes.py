"""Changes of a cluster: devices that are lost, come back, or become slower or faster. Frames and plans follow.

membership   who is lost and who is back          -> recovery    frames run again
adaptation   what has become slower or faster     -> courses     plans of later frames
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from coedge.config.cluster_config import ClusterConfig
from coedge.core.errors import Cancelled
from orchestrator.adaptation.estimates import ChangeEvent
from orchestrator.cluster.adaptation import Adaptation
from orchestrator.cluster.courses import Courses
from orchestrator.cluster.plan_cache import PlanCache
from orchestrator.cluster.recovery import Recovery
from orchestrator.control.event_log import EventLog
from orchestrator.control.membership import Membership
from orchestrator.control.presence import Presence
from orchestrator.control.worker_group import WorkerGroup
from orchestrator.profiling.cluster_measurement import measure_device, measure_links_of, slowness
from orchestrator.runtime.diagnosis import FailureDiagnosis
from orchestrator.runtime.dispatcher import Dispatcher
from orchestrator.runtime.job import Job
from orchestrator.runtime.loader import Loader

# A device that is back tells its state within this time.
BACK_STATUS_SECONDS = 2.0


class Changes:
    """Follows the changes of a group, until `close`; a `membership.Listener`.

    Attributes:
        courses: the plans of all requests.
        events: the log of what happened.
    """

    def __init__(
        self,
        config: ClusterConfig,
        group: WorkerGroup,
        presence: Presence,
        dispatcher: Dispatcher,
        loader: Loader,
        plan_cache: PlanCache,
        events: EventLog,
    ) -> None:
        self._config, self._group, self._dispatcher, self._loader = config, group, dispatcher, loader
        self._plan_cache, self.events = plan_cache, events
        self._closed = False
        self._diagnosis = FailureDiagnosis(group)
        self._recovery = Recovery(group, dispatcher, loader, self._diagnosis.lost)
        self.courses = Courses(group, plan_cache, self._recovery.improve, events)
        self._adaptation = Adaptation(plan_cache, self._test, self._changed) if config.adapt else None
        dispatcher.on_failure = self._failed
        if self._adaptation is not None:
            dispatcher.on_traced = self._adaptation.look_at
        self._membership = Membership(config, group, presence, self)

    def device_lost(self, name: str) -> None:
        """Run the frames of a device again, or fail them."""
        self.events.add("lost", device=name, reason=self._group.lost.get(name, ""))
        self.take_frames_of(name)

    def take_frames_of(self, name: str) -> None:
        """Run the unfinished frames of a lost device again, or fail them."""
        if self._config.recover:
            self._recovery.lost(name)
        else:
            self._dispatcher.fail(self._diagnosis.lost(name), device=name)

    def device_started(self, name: str) -> None:
        """Measure a device whose worker was started again."""
        self._loader.forget(name)
        measure_links_of(self._group, name)
        measure_device(self._group, name, self._config.connect_timeout_seconds)
        self._plan_cache.update_links()

    def device_back(self, name: str) -> None:
        """Unload from a device what was unloaded elsewhere while it was away."""
        self.events.add("back", device=name)
        # On a thread of its own: it waits for loads that are under way, and others may be lost meanwhile.
        threading.Thread(target=self._tidy, args=(name,), name="coedge-tidy", daemon=True).start()

    def _tidy(self, name: str) -> None:
        status = self._group.statuses([name], BACK_STATUS_SECONDS).get(name)
        if status is not None and not self._closed:
            self._loader.tidy(name, status.epochs)

    def watch_ended(self, reason: str) -> None:
        """Fail all frames, because deaths would go unnoticed."""
        self._dispatcher.end(reason)

    def links_measured(self) -> None:
        """Forget what frames have shown of the links before."""
        if self._adaptation is not None:
            self._adaptation.forget()
        self.courses.renew()

    def close(self) -> None:
        """End the threads. Call it before the dispatcher is closed and Ray is left."""
        self._closed = True
        if self._adaptation is not None:
            self._adaptation.close()
        self._recovery.close()
        self._membership.close()

    def _failed(self, job: Job, error: Exception) -> None:
        if not isinstance(error, Cancelled) and not self._closed:
            kind, reason = type(error).__name__, str(error)
            self.events.add("failed", frame=job.frame, model=job.model.name, error=kind, reason=reason)

    def _test(self, names: tuple[str, ...]) -> float | None:
        return slowness(self._group, names)

    def _changed(self, changes: Sequence[ChangeEvent]) -> None:
        """Let plans follow lasting changes of devices and links."""
        for change in changes:
            details = {"names": list(change.names), "before": round(change.before, 3), "after": round(change.after, 3)}
            self.events.add("change", what=change.what, **details)
        self.courses.improve()
