"""The models of a worker, and the sessions of its loaded programs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from coedge.core.provider import Provider
from coedge.execution.program import Program
from coedge.graph.analysis import model_from_skeleton
from coedge.graph.weight_slice import WeightSlice
from workers.runtime.kernels import Kernels
from workers.runtime.process import return_freed_memory
from workers.transport.codecs import check_available

Array = NDArray[Any]


class ModelStore:
    """Models by their hash, and the kernels of each loaded program by its epoch. Methods are for any thread.

    Args:
        name: of the device, for messages.
        threads, providers: of the sessions.
    """

    def __init__(self, name: str, threads: int, providers: Sequence[Provider]) -> None:
        self._name, self._threads, self._providers = name, threads, providers
        self._models: dict[str, Kernels] = {}
        self._programs: dict[int, tuple[Program, Kernels]] = {}  # by epoch
        self._loading = threading.Lock()

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of the loaded programs."""
        return tuple(self._programs)

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the large weights, and of parts of large weights, of all models."""
        return sum(kernels.weight_nbytes for kernels in list(self._models.values()))

    def weight_nbytes_of(self, model_hash: str) -> int:
        """Return the bytes of the large weights of a model, and of parts of them."""
        kernels = self._models.get(model_hash)
        return 0 if kernels is None else kernels.weight_nbytes

    def kernels_of(self, epoch: int) -> Kernels:
        """Return the kernels of a loaded program.

        Raises:
            KeyError: it is not loaded.
        """
        return self._programs[epoch][1]

    def missing_weights(self, model_hash: str, parts: Iterable[WeightSlice]) -> tuple[bool, list[WeightSlice]]:
        """Return whether the graph of the model is missing, and which of these weights are."""
        kernels = self._models.get(model_hash)
        return kernels is None, [part for part in parts if kernels is None or kernels.lacks(part)]

    def load(self, epoch: int, program: Program, skeleton: bytes | None, weights: Mapping[str, Array]) -> None:
        """Build the sessions of a program. If that fails, the store holds what it held before.

        Args:
            skeleton: the model's graph; None if the store has it.
            weights: the constants, or parts of constants, that the program needs and the store does not have, by key.

        Raises:
            RuntimeError: the graph, a weight or a codec's library is missing.
        """
        with self._loading:
            kernels = self._models.get(program.model_hash)
            if kernels is None:
                if skeleton is None:
                    raise RuntimeError(f"{self._name} was never given model {program.model_hash}")
                kernels = Kernels(model_from_skeleton(skeleton, {}), self._threads, self._providers)
            try:
                self._prepare(kernels, program, weights)
            except BaseException:
                self._keep_used(kernels)
                raise
            return_freed_memory()
            self._models[program.model_hash] = kernels
            self._programs[epoch] = program, kernels

    def unload(self, epoch: int) -> None:
        """Drop a program, and the sessions and weights that no other program uses."""
        with self._loading:
            unloaded = self._programs.pop(epoch, None)
            if unloaded is not None:
                self._keep_used(unloaded[1])
                return_freed_memory()

    def _prepare(self, kernels: Kernels, program: Program, weights: Mapping[str, Array]) -> None:
        kernels.add_weights(weights)
        missing = kernels.missing_weights(program)
        if missing:
            raise RuntimeError(f"{self._name} lacks {len(missing)} weights of its program: {missing[0]!r}, ...")
        check_available({step.codec for step in program.steps})
        for step in program.computes:
            kernels.warm_up(step)

    def _keep_used(self, kernels: Kernels) -> None:
        """Drop the sessions and weights of a model that no loaded program uses."""
        kernels.keep(tile for program, used in self._programs.values() if used is kernels for tile in program.tiles())
