"""A span: one step of one device, on the clock of whoever asked."""

from __future__ import annotations

from typing import Literal, NamedTuple

from coedge.execution.program import Program
from coedge.graph.model import Model

SpanKind = Literal["compute", "send", "receive", "answer"]


class Span(NamedTuple):
    """One step of one device. Seconds are of the client's clock, from the start of the first frame.

                predicted                               measured
        compute the kernels of a step, or (un)packing   the kernels of a step
        send    the message is on the up-link           the device packs it and hands it to the transport
        receive the message is on the down-link         the device takes it and unpacks it
        answer  the outputs are there                   the device packs them and hands them to the transport

    Attributes:
        nbytes: what a message carried as packed, without its header.
        stage: of a computation; of a message, the stage that needs what it brings.
        peer: of a message, the other device.
        channel: of a message; with the frame it tells which receive belongs to which send.
        cause: of a prediction, the place in the timeline of the span that this one waited for until it began;
            -1: it waited for nothing but the frame.
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
