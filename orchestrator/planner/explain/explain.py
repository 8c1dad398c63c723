"""Why a plan costs what it costs: what a frame waits for, what small changes are worth, who is left out and why.

the plan as it is        its critical path, its joules by cause, what would limit a stream
one figure changed       the same plan simulated again
a constraint loosened    planned again
a device more            see `unused_devices`
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, check_plan
from coedge.profile.profile import Profile
from coedge.simulation.simulator import simulate
from coedge.simulation.timeline import Timeline
from orchestrator.evaluation.divisible_load import bound_seconds
from orchestrator.planner.explain import sensitivity
from orchestrator.planner.explain.constraints import check_constraints
from orchestrator.planner.explain.explanation import (
    LEAST_SHARE,
    Explanation,
    Figures,
    PathPart,
    Sensitivity,
    energy_source,
    figures_of,
    goal_name,
    joules,
    milliseconds,
)
from orchestrator.planner.explain.unused_devices import unused_devices
from orchestrator.search.forced_inclusion import unused

# How much each figure is changed, and how many links are looked at, the busiest first.
DEVICE, LINK, MOST_LINKS = 1.01, 1.10, 32

Done = Callable[[], None]


def explain(
    plan: Plan,
    model: Model,
    profile: Profile,
    objective: Objective,
    everybody: Profile | None = None,
    done: Done = lambda: None,
) -> Explanation:
    """Explains a plan of a model on a profile.

    Args:
        objective: what the plan was made for. A plan that misses its deadline is explained for least latency.
        everybody: the profile with the devices that the user excluded, so that they can be reckoned with, too.
        done: called after each of its parts.

    Raises:
        PlanError: plan, model and profile do not belong together.
    """
    profile.check(model)
    check_plan(plan, model)
    strangers = [name for name in (plan.sink, *plan.used_devices) if name not in profile.names]
    if plan.source != profile.source or plan.sink != profile.source or strangers:
        raise PlanError(
            f"the plan goes from {plan.source} by {', '.join(plan.used_devices)} to {plan.sink}; what is explained "
            f"goes from {profile.source} and back by devices of the profile: {', '.join(profile.names)}"
        )
    programs = lower(plan, model)

    def simulated(changed: Profile) -> Timeline:
        return simulate(programs, changed, model)

    timeline = simulated(profile)
    figures, path = figures_of(timeline, profile), path_of(timeline)
    busiest, busiest_seconds = busiest_of(timeline, profile)
    aim = objective
    if not objective.meets_deadline(figures.latency_seconds):
        aim = objective.model_copy(update={"goal": "latency", "energy_weight": 0.0})
    energy = tuple(sorted(timeline.energy(profile), key=lambda item: -item.joules))
    worths = []
    for change, changed in _changes(plan, timeline, profile, path):
        saves = figures.saved(figures_of(simulated(changed), changed))
        worths.append(Sensitivity(change=change, saves=saves))
    done()
    constraints = check_constraints(plan, model, profile, objective, figures, everybody)
    done()
    partial = Explanation(
        objective=aim,
        figures=figures,
        energy_source=energy_source(profile, plan.used_devices),
        bound_seconds=bound_seconds(model, profile),
        path=path,
        energy=energy,
        busiest=busiest,
        busiest_seconds=busiest_seconds,
        binds="",
        worths=_worth_a_line(worths, figures, aim),
        constraints=constraints,
        unused_devices=unused_devices(plan, model, profile, aim, done),
    )
    return partial.model_copy(update={"binds": _binds(partial)})


def parts_of(plan: Plan, profile: Profile) -> int:
    """How often `explain` says that it has done a part."""
    return 2 + len(unused(plan, profile))


def path_of(timeline: Timeline) -> tuple[PathPart, ...]:
    """What the latency of the first frame consists of, by device and link; the largest part first."""
    wire: dict[tuple[str, str], float] = defaultdict(float)
    under_way: dict[tuple[str, str], float] = defaultdict(float)
    spans = timeline.critical_path()
    for span, following in zip(spans, (*spans[1:], None)):
        if span.kind == "receive":  # queued at the down-link: the time of the link that it came by
            key = (span.peer, span.device)
        else:
            key = (span.device, span.peer if span.kind == "send" else "")
        wire[key] += span.seconds
        if following is not None:  # a gap behind a message is its latency
            under_way[key] += following.start_seconds - span.stop_seconds
    asked, answered = timeline.answered[min(timeline.answered)]
    latency = max(answered - asked, 1e-12)
    parts = [
        PathPart(
            kind="transfer" if peer else "compute", device=device, peer=peer, seconds=seconds + under_way[device, peer],
            latency_seconds=under_way[device, peer], share=(seconds + under_way[device, peer]) / latency,
        )
        for (device, peer), seconds in wire.items()
    ]  # fmt: skip
    client = latency - sum(part.seconds for part in parts)
    if spans and client > 1e-9 * latency:
        parts.append(
            PathPart(
                kind="client", device=spans[-1].device, peer="", seconds=client, latency_seconds=client,
                share=client / latency,
            )
        )  # fmt: skip
    return tuple(sorted((part for part in parts if part.seconds > 0), key=lambda part: -part.seconds))


def busiest_of(timeline: Timeline, profile: Profile) -> tuple[str, float]:
    """What limits a stream, and the seconds that a frame occupies it."""
    used = timeline.utilisation(profile)
    kinds = ((used.devices, "{}"), (used.up_links, "up-link of {}"), (used.down_links, "down-link of {}"))
    named = [(share, words.format(name)) for shares, words in kinds for name, share in shares.items()]
    named += [(share, name) for name, share in used.media.items()]
    share, name = max(named, key=lambda item: item[0])
    return name, share * timeline.makespan_seconds / max(len(timeline.answered), 1)


def _changes(
    plan: Plan, timeline: Timeline, profile: Profile, path: tuple[PathPart, ...]
) -> Iterator[tuple[str, Profile]]:
    """Each figure that the plan depends on, a little better."""
    for name in plan.used_devices:
        yield f"{name} 1 % faster", sensitivity.faster_device(profile, name, DEVICE)
    on_path = {(part.device, part.peer): part.seconds for part in path}
    sent = timeline.sent_nbytes()
    ranked = sorted(
        sent, key=lambda pair: (-on_path.get(pair, 0.0), -sent[pair] / profile.link(*pair).bytes_per_second)
    )
    for sender, receiver in ranked[:MOST_LINKS]:
        changed = sensitivity.faster_link(profile, sender, receiver, LINK)
        yield f"10 % more bandwidth {sender} -> {receiver}", changed
    for medium in profile.media:
        if any(medium in profile.media_between(*pair) for pair in sent):
            yield f"10 % more bandwidth of {medium.name}", sensitivity.faster_medium(profile, medium.name, LINK)
    if any(profile.link(*pair).latency_seconds > 0 for pair in sent):
        yield "10 % less latency of all links", sensitivity.lower_latency(profile, LINK)


def _worth_a_line(worths: list[Sensitivity], figures: Figures, objective: Objective) -> tuple[Sensitivity, ...]:
    """Those that save some of what the objective counts, most first."""
    now = figures.cost(objective)

    def gain(worth: Sensitivity) -> float:
        return now - _after(figures, worth.saves).cost(objective)

    return tuple(sorted((w for w in worths if gain(w) > LEAST_SHARE * now), key=lambda w: -gain(w)))


def _after(figures: Figures, saves: Figures) -> Figures:
    return Figures(
        latency_seconds=figures.latency_seconds - saves.latency_seconds,
        energy_joules=figures.energy_joules - saves.energy_joules,
        throughput_fps=figures.throughput_fps + saves.throughput_fps,
    )


def _binds(found: Explanation) -> str:
    """The bottleneck, and the constraints that bind, in one line."""
    objective, figures = found.objective, found.figures
    if objective.goal == "energy" and found.energy:
        first = found.energy[0]
        part = first.joules / max(figures.energy_joules, 1e-12)
        words = f"{first.device} {first.cause}, {joules(first.joules)} of {joules(figures.energy_joules)} ({part:.0%})"
    elif objective.goal == "throughput":
        words = f"{found.busiest}, busy for {milliseconds(found.busiest_seconds)} with every frame"
    elif found.path:
        first_part = found.path[0]
        words = f"{first_part.words}, {first_part.share:.0%} of the latency"
    else:
        words = f"nothing that counts for {goal_name(objective)}"
    tight = [constraint.name for constraint in found.constraints if constraint.state != "met"]
    return f"{words}; and {', '.join(tight)}" if tight else words
