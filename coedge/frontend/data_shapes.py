"""Detection of values whose shapes depend on the data: boxes that a detector finds, branches of an If.

Such a value has another shape in every frame. Whatever reads it has too, until an operator makes a static shape of it
(a reduction, a scatter into an image).

    image --Conv--> scores --NonZero--> [2, n] --Gather--> [n, 256, 7, 7] --Conv--> [n, 80, 7, 7] --ReduceMax--> [80]
     static         static    data-dependent                                                          static
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from coedge.graph.graph import captured_names

# The number of elements of the output depends on the values of the input, or on which branch is taken.
_SIZED_BY_DATA = frozenset(
    (
        "Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Optional", "OptionalGetElement", "Scan",
        "SequenceAt", "SequenceMap", "StringSplit", "Unique",
    )
)  # fmt: skip
# The inputs that determine the shape of the output, by position.
_SHAPE_ARGUMENTS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1,), "ConstantOfShape": (0,),
    "DFT": (1, 2), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "ReduceL1": (1,), "ReduceL2": (1,),
    "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,), "Reshape": (1,), "Resize": (1, 2, 3),
    "STFT": (1, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,),
    "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip


def data_dependent(proto: onnx.ModelProto, inferred: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Return the names of the values whose shapes depend on the data.

    Args:
        proto: a graph with static input shapes.
        inferred: the static shapes that shape inference derives from the operators alone.
    """
    dependent: set[str] = set()
    # Values that the shapes alone determine, such as those that Shape makes.
    fixed = {one.name for one in proto.graph.initializer} | {""}
    for node in proto.graph.node:
        read = {*node.input, *captured_names(node)}
        if node.op_type in ("Constant", "Shape", "Size"):
            if not read & dependent:
                fixed.update(node.output)
        elif read <= fixed:
            fixed.update(node.output)
        arguments = {node.input[i] for i in _SHAPE_ARGUMENTS.get(node.op_type, ()) if i < len(node.input)}
        depends = bool(read & dependent) or (
            not node.domain and (node.op_type in _SIZED_BY_DATA or bool(arguments - fixed)) and not read <= fixed
        )
        if depends:
            dependent.update(name for name in node.output if name and name not in inferred)
    return frozenset(dependent)
