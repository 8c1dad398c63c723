"""One run of a network when it is captured: it shows that the network runs, and the true shapes of its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from coedge.core.errors import CaptureError, innermost_message
from coedge.core.onnx_session import session_options
from coedge.graph.graph import fresh_name
from coedge.graph.large_weights import session_of, without_initializers

SEED = 0
# Prefix of the outputs that the run adds: the shapes of all values.
_SHAPE_OF = "coedge.shape:"


class Observed(NamedTuple):
    """The shapes, dtypes and outputs of a run.

    Attributes:
        shapes, dtypes: of the values that nodes of the outer graph make, by name.
        outputs: the network's outputs.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    outputs: tuple[np.ndarray, ...]


def example_feeds(proto: onnx.ModelProto, example: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return inputs to try a network on: the example, or random images.

    Args:
        proto: its inputs have static shapes.
    """
    if example:
        return {value.name: np.ascontiguousarray(array) for value, array in zip(proto.graph.input, example)}
    random = np.random.default_rng(SEED)
    feeds = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if dtype.kind == "f":
            feeds[value.name] = random.random(shape).astype(dtype)
        else:
            feeds[value.name] = random.integers(0, 256, shape).astype(dtype)
    return feeds


def observe(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Observed:
    """Run a network once, without optimisations, and look at all its values.

    Raises:
        CaptureError: the network cannot run on these inputs.
    """
    probe = without_initializers(proto, ())
    graph = probe.graph
    made = {name: None for node in graph.node for name in node.output if name}
    typed = {
        value.name: value.type
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.elem_type
    }
    results = [output.name for output in graph.output]
    # The shape of a value is small, so that no value has to be kept until the end of the run.
    shape_of = {name: fresh_name(_SHAPE_OF + name, made) for name in made}
    graph.node.extend(helper.make_node("Shape", [name], [shape]) for name, shape in shape_of.items())
    graph.output.extend(
        helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, [None]) for shape in shape_of.values()
    )
    unknown = [name for name in made if name not in typed and name not in results]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
    # The shapes that a file states may be wrong.
    del graph.value_info[:]
    for output in graph.output:
        if output.name in results:
            output.type.tensor_type.ClearField("shape")
    try:
        session = session_of(probe, 1, session_options(1, "none"))
        values = dict(zip(session.outputs, session.run(None, feeds)))
    except Exception as error:
        shown = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items() if value.ndim == 4)
        raise CaptureError(
            f"the network does not run on inputs of this shape ({shown}): {innermost_message(error)}; give an example "
            "that it runs on: coedge.capture(model, example)"
        ) from error
    dtypes = {name: str(helper.tensor_dtype_to_np_dtype(t.tensor_type.elem_type)) for name, t in typed.items()}
    dtypes |= {name: str(np.asarray(values[name]).dtype) for name in (*unknown, *results)}
    shapes = {name: tuple(int(extent) for extent in values[shape_of[name]]) for name in made}
    return Observed(shapes, {name: dtypes[name] for name in made}, tuple(values[name] for name in results))
