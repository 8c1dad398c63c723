"""The memory of a program: its weights, and the patches that are alive at the same time."""

from __future__ import annotations

from collections.abc import Iterable

from coedge.execution.program import Program
from coedge.graph.model import Model


def weight_nbytes(program: Program, model: Model) -> int:
    """Return the bytes of the constants, or parts of constants, that the program's nodes read."""
    parts = model.weight_slices(program.tiles()).values()
    return sum(part.of(model.graph.constants[part.name]).nbytes for part in parts)


def held_nbytes(programs: Iterable[tuple[Model, Program]], at_once: bool = False) -> int:
    """Return the bytes that several programs take on one device: each weight once, and the activations.

    Args:
        at_once: whether the programs run at the same time. Then the activations of one frame of each program
            count, otherwise those of the largest one.
    """
    weights: dict[tuple[str, str], int] = {}
    activations = [0]
    for model, program in programs:
        for key, part in model.weight_slices(program.tiles()).items():
            weights[model.hash, key] = part.of(model.graph.constants[part.name]).nbytes
        activations.append(activation_nbytes(program, model))
    return sum(weights.values()) + (sum(activations) if at_once else max(activations))


def activation_nbytes(program: Program, model: Model) -> int:
    """Return the peak bytes of one frame: patches that are alive, and the arrays that the current step assembles."""
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
    """Return True if a program fits even with all weights and without releasing any patch.

    This check is quick. False does not mean that the program does not fit.
    """
    tensors = model.graph.tensors
    # Assembled arrays consist of parts of patches, so twice the patches is an upper bound.
    patches = sum(tensors[patch.tensor].region_nbytes(patch.region) for patch in program.patches)
    return model.weight_nbytes + 2 * patches <= nbytes


def program_nbytes(program: Program, model: Model) -> int:
    """Return the bytes of a program's weights and of the activations of one frame."""
    return weight_nbytes(program, model) + activation_nbytes(program, model)
