"""A step of a program with the times and bytes that the profile predicts for it. They are the same in every frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coedge.core.errors import PlanError
from coedge.execution.program import Program, Step
from coedge.graph.model import Model
from coedge.plan.codec import packed_nbytes
from coedge.profile.profile import Profile
from coedge.simulation.span import SpanKind
from coedge.simulation.step_costs import packing_seconds


@dataclass(slots=True)
class MediumQueue:
    """A shared medium during a simulation.

    Attributes:
        free_at: when it can take the next message, seconds.
        last_send: index of the span of the last message on it.
    """

    free_at: float = 0.0
    last_send: int = -1


@dataclass(slots=True)
class TimedStep:
    """A step with its predicted times.

    Attributes:
        busy_seconds: how long the step occupies its device.
        values: placeholders for the patches that the step writes.
        nbytes: of a message, its bytes as packed.
        wire_seconds: of a message, how long it occupies its up-link at least, and its down-link.
        media: of a message, the media that it passes, with the seconds that it occupies each.
    """

    kind: SpanKind
    label: str
    busy_seconds: float = 0.0
    values: tuple[None, ...] = ()
    stage: int = -1
    peer: str = ""
    channel: int = -1
    nbytes: int = 0
    wire_seconds: float = 0.0
    latency_seconds: float = 0.0
    media: tuple[tuple[MediumQueue, float], ...] = ()


def timed_step(
    program: Program, step: Step, profile: Profile, model: Model, media: Mapping[str, MediumQueue]
) -> TimedStep:
    """Return a step with its times. A receive lacks `nbytes` and `wire_seconds`: they are those of its send.

    Args:
        media: the queues of the profile's shared media, by name.

    Raises:
        PlanError: the profile lacks the device, a link, or the speed of a codec.
    """
    timed = TimedStep(
        step.kind, step.label(model.layers), 0.0, (None,) * len(step.writes), step.stage, step.peer, step.channel
    )
    if step.kind == "answer":
        return timed
    device = profile.by_name.get(program.device)
    if device is None:
        raise PlanError(f"the profile has no device {program.device!r}; measure the cluster again")
    if step.kind == "compute":
        timed.busy_seconds = device.compute_seconds(step.work)
    elif step.kind == "receive":
        timed.busy_seconds = device.receive_seconds + packing_seconds(program, step, model, device)
    else:
        timed.busy_seconds = device.send_seconds + packing_seconds(program, step, model, device)
        nbytes = packed_nbytes(program, step, model, profile.codec_ratios)
        link = profile.link(program.device, step.peer)
        passed = profile.media_between(link.sender, link.receiver)
        timed.nbytes, timed.wire_seconds = nbytes, nbytes / link.bytes_per_second
        timed.latency_seconds = link.latency_seconds
        timed.media = tuple((media[medium.name], nbytes / medium.bytes_per_second) for medium in passed)
    return timed
