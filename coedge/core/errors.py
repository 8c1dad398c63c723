"""The errors that the project raises on purpose.

    CoEdgeError
    ├── CaptureError        a model could not be turned into a graph
    │   └── DynamicShape    an input has a dynamic dimension and no example fixes it
    ├── InputError          an argument has another type or value than is needed, such as a tensor of another shape
    ├── ConfigError         a configuration file or override is wrong
    ├── PlanError           a plan does not fit its model or its cluster
    │   └── InfeasibleError no plan meets the objective
    ├── ClusterError        the cluster cannot be formed or reached
    │   ├── DeviceLost      a device died or stopped answering
    │   └── StepFailed      a device raised while it ran a step
    ├── FrameTimeout        a frame was not answered within its deadline
    └── Cancelled           the job was cancelled by its owner

A message has the fact, the cause, and the next thing to do.
"""

from __future__ import annotations


class CoEdgeError(Exception):
    """Base class of all errors of this project."""


class CaptureError(CoEdgeError):
    """A model could not be turned into a graph."""


class DynamicShape(CaptureError):
    """An input has a dynamic dimension and no example fixes it."""


class InputError(CoEdgeError, ValueError):
    """A tensor does not fit the model, or an argument is not what a function takes."""


class ConfigError(CoEdgeError, ValueError):
    """A configuration file or override is wrong."""


class PlanError(CoEdgeError, ValueError):
    """A plan does not fit its model or its cluster."""


class InfeasibleError(PlanError):
    """No plan meets the objective."""


class ClusterError(CoEdgeError, RuntimeError):
    """The cluster cannot be formed or reached."""


class DeviceLost(ClusterError):
    """A device died or stopped answering."""


class StepFailed(ClusterError):
    """A device raised an exception while it ran a step."""


class FrameTimeout(CoEdgeError, TimeoutError):
    """A frame was not answered within its deadline."""


class Cancelled(CoEdgeError):
    """The job was cancelled by its owner."""


def step_failed(device: str, step: str, error: BaseException | str, frame: int | None = None) -> StepFailed:
    """Return the error of a step, in one line.

    Args:
        step: its description, which names stage and layer.
        error: what was raised, or the text of it.
        frame: None where only one frame runs.
    """
    which = "" if frame is None else f", frame {frame}"
    reason = error if isinstance(error, str) else innermost_message(error)
    return StepFailed(f"{device} failed in {step}{which}: {reason}")


def reason_of(error: OSError | ValueError | TypeError) -> str:
    """Return why a file cannot be opened. `open` raises ValueError for a NUL in the path, TypeError for no path."""
    return getattr(error, "strerror", None) or str(error)


def innermost_message(error: BaseException) -> str:
    """Return the type and text of the innermost cause of an error, at most 1500 characters.

    Libraries wrap what a module raised, or the operator that they lack. The innermost cause has the fact.
    """
    messages: list[str] = []
    current: BaseException | None = error
    for _ in range(8):
        if current is None:
            break
        text = " ".join(str(current).split())
        if text:
            messages.append(f"{type(current).__name__}: {text}")
        current = current.__cause__ or current.__context__
    return (messages[-1] if messages else type(error).__name__)[:1500]
