"""Explain a plan: its critical path and energy, the effect of small changes, its constraints, and unused devices.

critical path, energy, busiest resource   the plan as it is
sensitivities                             the same plan simulated with one figure changed
constraints                               a new plan with the constraint loosened
unused devices                            plans with one more device; see `unused_devices`
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.execution.program import Program
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, check_plan
from coedge.profile.profile import Profile
from coedge.simulation.simulator import simulate
from coedge.simulation.timeline import Timeline
from orchestrator.evaluation.divisible_load import bound_seconds
from orchestrator.planner.explain import sensitivity
from orchestrator.planner.explain.constraints import check_constraints
from orchestrator.planner.explain.explanation import Explanation, PathPart, Sensitivity
from orchestrator.planner.explain.figures import Figures, energy_source, figures_of
from orchestrator.planner.explain.unused_devices import unused_devices
from orchestrator.planner.explain.wording import MIN_SHARE, goal_name, joules, milliseconds
from orchestrator.search.forced_inclusion import unused

# Factors by which the speed of a device, and the rate or latency of a link, are improved.
DEVICE_FACTOR, LINK_FACTOR = 1.01, 1.10
# Maximum number of links that are examined, the busiest first.
MAX_LINKS = 32

Done = Callable[[], None]


def explain(
    plan: Plan,
    model: Model,
    profile: Profile,
    objective: Objective,
    full_profile: Profile | None = None,
    done: Done = lambda: None,
) -> Explanation:
    """Explain a plan of a model on a profile.

    Args:
        objective: the objective of the plan. A plan that misses its deadline is explained for least latency.
        full_profile: the profile including the devices that the user excluded, so that their effect is explained too.
        done: called after each of `progress_steps(plan, profile)` steps.

    Raises:
        PlanError: plan, model and profile do not belong together.
    """
    profile.check(model)
    check_plan(plan, model)
    _check_devices(plan, profile)
    programs = lower(plan, model)
    timeline = simulate(programs, profile, model)
    figures, path = figures_of(timeline, profile), path_of(timeline)
    busiest, busiest_seconds = busiest_of(timeline, profile)
    explained = objective
    if not objective.meets_deadline(figures.latency_seconds):
        explained = objective.model_copy(update={"goal": "latency", "energy_weight": 0.0})
    sensitivities = _sensitivities(programs, model, figures, _changes(plan, timeline, profile, path))
    done()
    constraints = check_constraints(plan, model, profile, objective, figures, full_profile)
    done()
    partial = Explanation(
        objective=explained,
        figures=figures,
        energy_source=energy_source(profile, plan.used_devices),
        bound_seconds=bound_seconds(model, profile),
        path=path,
        energy=tuple(sorted(timeline.energy(profile), key=lambda item: -item.joules)),
        busiest=busiest,
        busiest_seconds=busiest_seconds,
        bottleneck="",
        sensitivities=_worth_showing(sensitivities, figures, explained),
        constraints=constraints,
        unused_devices=unused_devices(plan, model, profile, explained, done),
    )
    return partial.model_copy(update={"bottleneck": _bottleneck(partial)})


def progress_steps(plan: Plan, profile: Profile) -> int:
    """Return how often `explain` calls `done`."""
    return 2 + len(unused(plan, profile))


def path_of(timeline: Timeline) -> tuple[PathPart, ...]:
    """Return the critical path of the first frame by device and link, the largest part first."""
    busy: dict[tuple[str, str], float] = defaultdict(float)
    link_latency: dict[tuple[str, str], float] = defaultdict(float)
    spans = timeline.critical_path()
    for span, following in zip(spans, (*spans[1:], None)):
        if span.kind == "receive":  # queued at the down-link: counts for the link that the message came over
            key = (span.peer, span.device)
        else:
            key = (span.device, span.peer if span.kind == "send" else "")
        busy[key] += span.seconds
        if following is not None:  # the gap after a message is the link's latency
            link_latency[key] += following.start_seconds - span.stop_seconds
    asked, answered = timeline.answered[min(timeline.answered)]
    latency = max(answered - asked, 1e-12)
    parts = [
        _path_part("transfer" if peer else "compute", device, peer, seconds, link_latency[device, peer], latency)
        for (device, peer), seconds in busy.items()
    ]
    client = latency - sum(part.seconds for part in parts)
    if spans and client > 1e-9 * latency:
        parts.append(_path_part("client", spans[-1].device, "", 0.0, client, latency))
    return tuple(sorted((part for part in parts if part.seconds > 0), key=lambda part: -part.seconds))


def busiest_of(timeline: Timeline, profile: Profile) -> tuple[str, float]:
    """Return the device, link or medium that limits a stream, and its busy seconds per frame."""
    used = timeline.utilisation(profile)
    kinds = ((used.devices, "{}"), (used.up_links, "up-link of {}"), (used.down_links, "down-link of {}"))
    named = [(share, words.format(name)) for shares, words in kinds for name, share in shares.items()]
    named += [(share, name) for name, share in used.media.items()]
    share, name = max(named, key=lambda item: item[0])
    return name, share * timeline.makespan_seconds / max(len(timeline.answered), 1)


def _check_devices(plan: Plan, profile: Profile) -> None:
    unknown = [name for name in (plan.sink, *plan.used_devices) if name not in profile.names]
    if plan.source != profile.source or plan.sink != profile.source or unknown:
        raise PlanError(
            f"the plan goes from {plan.source} by {', '.join(plan.used_devices)} to {plan.sink}, but only a plan from "
            f"{profile.source} and back to it, by devices of the profile ({', '.join(profile.names)}), can be explained"
        )


def _path_part(
    kind: Literal["compute", "transfer", "client"],
    device: str,
    peer: str,
    busy_seconds: float,
    latency_seconds: float,
    frame_seconds: float,
) -> PathPart:
    seconds = busy_seconds + latency_seconds
    return PathPart(
        kind=kind, device=device, peer=peer, seconds=seconds, latency_seconds=latency_seconds,
        share=seconds / frame_seconds,
    )  # fmt: skip


def _changes(
    plan: Plan, timeline: Timeline, profile: Profile, path: tuple[PathPart, ...]
) -> Iterator[tuple[str, Profile]]:
    """Yield a description and a profile for a small improvement of each figure that the plan depends on."""
    for name in plan.used_devices:
        yield f"{name} 1 % faster", sensitivity.faster_device(profile, name, DEVICE_FACTOR)
    on_path = {(part.device, part.peer): part.seconds for part in path}
    sent = timeline.sent_nbytes()
    ranked = sorted(
        sent, key=lambda pair: (-on_path.get(pair, 0.0), -sent[pair] / profile.link(*pair).bytes_per_second)
    )
    for sender, receiver in ranked[:MAX_LINKS]:
        changed = sensitivity.faster_link(profile, sender, receiver, LINK_FACTOR)
        yield f"10 % more bandwidth {sender} -> {receiver}", changed
    for medium in profile.media:
        if any(medium in profile.media_between(*pair) for pair in sent):
            changed = sensitivity.faster_medium(profile, medium.name, LINK_FACTOR)
            yield f"10 % more bandwidth of {medium.name}", changed
    if any(profile.link(*pair).latency_seconds > 0 for pair in sent):
        yield "10 % less latency of all links", sensitivity.lower_latency(profile, LINK_FACTOR)


def _sensitivities(
    programs: Mapping[str, Program], model: Model, figures: Figures, changes: Iterator[tuple[str, Profile]]
) -> list[Sensitivity]:
    """Simulate the same plan on every changed profile."""
    return [
        Sensitivity(change=change, saves=figures.saved(figures_of(simulate(programs, changed, model), changed)))
        for change, changed in changes
    ]


def _worth_showing(sensitivities: list[Sensitivity], figures: Figures, objective: Objective) -> tuple[Sensitivity, ...]:
    """Return the changes that improve what the objective optimises, the largest gain first."""
    cost = figures.cost(objective)

    def gain(one: Sensitivity) -> float:
        return cost - figures.after(one.saves).cost(objective)

    return tuple(sorted((one for one in sensitivities if gain(one) > MIN_SHARE * cost), key=lambda one: -gain(one)))


def _bottleneck(explanation: Explanation) -> str:
    """Name the bottleneck and the constraints that bind or are broken, in one line."""
    objective, figures = explanation.objective, explanation.figures
    if objective.goal == "energy" and explanation.energy:
        first = explanation.energy[0]
        share = first.joules / max(figures.energy_joules, 1e-12)
        words = f"{first.device} {first.cause}, {joules(first.joules)} of {joules(figures.energy_joules)} ({share:.0%})"
    elif objective.goal == "throughput":
        words = f"{explanation.busiest}, busy for {milliseconds(explanation.busiest_seconds)} per frame"
    elif explanation.path:
        part = explanation.path[0]
        words = f"{part.words}, {part.share:.0%} of the latency"
    else:
        words = f"nothing that counts for {goal_name(objective)}"
    tight = [constraint.name for constraint in explanation.constraints if constraint.state != "met"]
    return f"{words}; and {', '.join(tight)}" if tight else words
