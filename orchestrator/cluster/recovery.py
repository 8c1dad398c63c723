"""Recovery: frames of lost devices run again, and better plans are made in the background.

    device lost -> its frames leave all devices -> plans without it -> loaded -> the frames are sent again, oldest first
                                                                    `-> search -> loaded -> the plans of later frames

Two threads: frames must not wait for a search.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from coedge.core.errors import ClusterError, CoEdgeError, DeviceLost
from orchestrator.cluster.course import Course, Wish
from orchestrator.control.worker_group import WorkerGroup
from orchestrator.runtime.dispatcher import ActiveFrame, Dispatcher
from orchestrator.runtime.job import Job
from orchestrator.runtime.loaded_plan import LoadedPlan
from orchestrator.runtime.loader import Loader

log = logging.getLogger(__name__)

Explain = Callable[[Job, LoadedPlan], CoEdgeError]


class Recovery:
    """Runs the frames of lost devices again, and improves the plans of courses, until `close`.

    Args:
        explain: returns a function that gives the error of a frame that cannot run again, by the lost device.
    """

    def __init__(
        self, group: WorkerGroup, dispatcher: Dispatcher, loader: Loader, explain: Callable[[str], Explain]
    ) -> None:
        self._group, self._dispatcher, self._loader, self._explain = group, dispatcher, loader, explain
        self._losses: queue.SimpleQueue[tuple[str, list[ActiveFrame]] | None] = queue.SimpleQueue()
        self._courses: queue.SimpleQueue[Course | None] = queue.SimpleQueue()
        self._waiting: set[Course] = set()
        self._closed = False
        losses, courses = (self._losses, self._recover), (self._courses, self._improve)
        threading.Thread(target=self._serve, args=losses, name="coedge-recover", daemon=True).start()
        threading.Thread(target=self._serve, args=courses, name="coedge-replan", daemon=True).start()

    def lost(self, name: str) -> None:
        """Run the unfinished frames of a device again."""
        frames = self._dispatcher.detach(name)
        if frames:
            self._losses.put((name, frames))

    def improve(self, course: Course) -> None:
        """Make better plans for a course, unless that is about to be done."""
        if course not in self._waiting and not self._closed:
            self._waiting.add(course)
            self._courses.put(course)

    def close(self) -> None:
        """End the threads after what they are doing. They are not waited for: a search cannot be interrupted."""
        self._closed = True
        self._losses.put(None)
        self._courses.put(None)

    def _serve(self, work: queue.SimpleQueue[Any], do: Callable[[Any], None]) -> None:
        while (item := work.get()) is not None and not self._closed:
            try:
                do(item)
            except DeviceLost:  # the next frame follows this loss, too
                log.debug("a device was lost while plans were made for others that are left", exc_info=True)
            except BaseException:  # the next one is still to be done
                if not self._closed:
                    log.warning("could not follow a change of the cluster", exc_info=True)

    def _recover(self, loss: tuple[str, list[ActiveFrame]]) -> None:
        name, frames = loss
        explain: Explain | None = None
        for frame in frames:
            try:
                if frame.course is None:
                    explain = explain or self._explain(name)
                    self._dispatcher.drop(frame, explain(frame.job, frame.loaded))
                else:
                    self._run_again(frame)
            except CoEdgeError as error:
                reason = self._group.lost.get(name, "it was lost")
                text = f"{name} was lost during frame {frame.job.frame}: {reason}. The frame cannot run again: {error}"
                self._dispatcher.drop(frame, DeviceLost(text))
            except BaseException as error:
                self._dispatcher.drop(frame, ClusterError(f"frame {frame.job.frame} cannot run again: {error!r}"))

    def _run_again(self, frame: ActiveFrame) -> None:
        """Send a frame by the present plan of its course.

        Raises:
            CoEdgeError: no plan for the devices that are left can be loaded.
        """
        while not frame.job.done():
            version, plan = self._group.version, frame.course.plan()
            try:
                with self._loader.using(frame.job.model, plan) as loaded:
                    self._dispatcher.resume(frame, loaded)
            except DeviceLost as error:
                self._group.bury_all(error)
                if version == self._group.version:
                    raise
                continue
            for name in set(loaded.devices) & self._group.lost.keys():
                self.lost(name)  # lost since the plan was found loaded
            return

    def _improve(self, course: Course) -> None:
        self._waiting.discard(course)
        if course.choose is None:
            return
        version = self._group.version
        for search in (False, True):  # new boundaries at once, and what a search finds later
            choice = course.choose(Wish(search=search, trial=False))
            if self._closed:
                return
            self._loader.load_together(course.model, list(choice.plans))
            course.adopt(choice, version)
