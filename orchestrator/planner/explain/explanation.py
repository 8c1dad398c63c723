"""What an explanation of a plan consists of, and how it is put in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from coedge.core.objective import Objective
from coedge.core.units import mbps_of
from coedge.profile.profile import Profile
from coedge.simulation.timeline import EnergyItem, Timeline
from orchestrator.evaluation.evaluator import Evaluation

# A gain of less than this part of the whole is not worth a line; how many lines of a kind people are shown.
LEAST_SHARE, MOST_LINES = 1e-4, 8


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(_Value):
    """What a plan is predicted to cost; of a worth, what it saves.

    Attributes:
        energy_joules: of one frame, modelled.
        throughput_fps: at which the busiest device, link or medium has no time left.
    """

    latency_seconds: float
    energy_joules: float
    throughput_fps: float

    def cost(self, objective: Objective) -> float:
        return objective.cost(self.latency_seconds, self.energy_joules, self.throughput_fps)

    def saved(self, other: Figures) -> Figures:
        """What `other` is better by."""
        return Figures(
            latency_seconds=self.latency_seconds - other.latency_seconds,
            energy_joules=self.energy_joules - other.energy_joules,
            throughput_fps=other.throughput_fps - self.throughput_fps,
        )


def energy_source(profile: Profile, names: Iterable[str]) -> str:
    """That joules are modelled, and where the watts of these devices come from."""
    sources: dict[str, list[str]] = {}
    for name in names:
        sources.setdefault(profile.by_name[name].power_source, []).append(name)
    if len(sources) == 1:
        return f"modelled, watts: {next(iter(sources))}"
    return "modelled, watts: " + "; ".join(f"{source} ({', '.join(who)})" for source, who in sources.items())


def figures_of(timeline: Timeline, profile: Profile) -> Figures:
    return Figures(
        latency_seconds=timeline.latency_seconds,
        energy_joules=timeline.energy_joules(profile),
        throughput_fps=timeline.saturated_fps(profile),
    )


def figures_of_plan(evaluated: Evaluation) -> Figures:
    return Figures(
        latency_seconds=evaluated.latency_seconds,
        energy_joules=evaluated.energy_joules,
        throughput_fps=evaluated.throughput_fps,
    )


class PathPart(_Value):
    """What one device, or one link, adds to the latency of a frame.

    Attributes:
        kind: `client`: from asking until the input is at the source, `device`, and for the answer's way back.
        peer: of a transfer, the receiver.
        seconds: on the critical path, of which `latency_seconds` are messages on their way, on no wire.
        share: of the frame's latency.
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
    """A change, and what it would save with the same plan; or with a new one, where a constraint is loosened."""

    change: str
    saves: Figures


class Constraint(_Value):
    """One thing that the plan has to keep to.

    Attributes:
        state: `binds`: a better plan is known that breaks this one and no other.
        worth: of loosening it.
    """

    name: str
    state: Literal["met", "binds", "broken"]
    text: str
    worth: Sensitivity | None = None


class UnusedDevice(_Value):
    """What a device would cost that the plan gives nothing to do.

    Attributes:
        devices: alike in all that counts; the figures are those with one of them.
        now, with_it: figures of the plan, and of the best plan found with a share for the device in every stage
            that is split (in the heaviest layers, where none is). None: it cannot take part.
        share: its part of the work there.
        by_speed, share_by_speed: the same with the share that its speed would suggest.
        reason: the one of its figures that keeps it out, and what it would have to be.
    """

    devices: tuple[str, ...]
    now: Figures
    with_it: Figures | None
    share: float
    by_speed: Figures | None
    share_by_speed: float
    reason: str

    def words(self, objective: Objective) -> str:
        names = self.devices[0]
        if len(self.devices) > 1:
            names += f" (or {', '.join(self.devices[1:])}, alike)"
        if self.with_it is None:
            return f"{names} cannot take part: {self.reason}"
        now, then = goal_words(self.now, objective), goal_words(self.with_it, objective)
        worse = self.with_it.cost(objective) > self.now.cost(objective)
        raised = {"throughput": ("lower", "raise")}.get(objective.goal, ("raise", "lower"))[0 if worse else 1]
        text = f"adding {names} would {raised} {goal_name(objective)} from {now} to {then}"
        if now == then:
            text = f"adding {names} would leave {goal_name(objective)} at {now}"
        text += f", with {_percent(self.share)} of the work"
        if self.by_speed is not None and self.share_by_speed > self.share + 0.005:
            more = goal_words(self.by_speed, objective)
            text += f" ({more} with {_percent(self.share_by_speed)}, the share of its speed)"
        return f"{text}: {self.reason}" if self.reason else text


class Explanation(_Value):
    """Why a plan costs what it costs.

    Attributes:
        objective: what it is explained for: where no plan is in time, for least latency.
        energy_source: that joules are modelled, and where the watts come from.
        path: what the latency of a frame consists of, the largest part first.
        energy: joules of a frame by device and cause, modelled, with where the watts come from; largest first.
        busiest: the device, link or medium that limits a stream, and its part of the time at that rate (1) spent
            by a frame, seconds.
        binds: what decides, in words.
        worths: small changes of one figure each, largest gain first, those without any left out.
        constraints: what was asked for.
        unused_devices: the devices without a share.
    """

    objective: Objective
    figures: Figures
    energy_source: str
    bound_seconds: float
    path: tuple[PathPart, ...]
    energy: tuple[EnergyItem, ...]
    busiest: str
    busiest_seconds: float
    binds: str
    worths: tuple[Sensitivity, ...]
    constraints: tuple[Constraint, ...]
    unused_devices: tuple[UnusedDevice, ...]

    def __str__(self) -> str:
        lines = [f"what binds: {self.binds}", "", f"a frame takes {milliseconds(self.figures.latency_seconds)}:"]
        lines += columns(
            (part.words, milliseconds(part.seconds), f"{part.share:.0%}{_under_way(part)}") for part in self.path
        )
        if self.energy:
            lines += ["", f"and {joules(self.figures.energy_joules)}, {self.energy_source}:"]
            total = self.figures.energy_joules or 1.0
            lines += columns(
                (f"{item.device} {item.cause}", joules(item.joules), f"{item.joules / total:.0%}")
                for item in self.energy
            )
        lines += ["", "what small changes are worth, with the same plan:"]
        lines += columns(
            (worth.change, saved_words(self.figures, worth.saves, self.objective)) for worth in self.worths
        )
        if not self.worths:
            lines.append("  no single device or link is worth anything")
        if self.constraints:
            lines += ["", "constraints:", *(f"  {found.name}: {found.text}" for found in self.constraints)]
        if self.unused_devices:
            lines += ["", "devices left out:", *(f"  {item.words(self.objective)}" for item in self.unused_devices)]
        return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    return f"{_significant(seconds * 1e3)} ms"


def joules(amount: float) -> str:
    return f"{_significant(amount)} J" if abs(amount) >= 1 else f"{_significant(amount * 1e3)} mJ"


def mbps(bytes_per_second: float) -> str:
    rate = _significant(mbps_of(bytes_per_second))
    return f"{rate.rstrip('0').rstrip('.') if '.' in rate else rate} Mbit/s"


def goal_name(objective: Objective) -> str:
    if objective.goal == "latency" and objective.energy_weight:
        return "latency and joules"
    return {"latency": "latency", "energy": "joules", "throughput": "the rate"}[objective.goal]


def goal_words(figures: Figures, objective: Objective) -> str:
    """The figure that the objective asks for."""
    if objective.goal == "energy":
        return joules(figures.energy_joules)
    if objective.goal == "throughput":
        return f"{_significant(figures.throughput_fps)} frames/s"
    words = milliseconds(figures.latency_seconds)
    return f"{words} and {joules(figures.energy_joules)}" if objective.energy_weight else words


def saved_words(now: Figures, saves: Figures, objective: Objective) -> str:
    """What is saved, the figure that the objective asks for first."""
    time = _change(saves.latency_seconds, now.latency_seconds, milliseconds)
    energy = _change(saves.energy_joules, now.energy_joules, joules)
    words = [energy, time] if objective.goal == "energy" else [time, energy]
    saved = ", ".join(word for word in words if word)
    if objective.goal == "throughput":
        return f"gains {_significant(saves.throughput_fps)} frames/s" + (f", saves {saved}" if saved else "")
    return f"saves {saved or 'nothing'}"


def _change(saved: float, now: float, words: Callable[[float], str]) -> str:
    if abs(saved) <= LEAST_SHARE * now:
        return ""
    return words(saved) if saved > 0 else f"but costs {words(-saved)}"


def _under_way(part: PathPart) -> str:
    if part.latency_seconds <= 0.005 * part.seconds:
        return ""
    return f"  of it {milliseconds(part.latency_seconds)} under way"


def _significant(value: float) -> str:
    """Three digits at least, never an exponent."""
    if abs(value) < 1e-6:
        return "0"
    magnitude = math.floor(math.log10(float(f"{abs(value):.3g}")))
    return f"{value:.{max(2 - magnitude, 0)}f}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0095 else f"{share:.1%}"


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows as text, the columns in line; of many, the first ones."""
    table = list(rows)
    if not table:
        return []
    shown, more = table[:MOST_LINES], len(table) - MOST_LINES
    widths = [max(len(row[column]) for row in shown) for column in range(len(table[0]))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in shown]
    return lines if more <= 0 else [*lines, f"  and {more} smaller ones"]
