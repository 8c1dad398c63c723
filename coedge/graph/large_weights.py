"""Large weights beside an ONNX graph rather than in it: hundreds of megabytes are slow to pass back and forth."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import TensorProto


def stub(name: str, data_type: int, dims: Sequence[int]) -> TensorProto:
    """An initialiser without its values: they are handed to the session apart."""
    made = TensorProto(name=name, data_type=data_type, dims=dims)
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value="memory")
    return made


def without_initializers(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of the model that lacks some initialisers, made without copying them."""
    light = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name == "graph":
            for inner, part in value.ListFields():
                if inner.name == "initializer":
                    light.graph.initializer.extend(i for i in part if i.name not in names)
                else:
                    _copy(light.graph, inner, part)
        else:
            _copy(light, field, value)
    return light


def _copy(target: object, field: object, value: object) -> None:
    name = str(getattr(field, "name", ""))
    if isinstance(value, (str, bytes, int, float)):
        setattr(target, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)
