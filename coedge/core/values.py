"""Conversion between the values of users (tensors, structures) and the arrays that travel."""

from __future__ import annotations

from typing import Any

import numpy as np

from coedge.core.errors import InputError


def as_arrays(values: Any) -> tuple[np.ndarray, ...]:
    """Convert one or several tensors or arrays to a tuple of arrays.

    Raises:
        InputError: a value is neither a tensor nor an array, or NumPy does not have its dtype.
    """
    if values is None:
        return ()
    if not isinstance(values, (tuple, list)):
        values = (values,)
    return tuple(_as_array(value) for value in values)


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        # Arrays from a file may have the other byte order, which kernels and torch do not read.
        return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
    if not hasattr(value, "detach") or not hasattr(value, "layout"):
        raise InputError(
            f"an input is a torch tensor or a NumPy array; a {type(value).__name__} was given. Convert it: "
            'np.asarray(x, "float32"), with the shape [N, C, H, W]'
        )
    if "sparse" in str(value.layout):
        raise InputError("a sparse tensor cannot travel; make it dense: x.to_dense()")
    if value.device.type == "meta":
        raise InputError("a tensor on the device 'meta' has no values; give one on the CPU")
    try:
        array: np.ndarray = value.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"a tensor of {value.dtype} cannot travel: {error}; convert it to float32 or uint8") from None
    return array


def wants_tensors(given: Any) -> bool:
    """Return whether the answer to this input is given as torch tensors (otherwise as arrays)."""
    first = given[0] if isinstance(given, (tuple, list)) and given else given
    return not isinstance(first, np.ndarray)


def output(array: np.ndarray, as_tensor: bool) -> Any:
    """Return the array, made writable, or a torch tensor of it."""
    if not array.flags.writeable:
        array = np.array(array)
    if not as_tensor:
        return array
    import torch

    return torch.from_numpy(array)


def restore(structure: str | None, flat: list[Any]) -> Any:
    """Return the outputs in the structure that the module returns: a value, a tuple, a dict, or nested."""
    if structure is not None:
        from torch.utils import _pytree

        return _pytree.tree_unflatten(flat, _pytree.treespec_loads(structure))
    return flat[0] if len(flat) == 1 else tuple(flat)


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; infinite if shapes or non-finite values differ."""
    if got.shape != expected.shape:
        return float("inf")
    if got.size == 0 or got.dtype == object:
        return 0.0 if np.array_equal(got, expected) else float("inf")
    a, b = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    apart, largest = np.abs(a[finite] - b[finite]).max(), np.abs(b[finite]).max()
    return float(apart / max(largest, np.finfo(np.float32).tiny))
