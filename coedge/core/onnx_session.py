"""Sessions of ONNX Runtime: one way to make and run them, for workers, the unsplit reference and capture."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from coedge.core import denormals
from coedge.core.provider import ON_CPU, Provider

Array = NDArray[Any]


class Session:
    """A network, or a part of one, that ONNX Runtime runs. Denormal numbers are taken as zero.

    Args:
        proto: serialised ONNX.
        threads: of each kernel.
        options: from `session_options`.
        providers: in order of preference. One that fails raises: there is no silent fallback.
        disabled: names of optimisers that are not applied.
    """

    def __init__(
        self,
        proto: bytes,
        threads: int,
        options: Any = None,
        providers: Sequence[Provider] = ON_CPU,
        disabled: Sequence[str] = (),
    ) -> None:
        import onnxruntime

        given = [(provider.name, dict(provider.options)) for provider in providers]
        options = options or session_options(threads)
        with denormals.flushed():
            self._session = onnxruntime.InferenceSession(
                proto, options, providers=given, disabled_optimizers=list(disabled), enable_fallback=0
            )

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the values of these outputs, or of all outputs if None."""
        with denormals.flushed():
            values: list[Array] = self._session.run(outputs, feeds)
        return values

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(i.name for i in self._session.get_inputs())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(o.name for o in self._session.get_outputs())

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the providers that the session uses."""
        return tuple(self._session.get_providers())


def session_options(threads: int, optimise: Literal["none", "basic", "all"] = "all") -> Any:
    """Return the options of every session of the project, of the unsplit reference too.

    Args:
        optimise: the optimisations that ONNX Runtime applies. "basic" leaves standard operators only.
    """
    import onnxruntime

    _share_arena()
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    levels = {"none": level.ORT_DISABLE_ALL, "basic": level.ORT_ENABLE_BASIC, "all": level.ORT_ENABLE_ALL}
    options.graph_optimization_level = levels[optimise]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, not printed too
    # Idle threads of one session must not occupy cores that another session or another device's worker needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On x86, ONNX Runtime fuses int8 activations into integer kernels only if it can first convert them to uint8. It
    # cannot at the border of a tile, so the unsplit network and the tile would be rounded differently.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.add_session_config_entry("session.use_env_allocators", "1")
    if not denormals.SUPPORTED:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


@functools.cache
def _share_arena() -> None:
    """Give all sessions of the process one arena.

    With an arena per session, a plan of many stages keeps the activations of every stage, and every stage computes in
    memory that is not in the caches.
    """
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    unlimited, as_much_as_asked, default = 0, 1, -1
    arena = onnxruntime.OrtArenaCfg(unlimited, as_much_as_asked, default, default)
    onnxruntime.create_and_register_allocator(memory, arena)
