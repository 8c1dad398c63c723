"""A captured network: its graph, the region rule of every node, its layers and cuts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from coedge.core.errors import CaptureError, InputError
from coedge.core.region import Interval, Region
from coedge.execution.program import Tile
from coedge.graph.graph import Graph, Node, Tensor
from coedge.graph.large_weights import stub
from coedge.graph.layers import Cut, Layer, make_cuts, make_layers
from coedge.graph.quantised import rounded_later
from coedge.graph.receptive_field import BackwardRule, region_rules, row_rules
from coedge.graph.rewrite import ORDERLESS, Draft, expand, group_norm_pattern
from coedge.graph.rules import Context, Rule, rule_for
from coedge.graph.rules.reduce import PARTIAL
from coedge.graph.rules.rule import whole_rule
from coedge.graph.weight_slice import WeightSlice

# Constants up to this size travel with the graph: rules look at their values (axes, pads, shapes).
SMALL_NBYTES = 4096

# Why a sum over rows and columns is not taken in parts.
ROUNDED = "what it sums up is quantised later: in another order of summing, a value might be rounded the other way"

_READS_ROWS = frozenset(
    (
        "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize",
        "DepthToSpace",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A network that can be planned, split and run.

    Attributes:
        name: for people.
        graph: nodes in topological order; reductions over space are split in partial and combine.
        rules: the region rule of every node, in the order of `graph.nodes`.
        opset: of the standard operators.
        opset_imports: (domain, version) of every operator set.
        structure: how the flat outputs make up what the module returns; JSON of torch's tree specification.
        original: the network before any rewrite; None on workers.
    """

    name: str
    graph: Graph
    rules: tuple[Rule, ...]
    opset: int
    opset_imports: tuple[tuple[str, int], ...]
    ir_version: int
    structure: str | None = None
    original: onnx.ModelProto | None = field(default=None, repr=False)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return make_layers(self.graph, self.rules)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """The position before each layer, with the activations that are alive there."""
        return make_cuts(self.graph, self.layers)

    @cached_property
    def backward_regions(self) -> tuple[BackwardRule[Region], ...]:
        """Per node, how a region of its outputs maps to regions of its inputs."""
        return region_rules(self.graph, self.rules)

    @cached_property
    def backward_rows(self) -> tuple[BackwardRule[Interval], ...]:
        """Per node, how rows of its outputs map to rows of its inputs."""
        return row_rules(self.graph, self.rules)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.graph.tensors[name] for name in self.graph.inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return tuple(self.graph.tensors[name] for name in self.graph.outputs)

    @cached_property
    def hash(self) -> str:
        """Identifies graph and weights: 16 hexadecimal digits."""
        digest = hashlib.blake2b(self.skeleton, digest_size=8)
        for name in sorted(self.graph.constants):
            value = self.graph.constants[name]
            if value.nbytes > SMALL_NBYTES:
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    @property
    def reference(self) -> bytes:
        """The network before any rewrite, as serialised ONNX: what split output is compared with."""
        text: bytes = self.original_proto.SerializeToString()
        return text

    @property
    def original_proto(self) -> onnx.ModelProto:
        """The network before any rewrite.

        Raises:
            CaptureError: on workers, who never see it.
        """
        if self.original is None:
            raise CaptureError(f"{self.name} was not captured here, so the network before its rewrite is not known")
        return self.original

    @cached_property
    def skeleton(self) -> bytes:
        """The graph as ONNX without the values of its large weights: what a worker needs to build tiles."""
        text: bytes = _skeleton(self).SerializeToString(deterministic=True)
        return text

    @cached_property
    def weights(self) -> Mapping[str, np.ndarray]:
        """The constants that the skeleton leaves out."""
        return {n: v for n, v in self.graph.constants.items() if v.nbytes > SMALL_NBYTES}

    @property
    def weight_nbytes(self) -> int:
        return sum(value.nbytes for value in self.graph.constants.values())

    @classmethod
    def from_skeleton(cls, skeleton: bytes, weights: Mapping[str, np.ndarray]) -> Model:
        """The model again, at a worker. Weights that are left out stand as zeros of the right shape."""
        return model_from_proto(onnx.load_model_from_string(skeleton), weights=weights)

    def weight_slices(self, tiles: Iterable[Tile]) -> dict[str, WeightSlice]:
        """What the tiles read of the constants, large and small, by key."""
        parts: dict[str, WeightSlice] = {}
        for tile_node in (part for tile in tiles for part in tile.nodes):
            node = self.graph.nodes[tile_node.node]
            own = self.rules[tile_node.node].weight_slices(node, tile_node.adjust)
            for position, name in enumerate((*node.inputs, *node.captured)):
                if name in self.graph.constants:
                    part = own.get(position, WeightSlice(name))
                    parts[part.key] = part
        return parts

    def weight_names(self, first: int, stop: int) -> set[str]:
        """Large constants that nodes [first, stop) read."""
        return {
            name
            for node in self.graph.nodes[first:stop]
            for name in (*node.inputs, *node.captured)
            if name in self.weights
        }

    def check_inputs(self, arrays: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The arrays, if they fit the model's inputs.

        Raises:
            InputError: naming the input, what it should be and what was given.
        """
        given = tuple(arrays)
        if len(given) != len(self.inputs):
            raise InputError(f"model {self.name!r} takes {len(self.inputs)} inputs, {len(given)} were given")
        for tensor, array in zip(self.inputs, given):
            if tuple(array.shape) != tensor.shape:
                raise InputError(
                    f"input {tensor.name!r} of model {self.name!r} has shape {list(tensor.shape)}, "
                    f"{list(array.shape)} was given; shapes are fixed when a model is captured: "
                    "resize the image, or capture the model again with an example of this shape"
                )
            if array.dtype != np.dtype(tensor.dtype):
                raise InputError(
                    f"input {tensor.name!r} of model {self.name!r} has dtype {tensor.dtype}, {array.dtype} was given; "
                    f"convert it (x.astype({tensor.dtype!r}) or x.to(torch.{tensor.dtype}))"
                )
        return given

    def describe(self) -> str:
        """What can be split and how, and which nodes cannot, with the reason."""
        kinds: Counter[str] = Counter(rule.kind for rule in self.rules)
        words = {
            "local": "row-local", "window": "window (halo rows)", "partial": "reduction, each device its share",
            "combine": "reduction, combined", "dense": "dense (split by features)", "pixel": "without rows",
            "whole": "not splittable",
        }  # fmt: skip
        lines = [
            f"{self.name}: {len(self.graph.nodes)} nodes in {len(self.layers)} layers, "
            f"{self.weight_nbytes / 1e6:.1f} MB of weights, hash {self.hash}"
        ]
        lines += [f"  {kinds[kind]:4d} {words[kind]}" for kind in words if kinds[kind]]
        for node, rule in zip(self.graph.nodes, self.rules):
            if rule.kind == "whole":
                lines.append(f"  not split: {node.op} {node.name!r}: {rule.why}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes the network before any rewrite as an .onnx file."""
        Path(path).write_bytes(self.reference)


def model_from_proto(
    proto: onnx.ModelProto,
    name: str = "",
    weights: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dtypes: Mapping[str, str] | None = None,
    structure: str | None = None,
    original: onnx.ModelProto | None = None,
) -> Model:
    """Works out layouts and rules, node by node, expanding what `coedge.graph.rewrite` can make splittable.

    Args:
        weights: values of initialisers that are marked as external.
        shapes, dtypes: of activations, beyond what the proto says.
    """
    constants: dict[str, np.ndarray] = {}
    for initializer in proto.graph.initializer:
        constants[initializer.name] = _value(initializer, weights or {})
    draft = Draft(constants, {n: v.shape for n, v in constants.items()}, {}, _opset(proto))
    draft.dtypes.update({n: str(v.dtype) for n, v in constants.items()})
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if info.type.WhichOneof("value") not in (None, "tensor_type"):
            raise CaptureError(f"{info.name!r} is a sequence, a map or an optional; only tensors can travel")
        kind = info.type.tensor_type
        draft.dtypes[info.name] = str(helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else ""
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.HasField("shape") and all(d >= 0 for d in dims):
            draft.shapes[info.name] = tuple(dims)
    draft.shapes.update(shapes or {})
    draft.dtypes.update(dtypes or {})

    # A graph keeps its inputs even where an initialiser gives them a default: that is a constant here.
    inputs = tuple(i.name for i in proto.graph.input if i.name not in constants)
    outputs = tuple(o.name for o in proto.graph.output)
    tensors: dict[str, Tensor] = {}
    for input_name in inputs:
        shape = draft.shapes[input_name]
        row, col = _input_layout(shape)
        tensors[input_name] = Tensor(input_name, draft.dtypes[input_name], shape, row, col)

    protos = list(proto.graph.node)
    uses = Counter(n for p in protos for n in p.input)
    uses.update(outputs)
    # A reduction over space was a global pooling, or will be found to be one: a worker's graph has it in parts.
    reads_rows = {p.input[0] for p in protos if p.input and (p.op_type in _READS_ROWS or p.name.startswith(PARTIAL))}
    rounded = rounded_later(protos)
    queue: list[tuple[int, onnx.NodeProto]] = list(enumerate(protos))
    queue.reverse()
    replaced: set[int] = set()
    nodes: list[Node] = []
    rules: list[Rule] = []
    while queue:
        position, node_proto = queue.pop()
        if position in replaced:
            continue
        if position >= 0 and not rounded.intersection(node_proto.output):
            pattern = group_norm_pattern(protos, position, tensors, draft, uses)
            if pattern:
                replaced |= pattern[1]
                queue.extend((-1, made) for made in reversed(pattern[0]))
                continue
        node = _node(len(nodes), node_proto)
        stays = node.op not in ORDERLESS and bool(rounded.intersection(node.outputs))
        grown = expand(node, tensors, draft.copy() if stays else draft)
        if grown and not stays:
            queue.extend((-1, made) for made in reversed(grown))
            continue
        missing = [o for o in node.outputs if o and o not in draft.shapes]
        if missing:
            raise CaptureError(f"the shape of {missing[0]!r}, made by {node.op} {node.name!r}, is not known")
        context = Context(tensors, draft.constants, draft.shapes, draft.opset)
        restores_rows = any(o in reads_rows for o in node.outputs)
        rule = whole_rule(node, context, ROUNDED, restores_rows) if grown else rule_for(node, context, restores_rows)
        nodes.append(node)
        rules.append(rule)
        for output in node.outputs:
            if output:
                tensor = tensors[output] = _tensor(output, rule, draft)
                if tensor.rows < 1 or tensor.cols < 1:
                    raise CaptureError(
                        f"{output!r}, made by {node.op} {node.name!r}, is empty: {list(tensor.shape)}; "
                        "leave it out of the network, or capture it with a larger example"
                    )
    graph = Graph(tuple(nodes), tensors, constants, inputs, outputs)
    imports = tuple((o.domain, o.version) for o in proto.opset_import)
    return Model(
        name or proto.graph.name or "model", graph, tuple(rules), draft.opset, imports, proto.ir_version,
        structure, original,
    )  # fmt: skip


def _tensor(name: str, rule: Rule, draft: Draft) -> Tensor:
    shape = draft.shapes[name]
    row, col = (axis if axis is not None and axis < len(shape) else None for axis in rule.layout)
    return Tensor(name, draft.dtypes[name], shape, row, col, rule.partial_extent, rule.features and row is not None)


def _input_layout(shape: tuple[int, ...]) -> tuple[int | None, int | None]:
    """Channels first, unless the last axis is the one that looks like channels."""
    if len(shape) != 4:
        return None, None
    channels_last = shape[3] <= 4 < min(shape[1], shape[2])
    return (1, 2) if channels_last else (2, 3)


def _node(index: int, proto: onnx.NodeProto) -> Node:
    captured: list[str] = []
    for attribute in proto.attribute:
        for inner in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            made = {o for n in inner.node for o in n.output} | {i.name for i in (*inner.input, *inner.initializer)}
            captured += [i for n in inner.node for i in (*n.input, *_node(0, n).captured) if i and i not in made]
    return Node(index, proto, tuple(proto.input), tuple(proto.output), tuple(dict.fromkeys(captured)))


def _opset(proto: onnx.ModelProto) -> int:
    return next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def _value(initializer: TensorProto, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    if initializer.name in weights:
        return weights[initializer.name]
    if initializer.data_location == TensorProto.EXTERNAL:
        dtype = helper.tensor_dtype_to_np_dtype(initializer.data_type)
        return np.broadcast_to(np.zeros((), dtype), tuple(initializer.dims))
    array: np.ndarray = numpy_helper.to_array(initializer)
    return array


def _skeleton(model: Model) -> onnx.ModelProto:
    graph = model.graph
    initializers = []
    for name in sorted(graph.constants):
        value = graph.constants[name]
        if value.nbytes > SMALL_NBYTES:
            initializers.append(stub(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape))
        else:
            initializers.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))

    def info(name: str) -> onnx.ValueInfoProto:
        tensor = graph.tensors[name]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        return helper.make_tensor_value_info(name, kind, tensor.shape)

    made = helper.make_graph(
        [_bare(node.proto) for node in graph.nodes],
        model.name,
        [info(n) for n in graph.inputs],
        [info(n) for n in graph.outputs],
        initializers,
        value_info=[info(n) for n in graph.tensors if n not in graph.inputs and n not in graph.outputs],
    )
    imports = [helper.make_operatorsetid(domain, version) for domain, version in model.opset_imports]
    return helper.make_model(made, opset_imports=imports, ir_version=model.ir_version)


def _bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """Without what exporters note for people, such as the lines of source, with paths, that a node comes from: the
    same network has the same hash wherever it was captured."""
    bare = onnx.NodeProto()
    bare.CopyFrom(node)
    bare.ClearField("metadata_props")
    bare.ClearField("doc_string")
    for attribute in bare.attribute:
        for inner in (attribute.g, *attribute.graphs):
            kept = [_bare(one) for one in inner.node]
            if kept:  # to look at an attribute's graph does not make one, to write to it does
                del inner.node[:]
                inner.node.extend(kept)
    return bare
