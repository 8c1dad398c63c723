"""Unused devices: the cost of a plan with one more device, and the figure of the device that keeps it out.

The best plan found in which the device takes part (see `forced_inclusion`) is compared with the plan. Then each figure
of the device in turn is improved as far as possible. Of the figures that make the device pay, the reason given is the
one that has to improve least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.planner.explain import sensitivity
from orchestrator.planner.explain.explanation import UnusedDevice
from orchestrator.planner.explain.figures import Figures, figures_of_plan
from orchestrator.planner.explain.wording import joules, mbps, milliseconds
from orchestrator.search.forced_inclusion import PARTS, ForcedInclusion, unused, work_share

# Number of plans with the device that are refined.
REFINED = 2
# Factor of an ideal figure, and the relative precision of the factor from which the device pays.
IDEAL, PRECISION = 100.0, 1.15
# Relative tolerance below which two plans count as equal.
TOLERANCE = 5e-3


@dataclass(frozen=True)
class _DeviceFigure:
    """A figure of a device that may keep it out of the plan.

    Attributes:
        better: returns the profile with the figure improved by a factor.
        fact: the present value, as text.
        remedy: returns the value improved by a factor, as text such as "from about 3 Mbit/s on".
    """

    better: Callable[[float], Profile]
    fact: str
    remedy: Callable[[float], str]


def unused_devices(
    plan: Plan, model: Model, profile: Profile, objective: Objective, done: Callable[[], None] = lambda: None
) -> tuple[UnusedDevice, ...]:
    """Explain why devices have no work, with one entry for every group of devices that are alike.

    Args:
        done: called after each entry.
    """
    study = _DeviceStudy(plan, model, profile, objective)
    entries = []
    for names in unused(plan, profile):
        entries.append(study.explain(names))
        done()
    return tuple(entries)


class _DeviceStudy:
    """Plans with one more device, compared with one plan."""

    def __init__(self, plan: Plan, model: Model, profile: Profile, objective: Objective) -> None:
        self.plan, self.model, self.profile, self.objective = plan, model, profile, objective
        self.inclusion = ForcedInclusion(plan, model, objective, self._rank)

    def explain(self, names: tuple[str, ...]) -> UnusedDevice:
        """Explain why devices that are alike have no work."""
        name, profile = names[0], self.profile
        current, evaluator = self._current(profile), Evaluator(self.model, profile, self.objective)
        by_share = [
            [evaluator.evaluate(stages) for stages in self.inclusion.structures(evaluator.table, name, part)]
            for part in PARTS
        ]
        plans = sorted((plan for group in by_share for plan in group), key=lambda plan: self._rank(plan, profile))
        if not plans:
            return UnusedDevice(
                devices=names, current=current, with_device=None, share=0.0, proportional=None, proportional_share=0.0,
                reason=self._no_layer(),
            )  # fmt: skip
        refined = [self.inclusion.refined(evaluator, plan, name) for plan in plans[:REFINED]]
        best = min([*plans, *refined], key=lambda plan: self._rank(plan, profile))
        proportional = min(by_share[0], key=lambda plan: self._rank(plan, profile), default=None)
        return UnusedDevice(
            devices=names, current=current, with_device=figures_of_plan(best), share=self._share(best, name),
            proportional=None if proportional is None else figures_of_plan(proportional),
            proportional_share=0.0 if proportional is None else self._share(proportional, name),
            reason=self._reason(name, current, best),
        )  # fmt: skip

    def _no_layer(self) -> str:
        if self.objective.keep_local >= len(self.model.layers):
            return f"all {len(self.model.layers)} layers have to stay on {self.profile.source}"
        return "no layer can run on it"

    def _current(self, profile: Profile) -> Figures:
        """Return the figures of the plan, without the device, on a profile."""
        return figures_of_plan(Evaluator(self.model, profile, self.objective).evaluate(self.plan.stages))

    def _rank(self, evaluated: Evaluation, profile: Profile) -> tuple[float, float]:
        """Return the excess over the constraints, then the cost; less is better."""
        late = 0.0
        if self.objective.deadline_seconds is not None:
            late = max(evaluated.latency_seconds / self.objective.deadline_seconds - 1, 0.0)
        return (evaluated.excess + late, figures_of_plan(evaluated).cost(self.objective))

    def _share(self, evaluated: Evaluation, name: str) -> float:
        return work_share(evaluated.plan.stages, name, self.model, self.profile)

    def _reason(self, name: str, current: Figures, best: Evaluation) -> str:
        """Return the reason why the best plan with the device is not used."""
        excess, cost = self._rank(best, self.profile)
        if best.problems:
            return best.problems[0]
        if self.plan.feasible and excess > 0:
            return "the plan would then miss the deadline"
        loss = cost - current.cost(self.objective)
        if abs(loss) < TOLERANCE * cost:
            return "it would change next to nothing"
        if loss < 0:
            if self.plan.scheme == "auto":
                return "the search did not find this plan"
            return f"{self.plan.scheme} does not look for such a plan"
        return self._limiting_figure(name, best, loss)

    def _limiting_figure(self, name: str, best: Evaluation, loss: float) -> str:
        """Return the figure that keeps the device out, and the value from which the device would pay.

        Args:
            loss: the cost of the best plan with the device less that of the plan.
        """
        figures = list(self._figures(name, best))
        margins = [self._margin(figure.better(IDEAL), name, best) for figure in figures]
        paying = [figure for figure, margin in zip(figures, margins) if margin > 0]
        if paying:
            factors = [self._factor(figure, name, best) for figure in paying]
            factor, figure = min(zip(factors, paying), key=lambda item: item[0])
            return f"{figure.fact}; it would pay {figure.remedy(factor)}"
        margin, figure = max(zip(margins, figures), key=lambda item: item[0])
        if margin + loss <= 0.05 * loss:
            return "no single figure: the halos, messages and kernel starts of splitting cost more than it saves"
        return f"{figure.fact}, which costs most; but it would not pay without that cost either"

    def _margin(self, profile: Profile, name: str, best: Evaluation) -> float:
        """Return the cost without the device less the cost with it, on a changed profile."""
        evaluator = Evaluator(self.model, profile, self.objective)
        current = self._current(profile).cost(self.objective)
        structures = [stages for part in PARTS for stages in self.inclusion.structures(evaluator.table, name, part)]
        plans = [evaluator.evaluate(stages) for stages in (best.plan.stages, *structures)]
        least = min(plans, key=lambda plan: self._rank(plan, profile))
        if self._rank(least, profile)[1] >= current:
            least = self.inclusion.solved(evaluator, least, name)
        excess, cost = self._rank(least, profile)
        return current - cost if not excess or not self.plan.feasible else -float("inf")

    def _factor(self, figure: _DeviceFigure, name: str, best: Evaluation) -> float:
        """Return the factor from which the improved figure makes the device pay, by bisection."""
        low, high = 1.0, IDEAL
        while high / low > PRECISION:
            middle = (low * high) ** 0.5
            if self._margin(figure.better(middle), name, best) > 0:
                high = middle
            else:
                low = middle
        return high

    def _figures(self, name: str, best: Evaluation) -> Iterator[_DeviceFigure]:
        """Yield the figures of a device that count in a plan: link rate, latency, speed and watts."""
        evaluator = Evaluator(self.model, self.profile, self.objective)
        links = [pair for pair in evaluator.timeline(best).sent_nbytes() if name in pair]
        if links:
            yield self._rate(name, links)
            slowest = max(self.profile.link(*pair).latency_seconds for pair in links)
            if slowest > 0:
                yield _DeviceFigure(
                    lambda factor: sensitivity.lower_latency(self.profile, factor, [name]),
                    f"its link has a latency of {milliseconds(slowest)}",
                    lambda factor: f"at about {milliseconds(slowest / factor)} or less",
                )
        table = CostTable.of(self.model, self.profile)
        whole = table.whole_seconds()
        times = {other: float(whole[table.position[other]]) for other in (*self.inclusion.used, name)}
        fastest = min(self.inclusion.used, key=lambda other: times[other])
        # Dynamic energy is watts x time, so for the goal of energy the watts cover the speed.
        if self.objective.goal != "energy" or self.profile.joules == "total":
            yield self._speed(name, fastest, times[fastest] / times[name])
        if self.objective.goal == "energy" or self.objective.energy_weight:
            yield from self._watts(name, fastest, times)

    def _speed(self, name: str, fastest: str, speed: float) -> _DeviceFigure:
        return _DeviceFigure(
            lambda factor: sensitivity.faster_device(self.profile, name, factor),
            f"it computes at {speed:.2g} x the speed of {fastest}",
            lambda factor: f"from about {speed * factor:.2g} x on",
        )

    def _watts(self, name: str, fastest: str, times: dict[str, float]) -> Iterator[_DeviceFigure]:
        devices = self.profile.by_name
        watts = devices[name].power.compute_watts
        if watts > 0:
            own, other = (joules(times[n] * devices[n].power.compute_watts) for n in (name, fastest))
            yield _DeviceFigure(
                lambda factor: sensitivity.fewer_watts(self.profile, name, factor),
                f"it takes {watts:.3g} W to compute ({devices[name].power_source}), "
                f"{own} for a whole frame; {fastest} takes {other}",
                lambda factor: f"at about {watts / factor:.2g} W or less",
            )

    def _rate(self, name: str, links: list[tuple[str, str]]) -> _DeviceFigure:
        """Return the rate of the slowest of its links, or of the medium if that limits them."""
        rate = min(self.profile.link(*pair).bytes_per_second for pair in links)
        media = [medium for pair in links for medium in self.profile.media_between(*pair)]
        shared = min(media, key=lambda medium: medium.bytes_per_second, default=None)
        if shared is None or shared.bytes_per_second > rate:
            return _DeviceFigure(
                lambda factor: sensitivity.faster_links_of(self.profile, name, factor),
                f"its link carries {mbps(rate)}",
                lambda factor: f"from about {mbps(rate * factor)} on",
            )
        return _DeviceFigure(
            lambda factor: sensitivity.faster_medium(self.profile, shared.name, factor),
            f"{shared.name} carries {mbps(shared.bytes_per_second)} in total",
            lambda factor: f"from about {mbps(shared.bytes_per_second * factor)} on",
        )
