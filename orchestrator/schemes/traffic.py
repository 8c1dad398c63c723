"""Bytes that the layers of a network move if it is split in strips, a stage per layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import activation_nbytes
from coedge.plan.plan import even_plan

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Traffic:
    """Bytes that the layers move, read off the lowered plan of two equal strips.

    Attributes:
        down, up: per layer, halo bytes from the device above to the one below, and back.
        gathered: per layer, bytes that every device sends to every other (partial results of reductions).
        whole: per layer that cannot be split, bytes of all its inputs.
        scattered: per layer, bytes that it reads of results of layers that cannot be split.
        image: bytes of the input.
        answer, whole_answer: bytes of the outputs made by layers that can be split, and by the others.
        weights, whole_weights: bytes of constants of the layers that can be split, and of the others.
        largest: bytes of the largest set of activations alive at once.
        halo_share: the smallest share for which a halo lies within one neighbour at every layer.
    """

    down: Vector
    up: Vector
    gathered: Vector
    whole: Vector
    scattered: Vector
    image: float
    answer: float
    whole_answer: float
    weights: float
    whole_weights: float
    largest: float
    halo_share: float


def traffic(model: Model) -> Traffic:
    """Return the bytes that two equal strips move, a stage per layer."""
    count = len(model.layers)
    down, up, gathered, whole, scattered = (np.zeros(count) for _ in range(5))
    halo_share = 0.0
    from_one_device = made_whole(model)
    programs = lower(even_plan(model, ["above", "below"], source="above"), model)
    for name, program in programs.items():
        for step in program.steps:
            if step.kind != "send" or step.stage >= count:
                continue
            # With a stage per layer, the index of the stage is the index of the layer.
            for part in step.parts:
                tensor = model.graph.tensors[program.patches[part.patch].tensor]
                nbytes = tensor.region_nbytes(part.region)
                if tensor.partial_extent:
                    gathered[step.stage] += nbytes / 2
                elif not model.layers[step.stage].splittable:
                    whole[step.stage] += 2 * nbytes
                elif tensor.name in model.graph.inputs:
                    continue
                elif tensor.name in from_one_device:
                    scattered[step.stage] += 2 * nbytes
                else:
                    (down if name == "above" else up)[step.stage] += nbytes
                    halo_share = max(halo_share, part.region.rows.length / tensor.rows)
    image = sum(t.region_nbytes(t.whole) for t in model.inputs)
    for tensor in model.inputs:
        halo_share = max(halo_share, 1 / tensor.rows)
    (alone,) = lower(even_plan(model, 1), model).values()
    largest = activation_nbytes(alone, model)
    answers = {True: 0, False: 0}
    for tensor in model.outputs:
        answers[tensor.name not in from_one_device] += tensor.region_nbytes(tensor.whole)
    return Traffic(
        down, up, gathered, whole, scattered, float(image), float(answers[True]), float(answers[False]),
        _weights(model, True), _weights(model, False), float(largest), halo_share,
    )  # fmt: skip


def _weights(model: Model, splittable: bool) -> float:
    """Return the bytes of the constants that the layers of this kind read."""
    names = {
        name
        for layer in model.layers
        if layer.splittable == splittable
        for node in model.graph.nodes[layer.first : layer.stop]
        for name in (*node.inputs, *node.captured)
        if name in model.graph.constants
    }
    return float(sum(model.graph.constants[name].nbytes for name in names))


def made_whole(model: Model) -> set[str]:
    """Return the tensors that one device makes whole, in layers that cannot be split."""
    whole = [layer for layer in model.layers if not layer.splittable]
    nodes = [node for layer in whole for node in model.graph.nodes[layer.first : layer.stop]]
    return {name for node in nodes for name in node.outputs}
