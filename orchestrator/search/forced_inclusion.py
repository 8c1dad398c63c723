"""Forced inclusion: plans in which a given device takes part.

1  structures  the device joins every stage that is split. If no stage is split, it joins the slowest layer, by a
               shortest path. All transfer options are tried.
2  refined     the convex programme, then single rows; the device keeps at least one row
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from coedge.core.objective import Objective
from coedge.core.region import UnitRect, edge_to_row
from coedge.graph.model import Model
from coedge.plan.plan import Plan, Stage, stage_runs
from coedge.profile.profile import Profile
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import Evaluation, Evaluator
from orchestrator.search.draft import DraftStage, as_draft, as_stages
from orchestrator.search.layout import Layout, in_proportion, layout_of
from orchestrator.search.linear_programme import BoundaryProblem
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.rounding import nearest
from orchestrator.search.shortest_path import prices_of, shortest_path
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.transfer_options import TransferOptions, option_sets, with_effective_rates

# Part of the share that its speed suggests, which the device starts with. At 0 it gets one row of every stage.
PARTS = (1.0, 0.3, 0.0)
# Limit on the changes of single rows that are evaluated.
ROW_CHANGES = 60

Rank = Callable[[Evaluation, Profile], tuple[float, float]]


def area(rect: UnitRect) -> float:
    return max(rect.row_stop - rect.row_start, 0.0) * max(rect.col_stop - rect.col_start, 0.0)


def work_share(stages: Iterable[Stage], name: str, model: Model, profile: Profile) -> float:
    """Return a device's part of the work of a frame, measured in time on the source. Overlap is not counted."""
    table = CostTable.of(model, profile)
    own = total = 0.0
    for stage in stages:
        seconds = float(table.whole_seconds(stage.first, stage.last + 1)[table.source])
        total += seconds
        own += seconds * area(stage.regions.get(name, UnitRect(row_stop=0.0)))
    return own / max(total, 1e-12)


def unused(plan: Plan, profile: Profile) -> list[tuple[str, ...]]:
    """Return the devices without a share, grouped by equal figures and equal links to the used devices."""
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
    """Variants of one plan with one device more.

    Args:
        rank: sort key of evaluations, lower is better.
        receptive_fields: of the model, if they are at hand.
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
        self, table: CostTable, name: str, part: float, options: Sequence[TransferOptions] | None = None
    ) -> list[tuple[Stage, ...]]:
        """Return plans with the device.

        Args:
            part: of the share that its speed suggests; the device gets at least one row.
            options: transfer options to try; all by default.
        """
        stages: list[Stage] = []
        joins = False
        for stage in self.plan.stages:
            areas = {other: area(rect) for other, rect in stage.regions.items() if area(rect) > 0}
            if len(areas) > 1 and stage.first >= self.objective.keep_local:
                # A grid becomes strips of the same areas.
                layout = layout_of(stage) or in_proportion(areas)
                layout = self._extended(table, layout, name, part, stage.first, stage.last)
                stage, joins = layout.stage(stage.first, stage.last), True
            stages.append(stage)
        variants = [tuple(stages)] if joins else list(self._through_slowest_layer(table, name, part))
        return [
            with_options(variant)
            for variant in variants
            for with_options in options or option_sets(table, self.objective)
        ]

    def _extended(self, table: CostTable, layout: Layout, name: str, part: float, first: int, last: int) -> Layout:
        """Return a layout with the device, by the speeds on layers `first` to `last`."""
        speed = _speed(table, (*layout.devices, name), first, last + 1)
        return _with(layout, speed, name, part, self.model.layers[last].rows, table.names)

    def _through_slowest_layer(self, table: CostTable, name: str, part: float) -> Iterator[tuple[Stage, ...]]:
        """Yield the shortest path on which the device takes part in the layer that takes longest."""
        layers = self.model.layers[self.objective.keep_local :]
        if not layers:
            return
        source = table.profile.source
        slowest = max(layers, key=lambda x: (x.splittable, float(table.layer_seconds[x.index, table.source])))
        speed = _speed(table, dict.fromkeys([*self.used, source, name]))
        alone = [in_proportion({other: 1.0}) for other in speed]
        sets = [*alone, in_proportion({other: speed[other] for other in self.used})]
        before = {
            _with(layout, speed, name, part, slowest.rows, table.names): layout
            for layout in sets
            if name not in layout.devices
        }
        layouts = list(dict.fromkeys([*alone, *before]))
        costs = StageCosts(table, self.receptive_fields, layouts, self.objective.keep_local)
        # The device may take the whole layer only if any share counts, or if the layer cannot be split.
        may_be_alone = part == 0 or not slowest.splittable
        barred = [name not in x.devices or (x.devices == (name,) and not may_be_alone) for x in layouts]
        costs.allowed[: slowest.index + 1, slowest.index + 1 :, np.array(barred)] = False
        path = shortest_path(costs, prices_of(self.objective)[0])
        if path is None:
            return
        stages = []
        for first, stop, index in path:
            layout = layouts[index]
            if layout in before:  # the stage may end on a layer with fewer rows
                layout = self._extended(table, before[layout], name, part, first, stop - 1)
            stages.append(DraftStage(first, stop, layout))
        yield as_stages(nearest(self.model, stages))

    # 2: refined

    def refined(self, evaluator: Evaluator, evaluated: Evaluation, name: str, changes: int = ROW_CHANGES) -> Evaluation:
        """Improve the shares; cuts and devices stay the same.

        Args:
            changes: limit on the changes of single rows that are evaluated.
        """
        best = self.solved(evaluator, evaluated, name)
        tried, improved = 0, True
        while improved and tried < changes:
            improved = False
            for stages in self._row_changes(best.plan.stages, name):
                tried += 1
                candidate = evaluator.evaluate(stages)
                if self.rank(candidate, evaluator.profile) < self.rank(best, evaluator.profile):
                    best, improved = candidate, True
                    break
                if tried >= changes:
                    break
        return best

    def solved(self, evaluator: Evaluator, evaluated: Evaluation, name: str) -> Evaluation:
        """Return the plan with the edges of the convex programme, if it is better and the device keeps its share."""
        draft = as_draft(evaluated.plan.stages)
        if draft is None or all(len(stage.layout.devices) == 1 for stage in draft):
            return evaluated
        table, before = evaluator.table, evaluated.plan.stages
        if any(stage.codecs for stage in before):
            table = with_effective_rates(table, self.objective.lossy)
        boundaries = BoundaryProblem(table, self.receptive_fields, draft).solve(table, self.objective)
        if boundaries is None:
            return evaluated
        moved = as_stages(nearest(self.model, boundaries.stages))
        stages = tuple(old.model_copy(update={"regions": new.regions}) for old, new in zip(before, moved))
        if any(name in old.regions and name not in new.regions for old, new in zip(before, stages)):
            return evaluated
        both = (evaluated, evaluator.evaluate(stages))
        return min(both, key=lambda candidate: self.rank(candidate, evaluator.profile))

    def _row_changes(self, stages: Sequence[Stage], name: str) -> Iterator[tuple[Stage, ...]]:
        """Move one row from the device to each other one in a run of stages, and back."""
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


def _speed(table: CostTable, names: Iterable[str], first: int = 0, stop: int | None = None) -> dict[str, float]:
    """Return the speed of devices on layers [first, stop), in runs per second."""
    seconds = table.whole_seconds(first, stop)
    return {name: 1 / max(float(seconds[table.position[name]]), 1e-12) for name in names}


def _with(
    layout: Layout, speed: Mapping[str, float], name: str, part: float, rows: int, order: Sequence[str]
) -> Layout:
    """Return the layout with one more device.

    Args:
        rows: the edges lie on one of these rows; devices without a row are left out.
        order: names of all devices in the order of the strips.
    """
    share = min(max(part * speed[name] / sum(speed[n] for n in (*layout.devices, name)), 1 / rows), 0.9)
    shares = [(other, old * (1 - share)) for other, old in zip(layout.devices, layout.shares)]
    at = next((i for i, (other, _) in enumerate(shares) if order.index(other) > order.index(name)), len(shares))
    shares.insert(at, (name, share))
    edges = [edge_to_row(edge, rows) for edge in in_proportion(dict(shares)).edges]
    kept = [(n, a, b) for (n, _), a, b in zip(shares, edges, edges[1:]) if b > a]
    return Layout(tuple(n for n, _, _ in kept), (*(a / rows for _, a, _ in kept), 1.0))
