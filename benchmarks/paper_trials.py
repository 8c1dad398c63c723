"""The trials behind the figures of the CoEdge paper: each is a plan for some devices and links.

`coedge` and `auto` plan for least energy within the deadline, as the paper does. Figure 13 also shows plans for least
latency, because its deadline leaves all of the work to the device that uses the least energy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, Prediction, even_plan
from coedge.profile.profile import Profile
from coedge.simulation.simulator import simulate
from orchestrator.planner.planner import AUTO, make_plan

VALUES = Path(__file__).parent / "data" / "paper.json"
PAPERS: Mapping[str, Any] = json.loads(VALUES.read_text(encoding="utf-8"))
NETWORKS: tuple[str, ...] = tuple(PAPERS["deadlines_ms"])
SCHEMES = ("local", "modnn", "musical_chair", "coedge", AUTO)
SWEPT = "alexnet"
# Deadlines in addition to those of the paper, which may be met where the paper's cannot.
DEADLINES_MS = (50, 75, 100, 125, 150, 200, 250, 300, 400, 500)
PERCENT = tuple(range(0, 101, 10))

Maker = Callable[[Model, Profile], Plan]


@dataclass(frozen=True)
class Trial:
    """A bar or a marker of a figure.

    Attributes:
        figure: "10" covers figures 10 and 11, which show latency and energy of the same trials.
        series, x: position in the figure.
        make: returns the plan, given the profile of all devices with the links of this trial.
        factor: factor on the rate of all links of the test bed.
        moment: trials of different moments are separate even with equal links: rates are set and measured again.
        deadline_ms: deadline of the plan, or None.
        paper_ms, paper_joules: values in the paper, or None.
    """

    figure: str
    series: str
    x: str
    network: str
    make: Maker
    factor: float = 1.0
    moment: int = 0
    deadline_ms: float | None = None
    paper_ms: float | None = None
    paper_joules: float | None = None


def trials(scale: float, networks: Sequence[str] = NETWORKS) -> list[Trial]:
    """Return all trials, with links of `scale` times the rates of the paper."""
    found = [*_figure_10(networks), *_figure_12(), *_figure_13(), *_figure_14(), *_figure_3()]
    return [_scaled(trial, scale) for trial in found]


def _scaled(trial: Trial, scale: float) -> Trial:
    return Trial(**{**vars(trial), "factor": trial.factor * scale})


def _figure_10(networks: Sequence[str]) -> list[Trial]:
    found = []
    for network in networks:
        deadline = PAPERS["deadlines_ms"][network]
        for scheme in SCHEMES:
            found.append(
                Trial(
                    "10", scheme, network, network, _by_scheme(scheme, deadline), deadline_ms=deadline,
                    paper_ms=PAPERS["figure_10_ms"][network].get(scheme),
                    paper_joules=PAPERS["figure_11_joules"][network].get(scheme),
                )
            )  # fmt: skip
    return found


def _figure_12() -> list[Trial]:
    joules = PAPERS["figure_12_joules"]
    return [
        Trial(
            "12", scheme, str(deadline), SWEPT, _by_scheme(scheme, deadline), deadline_ms=deadline,
            paper_joules=joules.get(str(deadline)) if scheme == "coedge" else None,
        )
        for scheme in ("coedge", AUTO)
        for deadline in DEADLINES_MS
    ]  # fmt: skip


def _figure_13() -> list[Trial]:
    devices, deadline = PAPERS["figure_13_devices"], PAPERS["figure_13_deadline_ms"]
    found = []
    for count in range(1, len(devices) + 1):
        there = tuple(devices[:count])
        x = f"{count}: {there[-1]}"
        of_paper = {
            "paper_ms": PAPERS["figure_13_ms"][count - 1],
            "paper_joules": PAPERS["figure_13_joules"][count - 1],
        }
        for series, scheme, goal in (
            ("coedge", "coedge", "energy"),
            ("coedge, least latency", "coedge", "latency"),
            ("auto, least latency", AUTO, "latency"),
        ):
            found.append(
                Trial(
                    "13", series, x, SWEPT, _by_scheme(scheme, deadline, goal, there), deadline_ms=deadline,
                    **(of_paper if series == "coedge" else {}),
                )
            )  # fmt: skip
    return found


def _figure_14() -> list[Trial]:
    rates, deadline = PAPERS["figure_14_kilobytes_per_second"], PAPERS["figure_14_deadline_ms"]
    found = []
    for step, rate in enumerate(rates):
        for scheme in ("coedge", "modnn", "musical_chair", AUTO):
            found.append(
                Trial(
                    "14", scheme, f"{step + 1}: {rate} KB/s", SWEPT, _by_scheme(scheme, deadline),
                    factor=rate / rates[0], moment=step + 1, deadline_ms=deadline,
                    paper_ms=PAPERS["figure_14_ms"][step] if scheme == "coedge" else None,
                )
            )  # fmt: skip
    return found


def _figure_3() -> list[Trial]:
    first, second = PAPERS["figure_3_devices"]
    joules = PAPERS["figure_3_joules"]
    return [
        Trial("3", f"{first} and {second}", str(percent), SWEPT, _split(first, second, percent / 100),
              paper_joules=joules.get(str(percent)))
        for percent in PERCENT
    ]  # fmt: skip


def _by_scheme(scheme: str, deadline_ms: float, goal: str = "energy", there: tuple[str, ...] | None = None) -> Maker:
    """Return the plan of a scheme. The baselines ignore deadlines."""
    wanted = Objective() if scheme in ("local", "modnn", "musical_chair") else Objective.model_validate(
        {"goal": goal, "deadline_ms": deadline_ms}
    )  # fmt: skip

    def make(model: Model, profile: Profile) -> Plan:
        away = [name for name in profile.names if there is not None and name not in there]
        return make_plan(model, profile.without(away), wanted, scheme)

    return make


def _split(first: str, second: str, share: float) -> Maker:
    """Return a plan with a stage per layer, and a given share of the rows on the first of two devices."""

    def make(model: Model, profile: Profile) -> Plan:
        plan = even_plan(model, (first, second), boundaries=(share,), source=profile.source)
        timeline = simulate(lower(plan, model), profile, model)
        predicted = Prediction(
            latency_seconds=timeline.latency_seconds, energy_joules=timeline.energy_joules(profile),
            throughput_fps=timeline.saturated_fps(profile),
        )  # fmt: skip
        return plan.model_copy(update={"predicted": predicted})

    return make


def with_rates(profile: Profile, factor: float) -> Profile:
    """Return the profile with the rates of all links and media multiplied by a factor."""

    def faster(items: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(
            item.model_copy(update={"bytes_per_second": item.bytes_per_second * factor}) for item in items
        )  # fmt: skip

    return profile.model_copy(update={"links": faster(profile.links), "media": faster(profile.media)})
