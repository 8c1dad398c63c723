"""Public models made with wrong fields: the error is one of this project and names the field and the next step."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

import coedge
from coedge.core.record import Record

MODELS = {
    name: value
    for name in coedge.__all__
    if isinstance(value := getattr(coedge, name), type) and issubclass(value, BaseModel)
}
NAMES = [(name, field) for name, model in MODELS.items() for field in model.model_fields]
PLAN = {"scheme": "s", "model_name": "m", "model_hash": "h", "devices": ("a",), "source": "a", "sink": "a"}


def refused(name: str) -> type[coedge.CoEdgeError]:
    return coedge.ConfigError if name.endswith("Config") else coedge.InputError


def test_the_models_are_found() -> None:
    assert set(MODELS) >= {"ClusterConfig", "DeviceConfig", "Objective", "Plan", "Profile", "Stage"}
    assert all(issubclass(model, Record) for model in MODELS.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_name_is_named(name: str) -> None:
    first = next(iter(MODELS[name].model_fields))
    for make in (MODELS[name], lambda **fields: MODELS[name].model_validate(fields)):
        with pytest.raises(refused(name), match=f"{name}: there is no field {first}x\n    Next: did you mean {first}?"):
            make(**{f"{first}x": 1})
        with pytest.raises(refused(name), match=f"no field qqqq\n    Next: use its fields: {first}"):
            make(qqqq=1)


@pytest.mark.parametrize(("name", "field"), NAMES)
def test_a_value_of_another_type_is_named(name: str, field: str) -> None:
    with pytest.raises(refused(name), match=rf"{name}: {field} must .*; given <object .*\n    Next: ") as found:
        MODELS[name](**{field: object()})
    default = MODELS[name].model_fields[field].default
    assert default is PydanticUndefined or f"leave out {field} for its default" in str(found.value)


@pytest.mark.parametrize(("name", "field"), NAMES)
def test_a_missing_value_is_named(name: str, field: str) -> None:
    if MODELS[name].model_fields[field].is_required():
        with pytest.raises(refused(name), match=f"{name}: {field} must be given\n    Next: add {field}=..."):
            MODELS[name]()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: coedge.Objective(goal="fast"),  # type: ignore[arg-type]
            "Objective: goal must be 'latency', 'energy' or 'throughput'; given 'fast'\n"
            "    Next: correct it, or leave out goal for its default, 'latency'",
        ),
        (
            lambda: coedge.Objective(deadline_ms=-1, lossy=3),  # type: ignore[arg-type]
            "Objective: deadline_ms must be greater than 0; given -1\n"
            "    Next: correct it, or leave out deadline_ms for its default, None\n"
            "Objective: lossy must be a valid boolean, unable to interpret input; given 3\n"
            "    Next: correct it, or leave out lossy for its default, False",
        ),
        (
            lambda: coedge.ClusterConfig(devices=({"name": "a", "spee": 1},)),  # type: ignore[arg-type]
            "ClusterConfig: there is no field devices.0.spee\n    Next: remove it, or correct its name",
        ),
        (
            lambda: coedge.ClusterConfig(devices=(coedge.DeviceConfig(name="a"), coedge.DeviceConfig(name="a"))),
            "ClusterConfig: devices.1.name is also the name of devices.0 (a); given 'a'\n"
            "    Next: correct it, or leave out devices for its default, ()",
        ),
        (
            lambda: coedge.Plan.model_validate(PLAN | {"stages": ({"first": 0, "regions": {}},)}),
            "Plan: stages.0.last must be given\n    Next: add 'last' to stages.0",
        ),
        (
            lambda: coedge.Profile(model_name="m", model_hash="h", source="a", devices=()),
            "Profile: devices must have at least 1 item after validation, not 0; given ()\n    Next: correct it",
        ),
    ],
)
def test_messages(make: Any, message: str) -> None:
    with pytest.raises(coedge.CoEdgeError) as found:
        make()
    assert str(found.value) == message
    assert found.value.__cause__ is None and found.value.__suppress_context__


def test_a_value_that_is_set_is_named() -> None:
    with pytest.raises(coedge.InputError, match="Objective: goal cannot be set\n    Next: make another one"):
        coedge.Objective().goal = "energy"
    assert coedge.Objective().model_copy(update={"goal": "energy"}).goal == "energy"


def test_json_that_is_wrong_is_refused() -> None:
    with pytest.raises(coedge.InputError, match="Objective: the value Invalid JSON"):
        coedge.Objective.model_validate_json("{")
    with pytest.raises(coedge.InputError, match="Objective: goal must be "):
        coedge.Objective.model_validate_json('{"goal": 1}')
    assert coedge.Objective.model_validate_json('{"goal": "energy"}') == coedge.Objective(goal="energy")


def test_loaders_get_the_whole_path_of_a_nested_value() -> None:
    with pytest.raises(ValidationError) as found:
        TypeAdapter(coedge.ClusterConfig).validate_python({"devices": ({"name": "a", "speed": 7.0},)})
    assert found.value.errors()[0]["loc"] == ("devices", 0, "speed")
