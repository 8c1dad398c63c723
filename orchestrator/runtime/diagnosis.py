"""Diagnosis of frames without an answer: from what the devices report to an error that names device and step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from coedge.core.errors import CoEdgeError, DeviceLost, FrameTimeout
from orchestrator.control.worker_group import WorkerGroup
from orchestrator.runtime.job import Job
from orchestrator.runtime.loaded_plan import LoadedPlan, describe_step
from workers.runtime.spec import WorkerStatus

# Devices that do not report their status within this time count as silent.
STATUS_SECONDS = 1.0

Statuses = Mapping[str, WorkerStatus]


class FailureDiagnosis:
    """Explanations of why a frame has no answer, from the statuses of the devices of a group."""

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group

    def lost(self, device: str) -> Callable[[Job, LoadedPlan], CoEdgeError]:
        """Return a function that gives the error of each frame whose plan used a device that is lost now."""
        group = self._group
        statuses = group.statuses((other for other in group.by_name if other != device), STATUS_SECONDS)

        def error(job: Job, loaded: LoadedPlan) -> CoEdgeError:
            return lost_error(job, loaded, device, group.pids[device], group.lost[device], statuses)

        return error

    def late(self, job: Job, loaded: LoadedPlan, deadline: float, timeout_seconds: float) -> CoEdgeError:
        """Return the error of a frame that is about to pass its deadline (client's monotonic clock)."""
        seconds = max(0.05, min(STATUS_SECONDS, deadline - time.monotonic()))
        statuses = self._group.statuses(loaded.devices, seconds)
        return late_error(job, loaded, self._group.pids, timeout_seconds, statuses)


def lost_error(job: Job, loaded: LoadedPlan, device: str, pid: int, reason: str, statuses: Statuses) -> DeviceLost:
    """Return the error of a frame under way on a device that died. `statuses` are those of the other devices."""
    return DeviceLost(
        f"{device} (pid {pid}) was lost during frame {job.frame}, {_where(job, loaded, device, statuses)}: {reason}. "
        "Connect again, or plan without it"
    )


def late_error(
    job: Job, loaded: LoadedPlan, pids: Mapping[str, int], timeout_seconds: float, statuses: Statuses
) -> CoEdgeError:
    """Return the error of a late frame. It names the first that applies: a device that reports no status, a device
    that computes for the frame, or devices that wait for others."""
    silent = [name for name in loaded.devices if name not in statuses]
    if silent:
        name = silent[0]
        return DeviceLost(
            f"{name} (pid {pids[name]}) stopped answering during frame {job.frame}, "
            f"{_where(job, loaded, name, statuses)}. Is it overloaded, suspended, or off the network?"
        )
    for name, status in statuses.items():
        running = status.running
        if running is not None and running[:2] == (loaded.epoch, job.frame):
            step = loaded.programs[name].steps[running[2]]
            return FrameTimeout(
                f"frame {job.frame} was not answered in time: {name} has been in "
                f"{describe_step(step, loaded.model)} for {running[3]:.1f} s. Raise the timeout "
                f"(frame_timeout_seconds, now {timeout_seconds:g}) or plan with less for {name}"
            )
    return FrameTimeout(
        f"frame {job.frame} was not answered in time: {_waiting(job, loaded, statuses) or 'no device has begun it'}. "
        f"Raise the timeout (frame_timeout_seconds, now {timeout_seconds:g}), or send fewer frames at a time"
    )


def _where(job: Job, loaded: LoadedPlan, device: str, statuses: Statuses) -> str:
    """Describe the step of a device that does not report: the one whose rows another device waits for."""
    for name, status in statuses.items():
        for channel in status.waiting.get((loaded.epoch, job.frame), ()):
            receive = loaded.receive_of(name, channel)
            if receive is not None and receive.peer == device:
                return f"in {loaded.producer_of(device, channel)}, for which {name} waits"
    first = next(iter(loaded.programs[device].computes), None)
    return f"in {describe_step(first, loaded.model)}" if first else "before its first step"


def _waiting(job: Job, loaded: LoadedPlan, statuses: Statuses) -> str:
    """Describe which devices wait for which."""
    parts = []
    for name, status in statuses.items():
        channels = status.waiting.get((loaded.epoch, job.frame), ())
        receive = loaded.receive_of(name, channels[0]) if channels else None
        if receive is not None:
            parts.append(f"{name} waits for {receive.peer} (stage {receive.stage})")
    return ", ".join(parts)
