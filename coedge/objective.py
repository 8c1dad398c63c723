"""What the user wants of a plan."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Objective(BaseModel):
    """What a plan is to minimise, and what it must keep to.

    Attributes:
        goal: `latency` minimises `latency_seconds + energy_weight * energy_joules`; `energy` minimises joules.
        deadline_ms: a plan whose predicted latency exceeds it is infeasible. None: no deadline.
        energy_weight: seconds that one joule is worth, for `goal="latency"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    goal: Literal["latency", "energy"] = "latency"
    deadline_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    energy_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def deadline_seconds(self) -> float | None:
        return None if self.deadline_ms is None else self.deadline_ms / 1000

    def cost(self, latency_seconds: float, energy_joules: float) -> float:
        """The number to minimise: joules for `energy`, weighted seconds for `latency`."""
        if self.goal == "energy":
            return energy_joules
        return latency_seconds + self.energy_weight * energy_joules

    def meets_deadline(self, latency_seconds: float) -> bool:
        return self.deadline_seconds is None or latency_seconds <= self.deadline_seconds
