"""Analysis of an ONNX graph, node by node: rewrites that make nodes splittable, layouts, region rules."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from coedge.core.errors import CaptureError
from coedge.graph.graph import Graph, Node, Tensor, captured_names
from coedge.graph.model import DYNAMIC, Model
from coedge.graph.quantised import rounded_later
from coedge.graph.rewrite import ORDERLESS, Draft, expand, group_norm_pattern
from coedge.graph.rules import Context, Rule, rule_for
from coedge.graph.rules.reduce import PARTIAL
from coedge.graph.rules.rule import whole_rule

# Why a sum over rows and columns is not taken in parts.
ROUNDED = "its sum is quantised later, and another order of summing could round a value the other way"

DATA_SHAPED = "the shape of what it reads or makes depends on the data"

_READS_ROWS = frozenset(
    (
        "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize",
        "DepthToSpace",
    )
)  # fmt: skip
# The position of a node that a rewrite made: it is no position of the original graph.
_REWRITTEN = -1


def model_from_proto(
    proto: onnx.ModelProto,
    name: str = "",
    weights: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dtypes: Mapping[str, str] | None = None,
    dynamic: frozenset[str] = frozenset(),
    structure: str | None = None,
    original: onnx.ModelProto | None = None,
) -> Model:
    """Return the model of an ONNX graph with static shapes.

    Args:
        weights: values of initialisers that are marked as external.
        shapes, dtypes: of activations, in addition to those in the proto.
        dynamic: names of the activations whose shapes depend on the data. What makes or reads them is not split.
        structure, original: see `Model`.

    Raises:
        CaptureError: a value is not a tensor, has no known shape, or is empty.
    """
    draft = _read_values(proto, weights or {})
    draft.shapes.update(shapes or {})
    draft.dtypes.update(dtypes or {})
    analysis = _Analysis(proto, draft, dynamic)
    analysis.run()
    graph = Graph(
        tuple(analysis.nodes), analysis.tensors, draft.constants, analysis.inputs,
        tuple(output.name for output in proto.graph.output),
    )  # fmt: skip
    imports = tuple((one.domain, one.version) for one in proto.opset_import)
    return Model(
        name or proto.graph.name or "model", graph, tuple(analysis.rules), imports, proto.ir_version, dynamic,
        structure, original,
    )  # fmt: skip


def model_from_skeleton(skeleton: bytes, weights: Mapping[str, np.ndarray]) -> Model:
    """Return the model of a skeleton (`Model.skeleton`), as a worker has it.

    Args:
        weights: values of large constants. Those left out are zeros of their shape.
    """
    proto = onnx.load_model_from_string(skeleton)
    notes = {one.key: one.value for one in proto.metadata_props}
    return model_from_proto(proto, weights=weights, dynamic=frozenset(json.loads(notes.get(DYNAMIC, "[]"))))


def _read_values(proto: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> Draft:
    """Read the constants of a graph, and the shapes and dtypes that it states."""
    constants = {initializer.name: _value(initializer, weights) for initializer in proto.graph.initializer}
    draft = Draft(constants, {n: v.shape for n, v in constants.items()}, {})
    draft.dtypes.update({n: str(v.dtype) for n, v in constants.items()})
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if info.type.WhichOneof("value") not in (None, "tensor_type"):
            raise CaptureError(f"{info.name!r} is a sequence, a map or an optional; only tensors can travel")
        kind = info.type.tensor_type
        draft.dtypes[info.name] = str(helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else ""
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.HasField("shape") and all(d >= 0 for d in dims):
            draft.shapes[info.name] = tuple(dims)
    return draft


class _Analysis:
    """A pass over the nodes in topological order, which rewrites nodes and finds the rule of each.

    Attributes:
        inputs: names of the graph's inputs.
        tensors: the activations so far, by name.
        nodes, rules: the nodes so far and the rule of each.
    """

    def __init__(self, proto: onnx.ModelProto, draft: Draft, dynamic: frozenset[str]) -> None:
        self.draft, self.dynamic = draft, dynamic
        # An initialiser that gives an input its default value makes the input a constant here.
        self.inputs = tuple(i.name for i in proto.graph.input if i.name not in draft.constants)
        self.tensors = {name: _input_tensor(name, draft) for name in self.inputs}
        self.nodes: list[Node] = []
        self.rules: list[Rule] = []
        self._protos = protos = list(proto.graph.node)
        self._uses = Counter(name for p in protos for name in p.input)
        self._uses.update(output.name for output in proto.graph.output)
        # A reduction over space starts as a global pooling or is recognised later. On a worker it is in parts already.
        self._reads_rows = {
            p.input[0] for p in protos if p.input and (p.op_type in _READS_ROWS or p.name.startswith(PARTIAL))
        }
        self._rounded = rounded_later(protos)

    def run(self) -> None:
        """Analyse all nodes."""
        queue = list(enumerate(self._protos))
        queue.reverse()
        replaced: set[int] = set()
        while queue:
            position, proto = queue.pop()
            if position in replaced:
                continue
            pattern = self._group_norm(position, proto)
            if pattern:
                replaced |= pattern[1]
                queue.extend((_REWRITTEN, made) for made in reversed(pattern[0]))
                continue
            node = _node(len(self.nodes), proto)
            keeps_order = node.op not in ORDERLESS and bool(self._rounded.intersection(node.outputs))
            rewrite = expand(node, self.tensors, self.draft.copy() if keeps_order else self.draft)
            if rewrite and not keeps_order:
                queue.extend((_REWRITTEN, made) for made in reversed(rewrite))
                continue
            self._add(node, ROUNDED if rewrite else "")

    def _group_norm(self, position: int, proto: onnx.NodeProto) -> tuple[list[onnx.NodeProto], set[int]] | None:
        if position == _REWRITTEN or self._rounded.intersection(proto.output):
            return None
        return group_norm_pattern(self._protos, position, self.tensors, self.draft, self._uses)

    def _add(self, node: Node, why: str) -> None:
        """Add a node with its rule and its outputs.

        Args:
            why: the reason why the node is not split, where it could be; else empty.
        """
        draft = self.draft
        missing = [name for name in node.outputs if name and name not in draft.shapes]
        if missing:
            raise CaptureError(f"the shape of {missing[0]!r}, made by {node.op} {node.name!r}, is not known")
        context = Context(self.tensors, draft.constants, draft.shapes)
        varies = not self.dynamic.isdisjoint(node.outputs)
        restores_rows = not varies and any(name in self._reads_rows for name in node.outputs)
        if varies or not self.dynamic.isdisjoint((*node.inputs, *node.captured)):
            why = DATA_SHAPED
        rule = whole_rule(node, context, why, restores_rows) if why else rule_for(node, context, restores_rows)
        self.nodes.append(node)
        self.rules.append(rule)
        for name in filter(None, node.outputs):
            tensor = self.tensors[name] = _output_tensor(name, rule, draft)
            if tensor.rows < 1 or tensor.cols < 1:
                raise CaptureError(
                    f"{name!r}, made by {node.op} {node.name!r}, is empty: {list(tensor.shape)}; "
                    "leave it out of the network, or capture it with a larger example"
                )


def _input_tensor(name: str, draft: Draft) -> Tensor:
    shape = draft.shapes[name]
    row, col = _input_layout(shape)
    return Tensor(name, draft.dtypes[name], shape, row, col)


def _input_layout(shape: tuple[int, ...]) -> tuple[int | None, int | None]:
    """Return (row axis, column axis): channels first, unless only the last axis is as short as channels are."""
    if len(shape) != 4:
        return None, None
    channels_last = shape[3] <= 4 < min(shape[1], shape[2])
    return (1, 2) if channels_last else (2, 3)


def _output_tensor(name: str, rule: Rule, draft: Draft) -> Tensor:
    shape = draft.shapes[name]
    row, col = (axis if axis is not None and axis < len(shape) else None for axis in rule.layout)
    return Tensor(name, draft.dtypes[name], shape, row, col, rule.partial_extent, rule.features and row is not None)


def _node(index: int, proto: onnx.NodeProto) -> Node:
    return Node(index, proto, tuple(proto.input), tuple(proto.output), captured_names(proto))


def _value(initializer: TensorProto, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    if initializer.name in weights:
        return weights[initializer.name]
    if initializer.data_location == TensorProto.EXTERNAL:
        dtype = helper.tensor_dtype_to_np_dtype(initializer.data_type)
        return np.broadcast_to(np.zeros((), dtype), tuple(initializer.dims))
    array: np.ndarray = numpy_helper.to_array(initializer)
    return array
