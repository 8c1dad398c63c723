"""The objective: what a plan minimises, and its limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coedge.core.record import Record


class Objective(Record):
    """The cost that a plan minimises, and the limits that it must meet.

    Attributes:
        goal: `latency` minimises `latency_seconds + energy_weight * energy_joules`; `energy` minimises joules;
            `throughput` minimises the seconds between answers of a stream, `+ energy_weight * energy_joules`.
        deadline_ms: a plan whose predicted latency exceeds it is infeasible. None: no deadline.
        energy_weight: seconds that one joule is worth. Not used with `goal="energy"`.
        keep_local: number of layers, from the first on, that stay on the source. The raw input stays there too.
        lossy: whether rows may travel as float16. The output is then no longer exact.
    """

    goal: Literal["latency", "energy", "throughput"] = "latency"
    deadline_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    energy_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    keep_local: int = Field(default=0, ge=0)
    lossy: bool = False

    @property
    def deadline_seconds(self) -> float | None:
        return None if self.deadline_ms is None else self.deadline_ms / 1000

    def cost(self, latency_seconds: float, energy_joules: float, throughput_fps: float | None = None) -> float:
        """Return the number to minimise: joules for `energy`, weighted seconds otherwise.

        Args:
            throughput_fps: frames per second of a stream. None: one frame at a time.
        """
        if self.goal == "energy":
            return energy_joules
        seconds = latency_seconds
        if self.goal == "throughput" and throughput_fps:
            seconds = 1 / throughput_fps
        return seconds + self.energy_weight * energy_joules

    def meets_deadline(self, latency_seconds: float) -> bool:
        return self.deadline_seconds is None or latency_seconds <= self.deadline_seconds
