"""How much memory a program takes: its weights, and the patches that are alive at a time."""

from __future__ import annotations

from collections.abc import Iterable

from coedge.execution.program import Program
from coedge.graph.model import Model


def weight_nbytes(program: Program, model: Model) -> int:
    """Bytes of the constants that the program's nodes read, or of the parts that they read of them."""
    parts = model.weight_slices(program.tiles()).values()
    return sum(part.of(model.graph.constants[part.name]).nbytes for part in parts)


def held_nbytes(programs: Iterable[tuple[Model, Program]], at_once: bool = False) -> int:
    """Bytes of a device that keeps several programs: each weight once, activations of one frame.

    Args:
        at_once: they run at the same time: activations of a frame of each, rather than of the largest.
    """
    weights: dict[tuple[str, str], int] = {}
    activations = [0]
    for model, program in programs:
        for key, part in model.weight_slices(program.tiles()).items():
            weights[model.hash, key] = part.of(model.graph.constants[part.name]).nbytes
        activations.append(activation_nbytes(program, model))
    return sum(weights.values()) + (sum(activations) if at_once else max(activations))


def activation_nbytes(program: Program, model: Model) -> int:
    """Most bytes of patches alive at once for one frame, with the arrays that a step assembles and makes."""
    tensors = model.graph.tensors
    sizes = [tensors[p.tensor].region_nbytes(p.region) for p in program.patches]
    readers = [0] * len(sizes)
    for step in program.steps:
        for patch in step.reads:
            readers[patch] += 1
    alive, most = 0, 0
    for step in program.steps:
        alive += sum(sizes[patch] for patch in step.writes)
        assembled = sum(tensors[r.tensor].region_nbytes(r.region) for r in step.inputs if len(r.parts) > 1)
        most = max(most, alive + assembled)
        for patch in step.reads:
            readers[patch] -= 1
            alive -= sizes[patch] if readers[patch] == 0 else 0
        alive -= sum(sizes[patch] for patch in step.writes if readers[patch] == 0 and step.kind != "receive")
    return most


def surely_within(program: Program, model: Model, nbytes: float) -> bool:
    """Whether a program has room even if it held all weights and let go of no patch; soon said, and often enough."""
    tensors = model.graph.tensors
    # Arrays that are put together are made of parts of patches.
    patches = sum(tensors[patch.tensor].region_nbytes(patch.region) for patch in program.patches)
    return model.weight_nbytes + 2 * patches <= nbytes


def program_nbytes(program: Program, model: Model) -> int:
    """Weights and activations of one frame."""
    return weight_nbytes(program, model) + activation_nbytes(program, model)
