"""Parts of the search: receptive fields, shortest path, convex programme, rounding, transfer options."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import cvxpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples, zoo_model
from test_algorithm_1 import synthetic_profile

from benchmarks.instances import chain, small_profile
from coedge.core.objective import Objective
from coedge.core.region import Region
from coedge.graph.model import Model
from coedge.plan.tiles import tile_of
from coedge.profile.profile import CodecSpeed, Medium, Profile
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import Evaluator
from orchestrator.search.draft import DraftStage, as_stages
from orchestrator.search.layout import Layout, candidates, in_proportion
from orchestrator.search.linear_programme import BoundaryProblem
from orchestrator.search.link_order import order_of
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.rounding import fair, nearest
from orchestrator.search.shortest_path import Prices, shortest_path, shortest_paths
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.transfer_options import TransferOptions, with_effective_rates


@dataclass(frozen=True)
class Certificate:
    """Proof of an optimum of a linear programme by its Lagrangian.

    With multipliers under which no variable can lower it, the Lagrangian is a lower bound. At an optimum it equals the
    objective.

    Attributes:
        objective, bound: in the units of the programme.
        slackness: largest product of a multiplier and the slack of its constraint.
        tilt: change of the Lagrangian with the variables; zero up to the solver's tolerance.
    """

    objective: float
    bound: float
    slackness: float
    tilt: float

    @classmethod
    def of(cls, problem: Any) -> Certificate:
        variables, generator = problem.variables(), np.random.default_rng(0)
        optimum = [np.array(variable.value) for variable in variables]
        objective, bound = float(problem.objective.value), lagrangian(problem)
        slackness = max(float(np.abs(c.dual_value * c.expr.value).max()) for c in problem.constraints)
        tilt = 0.0
        for _ in range(3):
            for variable, value in zip(variables, optimum):
                variable.value = value + generator.uniform(-1, 1, value.shape)
            tilt = max(tilt, abs(lagrangian(problem) - bound))
        for variable, value in zip(variables, optimum):
            variable.value = value
        return cls(objective, bound, slackness, tilt)

    @property
    def gap(self) -> float:
        return abs(self.objective - self.bound) / max(abs(self.objective), 1e-12)


def lagrangian(problem: Any) -> float:
    """Return the Lagrangian at the present values; `c.expr` is the left side of `<= 0` or `== 0`."""
    value = float(problem.objective.expr.value)
    return value + sum(float(np.sum(c.dual_value * np.asarray(c.expr.value))) for c in problem.constraints)


def drafts(model: Model, profile: Profile, data: st.DataObject) -> tuple[DraftStage, ...]:
    """Return stages of random lengths on equal strips of all devices; layers that cannot be split on the source."""
    stages: list[DraftStage] = []
    first = 0
    everybody = in_proportion(dict.fromkeys(profile.names, 1.0))
    alone = Layout((profile.source,), (0.0, 1.0))
    for layer in model.layers:
        last = layer.index + 1 == len(model.layers)
        ends = last or model.layers[layer.index + 1].splittable != layer.splittable or data.draw(st.booleans())
        if ends:
            stages.append(DraftStage(first, layer.index + 1, everybody if layer.splittable else alone))
            first = layer.index + 1
    return tuple(stages)


@pytest.mark.parametrize("name", ["googlenet", "unet"])
def test_receptive_fields_equal_the_regions_of_a_tile(name: str) -> None:
    model = zoo_model(name)
    receptive_fields, graph = ReceptiveFields(model), model.graph
    for stop in range(1, len(model.layers), 3):
        for first in range(max(0, stop - 4), stop):
            layers = model.layers[first:stop]
            if not all(layer.splittable for layer in layers):
                continue
            last = model.layers[stop - 1].stop
            alive = [
                n
                for n, made in receptive_fields.layer_of.items()
                if first <= made < stop <= receptive_fields.last_use.get(n, -1)
            ]
            rows = min(graph.tensors[n].rows for n in alive)
            if rows < 6 or any(graph.tensors[n].rows % rows for n in alive):
                continue
            a, b = round(rows / 3) / rows, (rows - round(rows / 3)) / rows
            wanted = {}
            for n in alive:
                tensor = graph.tensors[n]
                wanted[n] = Region(round(a * tensor.rows), round(b * tensor.rows), 0, tensor.cols)
            _, need = tile_of(model, model.layers[first].first, last, wanted)
            end = receptive_fields.end(stop)
            for layer in layers:
                if layer.tensor in need and not end.whole[layer.index]:
                    found = need[layer.tensor].rows
                    assert found.start == pytest.approx(a * layer.rows - end.above[layer.index])
                    assert found.stop == pytest.approx(b * layer.rows + end.below[layer.index])
            for item in receptive_fields.inputs(first, stop):
                if not (item.whole or item.partial):
                    found = need[item.name].rows
                    assert found.start == pytest.approx(a * item.rows - item.above), item
                    assert found.stop == pytest.approx(b * item.rows + item.below), item


@given(data=st.data())
@examples(15)
def test_the_shortest_path_is_the_shortest_of_all_paths(data: st.DataObject) -> None:
    """Compare with all cuts and layouts in the same tables, also the cheapest paths through every node."""
    seed = data.draw(st.integers(0, 10_000))
    model = chain(seed, layers=4, rows=8)
    profile = small_profile(seed, model, 2)
    receptive_fields = ReceptiveFields(model)
    table = CostTable.of(model, profile)
    layouts = candidates(table)
    costs = StageCosts(table, receptive_fields, layouts)
    found = shortest_path(costs, Prices())
    assert found is not None

    def cost(path: tuple[tuple[int, int, int], ...]) -> float:
        total, before = 0.0, next(i for i, x in enumerate(layouts) if x.devices == (profile.source,))
        for first, stop, layout in path:
            halos = costs.halos
            halo = (
                costs.above[first, stop] * halos.above[layout]
                + costs.below[first, stop] * halos.below[layout]
                + costs.gathered[first, stop] * halos.gather[layout]
                + costs.partial[first, stop] * halos.share[layout]
            )
            total += float(costs.busy[first, stop, layout].max()) + halo + (halo > 0) * halos.latency[layout]
            total += costs.body[first] * costs.moves.seconds[before, layout] + costs.moves.latency[before, layout]
            before = layout
        source = next(i for i, x in enumerate(layouts) if x.devices == (profile.source,))
        outputs = sum(t.region_nbytes(t.whole) for t in model.outputs)
        return float(total + outputs * costs.moves.seconds[before, source] + costs.moves.latency[before, source])

    count = len(model.layers)
    every: dict[tuple[tuple[int, int, int], ...], float] = {}
    for inner in itertools.chain.from_iterable(itertools.combinations(range(1, count), k) for k in range(count)):
        cuts = [0, *inner, count]
        pairs = list(zip(cuts, cuts[1:]))
        for chosen in itertools.product(range(len(layouts)), repeat=len(pairs)):
            if all(costs.allowed[a, b, layout] for (a, b), layout in zip(pairs, chosen)):
                path = tuple((a, b, layout) for (a, b), layout in zip(pairs, chosen))
                every[path] = cost(path)
    assert cost(found) == pytest.approx(min(every.values()))
    through: dict[tuple[int, int], float] = {}
    for path, seconds in every.items():
        for _, stop, layout in path:
            through[stop, layout] = min(seconds, through.get((stop, layout), np.inf))
    several = shortest_paths(costs, Prices(), most=len(through))
    assert len(set(several)) == len(several) and several == sorted(several, key=lambda path: round(cost(path), 12))
    reached = {(stop, layout): cost(path) for path in reversed(several) for _, stop, layout in path}
    assert reached == pytest.approx(through)
    assert shortest_paths(costs, Prices(), most=3) == several[:3]


@given(data=st.data())
@examples(15)
def test_the_convex_programme_has_a_certificate_of_its_optimum(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    model = chain(seed, layers=5, rows=24)
    profile = small_profile(seed, model, data.draw(st.integers(2, 4)))
    stages = drafts(model, profile, data)
    table = CostTable.of(model, profile)
    programme = BoundaryProblem(table, ReceptiveFields(model), stages)
    assert programme.problem.is_dcp(dpp=True)
    objective = Objective(energy_weight=data.draw(st.sampled_from([0.0, 0.01, 0.1])))
    solved = programme.solve(table, objective)
    assert solved is not None
    proof = Certificate.of(programme.problem)
    assert proof.gap < 1e-6 and proof.slackness < 1e-6 and proof.tilt < 1e-6
    # The draft is a feasible point, so the optimum is no worse. Another solver finds the same optimum.
    if objective.energy_weight == 0:
        assert solved.seconds <= order_of(programme.flow, table).seconds * (1 + 1e-6)
    programme.problem.solve(solver=cvxpy.SCIPY, scipy_options={"method": "highs"})
    assert programme.problem.value == pytest.approx(proof.objective, rel=1e-5)
    for before, after in zip(stages, solved.stages):
        assert (before.first, before.stop, before.layout.devices) == (after.first, after.stop, after.layout.devices)
        assert list(after.layout.edges) == sorted(after.layout.edges)


@given(data=st.data())
@examples(10)
def test_a_change_of_bandwidth_needs_no_new_programme(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    model = chain(seed, layers=4, rows=16)
    profile = small_profile(seed, model, 3)
    stages = drafts(model, profile, data)
    factor = data.draw(st.floats(0.3, 3.0))
    changed = profile.model_copy(
        update={
            "links": tuple(
                link.model_copy(update={"bytes_per_second": link.bytes_per_second * factor}) for link in profile.links
            )
        }
    )
    table = CostTable.of(model, profile)
    new_table, receptive_fields = table.with_links(changed), ReceptiveFields(model)
    once = BoundaryProblem(table, receptive_fields, stages, again=True)
    once.solve(table, Objective())
    again = once.solve(new_table, Objective())
    fresh = BoundaryProblem(table, receptive_fields, stages).solve(CostTable(model, changed), Objective())
    assert again is not None and fresh is not None
    assert again.seconds == pytest.approx(fresh.seconds, rel=1e-5)


@pytest.mark.parametrize(("transmit_watts", "edge"), [(0.0, 1 / 24), (1e6, 23 / 24)])
def test_joules_of_sending_decide_whether_rows_move_to_a_device_of_fewer_watts(
    transmit_watts: float, edge: float
) -> None:
    """`b` computes with half the watts of the source. It gets all rows but one where sending is free, else one."""
    model = chain(0, layers=4, rows=24)
    watts = {"a": (2.0, transmit_watts), "b": (1.0, transmit_watts)}
    profile = synthetic_profile(model, {"a": 1.0, "b": 1.0}, 1e7, 0.0, watts)
    draft = (DraftStage(0, len(model.layers), in_proportion({"a": 1.0, "b": 1.0})),)
    table = CostTable.of(model, profile)
    solved = BoundaryProblem(table, ReceptiveFields(model), draft).solve(table, Objective(goal="energy"))
    assert solved is not None
    assert solved.stages[0].layout.edges[1] == pytest.approx(edge, abs=1e-3)


def test_a_deadline_that_cannot_be_met_is_infeasible() -> None:
    model = chain(1, layers=3, rows=16)
    profile = small_profile(1, model, 2)
    both = in_proportion(dict.fromkeys(profile.names, 1.0))
    table = CostTable.of(model, profile)
    programme = BoundaryProblem(table, ReceptiveFields(model), [DraftStage(0, len(model.layers), both)])
    free = programme.solve(table, Objective(goal="energy"))
    assert free is not None
    least = programme.solve(table, Objective())
    assert least is not None
    bound = programme.solve(table, Objective(goal="energy", deadline_ms=least.seconds * 1.01e3))
    assert bound is not None and bound.seconds <= least.seconds * 1.0101
    assert programme.solve(table, Objective(deadline_ms=least.seconds * 0.5e3)) is None


@given(data=st.data())
@examples(30)
def test_latency_of_a_draft_on_rows_equals_the_simulated_latency(data: st.DataObject) -> None:
    """On two devices and a chain of one height, the flow has the messages of the Programs in the same order."""
    seed = data.draw(st.integers(0, 10_000))
    rows = 48  # no halo reaches the far border
    model = chain(seed, layers=4, rows=rows)
    profile = small_profile(seed, model, 2)
    edge = data.draw(st.integers(16, rows - 16)) / rows
    stages, first = [], 0
    for index in range(len(model.layers)):
        if index + 1 == len(model.layers) or data.draw(st.booleans()):
            stages.append(DraftStage(first, index + 1, Layout(profile.names, (0.0, edge, 1.0))))
            first = index + 1
    evaluator = Evaluator(model, profile, Objective())
    programme = BoundaryProblem(evaluator.table, ReceptiveFields(model), stages)
    simulated = evaluator.evaluate(as_stages(stages)).latency_seconds
    assert order_of(programme.flow, evaluator.table).seconds == pytest.approx(simulated, rel=1e-6)


@given(data=st.data())
@examples(20)
def test_rounding_gives_every_row_to_one_strip(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    model = chain(seed, layers=3, rows=data.draw(st.integers(4, 30)))
    profile = small_profile(seed, model, 4)
    shares = {name: data.draw(st.floats(0.01, 1.0)) for name in profile.names}
    draft = (DraftStage(0, len(model.layers), in_proportion(shares)),)
    rows = model.layers[-1].rows
    for rounded in (nearest(model, draft), fair(CostTable.of(model, profile), ReceptiveFields(model), draft)):
        (stage,) = rounded
        edges = [edge * rows for edge in stage.layout.edges]
        assert edges == pytest.approx([round(edge) for edge in edges])
        assert edges[0] == 0 and edges[-1] == rows and edges == sorted(edges)
        assert len(set(edges)) == len(edges), "a device without a row is left out"
        order = [profile.names.index(name) for name in stage.layout.devices]
        assert order == sorted(order)


def test_effective_rates_behind_a_shared_medium_are_finite() -> None:
    model = chain(3, layers=3, rows=16)
    profile = small_profile(3, model, 2)
    speed = {"zero_mask": CodecSpeed(encode_bytes_per_second=1e9, decode_bytes_per_second=1e9)}
    wireless = profile.model_copy(
        update={
            "devices": tuple(d.model_copy(update={"codecs": speed}) for d in profile.devices),
            "links": tuple(link.model_copy(update={"bytes_per_second": float("inf")}) for link in profile.links),
            "media": (Medium(name="air", devices=profile.names, bytes_per_second=1e6),),
            "codec_ratios": {name: {"zero_mask": 0.5} for cut in model.cuts for name in cut.tensors},
        }
    )
    table = CostTable(model, wireless)
    packed = with_effective_rates(table, lossy=False)
    assert packed.seconds_per_byte[0, 1] == pytest.approx(0.5e-6 + 2e-9)
    assert (packed.link_seconds == 0).all() and np.isfinite(packed.seconds_per_byte).all()
    single = CostTable(model, wireless.without(profile.names[1:]))
    assert (with_effective_rates(single, lossy=False).seconds_per_byte == 0).all()


def test_a_codec_is_chosen_where_it_is_quicker_than_the_wire() -> None:
    model = chain(3, layers=3, rows=16)
    profile = small_profile(3, model, 2)
    tensor = model.cuts[1].tensors[0]
    speed = {"zero_mask": CodecSpeed(encode_bytes_per_second=1e9, decode_bytes_per_second=1e9)}
    for rate in (1e6, 1e8, 2.4e8, 2.6e8, 1e9, 1e10):
        packed = profile.model_copy(
            update={
                "devices": tuple(d.model_copy(update={"codecs": speed}) for d in profile.devices),
                "links": tuple(link.model_copy(update={"bytes_per_second": rate}) for link in profile.links),
                "codec_ratios": {tensor: {"zero_mask": 0.5}},
            }
        )
        table = CostTable(model, packed)
        codec, seconds = table.codec([tensor], 0, 1, lossy=False)
        pays = 0.5 / rate + 2e-9 < 0.98 / rate
        assert (codec == "zero_mask") == pays
        assert seconds <= 1 / rate
        stages = [
            DraftStage(0, 1, Layout((profile.source,), (0.0, 1.0))),
            DraftStage(1, len(model.layers), in_proportion(dict.fromkeys(profile.names, 1.0))),
        ]
        with_options = TransferOptions(table, codecs=True)(as_stages(stages))
        assert ("zero_mask" in with_options[1].codecs.values()) == pays and not with_options[0].codecs
        assert np.isfinite(seconds)
