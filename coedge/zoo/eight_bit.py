"""Quantisation of a float network to 8 bit, by ONNX Runtime's quantiser."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from coedge.core.package_data import PHOTOGRAPH
from coedge.frontend.capture import capture


def photograph(height: int, width: int) -> np.ndarray:
    """Return the photograph that comes with the package: float32 [1, 3, height, width] in -2..2."""
    from PIL import Image

    with Image.open(PHOTOGRAPH) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((width, height)), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / np.float32(63.75) - np.float32(2))


def quantise(module: Any, image: np.ndarray, name: str) -> onnx.ModelProto:
    """Quantise a torch module: uint8 activations, int8 weights with a scale per channel (QDQ format).

    Args:
        image: an input of the module, on which the ranges are calibrated.
    """
    model = capture(module, image, name)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, plain, made = (Path(folder) / f"{step}.onnx" for step in ("given", "plain", "made"))
        model.save(given)
        quant_pre_process(given, plain, skip_symbolic_shape=True)
        quantize_static(
            plain,
            made,
            _Images(model.inputs[0].name, image),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        proto: onnx.ModelProto = onnx.load(str(made))
    proto.graph.name = f"{name}-int8"
    return proto


class _Images(CalibrationDataReader):
    """A reader that gives one image for calibration."""

    def __init__(self, name: str, image: np.ndarray) -> None:
        self._feeds = iter([{name: image}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


class _NotOfTheQuantiser(logging.Filter):
    """Drops warnings that the quantiser gives in one thread. It writes them to the root logger."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        own = record.thread == self._thread and "onnxruntime" in Path(record.pathname).parts
        return not own or record.levelno > logging.WARNING


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of the quantiser, which warns of every bias that has one axis only."""
    of_others = _NotOfTheQuantiser()
    logging.root.addFilter(of_others)
    try:
        yield
    finally:
        logging.root.removeFilter(of_others)
