"""A captured network: its graph, the region rule of every node, its layers and cuts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coedge.core.errors import CaptureError, InputError, reason_of
from coedge.core.region import Interval, Region
from coedge.execution.program import Tile
from coedge.graph.graph import Graph, Tensor, inner_graphs, make_names_distinct
from coedge.graph.large_weights import MOST_NBYTES, initializers_nbytes, stub, without_initializers
from coedge.graph.layers import Cut, Layer, make_cuts, make_layers
from coedge.graph.receptive_field import BackwardRule, region_rules, row_rules
from coedge.graph.rules import Rule
from coedge.graph.weight_slice import WeightSlice

# Constants up to this size travel with the graph, because rules read their values (axes, pads, shapes).
SMALL_NBYTES = 4096
# A skeleton's note of its activations whose shapes depend on the data.
DYNAMIC = "coedge.dynamic"


@dataclass(frozen=True, repr=False)
class Model:
    """A network that can be planned, split and run.

    Attributes:
        name: shown to users.
        graph: nodes in topological order. Reductions over space are split in partial and combine.
        rules: the region rule of every node, in the order of `graph.nodes`.
        opset_imports: (domain, version) of every operator set.
        dynamic: names of the activations whose shapes depend on the data.
        structure: how the flat outputs form the value that the module returns, as JSON of torch's tree specification.
        original: the network before any rewrite; None on workers.
    """

    name: str
    graph: Graph
    rules: tuple[Rule, ...]
    opset_imports: tuple[tuple[str, int], ...]
    ir_version: int
    dynamic: frozenset[str] = frozenset()
    structure: str | None = None
    original: onnx.ModelProto | None = None

    def __repr__(self) -> str:
        return f"<Model {self.name}: {len(self.layers)} layers, inputs {[list(t.shape) for t in self.inputs]}>"

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return make_layers(self.graph, self.rules)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """The positions before each layer, with the activations that are alive there."""
        return make_cuts(self.graph, self.layers)

    @cached_property
    def backward_regions(self) -> tuple[BackwardRule[Region], ...]:
        """The backward rule of each node, from a region of its outputs to regions of its inputs."""
        return region_rules(self.graph, self.rules)

    @cached_property
    def backward_rows(self) -> tuple[BackwardRule[Interval], ...]:
        """The backward rule of each node for rows alone."""
        return row_rules(self.graph, self.rules)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.graph.tensors[name] for name in self.graph.inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return tuple(self.graph.tensors[name] for name in self.graph.outputs)

    @cached_property
    def hash(self) -> str:
        """A digest of graph and weights: 16 hexadecimal digits."""
        digest = hashlib.blake2b(self.skeleton, digest_size=8)
        for name in sorted(self.graph.constants):
            value = self.graph.constants[name]
            if value.nbytes > SMALL_NBYTES:
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    @property
    def reference(self) -> bytes:
        """The network before any rewrite, as serialised ONNX. Split output is compared with its output.

        Raises:
            CaptureError: the network has more than 2 GB of weights.
        """
        proto = self.original_proto
        if initializers_nbytes(proto) > MOST_NBYTES:
            raise CaptureError(
                f"{self.name} has more than 2 GB of weights, which serialised ONNX cannot hold; save it to a file: "
                "model.save(path)"
            )
        text: bytes = proto.SerializeToString()
        return text

    @property
    def original_proto(self) -> onnx.ModelProto:
        """The network before any rewrite.

        Raises:
            CaptureError: the model was not captured in this process. Workers do not have the original network.
        """
        if self.original is None:
            raise CaptureError(
                f"{self.name} was not captured in this process, so its original network is not available"
            )
        return self.original

    @cached_property
    def skeleton(self) -> bytes:
        """The graph as ONNX without the values of its large weights. A worker builds tiles from it."""
        text: bytes = _skeleton(self).SerializeToString(deterministic=True)
        return text

    @cached_property
    def weights(self) -> Mapping[str, np.ndarray]:
        """The constants that the skeleton leaves out."""
        return {n: v for n, v in self.graph.constants.items() if v.nbytes > SMALL_NBYTES}

    @property
    def weight_nbytes(self) -> int:
        return sum(value.nbytes for value in self.graph.constants.values())

    def weight_slices(self, tiles: Iterable[Tile]) -> dict[str, WeightSlice]:
        """Return the slices of large and small constants that the tiles read, by key."""
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
        """Return the names of the large constants that nodes [first, stop) read."""
        return {
            name
            for node in self.graph.nodes[first:stop]
            for name in (*node.inputs, *node.captured)
            if name in self.weights
        }

    @classmethod
    def check(cls, value: object) -> None:
        """Check that an argument is a captured network.

        Raises:
            InputError: it is something else.
        """
        if not isinstance(value, cls):
            raise InputError(f"a model is what coedge.capture returns; a {type(value).__name__} was given")

    def check_inputs(self, arrays: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return the arrays if they fit the model's inputs.

        Raises:
            InputError: an array does not fit; names the input, the expected and the given value.
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
        """Describe how many nodes can be split in which way, and list the others with the reason."""
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
        """Write the network before any rewrite to an .onnx file.

        Weights of more than 2 GB are written to a second file beside it, with `.data` at the end of its name.

        Raises:
            CaptureError: the file cannot be written, or the model was not captured in this process.
        """
        proto = self.original_proto
        text = self.reference if initializers_nbytes(proto) <= MOST_NBYTES else None
        try:
            path = Path(path)
            if text is not None:
                path.write_bytes(text)
            else:
                onnx.save_model(
                    without_initializers(proto, ()), str(path), save_as_external_data=True, location=f"{path.name}.data"
                )
        except (OSError, ValueError, TypeError) as error:
            raise CaptureError(f"cannot write {self.name} to {path!s:.200}: {reason_of(error)}") from error


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

    nodes = [_bare(node.proto) for node in graph.nodes]
    make_names_distinct(nodes)
    made = helper.make_graph(
        nodes,
        model.name,
        [info(n) for n in graph.inputs],
        [info(n) for n in graph.outputs],
        initializers,
        value_info=[info(n) for n in graph.tensors if n not in graph.inputs and n not in graph.outputs],
    )
    imports = [helper.make_operatorsetid(domain, version) for domain, version in model.opset_imports]
    proto = helper.make_model(made, opset_imports=imports, ir_version=model.ir_version)
    helper.set_model_props(proto, {DYNAMIC: json.dumps(sorted(model.dynamic))})
    return proto


def _bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node without the notes of exporters, such as the source lines and paths that it comes from.

    The same network then has the same hash wherever it was captured.
    """
    bare = onnx.NodeProto()
    bare.CopyFrom(node)
    bare.ClearField("metadata_props")
    bare.ClearField("doc_string")
    for inner in inner_graphs(bare):
        kept = [_bare(one) for one in inner.node]
        del inner.node[:]
        inner.node.extend(kept)
    return bare
