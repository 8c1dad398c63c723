"""Figures: the predicted latency, energy and frame rate of a plan."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from coedge.core.objective import Objective
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline
from orchestrator.evaluation.evaluator import Evaluation


class Figures(BaseModel):
    """Predicted cost of a plan, or the difference between two plans.

    Attributes:
        energy_joules: modelled, per frame.
        throughput_fps: the rate at which the busiest device, link or medium has no spare time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_seconds: float
    energy_joules: float
    throughput_fps: float

    def cost(self, objective: Objective) -> float:
        """Return the cost as the objective defines it; less is better."""
        return objective.cost(self.latency_seconds, self.energy_joules, self.throughput_fps)

    def saved(self, other: Figures) -> Figures:
        """Return by how much `other` is better; negative values mean that it is worse."""
        return Figures(
            latency_seconds=self.latency_seconds - other.latency_seconds,
            energy_joules=self.energy_joules - other.energy_joules,
            throughput_fps=other.throughput_fps - self.throughput_fps,
        )

    def after(self, saved: Figures) -> Figures:
        """Return the figures with the savings subtracted: the inverse of `saved`."""
        return Figures(
            latency_seconds=self.latency_seconds - saved.latency_seconds,
            energy_joules=self.energy_joules - saved.energy_joules,
            throughput_fps=self.throughput_fps + saved.throughput_fps,
        )


def figures_of(timeline: Timeline, profile: Profile) -> Figures:
    """Return the figures of a simulated or measured timeline."""
    return Figures(
        latency_seconds=timeline.latency_seconds,
        energy_joules=timeline.energy_joules(profile),
        throughput_fps=timeline.saturated_fps(profile),
    )


def figures_of_plan(evaluated: Evaluation) -> Figures:
    """Return the figures of an evaluated plan."""
    return Figures(
        latency_seconds=evaluated.latency_seconds,
        energy_joules=evaluated.energy_joules,
        throughput_fps=evaluated.throughput_fps,
    )


def energy_source(profile: Profile, names: Iterable[str]) -> str:
    """Describe where the joules of these devices come from: the model, and the source of its watts."""
    sources: dict[str, list[str]] = {}
    for name in names:
        sources.setdefault(profile.by_name[name].power_source, []).append(name)
    if len(sources) == 1:
        return f"modelled, watts: {next(iter(sources))}"
    return "modelled, watts: " + "; ".join(f"{source} ({', '.join(devices)})" for source, devices in sources.items())
