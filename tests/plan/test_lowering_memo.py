"""The memo that a search shares between plans does not change their programs."""

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
    """Return one memo for all plans of a network."""
    return Memo(zoo_model(name))


def with_one_cut_more(plan: Plan) -> Plan:
    """Split the first stage of several layers in two, as a search does. Later stages are equal, one index higher."""
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
def test_programs_are_equal_with_a_memo_of_other_plans(name: str, data: st.DataObject) -> None:
    model = zoo_model(name)
    plan = data.draw(options(data.draw(plans(model))))
    for other in (plan, with_one_cut_more(plan)):
        assert lower(other, model, shared(name)) == lower(other, model)


@given(data=st.data(), room=st.floats(0.5, 3.0))
@examples(30)
def test_a_program_that_passes_the_quick_memory_check_fits(data: st.DataObject, room: float) -> None:
    model = zoo_model("unet")
    for program in lower(data.draw(plans(model)), model).values():
        needed = program_nbytes(program, model)
        if surely_within(program, model, room * needed):
            assert room >= 1
        assert surely_within(program, model, 1e12)
