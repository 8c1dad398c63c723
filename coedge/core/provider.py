"""ONNX Runtime's execution providers: what a device's kernels run on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

CPU = "CPUExecutionProvider"
# All that ONNX Runtime is built with somewhere; which of them a device has, only its worker can tell.
KNOWN = (
    "ACLExecutionProvider", "AzureExecutionProvider", "CANNExecutionProvider", "CPUExecutionProvider",
    "CUDAExecutionProvider", "CoreMLExecutionProvider", "DmlExecutionProvider", "DnnlExecutionProvider",
    "JsExecutionProvider", "MIGraphXExecutionProvider", "NnapiExecutionProvider", "NvTensorRTRTXExecutionProvider",
    "OpenVINOExecutionProvider", "QNNExecutionProvider", "ROCMExecutionProvider", "RknpuExecutionProvider",
    "TensorrtExecutionProvider", "VSINPUExecutionProvider", "VitisAIExecutionProvider", "WebGpuExecutionProvider",
    "WebNNExecutionProvider", "XnnpackExecutionProvider",
)  # fmt: skip


class Provider(NamedTuple):
    """A provider with its options, (key, value) in ONNX Runtime's words."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value}" for key, value in self.options)
        return self.name.removesuffix("ExecutionProvider") + (f"({given})" if given else "")


ON_CPU = (Provider(CPU),)


def with_fallback(providers: Iterable[Provider]) -> tuple[Provider, ...]:
    """In order of preference, with the CPU last: ONNX Runtime runs on it whatever the others do not take."""
    given = tuple(providers)
    return given if any(provider.name == CPU for provider in given) else (*given, *ON_CPU)
