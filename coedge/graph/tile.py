"""Construction of the ONNX model of a tile: its operators with their pads and crops, and dynamic heights."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coedge.execution.program import Tile
from coedge.graph.graph import Node, Tensor, make_names_distinct
from coedge.graph.large_weights import stub
from coedge.graph.model import SMALL_NBYTES, Model
from coedge.graph.rules.rule import Emitter
from coedge.graph.weight_slice import WeightSlice

# Prefix of the names of constants and values that a tile adds to those of the model.
TILE = "coedge.tile:"
_INT64_MAX = np.iinfo(np.int64).max


def build_tile(
    model: Model, tile: Tile, as_inputs: Collection[str] = ()
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the ONNX model of a tile, and the large weights that it leaves out (marked as external), by key.

    Inputs and outputs are named after the tensors. Heights are symbolic, and so are the widths of inputs
    that do not hold all columns.

    Args:
        as_inputs: keys of large weights that become further inputs, which the caller feeds.
    """
    writer = _Writer(model, model.weight_slices([tile]).values())
    for part in tile.nodes:
        node = model.graph.nodes[part.node]
        cropped = {name: writer.crop(name, model.graph.tensors[name], crop) for name, crop in part.crops}
        inputs = [cropped.get(name, name) for name in node.inputs]
        model.rules[part.node].emit(writer, node, inputs, part.adjust)
    graph = model.graph
    make_names_distinct(writer.nodes)
    proto = helper.make_graph(
        writer.nodes,
        "tile",
        [_info(graph.tensors[name], name in tile.fixed_cols) for name in tile.inputs] + writer.weights_of(as_inputs),
        [onnx.ValueInfoProto(name=name) for name in tile.outputs],
        writer.initializers(as_inputs),
    )
    for output in proto.output:
        kind = np.dtype(graph.tensors[output.name].dtype)
        output.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(kind)
    imports = [helper.make_operatorsetid(domain, version) for domain, version in model.opset_imports]
    made = helper.make_model(proto, opset_imports=imports, ir_version=model.ir_version)
    return made, writer.large()


def vector_matrices(model: Model, tile: Tile, least_nbytes: int) -> tuple[str, ...]:
    """Return the keys of the matrices of at least this size that multiply a vector in a dense layer.

    Matrices that another node of the tile reads too are left out.
    """
    found, others = dict[str, int](), set[str]()
    for part in tile.nodes:
        node, rule = model.graph.nodes[part.node], model.rules[part.node]
        parts = rule.weight_slices(node, part.adjust)
        read = [parts[i].key if i in parts else name for i, name in enumerate(node.inputs)]
        if rule.kind == "dense" and math.prod(model.graph.tensors[node.inputs[0]].shape[:-1]) == 1:
            constant = model.graph.constants[node.inputs[1]]
            found[read.pop(1)] = (parts[1].of(constant) if 1 in parts else constant).nbytes
        others.update(read)
    return tuple(key for key, nbytes in found.items() if nbytes >= least_nbytes and key not in others)


def _info(tensor: Tensor, fixed_cols: bool) -> onnx.ValueInfoProto:
    shape: list[int | str] = list(tensor.shape)
    if tensor.partial_extent:
        shape[0] = "shares"
    elif tensor.row_axis is None and tensor.col_axis is None:
        # The captured shape was observed on an image of zeros. The shape of a NonZero, say, depends on the image.
        shape = [f"axis {axis} of {tensor.name}" for axis in range(len(shape))]
    else:
        if tensor.row_axis is not None:
            shape[tensor.row_axis] = f"rows of {tensor.name}"
        if tensor.col_axis is not None and not fixed_cols:
            shape[tensor.col_axis] = f"columns of {tensor.name}"
    return helper.make_tensor_value_info(tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), shape)


class _Writer(Emitter):
    """A tile under construction: its nodes and constants."""

    def __init__(self, model: Model, parts: Collection[WeightSlice]) -> None:
        self.model = model
        self.tensors: Mapping[str, Tensor] = model.graph.tensors
        self.nodes: list[onnx.NodeProto] = []
        constants = model.graph.constants
        self._values = {part.key: part.of(constants[part.name]) for part in parts}
        # A worker's graph does not have the values of large constants, so even a small slice of one is left out.
        self._large = {part.key for part in parts if part.name in model.weights}
        self._count = 0

    def weights_of(self, keys: Collection[str]) -> list[onnx.ValueInfoProto]:
        values = [(key, self._values[key]) for key in keys]
        return [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for key, value in values
        ]

    def initializers(self, without: Collection[str]) -> list[onnx.TensorProto]:
        made = []
        for name, value in self._values.items():
            if name in without:
                continue
            if name in self._large:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                made.append(stub(name, kind, value.shape))
            else:
                made.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return made

    def large(self) -> dict[str, np.ndarray]:
        return {name: self._values[name] for name in self._large}

    def fresh(self) -> str:
        name = ""
        while not name or name in self.tensors or name in self._values:  # names of inputs and outputs are free
            self._count += 1
            name = f"{TILE}{self._count}"
        return name

    def constant(self, value: np.ndarray) -> str:
        name = self.fresh()
        self._values[name] = value
        if value.nbytes > SMALL_NBYTES:
            self._large.add(name)
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: object) -> None:
        given = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}.{len(self.nodes)}", **given))

    def copy(self, node: Node, inputs: list[str], outputs: list[str] | None = None, **changed: object) -> None:
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        del proto.input[:]
        proto.input.extend(inputs)
        if outputs is not None:
            del proto.output[:]
            proto.output.extend(outputs)
        if changed:
            kept = [a for a in proto.attribute if a.name not in changed]
            del proto.attribute[:]
            proto.attribute.extend(kept)
            proto.attribute.extend(helper.make_attribute(k, v) for k, v in changed.items() if v is not None)
        self.nodes.append(proto)

    def crop(self, name: str, tensor: Tensor, crop: tuple[int, int, int, int], output: str | None = None) -> str:
        above, below, left, right = crop
        axes, starts, stops = [], [], []
        for axis, first, last in ((tensor.row_axis, above, below), (tensor.col_axis, left, right)):
            if axis is not None and (first or last):
                axes.append(axis)
                starts.append(first)
                stops.append(-last if last else _INT64_MAX)
        result = output or self.fresh()
        lists = [self.constant(np.array(v, np.int64)) for v in (starts, stops, axes)]
        self.node("Slice", [name, *lists], [result])
        return result
