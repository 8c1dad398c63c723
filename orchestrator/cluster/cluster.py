"""A cluster: the front door to devices that have joined, to plans for them, and to frames under way."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.config.cluster_config import ClusterConfig
from coedge.config.loading import load_config
from coedge.core.errors import ClusterError, CoEdgeError, ConfigError, DeviceLost, InfeasibleError, PlanError
from coedge.core.objective import Objective
from coedge.core.units import bytes_per_second_of
from coedge.core.values import as_arrays, wants_tensors
from coedge.graph.model import Model
from coedge.plan.frame_assignment import frame_assignment
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.simulator import credits_of
from orchestrator.cluster.device_info import DeviceInfo, describe_devices
from orchestrator.control import ray_control
from orchestrator.control.clock_refresh import ClockRefresh, clock_readers
from orchestrator.control.worker_group import RemoteWorker, WorkerGroup, place_workers, set_link
from orchestrator.planner.mixture import Mixture
from orchestrator.planner.planner import AUTO, check_scheme, make_plan, make_stream, named_plans
from orchestrator.profiling.cluster_measurement import measure_cluster, measure_links
from orchestrator.profiling.model_measurement import measure_model
from orchestrator.runtime.diagnosis import late_error, lost_error
from orchestrator.runtime.dispatcher import CLOSED, Dispatcher
from orchestrator.runtime.job import Job
from orchestrator.runtime.loaded_plan import LoadedPlan
from orchestrator.runtime.loader import Loader
from orchestrator.runtime.stream import in_order
from orchestrator.runtime.trial import Rank, least_cost, worth_trying
from workers.calibration.activations import natural_inputs
from workers.emulation.paced_transport import LinkSpec

STATUS_SECONDS = 1.0


def connect(
    config: str | Path | Mapping[str, Any] | ClusterConfig | None = None, overrides: Sequence[str] = ()
) -> Cluster:
    """Joins a Ray cluster, or starts a local one; places a worker on every device and measures the links.

    Args:
        config: path of a YAML file, or its values. None: every alive Ray node is a device.
        overrides: `key=value` over the file, such as `devices.0.speed=0.5`.

    Raises:
        ConfigError: the configuration is wrong; nothing was started.
        ClusterError: no Ray there, or not all devices answer.
    """
    settings = load_config(config, overrides)
    check_scheme(settings.scheme)
    ray_control.enter(settings)
    try:
        return Cluster(settings)
    except BaseException:
        ray_control.leave()
        raise


class Cluster:
    """Made by `connect`. Close it, or use it as a context manager; it also closes when the process ends."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._closed = threading.Event()
        # One plans at a time. Frames go on meanwhile, but while something is measured: whoever needs both locks takes
        # this one first.
        self._planning = threading.RLock()
        self._lock = threading.RLock()
        self._profiles: dict[str, Profile] = {}
        self._plans: dict[tuple[str, str, str, frozenset[str]], Plan] = {}
        self._mixtures: dict[tuple[str, str, frozenset[str]], Mixture] = {}
        self._group = _placed_and_measured(config)
        self._credits = credits_of(len(self._group.by_name))
        self._dispatcher = Dispatcher(
            self._group.transport,
            self._group.index_of,
            self._group.clocks,
            credits=self._credits,
            on_late=self._why_late,
        )
        self._loader = Loader(self._group, self._dispatcher.in_flight)
        self._clock_refresh = ClockRefresh(
            self._group.clocks, clock_readers(self._group.actors), lambda name: name not in self._group.lost
        )
        self._watcher = threading.Thread(target=self._watch, name="coedge-watch", daemon=True)
        self._watcher.start()
        atexit.register(self.close)

    @property
    def source(self) -> str:
        """The device where inputs start and outputs end."""
        return self._group.source

    def devices(self) -> list[DeviceInfo]:
        """Return a description of every device: its state, and its speed and links as measured."""
        closed = self._closed.is_set() or self._dispatcher.end_reason is not None
        return describe_devices(self._group, closed)

    def worker(self, name: str) -> RemoteWorker:
        """A device that is there.

        Raises:
            DeviceLost: it is not there any more.
            PlanError: there never was one of this name.
        """
        self._check_open()
        group = self._group
        if name not in group.by_name:
            raise PlanError(f"there is no device {name!r} in this cluster; devices are {', '.join(group.by_name)}")
        if name in group.lost:
            raise DeviceLost(f"{name} is lost: {group.lost[name]}. Connect again")
        return group.by_name[name]

    def set_link(self, name: str, mbps: float, latency_ms: float = 0.0) -> None:
        """Gives a device another emulated link, for what is sent from now on. `measure_links` is what plans know it by.

        Raises:
            ClusterError: no link of this cluster is emulated.
            ConfigError: no rate that a link can have.
            DeviceLost, PlanError: there is no such device.
        """
        self.worker(name)
        try:
            link = LinkSpec(bytes_per_second_of(mbps), latency_ms / 1e3)
        except ValueError as error:
            raise ConfigError(f"the link of {name}: {error}") from None
        set_link(self._group, name, link)

    def measure_links(self) -> None:
        """Measures the links again, between frames: profiles and plans that are made from now on count with them.

        Raises:
            ClusterError: two devices cannot talk to each other.
        """
        self._check_open()
        with self._planning, self._lock:
            measure_links(self.config, self._group)
            self._profiles.clear()
            self._plans.clear()
            self._mixtures.clear()

    def profile(self, model: Model) -> Profile:
        """The devices that are there, as measured on a model; measured once, and kept on disk.

        Raises:
            DeviceLost: the source is not there any more.
        """
        self._check_open()
        group = self._group
        with self._planning:
            if model.hash not in self._profiles:
                with self._lock:
                    self._profiles[model.hash] = measure_model(
                        model, group.by_name, group.network, group.source, self.config
                    )
            whole = self._profiles[model.hash]
        if self.source in group.lost:
            raise DeviceLost(f"{self.source}, where inputs start, is lost: {group.lost[self.source]}. Connect again")
        return whole.without(group.lost)

    def plan(self, model: Model, objective: Objective | None = None, scheme: str | None = None) -> Plan:
        """A plan for the devices that are there; `feasible` and `reason` say whether it meets the objective.

        Where the configuration gives `trial_frames`, the plans that are predicted to cost about as little as the best
        are run, and the measured best is kept.

        Args:
            objective, scheme: as in the configuration, where not given.

        Raises:
            DeviceLost, FrameTimeout, StepFailed: while plans were run.
        """
        objective = objective or self.config.objective
        scheme = scheme or self.config.scheme
        check_scheme(scheme)
        key = (model.hash, objective.model_dump_json(), scheme, frozenset(self._group.lost))
        if (known := self._plans.get(key)) is not None:  # while somebody plans something else, too
            return known
        with self._planning:
            if key not in self._plans:
                plan = make_plan(model, self.profile(model), objective, scheme)
                if self.config.trial_frames and scheme == AUTO and plan.feasible and objective.goal != "throughput":
                    plan = self._tried(model, objective, plan)
                self._plans[key] = plan
            return self._plans[key]

    def mixture(self, model: Model, objective: Objective | None = None) -> Mixture:
        """Plans for the devices that are there, and the part of a stream's frames that each gets, for most frames
        per second. `stream` takes it as its plan.

        Args:
            objective: as in the configuration, where not given; the deadline and the constraints are kept.

        Raises:
            InfeasibleError: no plan meets the constraints.
        """
        wanted = (objective or self.config.objective).model_copy(update={"goal": "throughput"})
        key = (model.hash, wanted.model_dump_json(), frozenset(self._group.lost))
        if (known := self._mixtures.get(key)) is not None:
            return known
        with self._planning:
            if key not in self._mixtures:
                self._mixtures[key] = make_stream(model, self.profile(model), wanted)
            return self._mixtures[key]

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
        """Asks for one inference. Returns at once, but for the first time with a plan, which prepares the devices.

        Args:
            x: the input (tensor or array), or a tuple of inputs.
            plan: the plan to run by; otherwise one is made for the objective and the scheme.
            timeout: seconds that the frame may take once it is under way; as in the configuration otherwise.

        Raises:
            InputError: the input does not fit the model.
            ConfigError: the timeout is not positive.
            InfeasibleError: no plan meets the objective, or a device's memory limit is too small.
            PlanError: the plan does not fit the model or the cluster.
            DeviceLost: a device of the plan is not there any more.
        """
        self._check_open()
        seconds, arrays = self._seconds(timeout), _copies(model, x)
        return self._submit(model, arrays, wants_tensors(x), plan or self._feasible(model, objective, scheme), seconds)

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
        """Answers in the order of the frames; several are under way at a time.

        Takes from `frames` only as fast as answers leave, and never more than it needs to keep the devices busy.
        A frame that fails raises here, and ends the stream. Where `frames` itself raises, the answers to what it
        gave before come first. Whoever leaves the stream early cancels the frames under way.

        Args:
            plan: a plan, or a mixture of plans; otherwise one is made when the stream begins: a mixture for
                the goal `throughput` with the scheme `auto`, else a plan as for `submit`.
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
        """The same, with a job per frame: its answer, and also its plan, latency and timeline. A frame that fails
        raises when its job is asked for the result, and does not end the stream."""
        self._check_open()
        seconds = self._seconds(timeout)
        wanted, scheme = objective or self.config.objective, scheme or self.config.scheme
        if plan is None and wanted.goal == "throughput" and scheme == AUTO:
            plan = self.mixture(model, wanted)
        elif plan is None:
            plan = self._feasible(model, wanted, scheme)
        if isinstance(plan, Mixture):
            plans, parts, in_flight = list(plan.plans), list(plan.parts), max(plan.in_flight, self._credits)
        else:
            plans, parts, in_flight = [plan], [1.0], self._credits
        with self._lock:
            self._loader.ready_together(model, plans)
        turns = frame_assignment(parts)

        def submit(x: Any) -> Job:
            return self._submit(model, _copies(model, x), wants_tensors(x), plans[next(turns)], seconds)

        yield from in_order(frames, submit, in_flight)

    def close(self) -> None:
        """Ends the workers, and Ray if it was started here and no other cluster of this process is open.

        Frames under way fail. Safe to call twice.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        atexit.unregister(self.close)
        with contextlib.ExitStack() as steps:  # last one first; each runs even if another one fails
            steps.callback(ray_control.leave)
            steps.callback(self._watcher.join, timeout=2.0)
            steps.callback(ray_control.stop_actors, list(self._group.actors.values()))
            steps.callback(self._dispatcher.close)
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
        self, model: Model, arrays: tuple[NDArray[Any], ...], as_tensors: bool, plan: Plan, seconds: float
    ) -> Job:
        self._check_open()
        with self._lock:  # nobody unloads the plan before the frame is under way
            loaded = self._loader.ready(model, plan)
            job = self._dispatcher.submit(loaded, arrays, as_tensors, seconds)
        for name in loaded.devices:
            if name in self._group.lost:  # since it was found ready
                self._fail_frames_of(name)
        return job

    def _tried(self, model: Model, objective: Objective, best: Plan) -> Plan:
        """The plan that costs least on the devices, of those that are predicted to cost about as little."""
        profile = self.profile(model)
        plans = worth_trying(best, named_plans(model, profile, objective), objective)
        if len(plans) == 1:
            return best
        arrays = tuple(natural_inputs(model))

        def rank_of_frame(plan: Plan) -> Rank:
            job = self._submit(model, arrays, False, plan, self.config.frame_timeout_seconds)
            job.result()
            seconds = job.latency_seconds
            late = 0.0 if objective.meets_deadline(seconds) else seconds
            return late, objective.cost(seconds, job.timeline.energy_joules(profile))

        with self._lock:
            chosen = least_cost(plans, rank_of_frame, self.config.trial_frames)
        if chosen is best:
            return best
        reason = f"the plan of {chosen.scheme}: tried out, it cost less than the plan that is predicted best"
        return chosen.model_copy(update={"scheme": AUTO, "reason": reason})

    def _feasible(self, model: Model, objective: Objective | None, scheme: str | None) -> Plan:
        plan = self.plan(model, objective, scheme)
        if not plan.feasible:
            raise InfeasibleError(
                f"no plan of scheme {plan.scheme!r} meets the objective: {plan.reason}. Loosen it, or run the "
                "nearest plan all the same: cluster.submit(model, x, plan=cluster.plan(model))"
            )
        return plan

    def _watch(self) -> None:
        try:
            ray_control.watch(self._group.serving, self._closed.is_set, self._died)
        except BaseException as error:  # deaths would go unnoticed from now on
            if not self._closed.is_set():
                self._dispatcher.end(f"the cluster is closed: {error}")

    def _died(self, name: str, reason: str) -> None:
        if self._closed.is_set():
            return
        self._group.lost[name] = reason
        self._fail_frames_of(name)

    def _fail_frames_of(self, name: str) -> None:
        """Fails the frames under way on a lost device."""
        group = self._group
        statuses = group.statuses((other for other in group.by_name if other != name), STATUS_SECONDS)

        def error(job: Job, loaded: LoadedPlan) -> CoEdgeError:
            return lost_error(job, loaded, name, group.pids[name], group.lost[name], statuses)

        self._dispatcher.fail(error, device=name)

    def _why_late(self, job: Job, loaded: LoadedPlan, deadline: float, timeout_seconds: float) -> CoEdgeError:
        seconds = max(0.05, min(STATUS_SECONDS, deadline - time.monotonic()))
        statuses = self._group.statuses(loaded.devices, seconds)
        return late_error(job, loaded, self._group.pids, timeout_seconds, statuses)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClusterError(CLOSED)
        if self._dispatcher.end_reason is not None:
            raise ClusterError(self._dispatcher.end_reason)


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
    """The inputs; whoever asks may write to theirs as soon as `submit` returns."""
    return tuple(np.array(array, order="C") for array in model.check_inputs(as_arrays(x)))
