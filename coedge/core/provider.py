"""Execution providers of ONNX Runtime, such as the CPU or CUDA, which kernels run on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

CPU = "CPUExecutionProvider"
# Providers that some build of ONNX Runtime has. A worker reports which of them its device has.
KNOWN = (
    "ACLExecutionProvider", "AzureExecutionProvider", "CANNExecutionProvider", "CPUExecutionProvider",
    "CUDAExecutionProvider", "CoreMLExecutionProvider", "DmlExecutionProvider", "DnnlExecutionProvider",
    "JsExecutionProvider", "MIGraphXExecutionProvider", "NnapiExecutionProvider", "NvTensorRTRTXExecutionProvider",
    "OpenVINOExecutionProvider", "QNNExecutionProvider", "ROCMExecutionProvider", "RknpuExecutionProvider",
    "TensorrtExecutionProvider", "VSINPUExecutionProvider", "VitisAIExecutionProvider", "WebGpuExecutionProvider",
    "WebNNExecutionProvider", "XnnpackExecutionProvider",
)  # fmt: skip


class Provider(NamedTuple):
    """A provider with its options as (key, value), as ONNX Runtime names them."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value}" for key, value in self.options)
        return self.name.removesuffix("ExecutionProvider") + (f"({given})" if given else "")


ON_CPU = (Provider(CPU),)


def with_fallback(providers: Iterable[Provider]) -> tuple[Provider, ...]:
    """Return the providers in order of preference, and the CPU last if it is missing.

    ONNX Runtime runs the operators on the CPU that no other provider takes.
    """
    given = tuple(providers)
    return given if any(provider.name == CPU for provider in given) else (*given, *ON_CPU)
