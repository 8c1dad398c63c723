"""Plans without lost devices: exact, complete, and in the proportions of before."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import Net, check_split, examples, image, make_plan, plans

from coedge.core.region import UNIT, UnitRect, check_cover
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from orchestrator.planner.repair import without_devices


@functools.cache
def chain() -> Model:
    net = Net()
    x = net.input([1, 3, 19, 13])
    for i in range(3):
        x = net.op("Conv", x, net.weight(4, 4 if i else 3, 3, 3), pads=[1, 1, 1, 1], strides=[1 + i % 2] * 2)
    return capture(net.proto(x), name="chain")


def rows(*edges: float) -> list[UnitRect]:
    return [UnitRect(row_start=a, row_stop=b) for a, b in zip(edges, edges[1:])]


def test_strips_keep_their_order_and_proportions() -> None:
    shares = dict(zip("abcd", rows(0.0, 0.2, 0.5, 0.6, 1.0)))
    plan = make_plan(chain(), [(3, shares)], "a")
    (stage,) = without_devices(plan, {"b"}, "a").stages
    assert list(stage.regions) == ["a", "c", "d"]
    sizes = [rect.row_stop - rect.row_start for rect in stage.regions.values()]
    assert sizes == pytest.approx([0.2 / 0.7, 0.1 / 0.7, 0.4 / 0.7])


def test_a_stage_of_lost_devices_alone_goes_to_the_source() -> None:
    plan = make_plan(chain(), [(1, {"b": UNIT}), (2, {"c": UNIT})], "a")
    repaired = without_devices(plan, {"b"}, "a")
    assert [stage.regions for stage in repaired.stages] == [{"a": UNIT}, {"c": UNIT}]
    assert repaired.reason == "the plan of before without b"


def test_a_lost_source_is_replaced_also_as_the_sink() -> None:
    plan = make_plan(chain(), [(1, {"a": UNIT}), (2, {"b": UNIT})], "a")
    repaired = without_devices(plan, {"a"}, "b")
    assert (repaired.source, repaired.sink, "a" in repaired.devices) == ("b", "b", False)


@given(st.data())
@examples(60, short=20)
def test_any_plan_without_any_devices_is_exact(data: st.DataObject) -> None:
    plan: Plan = data.draw(plans(chain()))
    lost = data.draw(st.sets(st.sampled_from(plan.devices), max_size=len(plan.devices) - 1))
    left = [name for name in plan.devices if name not in lost]
    repaired = without_devices(plan, lost, left[0])
    assert not lost & {*repaired.devices, repaired.source, *(n for s in repaired.stages for n in s.regions)}
    for stage in repaired.stages:
        check_cover(stage.regions.values())
    check_split(chain(), repaired, [image([1, 3, 19, 13])])
