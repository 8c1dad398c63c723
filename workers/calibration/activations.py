"""Activations of the unsplit network, on which codecs are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.region import Region
from coedge.graph.graph import Tensor
from coedge.graph.model import Model
from coedge.plan.tiles import tile_of
from workers.runtime.kernels import Kernels

Array = NDArray[Any]

# About the size of a message, so that the fixed time of a codec is included in the right proportion.
SAMPLE_NBYTES = 256 * 1024


def sample_activations(
    model: Model, arrays: Sequence[Array], threads: int, done: Callable[[], None] = lambda: None
) -> dict[str, Array]:
    """Return rows from the middle of every tensor that is alive at some cut.

    The network runs layer by layer with its weights, so the call needs the process that captured the model. Memory
    holds only the tensors that are alive at one cut and the sessions of one layer.

    Args:
        arrays: the model's inputs.
        done: called after each layer.

    Returns:
        About `SAMPLE_NBYTES` of each tensor, at least one row. Tensors without rows are returned entirely.

    Raises:
        InputError: the input does not fit the model.
    """
    tensors, kernels = model.graph.tensors, Kernels(model, threads)
    values = dict(zip(model.graph.inputs, model.check_inputs(arrays)))
    samples = {name: _sample(tensors[name], values[name]) for name in model.cuts[0].tensors}
    for layer, cut in zip(model.layers, model.cuts[1:]):
        made = {name: tensors[name].whole for name in cut.tensors if name not in values}
        tile, _ = tile_of(model, layer.first, layer.stop, made)
        values.update(zip(tile.outputs, kernels.run(tile, [values[name] for name in tile.inputs])))
        kernels.keep(())
        values = {name: values[name] for name in cut.tensors}
        samples.update({name: _sample(tensors[name], values[name]) for name in made})
        done()
    return samples


def _sample(tensor: Tensor, value: Array) -> Array:
    if value.nbytes <= SAMPLE_NBYTES or tensor.row_axis is None or tensor.partial_extent:
        return np.array(value)
    count = max(1, tensor.rows * SAMPLE_NBYTES // value.nbytes)
    start = (tensor.rows - count) // 2
    part = Region(start, start + count, 0, tensor.cols)
    return np.array(value[tensor.slices(tensor.whole, part)], order="C")


def natural_inputs(model: Model) -> list[Array]:
    """Return inputs that resemble camera images: noise with the spectrum of photographs.

    In images the amplitude falls with the frequency, so neighbouring pixels are similar, and zeros after a ReLU are
    adjacent. Integers have 256 values, as pixels do. Floats have mean 0 and standard deviation 1.
    """
    generator = np.random.default_rng(0)
    return [_natural(tensor, generator) for tensor in model.inputs]


def _natural(tensor: Tensor, generator: np.random.Generator) -> Array:
    noise = generator.standard_normal(tensor.shape)
    axes = tuple(axis for axis in (tensor.row_axis, tensor.col_axis) if axis is not None)
    if axes:
        squared = np.zeros((1,) * noise.ndim)
        for axis in axes:
            shape = [1] * noise.ndim
            shape[axis] = tensor.shape[axis]
            squared = squared + np.square(np.fft.fftfreq(tensor.shape[axis], 1 / tensor.shape[axis])).reshape(shape)
        noise = np.fft.ifftn(np.fft.fftn(noise, axes=axes) / np.sqrt(np.maximum(squared, 1.0)), axes=axes).real
    noise /= max(float(noise.std()), 1e-12)
    dtype = np.dtype(tensor.dtype)
    if dtype.kind in "iu":
        least = np.iinfo(dtype).min if dtype.itemsize == 1 else 0
        noise = np.clip(least + 128 + 64 * noise, least, least + 255)
    return noise.astype(dtype)
