"""A wrapper that makes a module take uint8 images: raw bytes travel instead of four times as many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from coedge.core.errors import InputError


def with_normalisation(module: Any, mean: Sequence[float], std: Sequence[float], scale: float = 255.0) -> Any:
    """Return a module that applies `(x / scale - mean) / std` per channel, and then the given module.

    Args:
        module: takes float32 [N, C, H, W].
        mean, std: one number per channel, in units of `x / scale`.

    Returns:
        A `torch.nn.Module` that takes uint8 (or any real dtype) [N, C, H, W].

    Raises:
        InputError: mean and std are not numbers, are empty or differ in length, a deviation is zero, or the module
            is none.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InputError(f"a normalisation is put before a torch.nn.Module; a {type(module).__name__} was given")
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Iterable) or not all(isinstance(value, Real) for value in values):
            raise InputError(f"{name} is {values!r:.100}; give one number per channel, such as (0.5, 0.5, 0.5)")
    if len(mean) != len(std) or not mean:
        raise InputError(f"mean has {len(mean)} channels and std {len(std)}; give one number of each per channel")
    if any(value == 0 for value in std):
        raise InputError("a standard deviation of zero would divide by zero")

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            # One multiply and one add per pixel: x * (1 / (scale std)) - mean / std.
            factor = torch.tensor([1.0 / (scale * s) for s in std], dtype=torch.float32)
            shift = torch.tensor([-m / s for m, s in zip(mean, std)], dtype=torch.float32)
            self.register_buffer("factor", factor.view(1, -1, 1, 1))
            self.register_buffer("shift", shift.view(1, -1, 1, 1))

        def forward(self, x: torch.Tensor) -> Any:
            return self.module(x.to(torch.float32) * self.factor + self.shift)

    Normalised.__name__ = type(module).__name__
    wrapped = Normalised()
    wrapped.train(module.training)
    return wrapped
