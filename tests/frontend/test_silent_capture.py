"""Silence of the exporter: it says nothing, and whatever else the process says meanwhile arrives."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import deep_after
from waiting import MOST_SECONDS

from coedge import CaptureError, capture

ROOT = Path(__file__).resolve().parents[2]
X = torch.zeros(1, 3, 12, 10)


class Calling(torch.nn.Module):
    """A convolution that calls a function whenever it is traced."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self.convolution, self._call = torch.nn.Conv2d(3, 4, 3), call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._call()
        return self.convolution(x)


def test_what_another_thread_says_during_a_capture_arrives(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    traced, spoken = threading.Event(), threading.Event()

    def speak() -> None:
        assert traced.wait(MOST_SECONDS)
        print("on stdout")
        print("on stderr", file=sys.stderr)
        logging.getLogger("somebody").info("in the log")
        logging.getLogger().warning("in the root's log")
        warnings.warn("a warning of another thread", UserWarning, stacklevel=1)
        spoken.set()

    def trace() -> None:
        traced.set()
        assert spoken.wait(MOST_SECONDS)

    thread = threading.Thread(target=speak)
    with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        thread.start()
        capture(Calling(trace), X)
        thread.join()
    assert capsys.readouterr() == ("on stdout\n", "on stderr\n")
    assert [record.getMessage() for record in caplog.records] == ["in the log", "in the root's log"]
    assert [str(one.message) for one in heard] == ["a warning of another thread"]


def test_what_the_module_itself_says_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    def speak() -> None:
        print("module on stdout")
        print("module on stderr", file=sys.stderr)

    capture(Calling(speak), X)
    out, err = capsys.readouterr()
    assert set(out.splitlines()) == {"module on stdout"} and set(err.splitlines()) == {"module on stderr"}


SCRIPT = """
    import logging, sys, torch
    logging.basicConfig(level=logging.DEBUG if sys.argv[1] == "debug" else logging.WARNING)
    import coedge

    class Good(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.nn.functional.interpolate(self.convolution(x), scale_factor=2.0, mode="bicubic")

    class Bad(Good):
        def forward(self, x):
            y = super().forward(x)
            return y if y.mean() > 0.25 else -y

    x = torch.zeros(1, 3, 12, 10)
    coedge.capture(Good(), x)
    try:
        coedge.capture(Bad(), x)
    except coedge.CaptureError:
        print("refused")
"""


DEBUG, ERRORS = ("debug", "default"), ("warning", "error")


@pytest.mark.parametrize(("level", "warned"), deep_after([DEBUG, ("warning", "always"), ERRORS], [DEBUG, ERRORS]))
def test_a_capture_says_nothing(level: str, warned: str) -> None:
    """In a process of its own, because the exporter says some things only once."""
    script = textwrap.dedent(SCRIPT)
    if warned == "error":  # from here on: some imports of libraries warn
        script = script.replace("x = torch.zeros", "import warnings; warnings.simplefilter('error')\nx = torch.zeros")
    done = subprocess.run(
        [sys.executable, "-W", "default" if warned == "error" else warned, "-c", script, level],
        capture_output=True, text=True, timeout=180, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout == "refused\n", done.stderr
    lines = [line for line in done.stderr.splitlines() if "torch" in line or "onnx" in line or "forward" in line]
    assert lines == []


def test_a_capture_leaves_the_streams_and_the_loggers_as_they_were() -> None:
    names = ("torch.onnx", "torch.fx", "torch.fx.passes.utils.matcher_utils", "onnxscript")
    logging.getLogger("onnxscript").setLevel(logging.INFO)

    def state() -> list[Any]:
        levels = (logging.getLogger(name).level for name in names)
        return [sys.stderr, sys.stdout, logging.root.manager.disable, *levels]

    before = state()
    try:
        capture(Calling(lambda: None), X)
        assert state() == before
        with pytest.raises(CaptureError, match="ZeroDivisionError"):
            capture(Calling(lambda: 1 // 0), X)
        assert state() == before
    finally:
        logging.getLogger("onnxscript").setLevel(logging.NOTSET)
