"""Helpers of the command-line tests: the result of a command, and a small network in a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
from nets import Net


class Result(NamedTuple):
    code: int
    out: str
    err: str


def fails(result: Result, code: int, *words: str) -> None:
    """Assert that a command failed with a code and with a message on stderr that has these words and no traceback."""
    assert result.code == code, result
    assert "Traceback" not in result.err + result.out
    flat = " ".join(result.err.replace("│", " ").split())
    for word in words:
        assert word in flat, f"{word!r} is not in: {flat}"


def small_network(path: Path, flat: bool = False) -> str:
    """Save six convolutions and a mean of 48 x 48 pixels as ONNX. Capturing is quick, and splitting pays.

    Args:
        flat: whether the output is one score per class, [1, 64], instead of [1, 64, 1, 1].
    """
    net = Net()
    x = net.input([1, 3, 48, 48])
    channels = 3
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        x = net.op("Conv", x, net.weight(width, channels, 3, 3), pads=[1, 1, 1, 1], strides=[stride, stride])
        x, channels = net.op("Relu", x), width
    output = net.op("GlobalAveragePool", x)
    onnx.save(net.proto(net.op("Flatten", output) if flat else output), str(path))
    return path.name
