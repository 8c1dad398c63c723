"""The check that a device can use its execution providers."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime
from onnx import TensorProto, helper

from coedge.core.onnx_session import Session
from coedge.core.provider import CPU, Provider


def problem_of(providers: Sequence[Provider]) -> str:
    """Return why sessions cannot be made with these providers, and what to do; empty: they can.

    A build of ONNX Runtime may have a provider and lack the library or driver that the provider needs. Only making a
    session shows that.
    """
    available = onnxruntime.get_available_providers()
    build = f"onnxruntime {onnxruntime.__version__} has {', '.join(available)} there"
    absent = [provider.name for provider in providers if provider.name not in available]
    if absent:
        return f"{', '.join(absent)} is not available: {build}. Install a build of onnxruntime with it, or leave it out"
    try:
        got = Session(_smallest_model(), 1, providers=providers).providers
    except Exception as error:
        asked = [provider.name for provider in providers if provider.name != CPU or provider.options]
        return f"{', '.join(asked or [CPU])} does not start: {error}. Correct its options, or leave it out"
    silent = [provider.name for provider in providers if provider.name not in got]
    if silent:
        return f"{', '.join(silent)} does not start: {build}. Install the library and driver it needs, or leave it out"
    return ""


def _smallest_model() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "smallest", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 13)], ir_version=8)
    data: bytes = proto.SerializeToString()
    return data
