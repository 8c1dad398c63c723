"""Large weights kept outside of an ONNX graph.

Passing hundreds of megabytes around is slow, and a serialised graph holds at most 2 GB.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from coedge.core.onnx_session import Session, session_options

# Constants with more elements than this are passed beside the graph.
LARGE_ELEMENTS = 1_000_000
# Larger weights are written to a file of their own. A serialised graph holds at most 2 GB.
MOST_NBYTES = 1_500_000_000


def stub(name: str, data_type: int, dims: Sequence[int]) -> TensorProto:
    """Return an initialiser without its values, which the session receives separately."""
    made = TensorProto(name=name, data_type=data_type, dims=dims)
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value="memory")
    return made


def initializers_nbytes(proto: onnx.ModelProto) -> int:
    """Return the bytes of the initialisers, without those of their smaller encodings."""
    return sum(len(one.raw_data) or 8 * math.prod(one.dims) for one in proto.graph.initializer)


def session_of(proto: onnx.ModelProto, threads: int, options: Any = None, disabled: Sequence[str] = ()) -> Session:
    """Return a session of a model, whose large weights are not copied into the serialised graph.

    Args:
        options: from `session_options`.
        disabled: names of optimisers that are not applied.
    """
    import onnxruntime

    options = options or session_options(threads)
    large = {i.name: i for i in proto.graph.initializer if _is_passed_beside(i)}
    if large:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(numpy_helper.to_array(i)) for i in large.values()]
        options.add_external_initializers(list(large), values)
        proto = with_stubs(proto, large)
    return Session(proto.SerializeToString(), threads, options, disabled=disabled)


def _is_passed_beside(tensor: TensorProto) -> bool:
    # NumPy itself does not have the other types, such as bfloat16.
    plain = tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT8)
    return plain and math.prod(tensor.dims) > LARGE_ELEMENTS


def without_initializers(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return a copy of the model without some initialisers, whose values are not copied.

    A copy by `CopyFrom` fails for a model of more than 2 GB.
    """
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


def with_stubs(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return a copy of the model with stubs in the place of some initialisers."""
    light = without_initializers(proto, names)
    large = (i for i in proto.graph.initializer if i.name in names)
    light.graph.initializer.extend(stub(i.name, i.data_type, i.dims) for i in large)
    return light


def with_inputs(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return a copy of the model with inputs in the place of some initialisers."""
    light = without_initializers(proto, names)
    large = (i for i in proto.graph.initializer if i.name in names)
    light.graph.input.extend(helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in large)
    return light


def remove_inputs(proto: onnx.ModelProto, names: Collection[str]) -> None:
    """Remove inputs from a model."""
    kept = [value for value in proto.graph.input if value.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def _copy(target: object, field: object, value: object) -> None:
    name = str(getattr(field, "name", ""))
    if isinstance(value, (str, bytes, int, float)):
        setattr(target, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)
