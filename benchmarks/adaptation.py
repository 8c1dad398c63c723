"""Adaptation to links that change, in virtual time: a stream of frames over traces of the links' rate.

    static      the plan for the rate of the first frame
    adaptive    measured frames feed the estimates; after an event, the plan for the estimated profile, and once more
                when links that the plan has left are estimated anew. The next frame still runs the old plan
    oracle      the plan for the rate of each frame

All three choose from the same plans: those of a search at several rates, with boundaries solved again for the profile.
AlexNet runs on the test bed of the CoEdge paper; all links have the rate of the trace. Kernel times have log-normal
noise, and one frame in a hundred takes several times as long on one device, alike for all three.

`python -m benchmarks.adaptation [--json] [--quick] [--frames 240] [--seeds 5] [--save FILE]`, about three minutes.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.report import Report, parser
from benchmarks.traces import MEGABYTE, TRACES
from coedge.core.figure_style import INK, frame
from coedge.core.objective import Objective
from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.profile.slowdown import Slowdown
from coedge.profile.testbed import load_testbed, profile_of
from coedge.simulation.simulator import simulate
from coedge.simulation.timeline import Timeline
from orchestrator.adaptation.estimates import LATELY_FRAMES, Estimates
from orchestrator.cli.models import load_model
from orchestrator.planner.planner import make_plan
from orchestrator.planner.replan import BoundarySolver

BED = Path(__file__).resolve().parent.parent / "configs" / "testbeds" / "paper.yaml"
NETWORK, BASE_RATE = "alexnet", MEGABYTE
POLICIES = ("static", "adaptive", "oracle")
# Rates at which plans are searched, in MB/s.
SEARCHED = (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0, 6.3)
# The oracle's plans are for rates rounded to steps of this factor.
ROUNDING = 1.02
# The deadline over the latency that is predicted at the base rate.
DEADLINE = 1.25
NOISE, HELD_UP = 0.05, 0.01
# Most latency of the adaptive plans over the oracle's.
MOST_LOSS = 1.05
# Student's t for a two-sided interval of 95 %, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 9: 2.26}


class Planner:
    """Plans for any rate: those of a search at several rates, with new boundaries."""

    def __init__(self, model: Model, base: Profile, searched: Sequence[float]) -> None:
        self.model, self.base, self.objective = model, base, Objective()
        profiles = [self.at(rate * MEGABYTE) for rate in searched]
        self._solvers = [BoundarySolver(make_plan(model, one, self.objective), model, one) for one in profiles]
        self._at_rate = lru_cache(maxsize=None)(lambda step: self.best(self.at(BASE_RATE * ROUNDING**step)))

    def at(self, rate: float) -> Profile:
        """Return the profile in which all links have a rate."""
        return Slowdown(links={(one.sender, one.receiver): BASE_RATE / rate for one in self.base.links}).of(self.base)

    def best(self, profile: Profile) -> Choice:
        plans = [solver.resolve(profile, self.objective) for solver in self._solvers]
        return Choice.of(min(plans, key=latency_of), self.model, self.base)

    def for_rate(self, rate: float) -> Choice:
        return self._at_rate(round(math.log(rate / BASE_RATE, ROUNDING)))


@dataclass(frozen=True)
class Choice:
    """A plan with its programs and the timeline that the base profile predicts."""

    plan: Plan
    programs: Mapping[str, Program]
    predicted: Timeline

    @classmethod
    def of(cls, plan: Plan, model: Model, base: Profile) -> Choice:
        programs = lower(plan, model)
        return cls(plan, programs, simulate(programs, base, model))


@dataclass
class Outcome:
    """What a policy made of a trace: latency, joules and plan changes."""

    seconds: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    switches: int = 0

    def in_time(self, deadline_seconds: float) -> float:
        return statistics.fmean(seconds <= deadline_seconds for seconds in self.seconds)


def latency_of(plan: Plan) -> float:
    assert plan.predicted is not None
    return plan.predicted.latency_seconds


def as_measured(timeline: Timeline) -> Timeline:
    """Return a predicted timeline as devices would report it: messages are short steps at the ends of their way."""
    spans = [
        span._replace(stop_seconds=span.start_seconds) if span.kind == "send"
        else span._replace(start_seconds=span.stop_seconds) if span.kind == "receive"
        else span
        for span in timeline.spans
    ]  # fmt: skip
    return replace(timeline, spans=tuple(spans), measured=True)


def truths(planner: Planner, trace: Sequence[float], seed: int) -> list[Profile]:
    """Return the true profile of each frame: the rate of the trace and noise of the devices."""
    generator, made = random.Random(f"noise {seed}"), []
    for rate in trace:
        noise = {name: math.exp(generator.gauss(0, NOISE)) for name in planner.base.names}
        if generator.random() < HELD_UP:
            noise[generator.choice(planner.base.names)] *= generator.uniform(3, 10)
        made.append(Slowdown(devices=noise).of(planner.at(rate)))
    return made


def follow(planner: Planner, trace: Sequence[float], profiles: Sequence[Profile], policy: str) -> Outcome:
    """Run a stream of frames over a trace."""
    outcome, first = Outcome(), planner.at(trace[0])
    estimates = Estimates(first)
    choice = Choice.of(planner.for_rate(trace[0]).plan, planner.model, first)
    waiting: Choice | None = None
    again = 0  # frames until the links that the plan has left are estimated by their neighbours
    for rate, profile in zip(trace, profiles):
        if policy == "oracle":
            now = planner.for_rate(rate)
            outcome.switches += now.plan.stages != choice.plan.stages
            choice = now
        done = simulate(choice.programs, profile, planner.model)
        outcome.seconds.append(done.latency_seconds)
        outcome.joules.append(done.energy_joules(profile))
        if policy != "adaptive":
            continue
        events = estimates.observe(as_measured(done), choice.predicted)
        choice, waiting = waiting or choice, None
        again = LATELY_FRAMES if events else again - 1
        if events or again == 0:
            better = planner.best(estimates.profile())
            if better.plan.stages != choice.plan.stages:
                outcome.switches += 1
                waiting = Choice.of(better.plan, planner.model, first)
    return outcome


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half of its interval of 95 %."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, 0.0
    return mean, STUDENT.get(count - 1, 2.0) * statistics.stdev(values) / math.sqrt(count)


def main() -> None:
    made = parser(__doc__, frames=240, seeds=5)
    made.add_argument("--save", type=Path, help="write the table as Markdown to this file, and a picture next to it")
    options = made.parse_args()
    frames, seeds = (60, 2) if options.quick else (options.frames, options.seeds)
    report = Report("adaptation")
    model = load_model(NETWORK, 224)
    planner = Planner(model, profile_of(load_testbed(BED), model), SEARCHED[3:5] if options.quick else SEARCHED)
    runs: dict[str, list[dict[str, Outcome]]] = {}
    for name, trace_of in TRACES.items():
        runs[name] = []
        for seed in range(seeds):
            trace = trace_of(frames, seed)
            profiles = truths(planner, trace, seed)
            runs[name].append({policy: follow(planner, trace, profiles, policy) for policy in POLICIES})
    deadline = DEADLINE * latency_of(planner.for_rate(BASE_RATE).plan)
    for name, its in runs.items():
        _note(report, name, its, deadline)
    if options.save:
        options.save.write_text(markdown(runs, deadline, frames, seeds), encoding="utf-8")
        draw({name: its[0] for name, its in runs.items()}, frames, options.save.with_suffix(".svg"))
    report.finish(options.json)


def _note(report: Report, name: str, runs: Sequence[Mapping[str, Outcome]], deadline: float) -> None:
    for policy in POLICIES:
        outcomes = [run[policy] for run in runs]
        seconds = [statistics.fmean(one.seconds) for one in outcomes]
        report.sample(f"{name}, {policy}: s", seconds)
        report.sample(f"{name}, {policy}: J", [statistics.fmean(one.joules) for one in outcomes])
        report.note(f"{name}, {policy}: mean latency", 1e3 * statistics.fmean(seconds), "ms")
        report.note(
            f"{name}, {policy}: in time", 100 * statistics.fmean(one.in_time(deadline) for one in outcomes), "%"
        )
    mean, half = interval(losses(runs, "adaptive"))
    report.at_most(f"{name}: adaptive over oracle", mean, f"+- {half:.3f}", MOST_LOSS)
    mean, half = interval(losses(runs, "static"))
    report.note(f"{name}: static over oracle", mean, f"+- {half:.3f}")


def losses(runs: Sequence[Mapping[str, Outcome]], policy: str) -> list[float]:
    """Return the mean latency of a policy over the oracle's, per seed."""
    return [statistics.fmean(run[policy].seconds) / statistics.fmean(run["oracle"].seconds) for run in runs]


def markdown(runs: Mapping[str, Sequence[Mapping[str, Outcome]]], deadline: float, frames: int, seeds: int) -> str:
    lines = [
        "# Adaptation to changing links, simulated",
        "",
        f"AlexNet on the test bed of the CoEdge paper, in virtual time: {frames} frames, one after the other, over",
        f"traces of the links' rate, with {seeds} seeds. The static plan is for the first rate. The adaptive plan",
        "follows what the frames show: a change-point detector per device and link, another plan after an event, one",
        "frame of delay. The oracle knows the rate of every frame, but not the noise of the devices, so it is not",
        "always the best one can do. Nothing here was measured on devices. The time of planning is not counted.",
        "",
        f"Latency and joules are means per frame. A frame is in time within {DEADLINE} times the latency that is",
        "predicted at 1 MB/s. Intervals are of 95 %, over the seeds.",
        "",
        "| trace | plan | latency, ms | over the oracle | in time, % | J per frame | changes of plan |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, its in runs.items():
        for policy in POLICIES:
            outcomes = [run[policy] for run in its]
            mean, half = interval(losses(its, policy))
            over = "1" if policy == "oracle" else f"{mean:.3f} ± {half:.3f}"
            cells = [
                name if policy == POLICIES[0] else "",
                policy,
                f"{1e3 * statistics.fmean(statistics.fmean(one.seconds) for one in outcomes):.1f}",
                over,
                f"{100 * statistics.fmean(one.in_time(deadline) for one in outcomes):.1f}",
                f"{statistics.fmean(statistics.fmean(one.joules) for one in outcomes):.3f}",
                f"{statistics.fmean(one.switches for one in outcomes):.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| trace | rate of all links |",
        "|---|---|",
        "| paper | 1000, 750, 500, 1250, 1500, 1000 KB/s in turn, as in the paper's experiment |",
        "| halving | 1 MB/s, then half |",
        "| random walk | from 1 MB/s, 3 % per frame, between 0.25 and 4 MB/s |",
        "| mobile | 2, 5, 10, 20 or 50 Mbit/s, some 60 frames each, with 10 % of noise in every frame |",
        "",
        "![The first seed: rate, latency and joules](adaptation.svg)",
        "",
        "`python -m benchmarks.adaptation --save docs/results/adaptation.md` repeats it.",
        "",
    ]
    return "\n".join(lines)


_COLOURS = {"static": "#E69F00", "adaptive": "#0072B2", "oracle": "#222222"}


def draw(runs: Mapping[str, Mapping[str, Outcome]], frames: int, path: Path) -> None:
    """Draw the first seed: a column per trace; rate, latency and joules one below the other."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "adaptation"}):
        figure: Any = Figure(figsize=(3.1 * len(runs), 5.6), dpi=120, layout="constrained")
        for column, (name, outcomes) in enumerate(runs.items()):
            rows = [figure.add_subplot(3, len(runs), row * len(runs) + column + 1) for row in range(3)]
            rows[0].plot([rate / MEGABYTE for rate in TRACES[name](frames, 0)], color=INK, linewidth=1)
            rows[0].set_title(name, loc="left", fontsize=9, color=INK)
            for policy, outcome in outcomes.items():
                style = {"color": _COLOURS[policy], "linewidth": 0.8, "label": policy}
                rows[1].plot(_smooth([1e3 * seconds for seconds in outcome.seconds]), **style)
                rows[2].plot(_smooth(outcome.joules), **style)
            for axes, label in zip(rows, ("rate, MB/s", "latency, ms", "energy, J")):
                frame(axes, "y", 7)
                axes.set_ylim(bottom=0)
                if column == 0:
                    axes.set_ylabel(label, fontsize=8, color=INK)
            rows[2].set_xlabel("frame", fontsize=8, color=INK)
            if column == 0:
                rows[1].legend(fontsize=7, frameon=False)
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Return the median of each value and its neighbours, without the frames that were held up."""
    half = width // 2
    return [statistics.median(values[max(at - half, 0) : at + half + 1]) for at in range(len(values))]


if __name__ == "__main__":
    main()
