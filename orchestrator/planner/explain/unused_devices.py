"""What a device would cost that a plan leaves out, and which of its figures is to blame.

The best plan found in which it takes part (see `joining`) is put beside the plan as it is. Then each figure of the
device in turn is as good as can be: of those that make it pay, the one to blame has to change least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.planner.explain import sensitivity
from orchestrator.planner.explain.explanation import Figures, UnusedDevice, figures_of_plan, joules, mbps, milliseconds
from orchestrator.search.forced_inclusion import PARTS, ForcedInclusion, unused, whole_seconds, work_share

# How many of these plans are refined; as good as can be; how closely the factor is looked for at which it pays.
REFINED, IDEAL, PRECISION = 2, 100.0, 1.15
# A plan that costs about the same, relative.
SAME = 5e-3


@dataclass(frozen=True)
class _Figure:
    """A figure of a device that may keep it out.

    Attributes:
        better: the profile with it so many times as good.
        fact: what it is.
        remedy: what it is when so many times as good, as "from .. on".
    """

    better: Callable[[float], Profile]
    fact: str
    remedy: Callable[[float], str]


def unused_devices(
    plan: Plan, model: Model, profile: Profile, objective: Objective, done: Callable[[], None] = lambda: None
) -> tuple[UnusedDevice, ...]:
    """One entry for every group of devices without a share that are alike.

    Args:
        done: called after each.
    """
    study = _Study(plan, model, profile, objective)
    found = []
    for names in unused(plan, profile):
        found.append(study.of(names))
        done()
    return tuple(found)


class _Study:
    """Of one plan."""

    def __init__(self, plan: Plan, model: Model, profile: Profile, objective: Objective) -> None:
        self.plan, self.model, self.profile, self.objective = plan, model, profile, objective
        self.joining = ForcedInclusion(plan, model, objective, self._rank)

    def of(self, names: tuple[str, ...]) -> UnusedDevice:
        name, profile = names[0], self.profile
        base, evaluator = self._base(profile), Evaluator(self.model, profile, self.objective)
        found = [
            [evaluator.evaluate(stages) for stages in self.joining.structures(profile, name, part)] for part in PARTS
        ]
        seeds = sorted(
            (evaluated for part in found for evaluated in part), key=lambda evaluated: self._rank(evaluated, profile)
        )
        if not seeds:
            reason = "no layer can be given to it"
            if self.objective.keep_local >= len(self.model.layers):
                reason = f"all {len(self.model.layers)} layers are to stay on {profile.source}"
            return UnusedDevice(
                devices=names, now=base, with_it=None, share=0.0, by_speed=None, share_by_speed=0.0, reason=reason
            )
        refined = [self.joining.refined(evaluator, evaluated, name) for evaluated in seeds[:REFINED]]
        best = min([*seeds, *refined], key=lambda evaluated: self._rank(evaluated, profile))
        fair = min(found[0], key=lambda evaluated: self._rank(evaluated, profile), default=None)
        return UnusedDevice(
            devices=names, now=base, with_it=figures_of_plan(best), share=self._share(best, name),
            by_speed=None if fair is None else figures_of_plan(fair),
            share_by_speed=0.0 if fair is None else self._share(fair, name),
            reason=self._reason(name, base, best),
        )  # fmt: skip

    def _base(self, profile: Profile) -> Figures:
        """Of the plan as it is."""
        return figures_of_plan(Evaluator(self.model, profile, self.objective).evaluate(self.plan.stages))

    def _rank(self, evaluated: Evaluation, profile: Profile) -> tuple[float, float]:
        """How much of the constraints is broken, then cost."""
        late = 0.0
        if self.objective.deadline_seconds is not None:
            late = max(evaluated.latency_seconds / self.objective.deadline_seconds - 1, 0.0)
        return (evaluated.excess + late, figures_of_plan(evaluated).cost(self.objective))

    def _share(self, evaluated: Evaluation, name: str) -> float:
        return work_share(evaluated.plan.stages, name, self.model, self.profile)

    def _reason(self, name: str, base: Figures, best: Evaluation) -> str:
        excess, cost = self._rank(best, self.profile)
        if best.problems:
            return best.problems[0]
        if self.plan.feasible and excess > 0:
            return "it would then miss the deadline"
        loss = cost - base.cost(self.objective)
        if abs(loss) < SAME * cost:
            return "it is worth next to nothing here"
        if loss < 0:
            if self.plan.scheme == "auto":
                return "a plan that the search did not find"
            return f"{self.plan.scheme} does not look for such a plan"
        figures = list(self._figures(name, best))
        margins = [self._margin(figure.better(IDEAL), name, best) for figure in figures]
        paying = [figure for figure, margin in zip(figures, margins) if margin > 0]
        if paying:
            factors = [self._factor(figure, name, best) for figure in paying]
            factor, figure = min(zip(factors, paying), key=lambda item: item[0])
            return f"{figure.fact}; it would pay {figure.remedy(factor)}"
        margin, figure = max(zip(margins, figures), key=lambda item: item[0])
        if margin + loss <= 0.05 * loss:
            return "no figure of its own: splitting adds halos, messages and kernel starts that cost more than it saves"
        return f"{figure.fact}, which costs most; yet without that it would not pay either"

    def _margin(self, profile: Profile, name: str, best: Evaluation) -> float:
        """By how much the device pays on another profile: cost without it, less the cost with it."""
        evaluator = Evaluator(self.model, profile, self.objective)
        base = self._base(profile).cost(self.objective)
        structures = [stages for part in PARTS for stages in self.joining.structures(profile, name, part)]
        found = [evaluator.evaluate(stages) for stages in (best.plan.stages, *structures)]
        least = min(found, key=lambda evaluated: self._rank(evaluated, profile))
        if self._rank(least, profile)[1] >= base:
            least = self.joining.solved(evaluator, least, name)
        excess, cost = self._rank(least, profile)
        return base - cost if not excess or not self.plan.feasible else -float("inf")

    def _factor(self, figure: _Figure, name: str, best: Evaluation) -> float:
        """How many times as good the figure has to be, about."""
        low, high = 1.0, IDEAL
        while high / low > PRECISION:
            middle = (low * high) ** 0.5
            if self._margin(figure.better(middle), name, best) > 0:
                high = middle
            else:
                low = middle
        return high

    def _figures(self, name: str, best: Evaluation) -> Iterator[_Figure]:
        carried = [
            pair
            for pair in Evaluator(self.model, self.profile, self.objective).timeline(best).sent_nbytes()
            if name in pair
        ]
        if carried:
            yield self._rate(name, carried)
            slowest = max(self.profile.link(*pair).latency_seconds for pair in carried)
            if slowest > 0:
                yield _Figure(
                    lambda factor: sensitivity.lower_latency(self.profile, factor, [name]),
                    f"a message to or from it is {milliseconds(slowest)} on its way",
                    lambda factor: f"at about {milliseconds(slowest / factor)} or less",
                )
        times = {other: whole_seconds(self.model, self.profile, other) for other in (*self.joining.used, name)}
        fastest = min(self.joining.used, key=lambda other: times[other])
        speed = times[fastest] / times[name]
        # Above idle, half of the time is half of the joules: then the watts say it all.
        if self.objective.goal != "energy" or self.profile.joules == "total":
            yield _Figure(
                lambda factor: sensitivity.faster_device(self.profile, name, factor),
                f"it computes at {speed:.2g} x the speed of {fastest}",
                lambda factor: f"from about {speed * factor:.2g} x on",
            )
        devices = self.profile.by_name
        watts = devices[name].power.compute_watts
        if (self.objective.goal == "energy" or self.objective.energy_weight) and watts > 0:
            own, other = (joules(times[n] * devices[n].power.compute_watts) for n in (name, fastest))
            yield _Figure(
                lambda factor: sensitivity.fewer_watts(self.profile, name, factor),
                f"computing takes {watts:.3g} W there ({devices[name].power_source}), "
                f"{own} for a whole frame, where {fastest} takes {other}",
                lambda factor: f"at about {watts / factor:.2g} W or less",
            )

    def _rate(self, name: str, carried: list[tuple[str, str]]) -> _Figure:
        """The slowest of its links; or the medium, where that is what limits them."""
        rate = min(self.profile.link(*pair).bytes_per_second for pair in carried)
        media = [medium for pair in carried for medium in self.profile.media_between(*pair)]
        shared = min(media, key=lambda medium: medium.bytes_per_second, default=None)
        if shared is None or shared.bytes_per_second > rate:
            return _Figure(
                lambda factor: sensitivity.faster_links_of(self.profile, name, factor),
                f"its link carries {mbps(rate)}",
                lambda factor: f"from about {mbps(rate * factor)} on",
            )
        return _Figure(
            lambda factor: sensitivity.faster_medium(self.profile, shared.name, factor),
            f"{shared.name} carries {mbps(shared.bytes_per_second)} for all on it together",
            lambda factor: f"from about {mbps(shared.bytes_per_second * factor)} on",
        )
