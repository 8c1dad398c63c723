"""The front door: a cluster of devices that have joined, plans for them, and frames under way."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from coedge.config.cluster_config import ClusterConfig
from coedge.config.loading import load_config
from coedge.core.errors import ClusterError, ConfigError, DeviceLost, PlanError
from coedge.core.objective import Objective
from coedge.core.units import bytes_per_second_of
from coedge.core.values import as_arrays, wants_tensors
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.simulator import credits_of
from orchestrator.cluster.changes import Changes
from orchestrator.cluster.course import Course
from orchestrator.cluster.device_info import DeviceInfo, describe_devices
from orchestrator.cluster.plan_cache import PlanCache
from orchestrator.control import ray_connection, ray_control
from orchestrator.control.clock_refresh import ClockRefresh, clock_readers
from orchestrator.control.event_log import EventLog
from orchestrator.control.plan_shipment import RayShipment
from orchestrator.control.presence import Presence
from orchestrator.control.worker_group import RemoteWorker, WorkerGroup, place_workers, set_link
from orchestrator.planner.mixture import Mixture
from orchestrator.planner.planner import AUTO, check_scheme
from orchestrator.profiling.cluster_measurement import measure_cluster
from orchestrator.runtime.diagnosis import FailureDiagnosis
from orchestrator.runtime.dispatcher import CLOSED, Dispatcher
from orchestrator.runtime.job import Job
from orchestrator.runtime.loader import Loader
from orchestrator.runtime.quiet_time import QuietTime
from orchestrator.runtime.stream import in_order
from workers.emulation.paced_transport import LinkSpec
from workers.runtime.heartbeat import Heart
from workers.transport.local_socket import remove_stale_folders

T = TypeVar("T")


def connect(
    config: str | Path | Mapping[str, Any] | ClusterConfig | None = None, overrides: Sequence[str] = ()
) -> Cluster:
    """Join a Ray cluster, or start a local one; place a worker on every device and measure the links.

    Args:
        config: path of a YAML file, or its values. None: every Ray node that is alive is a device.
        overrides: `key=value` over the file, such as `devices.0.speed=0.5`.

    Raises:
        ConfigError: the configuration is wrong; nothing was started.
        ClusterError: there is no Ray at the address, or not all devices answer.
    """
    settings = load_config(config, overrides)
    check_scheme(settings.scheme)
    ray_connection.enter(settings)
    try:
        return Cluster(settings)
    except BaseException:
        ray_connection.leave()
        raise


class Cluster:
    """Devices that run inferences together. Made by `connect`.

    Close it, or use it as a context manager. It also closes when the process ends.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._closed = threading.Event()
        events = EventLog(None if config.event_log is None else Path(config.event_log).expanduser())
        self._group = group = _placed_and_measured(config)
        self._quiet = QuietTime()
        self._credits = credits_of(len(group.places))
        presence = Presence({index: name for name, index in group.index_of.items()}, config.detect_seconds)
        self._dispatcher = Dispatcher(
            group.transport,
            group.index_of,
            group.clocks,
            self._credits,
            FailureDiagnosis(group).late,
            presence,
            group.lost,
        )
        self._heart = Heart(group.transport, presence.hearing, group.index_of.values, lambda: None)
        memory_bytes = {name: place.config.memory_bytes for name, place in group.places.items()}
        self._loader = Loader(RayShipment(group), memory_bytes, group.lost, self._dispatcher.in_flight, self._quiet)
        self._plan_cache = PlanCache(config, group, self._quiet, self._run_frame_of_trial)
        self._clock_refresh = ClockRefresh(
            group.clocks,
            clock_readers(group.places, lambda name: group.by_name[name].actor),
            lambda name: name not in group.lost,
        )
        self._changes = Changes(config, group, presence, self._dispatcher, self._loader, self._plan_cache, events)
        self._courses = self._changes.courses
        atexit.register(self.close)
        _open.add(self)

    @property
    def source(self) -> str:
        """The device where inputs start and outputs end: another one while the source of the configuration is lost."""
        return self._group.source

    @property
    def events(self) -> list[dict[str, Any]]:
        """The last decisions and what led to them, oldest first: plans, changes, lost devices, failed frames.

        Each has `time` (UTC), `event` and details. `event_log` of the configuration names a file for them.
        """
        return self._changes.events.events

    def devices(self) -> list[DeviceInfo]:
        """Return a description of every device: its state, and its speed and links as measured."""
        closed = self._closed.is_set() or self._dispatcher.end_reason is not None
        return describe_devices(self._group, closed)

    def worker(self, name: str) -> RemoteWorker:
        """Return a device by its name.

        Raises:
            DeviceLost: the device is lost.
            PlanError: the cluster never had a device of this name.
        """
        self._check_open()
        group = self._group
        if name not in group.places:
            raise PlanError(f"there is no device {name!r} in this cluster; devices are {', '.join(group.places)}")
        if name in group.lost:
            raise DeviceLost(f"{name} is lost: {group.lost[name]}. Wait until it is back, or connect again")
        return group.by_name[name]

    def set_link(self, name: str, mbps: float, latency_ms: float = 0.0) -> None:
        """Give a device another emulated link from now on. Plans know of it after `measure_links`.

        Raises:
            ClusterError: links of this cluster are not emulated.
            ConfigError: the rate or the latency is not possible.
            DeviceLost, PlanError: as `worker`.
        """
        self.worker(name)
        try:
            link = LinkSpec(bytes_per_second_of(mbps), latency_ms / 1e3)
        except ValueError as error:
            raise ConfigError(f"the link of {name}: {error}") from None
        set_link(self._group, name, link)

    def measure_links(self) -> None:
        """Measure the links again while no new frames start, and bring profiles and plans up to date.

        A plan of the scheme `auto` keeps its cuts and devices at first: its boundaries are solved again for the new
        links, which takes tens of milliseconds, and the next `submit` uses them. So do the plans of a mixture, whose
        shares of the frames are solved again, too. The next call of `plan` or `mixture` searches the whole plan space.
        Plans of other schemes are made again when they are next needed.

        Raises:
            ClusterError: two devices cannot talk to each other.
        """
        self._check_open()
        self._plan_cache.measure_links()
        self._changes.links_measured()

    def profile(self, model: Model) -> Profile:
        """Return the profile of the devices that are left on a model. It is measured once and kept on disk.

        Raises:
            DeviceLost: the source is lost.
        """
        self._check_open()
        Model.check(model)
        return self._plan_cache.profile(model)

    def plan(self, model: Model, objective: Objective | None = None, scheme: str | None = None) -> Plan:
        """Return a plan for the devices that are left; `feasible` and `reason` say whether it meets the objective.

        If the configuration sets `trial_frames`, the plans that are predicted to cost about as little as the best
        are run, and the measured best is kept.

        Args:
            objective, scheme: those of the configuration by default.

        Raises:
            DeviceLost, FrameTimeout, StepFailed: a trial failed.
        """
        Model.check(model)
        return self._plan_cache.plan(model, objective or self.config.objective, scheme or self.config.scheme)

    def mixture(self, model: Model, objective: Objective | None = None) -> Mixture:
        """Return plans and the part of a stream's frames that each gets, for most frames per second.

        `stream` takes the mixture as its plan.

        Args:
            objective: that of the configuration by default; its deadline and constraints are kept.

        Raises:
            InfeasibleError: no plan meets the constraints.
        """
        Model.check(model)
        return self._plan_cache.mixture(model, objective or self.config.objective)

    def submit(
        self,
        model: Model,
        x: Any,
        *,
        plan: Plan | None = None,
        objective: Objective | None = None,
        scheme: str | None = None,
        timeout: float | None = None,
    ) -> Job:
        """Start one inference and return its job. The first frame of a plan waits until the devices have loaded it.

        If a device is lost meanwhile, the frame runs again on the others (unless `recover` is false).

        Args:
            x: the input (tensor or array), or a tuple of inputs.
            plan: the plan to run by. None: one is made for the objective and the scheme.
            timeout: seconds that the frame may take once it is under way; that of the configuration by default.

        Raises:
            InputError: the input does not fit the model.
            ConfigError: the timeout is not positive.
            InfeasibleError: no plan meets the objective, or a device's memory limit is too small.
            PlanError: the plan does not fit the model or the cluster.
            DeviceLost: a device of the plan is lost.
            ClusterError: the cluster is closed, or a device could not load the plan.
        """
        self._check_open()
        seconds, arrays = self._seconds(timeout), _copies(model, x)
        if plan is None:
            course = self._courses.of(model, objective or self.config.objective, scheme or self.config.scheme)
            return self._submit(model, arrays, wants_tensors(x), course, seconds)
        return self._submit_by(model, arrays, wants_tensors(x), plan, seconds, self._courses.given(model, plan))

    def stream(
        self,
        model: Model,
        frames: Iterable[Any],
        *,
        plan: Plan | Mixture | None = None,
        objective: Objective | None = None,
        scheme: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """Yield answers in the order of the frames; several frames are under way at a time.

        Frames are taken only as fast as answers leave, and never more than keep the devices busy. A frame that
        fails raises its error here and ends the stream. If `frames` raises, the answers to earlier frames come
        first. Closing the stream early cancels the frames under way.

        Args:
            plan: a plan or a mixture of plans. None: one is made when the stream begins, a mixture for the goal
                `throughput` with the scheme `auto`, else a plan as for `submit`.
        """
        jobs = self.stream_jobs(model, frames, plan=plan, objective=objective, scheme=scheme, timeout=timeout)
        with contextlib.closing(jobs):
            for job in jobs:
                yield job.result()

    def stream_jobs(
        self,
        model: Model,
        frames: Iterable[Any],
        *,
        plan: Plan | Mixture | None = None,
        objective: Objective | None = None,
        scheme: str | None = None,
        timeout: float | None = None,
    ) -> Generator[Job]:
        """Yield the job of every frame instead of its answer: job.plan, job.latency_seconds, job.timeline.

        Otherwise as `stream`. A frame that fails raises when its job is asked for the result, and does not end the
        stream.
        """
        self._check_open()
        seconds = self._seconds(timeout)
        wanted, scheme = objective or self.config.objective, scheme or self.config.scheme
        in_flight = self._credits
        if isinstance(plan, Plan):
            course = self._courses.given(model, plan)
        elif isinstance(plan, Mixture):
            course, in_flight = self._courses.given(model, plan), max(plan.in_flight, in_flight)
        elif wanted.goal == "throughput" and scheme == AUTO:
            mixture = self._plan_cache.mixture(model, wanted, search=False)
            course, in_flight = self._courses.mixed(model, wanted, mixture), max(mixture.in_flight, in_flight)
        else:
            course = self._courses.of(model, wanted, scheme)
        self._follow(lambda: self._loader.load_together(model, course.plans()))

        def submit(x: Any) -> Job:
            return self._submit(model, _copies(model, x), wants_tensors(x), course, seconds)

        yield from in_order(frames, submit, in_flight)

    def close(self) -> None:
        """End the workers, and Ray if it was started here and no other cluster of this process is open.

        Frames under way fail. Safe to call twice.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        _open.discard(self)
        atexit.unregister(self.close)
        with contextlib.ExitStack() as steps:  # last one first; each runs even if another one fails
            steps.callback(remove_stale_folders)  # sockets of local workers that had to be killed
            steps.callback(ray_connection.leave)
            steps.callback(ray_control.stop_actors, list(self._group.actors.values()))
            steps.callback(self._dispatcher.close)
            steps.callback(self._heart.stop)
            steps.callback(self._changes.close)
            steps.callback(self._clock_refresh.close)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seconds(self, timeout: float | None) -> float:
        seconds = self.config.frame_timeout_seconds if timeout is None else timeout
        if not seconds > 0:
            raise ConfigError(f"a timeout of {timeout} s leaves no time for the frame; give more than 0")
        return seconds

    def _submit(
        self, model: Model, arrays: tuple[NDArray[Any], ...], as_tensors: bool, course: Course, seconds: float
    ) -> Job:
        """Start a frame by the present plan of a course."""
        return self._follow(lambda: self._submit_by(model, arrays, as_tensors, course.plan(), seconds, course))

    def _follow(self, do: Callable[[], T]) -> T:
        """Do something by the present plans of a course, and again if devices of these are lost meanwhile."""
        while True:
            version = self._group.version
            try:
                return do()
            except DeviceLost as error:
                self._group.bury_all(error)
                if not self.config.recover or version == self._group.version:
                    raise

    def _submit_by(
        self,
        model: Model,
        arrays: tuple[NDArray[Any], ...],
        as_tensors: bool,
        plan: Plan,
        seconds: float,
        course: Course | None,
    ) -> Job:
        self._check_open()
        with self._loader.using(model, plan) as loaded, self._quiet.submitting():
            job = self._dispatcher.submit(loaded, arrays, as_tensors, seconds, course)
        for name in loaded.devices:
            if name in self._group.lost:  # lost since the plan was found loaded
                self._changes.take_frames_of(name)
        return job

    def _run_frame_of_trial(self, model: Model, arrays: tuple[NDArray[Any], ...], plan: Plan) -> Job:
        # Without a course: a frame that ran by another plan would say nothing about this one.
        return self._submit_by(model, arrays, False, plan, self.config.frame_timeout_seconds, None)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClusterError(CLOSED)
        if self._dispatcher.end_reason is not None:
            raise ClusterError(self._dispatcher.end_reason)


# Those of this process that were not closed.
_open: weakref.WeakSet[Cluster] = weakref.WeakSet()


def _close_in_child() -> None:
    """Let a forked child take its copies for closed: the threads and sockets are its parent's."""
    for cluster in list(_open):
        cluster._closed.set()
        atexit.unregister(cluster.close)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_child)


def _placed_and_measured(config: ClusterConfig) -> WorkerGroup:
    group = place_workers(config)
    try:
        measure_cluster(config, group)
    except BaseException:
        ray_control.stop_actors(list(group.actors.values()))
        group.transport.close()
        raise
    return group


def _copies(model: Model, x: Any) -> tuple[NDArray[Any], ...]:
    """Check and copy the inputs: callers may write to theirs as soon as `submit` returns."""
    Model.check(model)
    return tuple(np.array(array, order="C") for array in model.check_inputs(as_arrays(x)))
