"""A cluster: devices that have joined, the plans that they have ready, and the frames under way."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coedge.capturing import as_arrays
from coedge.config import ClusterConfig, load_config
from coedge.errors import (
    ClusterError,
    CoEdgeError,
    ConfigError,
    DeviceLost,
    FrameTimeout,
    InfeasibleError,
    PlanError,
)
from coedge.lowering import lower
from coedge.memory import program_nbytes
from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Plan
from coedge.profile import Link, Profile
from coedge.program import CLIENT, Compute, Receive
from coedge.version import VERSION
from orchestrator import ray_control
from orchestrator.dispatcher import Dispatcher, LoadedPlan, describe_step
from orchestrator.job import Job
from orchestrator.measure import Member, measure_links, measure_model
from orchestrator.planner import check_scheme, make_plan
from workers.paced_transport import LinkSpec
from workers.spec import WorkerSpec
from workers.transport import Endpoint
from workers.zmq_transport import ZmqTransport

KEPT_PLANS = 16
STATUS_SECONDS = 1.0
LOAD_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device, as it joined and was measured.

    Attributes:
        state: "ready" or "lost".
        gflops: of a 3x3 convolution, emulation included.
        links: to every other device.
        speed: emulated fraction of the real speed; None: not emulated.
    """

    name: str
    host: str
    address: str
    pid: int
    state: str
    threads: int
    gflops: float
    links: Mapping[str, Link]
    speed: float | None
    source: bool


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
        self._lock = threading.RLock()
        self._lost: dict[str, str] = {}
        self._profiles: dict[str, Profile] = {}
        self._plans: dict[tuple[str, str, str], Plan] = {}
        self._loaded: OrderedDict[tuple[str, str | None, str], LoadedPlan] = OrderedDict()
        self._epoch = 0
        self._actors: dict[str, Any] = {}
        try:
            self._join()
        except BaseException:
            ray_control.stop_actors(list(self._actors.values()))
            raise
        atexit.register(self.close)

    # Joining.

    def _join(self) -> None:
        config, timeout = self.config, self.config.connect_timeout_seconds
        placed = ray_control.place_devices(config)
        here = {node["NodeID"]: node for node in ray_control.alive_nodes()}
        local_only = len({node["NodeID"] for _, node in placed}) == 1 and len(here) == 1
        specs: dict[str, WorkerSpec] = {}
        for index, (device, node) in enumerate(placed):
            link = None
            if device.link.mbps is not None or device.link.latency_ms:
                rate = None if device.link.mbps is None else device.link.mbps * 1e6 / 8
                link = LinkSpec(rate, device.link.latency_ms / 1000)
            specs[device.name] = WorkerSpec(
                index, device.name, "127.0.0.1" if local_only else node["NodeManagerAddress"],
                config.encryption, device.speed, link, device.threads,
            )  # fmt: skip
            self._actors[device.name] = ray_control.create_actor(specs[device.name], node["NodeID"])
        facts = ray_control.gather(
            {name: actor.facts.remote() for name, actor in self._actors.items()}, timeout, "start"
        )
        other = {name: fact.version for name, fact in facts.items() if fact.version != VERSION}
        if other:
            raise ClusterError(
                f"this is coedge {VERSION}, but {', '.join(f'{n} runs {v}' for n, v in other.items())}; "
                "install the same version everywhere"
            )
        self._members = {d.name: Member(d, self._actors[d.name], facts[d.name]) for d, _ in placed}
        host = "127.0.0.1" if local_only else _own_address()
        transport = ZmqTransport(len(placed), CLIENT, host, encrypted=config.encryption)
        endpoints: list[Endpoint] = [fact.endpoint for fact in facts.values()] + [transport.endpoint]
        links = {spec.index: spec.link or LinkSpec() for spec in specs.values()}
        emulated = any(spec.link for spec in specs.values())
        try:
            ray_control.gather(
                {n: a.connect.remote(endpoints, links if emulated else {}) for n, a in self._actors.items()},
                timeout,
                "connect to each other",
            )
            transport.connect(endpoints)
            self._serving = {name: actor.serve.remote() for name, actor in self._actors.items()}
            clocks = {name: self._clock(name) for name in self._members}
            local = [d.name for d, node in placed if node["NodeID"] == _own_node()]
            self.source = config.source or (local[0] if local else placed[0][0].name)
            if self.source not in self._members:
                raise ClusterError(
                    f"the source {self.source!r} is not a device; devices are {', '.join(self._members)}"
                )
            self._links = measure_links(self._members)
            self._gflops = ray_control.gather(
                {n: m.actor.measure_gflops.remote(m.emulated) for n, m in self._first_of_kind().items()},
                timeout, "measure their speed",
            )  # fmt: skip
        except BaseException:
            transport.close()
            raise
        index_of = {name: member.facts.endpoint.index for name, member in self._members.items()}
        self._dispatcher = Dispatcher(
            transport, index_of, clocks, credits=2 * len(self._members) + 2, on_late=self._why_late
        )
        self._watcher = threading.Thread(
            target=ray_control.watch,
            args=(self._serving, self._closed.is_set, self._died),
            name="coedge-watch",
            daemon=True,
        )
        self._watcher.start()

    def _first_of_kind(self) -> dict[str, Member]:
        """One member for every kind of machine, so that devices which share a host are not measured at once."""
        kinds: dict[str, str] = {}
        for name, member in self._members.items():
            kinds.setdefault(member.facts.fingerprint, name)
        return {name: self._members[name] for name in kinds.values()}

    def _clock(self, name: str) -> tuple[float, float]:
        """(the device's monotonic clock minus ours, uncertainty), by the fastest of a few round trips."""
        best = (0.0, float("inf"))
        for _ in range(5):
            before = time.monotonic()
            fact = ray_control.gather({name: self._actors[name].facts.remote()}, 10.0, "tell the time")[name]
            after = time.monotonic()
            if (after - before) / 2 < best[1]:
                best = (fact.clock_seconds - (before + after) / 2, (after - before) / 2)
        if fact.host == _own_host():
            return 0.0, 0.0  # one host has one monotonic clock
        return best

    # What people ask for.

    def devices(self) -> list[DeviceInfo]:
        """Every device: who it is, whether it is there, how fast it and its links were measured."""
        kinds = {m.facts.fingerprint: self._gflops[n] for n, m in self._first_of_kind().items()}
        return [
            DeviceInfo(
                name=name,
                host=member.facts.host,
                address=member.facts.endpoint.address,
                pid=member.facts.pid,
                state="lost" if name in self._lost else "ready",
                threads=member.facts.threads,
                gflops=kinds[member.facts.fingerprint] * (member.config.speed or 1.0),
                links={link.receiver: link for link in self._links if link.sender == name},
                speed=member.config.speed,
                source=name == self.source,
            )
            for name, member in self._members.items()
        ]

    def profile(self, model: Model) -> Profile:
        """The cluster as measured on a model; measured once, and kept on disk."""
        self._check_open()
        with self._lock:
            if model.hash not in self._profiles:
                self._profiles[model.hash] = measure_model(
                    model, self._members, self._links, self.source, self.config.cache_path
                )
            return self._profiles[model.hash]

    def plan(self, model: Model, objective: Objective | None = None, scheme: str | None = None) -> Plan:
        """A plan for this cluster, with its prediction; `feasible` and `reason` say whether it meets the objective.

        Args:
            objective, scheme: as in the configuration, where not given.
        """
        objective = objective or self.config.objective
        scheme = scheme or self.config.scheme
        check_scheme(scheme)
        key = (model.hash, objective.model_dump_json(), scheme)
        with self._lock:
            if key not in self._plans:
                self._plans[key] = make_plan(model, self.profile(model), objective, scheme)
            return self._plans[key]

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
        seconds = self.config.frame_timeout_seconds if timeout is None else timeout
        if not seconds > 0:
            raise ConfigError(f"a timeout of {timeout} s leaves no time for the frame; give more than 0")
        arrays = tuple(np.array(a, order="C") for a in model.check_inputs(as_arrays(x)))
        loaded = self._prepare(model, plan, objective, scheme)
        job = self._dispatcher.submit(loaded, arrays, x, seconds)
        for name in loaded.devices:
            if name in self._lost:  # since `_prepare` looked
                self._fail_frames_of(name)
        return job

    def stream(
        self,
        model: Model,
        frames: Iterable[Any],
        *,
        plan: Plan | None = None,
        objective: Objective | None = None,
        scheme: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """Answers in the order of the frames; several are under way at a time.

        Takes from `frames` only as fast as answers leave. A frame that fails raises here, and ends the stream.
        """
        jobs: deque[Job] = deque()
        try:
            for x in frames:
                jobs.append(self.submit(model, x, plan=plan, objective=objective, scheme=scheme, timeout=timeout))
                if len(jobs) >= self._dispatcher.credits:
                    yield jobs.popleft().result()
            while jobs:
                yield jobs.popleft().result()
        finally:
            for job in jobs:
                job.cancel()

    def close(self) -> None:
        """Ends the workers, and Ray if it was started here and no other cluster of this process is open.

        Frames under way fail. Safe to call twice.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        atexit.unregister(self.close)
        self._dispatcher.close()
        ray_control.stop_actors(list(self._actors.values()))
        self._watcher.join(timeout=2.0)
        ray_control.leave()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Plans.

    def _prepare(self, model: Model, plan: Plan | None, objective: Objective | None, scheme: str | None) -> LoadedPlan:
        self._check_open()
        if plan is None:
            plan = self.plan(model, objective, scheme)
            if not plan.feasible:
                raise InfeasibleError(
                    f"no plan of scheme {plan.scheme!r} meets the objective: {plan.reason}. Loosen it, or run the "
                    "nearest plan all the same: cluster.submit(model, x, plan=cluster.plan(model))"
                )
        key = (model.hash, model.structure, plan.digest)
        with self._lock:
            loaded = self._loaded.get(key)
            if loaded is None:
                loaded = self._loaded[key] = self._load(model, plan)
                self._unload_old()
            self._loaded.move_to_end(key)
        self._check_there(loaded)
        return loaded

    def _check_there(self, loaded: LoadedPlan) -> None:
        for name in loaded.devices:
            if name in self._lost:
                raise DeviceLost(
                    f"{name} is part of the plan, but it is lost: {self._lost[name]}. Connect again, or plan without it"
                )

    def _load(self, model: Model, plan: Plan) -> LoadedPlan:
        unknown = [name for name in plan.devices if name not in self._members]
        used = {name for stage in plan.stages for name in stage.regions} | {plan.source, plan.sink}
        if used & set(unknown):
            raise PlanError(
                f"the plan uses device {unknown[0]!r}, which is not in this cluster: {', '.join(self._members)}"
            )
        programs = {name: p for name, p in lower(plan, model).items() if name in self._members}
        for name, program in programs.items():
            limit, needed = self._members[name].config.memory_mb, program_nbytes(program, model) / 1e6
            if limit is not None and program.steps and needed > limit:
                raise InfeasibleError(
                    f"{name} would need {needed:.1f} MB for its part of {model.name} (weights, input and activations), "
                    f"its limit is {limit:.1f} MB; give it less, or raise devices.{name}.memory_mb"
                )
        self._epoch += 1
        loaded = LoadedPlan(self._epoch, model, plan, programs)
        self._check_there(loaded)
        self._ship(loaded)
        return loaded

    def _ship(self, loaded: LoadedPlan) -> None:
        import ray

        model = loaded.model
        stored: dict[str, Any] = {}
        calls = {}
        wanted: dict[str, list[str]] = {}
        for name in loaded.devices:
            nodes = (model.graph.nodes[i] for i in loaded.programs[name].node_indices())
            wanted[name] = sorted({w for n in nodes for w in (*n.inputs, *n.captured) if w in model.weights})
        missing = ray_control.gather(
            {n: self._actors[n].missing_weights.remote(model.hash, names) for n, names in wanted.items()},
            self.config.connect_timeout_seconds,
            "say what they have",
        )
        for name in loaded.devices:
            graph_missing, names = missing[name]
            for weight in names:
                if weight not in stored:
                    stored[weight] = ray.put(np.ascontiguousarray(model.weights[weight]))
            calls[name] = self._actors[name].load.remote(
                loaded.epoch,
                loaded.programs[name],
                model.skeleton if graph_missing else None,
                names,
                [stored[n] for n in names],
            )
        ray_control.gather(calls, LOAD_SECONDS, f"prepare {model.name}")

    def _unload_old(self) -> None:
        for key in list(self._loaded)[:-KEPT_PLANS]:
            old = self._loaded[key]
            if not self._dispatcher.in_flight(old.epoch):
                del self._loaded[key]
                for name in old.devices:
                    with contextlib.suppress(Exception):
                        self._actors[name].unload.remote(old.epoch)

    # When something goes wrong.

    def _died(self, name: str, reason: str) -> None:
        if self._closed.is_set():
            return
        self._lost[name] = reason
        self._fail_frames_of(name)

    def _fail_frames_of(self, name: str) -> None:
        """Fails the frames under way on a lost device."""
        pid = self._members[name].facts.pid
        statuses = self._statuses((other for other in self._members if other != name), STATUS_SECONDS)

        def error(job: Job, loaded: LoadedPlan) -> CoEdgeError:
            return DeviceLost(
                f"{name} (pid {pid}) was lost during frame {job.frame}, "
                f"{self._where(job, loaded, name, statuses)}: {self._lost[name]}. "
                "Connect again, or plan without it"
            )

        self._dispatcher.fail(error, device=name)

    def _why_late(self, job: Job, loaded: LoadedPlan, deadline: float, timeout: float) -> CoEdgeError:
        """Who holds a frame up: a device that does not answer, one that computes, or one that nobody sends to."""
        seconds = max(0.05, min(STATUS_SECONDS, deadline - time.monotonic()))
        statuses = self._statuses(loaded.devices, seconds)
        silent = [name for name in loaded.devices if name not in statuses]
        if silent:
            name = silent[0]
            return DeviceLost(
                f"{name} (pid {self._members[name].facts.pid}) stopped answering during frame {job.frame}, "
                f"{self._where(job, loaded, name, statuses)}. Is it overloaded, suspended, or off the network?"
            )
        for name, status in statuses.items():
            running = status.running
            if running is not None and running[:2] == (loaded.epoch, job.frame):
                step = loaded.programs[name].steps[running[2]]
                return FrameTimeout(
                    f"frame {job.frame} was not answered in time: {name} has been in "
                    f"{describe_step(step, loaded.model)} for {running[3]:.1f} s. Raise the timeout "
                    f"(frame_timeout_seconds, now {timeout:g}) or plan with less for {name}"
                )
        waits = self._waits(job, loaded, statuses)
        return FrameTimeout(
            f"frame {job.frame} was not answered in time: {waits or 'no device has begun it'}. "
            f"Raise the timeout (frame_timeout_seconds, now {timeout:g}), or send fewer frames at a time"
        )

    def _where(self, job: Job, loaded: LoadedPlan, lost: str, statuses: Mapping[str, Any]) -> str:
        """In which step a device was, as far as those that wait for it can tell."""
        for name, status in statuses.items():
            for channel in status.waiting.get((loaded.epoch, job.frame), ()):
                receive = _receive(loaded, name, channel)
                if receive is not None and receive.peer == lost:
                    return f"in {self._producer(loaded, lost, channel)}, for which {name} waits"
        first = next((s for s in loaded.programs[lost].steps if isinstance(s, Compute)), None)
        return f"in {describe_step(first, loaded.model)}" if first else "before its first step"

    def _producer(self, loaded: LoadedPlan, name: str, channel: int) -> str:
        """The computation behind a channel."""
        from coedge.program import Send

        latest = "its first step"
        for step in loaded.programs[name].steps:
            if isinstance(step, Compute):
                latest = describe_step(step, loaded.model)
            if isinstance(step, Send) and step.channel == channel:
                return latest
        return latest

    def _waits(self, job: Job, loaded: LoadedPlan, statuses: Mapping[str, Any]) -> str:
        parts = []
        for name, status in statuses.items():
            channels = status.waiting.get((loaded.epoch, job.frame), ())
            receive = _receive(loaded, name, channels[0]) if channels else None
            if receive is not None:
                parts.append(f"{name} waits for {receive.peer} (stage {receive.stage})")
        return ", ".join(parts)

    def _statuses(self, names: Iterable[str], timeout_seconds: float) -> dict[str, Any]:
        """The status of those who answer in time."""
        import ray

        references = {}
        for name in names:
            if name not in self._lost:
                references[self._actors[name].status.remote()] = name
        if not references:
            return {}
        ready, _ = ray.wait(list(references), num_returns=len(references), timeout=timeout_seconds)
        found = {}
        for reference in ready:
            with contextlib.suppress(Exception):
                found[references[reference]] = ray.get(reference)
        return found

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClusterError("the cluster is closed; connect again")


def _receive(loaded: LoadedPlan, name: str, channel: int) -> Receive | None:
    steps = loaded.programs[name].steps
    return next((s for s in steps if isinstance(s, Receive) and s.channel == channel), None)


def _own_node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _own_host() -> str:
    import platform

    return platform.node()
