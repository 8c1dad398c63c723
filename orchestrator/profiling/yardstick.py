"""A short network whose layers have reference times. Its measured times compare this machine with the reference
machine.

    stem -> [ depthwise, 1x1, pool, 3x3 ... ] at 112, 56, 28 and 14 rows, many channels -> mean -> dense
         -> [ depthwise, 1x1 ... ] at 112, 56, 28 and 14 rows, few channels

Machines differ by more than one factor: one has faster caches, another wider vectors. Hence a speed per family.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.profile.layer_work import Family, layer_costs
from coedge.profile.profile import LayerTime
from coedge.profile.reference_times import reference_times

# (output channels, extent of the kernel, stride, kind) of each layer. These are layers of MobileNet 1 and ResNet, many
# channels, and of MobileNet 2, few channels, in orders in which their shapes fit. Both rows of layers follow the stem.
_STEM = (32, 3, 2, "full")
_MANY = (
    (32, 3, 1, "depthwise"), (64, 1, 1, "full"), (64, 3, 2, "pool"), (64, 3, 1, "full"), (128, 1, 1, "full"),
    (128, 3, 1, "depthwise"), (128, 1, 1, "full"), (128, 3, 2, "depthwise"), (128, 3, 1, "full"), (256, 1, 1, "full"),
    (256, 3, 1, "depthwise"), (256, 1, 1, "full"), (256, 3, 2, "depthwise"), (256, 3, 1, "full"), (512, 1, 1, "full"),
    (512, 3, 1, "depthwise"), (512, 1, 1, "full"),
)  # fmt: skip
_FEW = (
    (32, 3, 1, "depthwise"), (16, 1, 1, "full"), (96, 1, 1, "full"), (96, 3, 2, "depthwise"), (24, 1, 1, "full"),
    (144, 1, 1, "full"), (144, 3, 2, "depthwise"), (32, 1, 1, "full"), (192, 1, 1, "full"),
    (192, 3, 2, "depthwise"), (64, 1, 1, "full"), (384, 1, 1, "full"), (384, 3, 1, "depthwise"), (96, 1, 1, "full"),
    (576, 1, 1, "full"), (576, 3, 1, "depthwise"), (96, 1, 1, "full"),
)  # fmt: skip
_PIXELS, _CLASSES = 224, 1000
# Families that the yardstick has no layers of, or none with reference times, and the family that is most alike: work
# on few channels is slower than work on many, and work without multiplications is limited by memory, as pools are.
_ALIKE: dict[Family, Family] = {"stem": "pointwise", "transposed": "conv", "other": "pool"}


@functools.cache
def yardstick() -> Model:
    """Return the network, with weights of zero: times do not depend on them."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def add(op: str, inputs: list[str], weights: tuple[int, ...] = (), **attributes: Any) -> str:
        names = []
        for value in (weights, weights[:1]) if weights else ():
            names.append(f"c{len(constants)}")
            constants.append(numpy_helper.from_array(np.zeros(value, np.float32), names[-1]))
        nodes.append(helper.make_node(op, [*inputs, *names], [f"t{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def chain(name: str, channels: int, layers: Sequence[tuple[int, int, int, str]]) -> tuple[str, int]:
        for outputs, extent, stride, kind in layers:
            window: dict[str, Any] = {
                "kernel_shape": [extent] * 2, "strides": [stride] * 2, "pads": [extent // 2] * 4,
            }  # fmt: skip
            if kind == "pool":
                name = add("MaxPool", [name], **window)
                continue
            groups = channels if kind == "depthwise" else 1
            name = add("Conv", [name], (outputs, channels // groups, extent, extent), group=groups, **window)
            name, channels = add("Relu", [name]), outputs
        return name, channels

    stem = chain("x", 3, [_STEM])
    name, channels = chain(*stem, _MANY)
    name = add("Flatten", [add("GlobalAveragePool", [name])])
    name = add("Gemm", [name], (_CLASSES, channels), transB=1)
    other, other_channels = chain(*stem, _FEW)
    pixels = _PIXELS // 16
    graph = helper.make_graph(
        nodes,
        "yardstick",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, _PIXELS, _PIXELS])],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, _CLASSES]),
            helper.make_tensor_value_info(other, onnx.TensorProto.FLOAT, [1, other_channels, pixels, pixels]),
        ],
        constants,
    )
    return capture(helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 17)], ir_version=8))


def speeds_from(layers: tuple[LayerTime, ...], fused: tuple[LayerTime, ...]) -> dict[Family, float]:
    """Return the speed of a machine by family of layers, from its times of the yardstick. The reference machine is 1.

    The speed of a family is the geometric mean over its layers of the reference time over the time on the machine.
    """
    reference = reference_times(yardstick())
    ratios: dict[Family, list[float]] = {}
    for index, cost in enumerate(layer_costs(yardstick())):
        known, own = (
            sum(times[index].seconds(cost.rows) for times in both)
            for both in ((reference.layers, reference.fused), (layers, fused))
        )
        if cost.family not in _ALIKE and own > 0:
            ratios.setdefault(cost.family, []).append(math.log(known / own))
    speeds = {family: math.exp(sum(logs) / len(logs)) for family, logs in ratios.items()}
    return speeds | {family: speeds[like] for family, like in _ALIKE.items()}
