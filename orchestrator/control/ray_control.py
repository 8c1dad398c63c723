"""Control over Ray: the nodes that exist, one worker actor on each device, and detection of its death."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from coedge.config.cluster_config import ClusterConfig
from coedge.config.sections import DeviceConfig
from coedge.core.errors import ClusterError, DeviceLost
from orchestrator.control.deadline import Overrun, within

log = logging.getLogger(__name__)

T = TypeVar("T")

# Pause between two looks at whether an awaited device was lost.
LOOK_SECONDS = 0.1
# Longest time for a value of which Ray says that it is there.
FETCH_SECONDS = 30.0


def is_connected() -> bool:
    """Return whether this process is connected to Ray."""
    import ray

    return bool(ray.is_initialized())


def check_connected() -> None:
    """Check that this process is connected to Ray. Most calls of Ray would start another one.

    Raises:
        ClusterError: it is not, because the cluster was closed.
    """
    if not is_connected():
        raise ClusterError("this process is not connected to Ray any more")


def own_node() -> str:
    """Return the id of the Ray node of this process."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def own_address() -> str:
    """Return the address by which Ray knows this host."""
    import ray

    return str(ray.util.get_node_ip_address())


def alive_nodes(timeout_seconds: float) -> list[dict[str, Any]]:
    """Return the Ray nodes that are alive, sorted by address.

    Raises:
        ClusterError: the Ray head did not answer in time.
    """
    import ray

    nodes = [node for node in _asked(ray.nodes, timeout_seconds, "list its nodes") if node["Alive"]]
    return sorted(nodes, key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))


def place_devices(config: ClusterConfig) -> tuple[list[tuple[DeviceConfig, dict[str, Any]]], dict[str, str]]:
    """Return the devices with the Ray nodes that they run on, and by name, why the other devices have none.

    Without devices in the config, every node is one.

    Raises:
        ClusterError: the Ray head did not answer in time.
    """
    import ray

    nodes = alive_nodes(config.connect_timeout_seconds)
    here = ray.get_runtime_context().get_node_id()
    local = next((node for node in nodes if node["NodeID"] == here), nodes[0])
    if not config.devices:
        names: dict[str, int] = {}
        placed = []
        for node in nodes:
            base = "".join(c if c.isalnum() or c in "._-" else "-" for c in node["NodeManagerHostname"])[:56] or "node"
            names[base] = names.get(base, 0) + 1
            name = base if names[base] == 1 else f"{base}-{names[base]}"
            placed.append((DeviceConfig(name=name), node))
        return placed, {}
    placed, absent = [], {}
    for device in config.devices:
        if device.node is None:
            placed.append((device, local))
            continue
        matching = [n for n in nodes if device.node in (n["NodeManagerAddress"], n["NodeManagerHostname"], n["NodeID"])]
        if not matching:
            known = ", ".join(f"{n['NodeManagerAddress']} ({n['NodeManagerHostname']})" for n in nodes)
            absent[device.name] = (
                f"device {device.name}: there is no Ray node {device.node!r}; alive nodes are {known}. "
                f"Run `ray start --address=HEAD:PORT` on {device.node}"
            )
            continue
        placed.append((device, matching[0]))
    return placed, absent


def node_of(device: DeviceConfig, address: str, timeout_seconds: float) -> dict[str, Any]:
    """Return the alive Ray node of a device that ran on a node of this address before.

    Raises:
        ClusterError: there is none now.
    """
    wanted = device.node or address
    for node in alive_nodes(timeout_seconds):
        if wanted in (node["NodeManagerAddress"], node["NodeManagerHostname"], node["NodeID"]):
            return node
    raise ClusterError(
        f"device {device.name}: its Ray node {wanted} is not there. Run `ray start --address=HEAD:PORT` on it"
    )


def create_actor(spec: Any, node_id: str, timeout_seconds: float) -> Any:
    """Start a worker actor on a node, without waiting for it.

    Raises:
        ClusterError: the Ray head did not take the request in time.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from workers.actor import WorkerActor

    strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    actor = ray.remote(WorkerActor).options(num_cpus=0, max_concurrency=8, max_restarts=0, scheduling_strategy=strategy)
    return _asked(lambda: actor.remote(spec), timeout_seconds, f"start a worker for {spec.name}", undo=ray.kill)


def _asked(call: Callable[[], T], timeout_seconds: float, what: str, undo: Callable[[T], object] | None = None) -> T:
    """Return what a call of Ray's head returns. Ray itself waits for its head for minutes.

    Raises:
        ClusterError: it was not back in time.
    """
    import ray

    try:
        return within(timeout_seconds, call, "coedge-ask", undo)
    except Overrun:
        raise ClusterError(
            f"the Ray head at {ray.get_runtime_context().gcs_address} did not {what} within {timeout_seconds:g} s. "
            "Is its host busy or stopped? See `ray status` there; raise connect_timeout_seconds if it is slow"
        ) from None


class WorkersDied(DeviceLost):
    """Workers died before they answered.

    Attributes:
        reasons: the reason of each death, by device name.
    """

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)


def gather(
    references: Mapping[str, Any],
    timeout_seconds: float,
    what: str,
    waited_seconds: float = 0.0,
    lost: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Wait for one reference per device, and return the values by device.

    Args:
        what: the action, for the message of an error: "only 1 of 2 devices managed to ...".
        waited_seconds: time that the caller has already waited for these answers, for the message.
        lost: reason by name of every lost device, read again and again: none of these is waited for.

    Raises:
        WorkersDied: some workers died or were lost; the message names all devices without an answer, and the reasons.
        ClusterError: some devices failed or did not answer in time; the message is the same.
    """
    import ray

    if not references:
        return {}
    if not is_connected():  # a call of Ray would start another one
        raise ClusterError(f"the devices cannot {what}: this process is not connected to Ray any more")
    names = {reference: name for name, reference in references.items()}
    ends = time.monotonic() + timeout_seconds
    while True:
        left = max(0.0, ends - time.monotonic())
        seconds = left if lost is None else min(left, LOOK_SECONDS)
        ready, late = ray.wait(list(names), num_returns=len(names), timeout=seconds)
        gone = {names[reference]: lost[names[reference]] for reference in late if lost and names[reference] in lost}
        if not late or gone or time.monotonic() >= ends:
            break
    values: dict[str, Any] = {}
    problems, deaths = {}, {}
    for reference in ready:
        name = names[reference]
        try:
            values[name] = ray.get(reference, timeout=FETCH_SECONDS)
        except Exception as error:
            problems[name] = explain(error)
            if isinstance(error, ray.exceptions.RayActorError):
                deaths[name] = problems[name]
    allowed = f"no answer within {round(timeout_seconds + waited_seconds, 1):g} s"
    problems |= {names[reference]: gone.get(names[reference], allowed) for reference in late}
    deaths |= gone
    if problems:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(problems.items()))
        text = f"only {len(values)} of {len(references)} devices managed to {what}: {reasons}"
        raise WorkersDied(text, deaths) if deaths else ClusterError(text)
    return {name: values[name] for name in references}


def explain(error: BaseException) -> str:
    """Describe an error without Ray's wrapping."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        cause = getattr(error, "cause", None)
        text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error).strip().splitlines()[-1]
        return text if "No module named" not in text else f"{text} (is coedge installed there? pip install coedge)"
    if isinstance(error, ray.exceptions.ActorDiedError):
        text = str(error)
        if "No module named" in text:
            line = next(line for line in text.splitlines() if "No module named" in line)
            return f"{line.strip()} (is coedge installed there? pip install coedge)"
        if error.actor_init_failed:
            return f"its worker could not be created: {text.strip().splitlines()[-1]}"
        detail = re.search(r"exit detail: (.+?)\.(\s|$)", text)
        return f"its worker process died ({detail[1]})" if detail else "its worker process died"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "its process or its node cannot be reached any more"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def ended(references: Mapping[str, Any], timeout_seconds: float) -> dict[str, str]:
    """Return the devices whose `serve` has ended, with the reasons. Wait for the first one for some time.

    Raises:
        ClusterError: the connection to Ray ended, so that deaths can no longer be noticed.
    """
    import ray

    names = {reference: name for name, reference in references.items()}
    try:
        ready, _ = ray.wait(list(names), num_returns=1, timeout=timeout_seconds)
    except (Exception, SystemExit) as error:  # Ray ends a thread that calls it after its shutdown
        raise ClusterError(f"the connection to Ray ended ({error!r}); connect again") from error
    reasons = {}
    for reference in ready:
        try:
            ray.get(reference, timeout=FETCH_SECONDS)
            reasons[names[reference]] = "its worker stopped"
        except (Exception, SystemExit) as error:
            reasons[names[reference]] = explain(error)
    return reasons


def stop_actors(actors: Sequence[Any], timeout_seconds: float = 2.0) -> None:
    """Ask the workers to end, and kill those that do not. `WorkerActor.stop` returns when the sockets are closed."""
    import ray

    if not ray.is_initialized():  # after a shutdown by the caller, any call would start Ray again
        return
    pending = []
    for actor in actors:
        try:
            pending.append(actor.stop.remote())
        except Exception:  # the actor has died
            continue
    if pending:
        with contextlib.suppress(Exception):
            ray.wait(pending, num_returns=len(pending), timeout=timeout_seconds)
    for actor in actors:
        with contextlib.suppress(Exception):
            ray.kill(actor)
