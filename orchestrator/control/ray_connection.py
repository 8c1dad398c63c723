"""The connection of this process to Ray: made for the first cluster, and ended after the last one."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, NoReturn

import psutil

from coedge.config.cluster_config import ClusterConfig
from coedge.core.errors import ClusterError
from orchestrator.control.deadline import Overrun, within
from orchestrator.control.local_ray import JOIN_THREAD, LocalRay
from orchestrator.control.private_token import KeptEnvironment
from orchestrator.control.ray_address import check_ray_address
from orchestrator.control.ray_token import alive_before_joining, check_node_tokens, check_token

log = logging.getLogger(__name__)

# Name of the thread that leaves a Ray.
LEAVE_THREAD = "coedge-leave"
# Ray ends its own processes within some seconds.
LEAVE_SECONDS = 30.0


@dataclass
class _RayConnection:
    """The connection of this process to Ray. There is at most one.

    Attributes:
        clusters: number of open clusters that use it.
        ours: whether this module made it. A connection that the caller made is left open.
        forked: whether this process was forked from one with open clusters. It cannot use Ray.
        started: the Ray that this module started. None: it joined a running one.
        environment: as it was before this module made the connection.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    clusters: int = 0
    ours: bool = False
    started: LocalRay | None = None
    environment: KeptEnvironment | None = None
    forked: bool = False


_session = _RayConnection()


def _forget_in_child() -> None:
    """Let a forked child leave Ray alone: at its exit, Ray would hang, crash, or end its parent's processes."""
    global _session
    if _session.clusters or _session.forked:
        _session = _RayConnection(forked=True)
        _exit_without_cleaning_up()


def _exit_without_cleaning_up() -> None:
    """Let this process exit without the handlers and destructors that it inherited, and with the status that it has."""
    status = 0
    raise_exit = sys.exit

    def exit_with(code: Any = None) -> NoReturn:
        nonlocal status
        status = code if isinstance(code, int) else int(code is not None)
        raise_exit(code)

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(1 if getattr(sys, "last_value", None) is not None else status)

    if getattr(sys.excepthook, "__module__", "").startswith("ray"):  # it would tell Ray, and wait
        sys.excepthook = sys.__excepthook__
    sys.exit = exit_with
    atexit.register(end)  # runs before the handlers that were registered in the parent


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_in_child)


def enter(config: ClusterConfig, check_nodes: bool = True) -> None:
    """Connect this process to Ray, if it is not connected. Each call is matched by one call of `leave`.

    Args:
        check_nodes: whether nodes of devices that want another token are an error. The node of this host always is.

    Raises:
        ClusterError: there is no Ray at the address, it did not answer or start within `connect_timeout_seconds`, it or
            a node wants another token, or this process is connected to another one.
    """
    import ray

    with _session.lock:
        if _session.forked:
            raise ClusterError(
                "this process was forked from one that has an open cluster, and cannot use Ray. Connect in the parent, "
                'or start the child anew: multiprocessing.get_context("spawn")'
            )
        if any(thread.name in (JOIN_THREAD, LEAVE_THREAD) for thread in threading.enumerate()):
            raise ClusterError(
                "this process still joins or leaves a Ray cluster whose head does not answer; Ray gives up after some "
                "minutes. Connect again then, or in a new process"
            )
        if ray.is_initialized():
            _check_same(config.ray.address, ray.get_runtime_context().gcs_address)
        else:
            environment = KeptEnvironment()
            try:
                if config.ray.address is None:
                    environment.make_token()
                _session.started = _start_or_join(config, check_nodes)
            except BaseException:
                environment.restore()
                raise
            if config.ray.address is None:
                environment.publish(ray.get_runtime_context().gcs_address)
            _session.ours, _session.environment = True, environment
        _session.clusters += 1


def leave() -> None:
    """End the connection (and Ray itself, if it was started here) when no cluster uses it any more."""
    import ray

    with _session.lock:
        _session.clusters -= 1
        if _session.ours and not _session.clusters:
            _session.ours = False
            try:
                within(LEAVE_SECONDS, ray.shutdown, LEAVE_THREAD)
            except Overrun:
                # Ray would try again, without an end, when the process ends.
                atexit.unregister(ray.shutdown)
                log.warning("the Ray head did not answer within %g s when its cluster was left", LEAVE_SECONDS)
            finally:
                if _session.started is not None:
                    _session.started.release()
                    _session.started.clean()
                    _session.started = None
                if _session.environment is not None:
                    _session.environment.restore()
                    _session.environment = None


def _check_same(wanted: str | None, joined: str) -> None:
    if wanted is None or wanted == "auto":
        return

    def resolve(address: str) -> tuple[str, str]:
        host, _, port = address.rpartition(":")
        try:
            return socket.gethostbyname(host.strip("[]")), port
        except OSError:
            return host, port

    if resolve(wanted) != resolve(joined):
        raise ClusterError(
            f"this process is connected to Ray at {joined} and cannot join {wanted} at the same time; close the "
            "other cluster first (or call ray.shutdown())"
        )


def _start_or_join(config: ClusterConfig, check_nodes: bool) -> LocalRay | None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Answers that are no longer waited for, as of a device that was lost, may be errors.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    import ray

    address = config.ray.address
    common: dict[str, Any] = {
        "namespace": config.ray.namespace,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address is None:
        started = LocalRay()
        started.start(config.connect_timeout_seconds, common)
        _end_by_sigterm()
        return started

    def join() -> None:
        found = _found_by_ray() if address == "auto" else address
        if ":" in found and "://" not in found:
            check_ray_address(found, config.connect_timeout_seconds / 2)  # the rest is for Ray itself
            if check_token(found, address == "auto" and not os.environ.get("RAY_ADDRESS")):
                check_node_tokens(_used_nodes(config if check_nodes else None, alive_before_joining(found)))
        ray.init(address=address, **common)

    next_step = "Start one with `ray start --head`, or leave out ray.address to start a local cluster"
    try:
        # ray.init waits in compiled code, which no signal interrupts.
        within(config.connect_timeout_seconds, join, JOIN_THREAD, undo=lambda _: ray.shutdown())
    except Overrun:
        raise ClusterError(
            f"Ray at {address} did not let this process join within {config.connect_timeout_seconds:g} s. If it is "
            f"busy or far away, raise connect_timeout_seconds; else: {next_step[0].lower()}{next_step[1:]}"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        if isinstance(error, ClusterError):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(f"cannot join Ray at {address}: {first}. {next_step}") from error
    _end_by_sigterm()
    return None


def _found_by_ray() -> str:
    """Return the address that "auto" stands for; empty: Ray finds none, and says so when it is asked to join."""
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    try:
        from ray._private.services import canonicalize_bootstrap_address

        return canonicalize_bootstrap_address("auto") or ""
    except Exception:  # private code of Ray, which may be another one in another version
        return ""


def _used_nodes(config: ClusterConfig | None, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the nodes of this host and, with a configuration, those of its devices. Without devices every node is one.

    The client joins through a node of its own host.
    """
    own = {one.address for addresses in psutil.net_if_addrs().values() for one in addresses}
    wanted = {device.node for device in config.devices if device.node is not None} if config else set()
    names = ("NodeManagerAddress", "NodeManagerHostname", "NodeID")
    if config is not None and not config.devices:
        return nodes
    return [n for n in nodes if n["NodeManagerAddress"] in own or wanted & {n[name] for name in names}]


def _end_by_sigterm() -> None:
    """Let SIGTERM end the process with its exit handlers, as Ray does when its own main thread joins."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
