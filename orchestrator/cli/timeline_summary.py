"""Timelines as numbers: latencies, rates, energy, use of resources."""

from __future__ import annotations

import json
from typing import Any

from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline


def summary(timeline: Timeline, profile: Profile, in_flight: int) -> dict[str, Any]:
    """Return what a timeline shows as JSON values: seconds, joules and shares of the time."""
    from orchestrator.planner.explain.explain import busiest_of, path_of

    latencies = latencies_of(timeline)
    busiest, busiest_seconds = busiest_of(timeline, profile)
    used = timeline.utilisation(profile)
    return {
        "measured": timeline.measured,
        "estimate_error": None if profile.estimate_error is None else profile.estimate_error.model_dump(),
        "frames": len(latencies),
        "in_flight": in_flight,
        "latency_seconds": {
            "mean": timeline.latency_seconds,
            "p50": quantile(latencies, 0.5),
            "p95": quantile(latencies, 0.95),
            "max": latencies[-1],
        },
        "makespan_seconds": timeline.makespan_seconds,
        "throughput_fps": rate_of(timeline, profile, in_flight),
        "saturated_fps": timeline.saturated_fps(profile),
        "energy_joules_per_frame": timeline.energy_joules(profile),
        "energy": [
            {"device": item.device, "cause": item.cause, "joules": item.joules, "source": item.source}
            for item in timeline.energy(profile)
        ],
        "compute_seconds": timeline.compute_seconds(),
        "idle_seconds": timeline.idle_seconds(),
        "utilisation": {
            "devices": dict(used.devices),
            "up_links": dict(used.up_links),
            "down_links": dict(used.down_links),
            "media": dict(used.media),
        },
        "busiest": {"name": busiest, "seconds_per_frame": busiest_seconds},
        "critical_path": [json.loads(part.model_dump_json()) for part in path_of(timeline)],
    }


def rate_of(timeline: Timeline, profile: Profile, in_flight: int) -> float:
    """Return the frame rate of a stream.

    The rate of a short stream is limited to what its busiest resource allows in the long run.
    """
    return min(timeline.steady_fps(in_flight), timeline.saturated_fps(profile))


def latencies_of(timeline: Timeline) -> list[float]:
    """Return the latency of every frame in seconds, the shortest first."""
    return sorted(stop - start for start, stop in timeline.answered.values())


def quantile(values: list[float], share: float) -> float:
    """Return the least value that at least `share` of the values do not exceed."""
    import numpy as np

    return float(np.quantile(values, share, method="inverted_cdf"))
