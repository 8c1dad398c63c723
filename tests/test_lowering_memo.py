"""What a search shares between the plans that it lowers changes nothing about them."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples, plans, zoo_model
from test_lowering_options import options

from coedge.plan.lowering import Memo, lower
from coedge.plan.memory import program_nbytes, surely_within
from coedge.plan.plan import Plan, Stage

NETS = ["mobilenet_v3", "unet", "squeezenet"]


@functools.cache
def shared(name: str) -> Memo:
    """Of all plans that the tests draw for a network."""
    return Memo(zoo_model(name))


def with_one_cut_more(plan: Plan) -> Plan:
    """The first stage of several layers in two, as a search tries it: what follows is the same, a stage later."""
    stages = list(plan.stages)
    for at, stage in enumerate(stages):
        if stage.last > stage.first:
            before = stage.model_copy(update={"last": stage.first})
            behind = Stage(first=stage.first + 1, last=stage.last, regions=stage.regions)
            stages[at : at + 1] = [before, behind]
            break
    return plan.model_copy(update={"stages": tuple(stages)})


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
@examples(25)
def test_programs_are_the_same_with_what_other_plans_left_behind(name: str, data: st.DataObject) -> None:
    model = zoo_model(name)
    plan = data.draw(options(data.draw(plans(model))))
    for other in (plan, with_one_cut_more(plan)):
        assert lower(other, model, shared(name)) == lower(other, model)


@given(data=st.data(), room=st.floats(0.5, 3.0))
@examples(30)
def test_what_is_surely_within_a_limit_is(data: st.DataObject, room: float) -> None:
    model = zoo_model("unet")
    for program in lower(data.draw(plans(model)), model).values():
        needed = program_nbytes(program, model)
        if surely_within(program, model, room * needed):
            assert room >= 1
        assert surely_within(program, model, 1e12)
