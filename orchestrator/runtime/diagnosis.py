"""Why is there no answer? From what the devices say that they do and wait for, to an error that names one."""

from __future__ import annotations

from collections.abc import Mapping

from coedge.core.errors import CoEdgeError, DeviceLost, FrameTimeout
from orchestrator.runtime.job import Job
from orchestrator.runtime.loaded_plan import LoadedPlan, describe_step
from workers.runtime.spec import WorkerStatus

Statuses = Mapping[str, WorkerStatus]


def lost_error(job: Job, loaded: LoadedPlan, device: str, pid: int, reason: str, statuses: Statuses) -> DeviceLost:
    """A device died. `statuses` are of those that are left."""
    return DeviceLost(
        f"{device} (pid {pid}) was lost during frame {job.frame}, {_where(job, loaded, device, statuses)}: {reason}. "
        "Connect again, or plan without it"
    )


def late_error(
    job: Job, loaded: LoadedPlan, pids: Mapping[str, int], timeout_seconds: float, statuses: Statuses
) -> CoEdgeError:
    """A frame is late: a device does not answer, or computes, or waits for one to which nothing comes."""
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
        f"frame {job.frame} was not answered in time: {_waits(job, loaded, statuses) or 'no device has begun it'}. "
        f"Raise the timeout (frame_timeout_seconds, now {timeout_seconds:g}), or send fewer frames at a time"
    )


def _where(job: Job, loaded: LoadedPlan, device: str, statuses: Statuses) -> str:
    """In which step a device was, as far as those that wait for it can tell."""
    for name, status in statuses.items():
        for channel in status.waiting.get((loaded.epoch, job.frame), ()):
            receive = loaded.receive_of(name, channel)
            if receive is not None and receive.peer == device:
                return f"in {loaded.producer_of(device, channel)}, for which {name} waits"
    first = next(iter(loaded.programs[device].computes), None)
    return f"in {describe_step(first, loaded.model)}" if first else "before its first step"


def _waits(job: Job, loaded: LoadedPlan, statuses: Statuses) -> str:
    parts = []
    for name, status in statuses.items():
        channels = status.waiting.get((loaded.epoch, job.frame), ())
        receive = loaded.receive_of(name, channels[0]) if channels else None
        if receive is not None:
            parts.append(f"{name} waits for {receive.peer} (stage {receive.stage})")
    return ", ".join(parts)
