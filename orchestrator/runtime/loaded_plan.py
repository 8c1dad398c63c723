"""A plan that every device has ready, and words for its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from coedge.execution.program import CLIENT, Answer, Compute, Program, Receive, Send, Step
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.simulation.simulator import step_label


@dataclass(frozen=True)
class LoadedPlan:
    """A plan under its epoch: the number that its messages carry."""

    epoch: int
    model: Model
    plan: Plan
    programs: Mapping[str, Program]

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Those that take part."""
        return tuple(name for name, program in self.programs.items() if program.steps)

    @cached_property
    def input_channel(self) -> int:
        steps = self.programs[self.plan.source].steps
        return next(s.channel for s in steps if isinstance(s, Receive) and s.peer == CLIENT)

    def receive_of(self, device: str, channel: int) -> Receive | None:
        """The step of a device that waits for a channel."""
        steps = self.programs[device].steps
        return next((s for s in steps if isinstance(s, Receive) and s.channel == channel), None)

    def producer_of(self, device: str, channel: int) -> str:
        """The computation of a device whose rows go out on a channel, in words."""
        latest = "its first step"
        for step in self.programs[device].steps:
            if isinstance(step, Compute):
                latest = describe_step(step, self.model)
            if isinstance(step, Send) and step.channel == channel:
                break
        return latest


def describe_step(step: Step, model: Model) -> str:
    """For error messages: "stage 3 (conv_2)", "sending to pi-2 for stage 4"."""
    if isinstance(step, Compute):
        return f"stage {step.stage} ({step_label(step, model)})"
    if isinstance(step, Send):
        return f"sending to {step.peer} for stage {step.stage}"
    if isinstance(step, Receive):
        return f"receiving from {step.peer} for stage {step.stage}"
    assert isinstance(step, Answer)
    return "putting the answer together"
