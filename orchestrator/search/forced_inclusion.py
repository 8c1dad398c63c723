"""Plans in which a certain device takes part: what a plan would look like with one device more.

1  structures  the device joins every stage that is split; where none is, the layer that takes longest, by a
               shortest path; with borders first or not, with codecs or not
2  refined     the convex core, then row by row, never down to none
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from coedge.core.objective import Objective
from coedge.core.region import UnitRect, edge_to_row
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage, stage_runs
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.search.draft import DraftStage, as_draft, as_stages
from orchestrator.search.layout import Layout, in_proportion, layout_of
from orchestrator.search.linear_programme import BoundaryProblem
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.rounding import nearest
from orchestrator.search.shortest_path import prices_of, shortest_path
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.transfer_options import TransferOptions, option_sets, with_effective_rates

# Of the share that its speed suggests, what the device is given to begin with: all, some, and a row of every stage.
PARTS = (1.0, 0.3, 0.0)
# How many changes of single rows are judged.
ROW_CHANGES = 60

Rank = Callable[[Evaluation, Profile], tuple[float, float]]


def area(rect: UnitRect) -> float:
    return max(rect.row_stop - rect.row_start, 0.0) * max(rect.col_stop - rect.col_start, 0.0)


def work_share(stages: Iterable[Stage], name: str, model: Model, profile: Profile) -> float:
    """A device's part of the work of a frame, as the source would take for it. Overlap is not counted."""
    own = total = 0.0
    for stage in stages:
        seconds = whole_seconds(model, profile, profile.source, stage.first, stage.last)
        total += seconds
        own += seconds * area(stage.regions.get(name, UnitRect(row_stop=0.0)))
    return own / max(total, 1e-12)


def whole_seconds(model: Model, profile: Profile, name: str, first: int = 0, last: int | None = None) -> float:
    """All rows of layers `first` to `last` (inclusive) on one device, in one stage."""
    layers = model.layers[first : len(model.layers) if last is None else last + 1]
    device = profile.by_name[name]
    return max(sum(device.layer_time(layer.index, False).seconds(layer.rows) for layer in layers), 1e-12)


def unused(plan: Plan, profile: Profile) -> list[tuple[str, ...]]:
    """The devices without a share, those together that have the same figures and links."""
    used = plan.used_devices
    groups: dict[str, list[str]] = {}
    for device in profile.devices:
        if device.name in used:
            continue
        ends = [(profile.link(device.name, u), profile.link(u, device.name)) for u in used]
        figures = (
            device.model_dump_json(exclude={"name"}),
            [(link.bytes_per_second, link.latency_seconds) for pair in ends for link in pair],
            [medium.name for medium in profile.media if device.name in medium.devices],
            device.name == profile.source,
        )
        groups.setdefault(repr(figures), []).append(device.name)
    return [tuple(names) for names in groups.values()]


class ForcedInclusion:
    """Of one plan.

    Args:
        rank: what judged plans are compared by, less is better.
        reach: of the model, where somebody has it.
    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        objective: Objective,
        rank: Rank,
        receptive_fields: ReceptiveFields | None = None,
    ) -> None:
        self.plan, self.model, self.objective, self.rank = plan, model, objective, rank
        self.used, self.receptive_fields = plan.used_devices, receptive_fields or ReceptiveFields(model)

    # 1: structures

    def structures(
        self, profile: Profile, name: str, part: float, with_options: Sequence[TransferOptions] | None = None
    ) -> list[tuple[Stage, ...]]:
        """The plan with the device.

        Args:
            part: how much of the share that its speed suggests it gets; a row at least.
            dressed: in these ways; in all by default.
        """
        grown: list[Stage] = []
        joined = False
        for stage in self.plan.stages:
            active = {other: area(rect) for other, rect in stage.regions.items() if area(rect) > 0}
            if len(active) > 1 and stage.first >= self.objective.keep_local:
                # Of a grid, strips of the same areas.
                layout = layout_of(stage) or in_proportion(active)
                layout = self._grown(profile, layout, name, part, stage.first, stage.last)
                stage, joined = layout.stage(stage.first, stage.last), True
            grown.append(stage)
        found = [tuple(grown)] if joined else list(self._through_the_heaviest(profile, name, part))
        return [
            options(stages)
            for stages in found
            for options in with_options or option_sets(self.model, profile, self.objective)
        ]

    def _grown(self, profile: Profile, layout: Layout, name: str, part: float, first: int, last: int) -> Layout:
        speed = {n: 1 / whole_seconds(self.model, profile, n, first, last) for n in (*layout.devices, name)}
        return _with(layout, speed, name, part, self.model.layers[last].rows, profile.names)

    def _through_the_heaviest(self, profile: Profile, name: str, part: float) -> Iterator[tuple[Stage, ...]]:
        """The shortest path on which the device takes part in the layer that takes longest."""
        layers = self.model.layers[self.objective.keep_local :]
        if not layers:
            return
        source = profile.source
        heaviest = max(
            layers, key=lambda x: (x.splittable, whole_seconds(self.model, profile, source, x.index, x.index))
        )
        speed = {n: 1 / whole_seconds(self.model, profile, n) for n in dict.fromkeys([*self.used, source, name])}
        alone = [in_proportion({other: 1.0}) for other in speed]
        sets = [*alone, in_proportion({other: speed[other] for other in self.used})]
        before = {
            _with(layout, speed, name, part, heaviest.rows, profile.names): layout
            for layout in sets
            if name not in layout.devices
        }
        layouts = list(dict.fromkeys([*alone, *before]))
        costs = StageCosts(self.model, profile, self.receptive_fields, layouts, self.objective.keep_local)
        # All of it is no share, but where it is a question of any at all, or there is no choice.
        may_be_alone = part == 0 or not heaviest.splittable
        barred = [name not in x.devices or (x.devices == (name,) and not may_be_alone) for x in layouts]
        costs.allowed[: heaviest.index + 1, heaviest.index + 1 :, np.array(barred)] = False
        path = shortest_path(costs, prices_of(self.objective)[0])
        if path is None:
            return
        stages = []
        for first, stop, index in path:
            layout = layouts[index]
            if layout in before:  # there are fewer rows, perhaps, where the stage ends
                layout = self._grown(profile, before[layout], name, part, first, stop - 1)
            stages.append(DraftStage(first, stop, layout))
        yield as_stages(nearest(self.model, stages))

    # 2: refined

    def refined(self, evaluator: Evaluator, evaluated: Evaluation, name: str, changes: int = ROW_CHANGES) -> Evaluation:
        """The same cuts and devices, with better shares; at most so many changes of rows are judged."""
        best = self.solved(evaluator, evaluated, name)
        tried, improved = 0, True
        while improved and tried < changes:
            improved = False
            for stages in self._row_changes(best.plan.stages, name):
                tried += 1
                found = evaluator.evaluate(stages)
                if self.rank(found, evaluator.profile) < self.rank(best, evaluator.profile):
                    best, improved = found, True
                    break
                if tried >= changes:
                    break
        return best

    def solved(self, evaluator: Evaluator, evaluated: Evaluation, name: str) -> Evaluation:
        """With the edges of the convex core, if that is better and leaves the device its share."""
        draft = as_draft(evaluated.plan.stages)
        if draft is None or all(len(stage.layout.devices) == 1 for stage in draft):
            return evaluated
        profile, before = evaluator.profile, evaluated.plan.stages
        if any(stage.codecs for stage in before):
            profile = with_effective_rates(self.model, profile, self.objective.lossy)
        solved = BoundaryProblem(self.model, profile, self.receptive_fields, draft).solve(profile, self.objective)
        if solved is None:
            return evaluated
        moved = as_stages(nearest(self.model, solved.stages))
        stages = tuple(old.model_copy(update={"regions": new.regions}) for old, new in zip(before, moved))
        if any(name in old.regions and name not in new.regions for old, new in zip(before, stages)):
            return evaluated
        both = (evaluated, evaluator.evaluate(stages))
        return min(both, key=lambda found: self.rank(found, evaluator.profile))

    def _row_changes(self, stages: Sequence[Stage], name: str) -> Iterator[tuple[Stage, ...]]:
        """A row from the device to each other one of a run of stages, and back."""
        for start, stop, stage in stage_runs(stages):
            layout, run = layout_of(stage), stages[start:stop]
            if layout is None or name not in layout.devices or len(layout.devices) < 2:
                continue
            rows = min(self.model.layers[s.last].rows for s in run)
            at = layout.devices.index(name)
            for other in range(len(layout.devices)):
                for giver, taker in ((at, other), (other, at)) if other != at else ():
                    moved = layout.handed(giver, taker, rows)
                    if moved is not None:
                        changed = (stage.model_copy(update={"regions": moved.regions}) for stage in run)
                        yield (*stages[:start], *changed, *stages[stop:])


def _with(
    layout: Layout, speed: Mapping[str, float], name: str, part: float, rows: int, order: Sequence[str]
) -> Layout:
    """The layout with one more device, in the order given; edges on rows, nobody without one."""
    share = min(max(part * speed[name] / sum(speed[n] for n in (*layout.devices, name)), 1 / rows), 0.9)
    shares = [(other, old * (1 - share)) for other, old in zip(layout.devices, layout.shares)]
    at = next((i for i, (other, _) in enumerate(shares) if order.index(other) > order.index(name)), len(shares))
    shares.insert(at, (name, share))
    edges = [edge_to_row(edge, rows) for edge in in_proportion(dict(shares)).edges]
    kept = [(n, a, b) for (n, _), a, b in zip(shares, edges, edges[1:]) if b > a]
    return Layout(tuple(n for n, _, _ in kept), (*(a / rows for _, a, _ in kept), 1.0))
