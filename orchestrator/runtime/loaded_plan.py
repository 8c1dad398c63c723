"""A plan that every device has ready, and words for its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from coedge.execution.program import Program, Receive, Step
from coedge.graph.model import Model
from coedge.plan.plan import Plan


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
        return self.programs[self.plan.source].input_channels[0]

    def receive_of(self, device: str, channel: int) -> Receive | None:
        """The step of a device that waits for a channel."""
        return next((r for r in self.programs[device].receives if r.channel == channel), None)

    def producer_of(self, device: str, channel: int) -> str:
        """The computation of a device whose rows go out on a channel, in words."""
        latest = "its first step"
        for step in self.programs[device].steps:
            if step.kind == "compute":
                latest = describe_step(step, self.model)
            if step.kind == "send" and step.channel == channel:
                break
        return latest


def describe_step(step: Step, model: Model) -> str:
    """For error messages: "stage 3 (conv_2)", "sending to pi-2 for stage 4"."""
    return step.description(model.layers)
