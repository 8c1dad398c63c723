"""Between what the user hands over (tensors, structures) and what flows (arrays)."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_like(given: Any, array: np.ndarray) -> Any:
    """The array as a torch tensor, if the input was one."""
    first = given[0] if isinstance(given, (tuple, list)) and given else given
    if isinstance(first, np.ndarray):
        return array
    import torch

    return torch.from_numpy(np.array(array) if not array.flags.writeable else array)


def restore(structure: str | None, flat: list[Any]) -> Any:
    """The outputs in the structure that the module returns: a single value, a tuple, a dict, nested."""
    if structure is not None:
        from torch.utils import _pytree

        return _pytree.tree_unflatten(flat, _pytree.treespec_loads(structure))
    return flat[0] if len(flat) == 1 else tuple(flat)
