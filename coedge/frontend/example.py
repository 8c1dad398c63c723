"""Checks before the export of a module: what the example holds, and whether `forward` takes tensors by position.

The exporter's own messages for these cases do not say what to do.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from coedge.core.errors import CaptureError, InputError
from coedge.core.values import as_arrays

WRAP = "wrap it in a module whose forward takes tensors by position and calls it with them"
# Annotations of such parameters begin with one of these, in some case.
_STRUCTURES = ("dict", "iterable", "list", "mapping", "ordereddict", "sequence", "tuple")


def example_arrays(example: Any) -> tuple[np.ndarray, ...]:
    """Return the example as arrays.

    Raises:
        CaptureError: it holds something else than tensors and arrays; says how to convert it.
    """
    for value in example if isinstance(example, (tuple, list)) else (example,):
        if (value is None and value is example) or isinstance(value, np.ndarray) or hasattr(value, "layout"):
            continue
        held = f"the example holds a {type(value).__name__}"
        if isinstance(value, (list, tuple, dict)):
            raise CaptureError(
                f"{held}; a split network takes tensors, or arrays, by position: one, or a tuple of them. If the "
                f"module's forward takes a list or a dict, {WRAP}"
            )
        if hasattr(value, "convert") and hasattr(value, "getbands"):
            raise CaptureError(
                f"{held}, a picture; make an array of it: np.asarray(picture.convert('RGB')).transpose(2, 0, 1)[None]"
            )
        raise CaptureError(
            f"{held}; give a tensor or an array, [N, C, H, W], or a tuple of them. If the module's forward takes "
            f"other values too, {WRAP}"
        )
    try:
        return as_arrays(example)
    except InputError as error:
        raise CaptureError(f"the example: {error}") from error


def check_call(module: Any, count: int) -> None:
    """Check that a torch module can be called with some tensors by position.

    Raises:
        CaptureError: it cannot; says why, and the way out.
    """
    import torch

    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureError(
            f"{name} was made by torch.jit, which the exporter does not take; give the module that it was made from"
        )
    if type(module).forward is torch.nn.Module.forward and "forward" not in vars(module):
        raise CaptureError(f"{name} has no forward; give a module that has one")
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # a forward that is not written in Python
        return
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and one.default is one.empty:
            raise CaptureError(f"forward of {name} takes {one.name!r} by keyword only; {WRAP}")
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    for one in places[:count]:
        if one.annotation is not one.empty and _is_structure(one.annotation):
            raise CaptureError(f"forward of {name} takes {one.name!r} as a list or a dict of tensors; {WRAP}")
    needed = [one.name for one in places if one.default is one.empty]
    any_number = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    if count < len(needed) or (count > len(places) and not any_number):
        taken = ", ".join(one.name for one in places) or "none by position"
        raise CaptureError(
            f"the example has {count} {'tensor' if count == 1 else 'tensors'}, forward of {name} takes {len(needed)}"
            f"{'' if len(needed) == len(places) else f' to {len(places)}'} ({taken}); give a tuple with one tensor for "
            f"each. If it takes a list, a dict or other values, {WRAP}"
        )


def _is_structure(annotation: Any) -> bool:
    """Return whether a parameter with this annotation takes a structure and nothing else."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return "|" not in text and text.split("[")[0].rpartition(".")[2].lower() in _STRUCTURES
