"""The explanation of a plan: its values, and their text."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from coedge.core.objective import Objective
from coedge.simulation.timeline import EnergyItem
from orchestrator.planner.explain.figures import Figures
from orchestrator.planner.explain.wording import (
    columns,
    goal_name,
    goal_words,
    joules,
    milliseconds,
    percent,
    saved_words,
)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PathPart(_Value):
    """Contribution of one device or one link to the latency of a frame.

    Attributes:
        kind: `client` is the time from the request until the input is at the source, `device`, plus the time of the
            answer's way back.
        peer: receiver of a transfer; empty otherwise.
        seconds: time on the critical path. `latency_seconds` of it are link latency.
        share: share of the frame's latency.
    """

    kind: Literal["compute", "transfer", "client"]
    device: str
    peer: str
    seconds: float
    latency_seconds: float
    share: float

    @property
    def words(self) -> str:
        if self.kind == "client":
            return f"client <-> {self.device}"
        return f"{self.device} computing" if self.kind == "compute" else f"link {self.device} -> {self.peer}"


class Sensitivity(_Value):
    """A change of one figure and its savings.

    The savings are those of the same plan, or of a new plan if the change loosens a constraint.
    """

    change: str
    saves: Figures


class Constraint(_Value):
    """A constraint of the objective and how the plan meets it.

    Attributes:
        state: `binds` means that a better plan is known that breaks this constraint and no other.
        sensitivity: savings if the constraint is loosened.
    """

    name: str
    state: Literal["met", "binds", "broken"]
    text: str
    sensitivity: Sensitivity | None = None


class UnusedDevice(_Value):
    """A device without work in the plan, and the cost of the plan with it.

    Attributes:
        devices: devices with the same figures and links. The other attributes hold for adding one of them.
        current: figures of the plan.
        with_device: figures of the best plan found in which the device has a share of every split stage, or of the
            heaviest layers if no stage is split. None if it cannot take part.
        share: its share of the work in that plan.
        proportional, proportional_share: the same for the best plan in which its share is proportional to its speed.
        reason: the figure of the device that keeps it out, and the value from which it would pay.
    """

    devices: tuple[str, ...]
    current: Figures
    with_device: Figures | None
    share: float
    proportional: Figures | None
    proportional_share: float
    reason: str

    def words(self, objective: Objective) -> str:
        """Describe the device in one sentence."""
        names = self.devices[0]
        if len(self.devices) > 1:
            names += f" (or {', '.join(self.devices[1:])}, alike)"
        if self.with_device is None:
            return f"{names} cannot take part: {self.reason}"
        before, after = goal_words(self.current, objective), goal_words(self.with_device, objective)
        if before == after:
            text = f"adding {names} would leave {goal_name(objective)} at {before}"
        else:
            worse = self.with_device.cost(objective) > self.current.cost(objective)
            verb = "raise" if worse != (objective.goal == "throughput") else "lower"
            text = f"adding {names} would {verb} {goal_name(objective)} from {before} to {after}"
        text += f", with {percent(self.share)} of the work"
        if self.proportional is not None and self.proportional_share > self.share + 0.005:
            share = percent(self.proportional_share)
            text += f" ({goal_words(self.proportional, objective)} with {share}, in proportion to its speed)"
        return f"{text}: {self.reason}" if self.reason else text


class Explanation(_Value):
    """Reasons for the cost of a plan.

    Attributes:
        objective: the objective of the explanation: that of the plan, or least latency if it misses its deadline.
        energy_source: description of where the joules come from.
        bound_seconds: the divisible-load bound.
        path: parts of the critical path of a frame, the largest first.
        energy: modelled joules per frame by device and cause, the largest first.
        busiest: the device, link or medium that limits the frame rate of a stream.
        busiest_seconds: seconds per frame for which it is busy.
        bottleneck: the bottleneck and the binding constraints in one line.
        sensitivities: savings by small changes of one figure each, the largest first; changes without savings are
            omitted.
        constraints: constraints of the objective.
        unused_devices: devices without work.
    """

    objective: Objective
    figures: Figures
    energy_source: str
    bound_seconds: float
    path: tuple[PathPart, ...]
    energy: tuple[EnergyItem, ...]
    busiest: str
    busiest_seconds: float
    bottleneck: str
    sensitivities: tuple[Sensitivity, ...]
    constraints: tuple[Constraint, ...]
    unused_devices: tuple[UnusedDevice, ...]

    def __str__(self) -> str:
        lines = [f"bottleneck: {self.bottleneck}", ""]
        lines.append(f"latency of a frame: {milliseconds(self.figures.latency_seconds)}")
        lines += columns(
            (part.words, milliseconds(part.seconds), f"{part.share:.0%}{_link_latency(part)}") for part in self.path
        )
        if self.energy:
            total = self.figures.energy_joules
            lines += ["", f"energy of a frame: {joules(total)} ({self.energy_source})"]
            lines += columns(
                (f"{item.device} {item.cause}", joules(item.joules), f"{item.joules / (total or 1.0):.0%}")
                for item in self.energy
            )
        lines += ["", "sensitivity of the same plan to small changes:"]
        lines += columns(
            (one.change, saved_words(self.figures, one.saves, self.objective)) for one in self.sensitivities
        )
        if not self.sensitivities:
            lines.append("  no change of a single device or link saves anything")
        if self.constraints:
            lines += ["", "constraints:", *(f"  {one.name}: {one.text}" for one in self.constraints)]
        if self.unused_devices:
            lines += ["", "unused devices:", *(f"  {device.words(self.objective)}" for device in self.unused_devices)]
        return "\n".join(lines)


def _link_latency(part: PathPart) -> str:
    if part.latency_seconds <= 0.005 * part.seconds:
        return ""
    return f"  ({milliseconds(part.latency_seconds)} of it link latency)"
