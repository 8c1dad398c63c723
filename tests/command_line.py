"""What the tests of the command line share: how a command ends, and a small network in a file."""

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
    """An error that people can use: the code, a message on stderr with these words, and no traceback."""
    assert result.code == code, result
    assert "Traceback" not in result.err + result.out
    flat = " ".join(result.err.replace("│", " ").split())
    for word in words:
        assert word in flat, f"{word!r} is not in: {flat}"


def small_network(path: Path) -> str:
    """Six convolutions and a mean on 48 x 48 pixels: captured in no time, and heavy enough to be worth splitting."""
    net = Net()
    x = net.input([1, 3, 48, 48])
    channels = 3
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        x = net.op("Conv", x, net.weight(width, channels, 3, 3), pads=[1, 1, 1, 1], strides=[stride, stride])
        x, channels = net.op("Relu", x), width
    onnx.save(net.proto(net.op("GlobalAveragePool", x)), str(path))
    return path.name
