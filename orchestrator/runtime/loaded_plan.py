"""A plan that is loaded on its devices, and descriptions of its steps for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from coedge.execution.program import Program, Receive, Step
from coedge.graph.model import Model
from coedge.plan.plan import Plan


@dataclass(frozen=True)
class LoadedPlan:
    """A plan with the program of every device.

    Attributes:
        epoch: identifies the loaded plan in messages.
        programs: by device name; devices that do not take part have programs without steps.
    """

    epoch: int
    model: Model
    plan: Plan
    programs: Mapping[str, Program]

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """The devices that take part."""
        return tuple(name for name, program in self.programs.items() if program.steps)

    @cached_property
    def input_channel(self) -> int:
        """The channel on which the source device receives the input from the client."""
        return self.programs[self.plan.source].input_channels[0]

    def receive_of(self, device: str, channel: int) -> Receive | None:
        """Return the step of a device that receives a channel; None if there is none."""
        return next((r for r in self.programs[device].receives if r.channel == channel), None)

    def producer_of(self, device: str, channel: int) -> str:
        """Describe the computation of a device that comes before its send on a channel."""
        latest = "its first step"
        for step in self.programs[device].steps:
            if step.kind == "compute":
                latest = describe_step(step, self.model)
            if step.kind == "send" and step.channel == channel:
                break
        return latest


def describe_step(step: Step, model: Model) -> str:
    """Describe a step for error messages: "stage 3 (conv_2)", "sending to pi-2 for stage 4"."""
    return step.description(model.layers)
