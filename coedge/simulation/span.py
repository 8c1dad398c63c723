"""A span: one step of one device, on the clock of the client."""

from __future__ import annotations

from typing import Literal, NamedTuple

from coedge.execution.program import Program
from coedge.graph.model import Model

SpanKind = Literal["compute", "send", "receive", "answer"]


class Span(NamedTuple):
    """One step of one device. Times are in seconds on the client's clock, from the start of the first frame.

                predicted                               measured
        compute kernels, packing or unpacking           kernels
        send    the message is on the up-link           the device packs it and gives it to the transport
        receive the message is on the down-link         the device takes it and unpacks it
        answer  the outputs are assembled               the device assembles them and gives them to the transport

    Attributes:
        stage: the stage of a computation, or the stage that needs a message; -1 for an answer.
        peer: the other device of a message.
        nbytes: bytes of a message as packed, without its header.
        channel: the channel of a message. Frame and channel identify the receive that belongs to a send.
        cause: in a prediction, the index of the span that this one waited for; -1 if it waited for the frame only.
    """

    device: str
    frame: int
    kind: SpanKind
    label: str
    start_seconds: float
    stop_seconds: float
    stage: int = -1
    peer: str = ""
    nbytes: int = 0
    channel: int = -1
    cause: int = -1

    @property
    def seconds(self) -> float:
        return self.stop_seconds - self.start_seconds


def span_of(
    program: Program, index: int, model: Model, frame: int, start_seconds: float, stop_seconds: float, nbytes: int
) -> Span:
    """Return the span of step `index`, which a device ran between these times.

    Args:
        nbytes: bytes of the step's message as packed; 0 without a message.
    """
    step = program.steps[index]
    return Span(
        program.device, frame, step.kind, step.label(model.layers), start_seconds, stop_seconds,
        step.stage, step.peer, nbytes, step.channel,
    )  # fmt: skip
