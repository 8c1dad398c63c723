"""Large weights kept outside of an ONNX graph, because passing hundreds of megabytes around is slow."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import TensorProto

# Constants with more elements than this are passed beside the graph.
LARGE_ELEMENTS = 1_000_000


def stub(name: str, data_type: int, dims: Sequence[int]) -> TensorProto:
    """Return an initialiser without its values, which the session receives separately."""
    made = TensorProto(name=name, data_type=data_type, dims=dims)
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value="memory")
    return made


def without_initializers(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return a copy of the model without some initialisers, whose values are not copied."""
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
