"""Where numbers were measured."""

from __future__ import annotations

import platform
from typing import Any

from coedge.core.version import VERSION


def environment() -> dict[str, Any]:
    """Machine, versions, and how busy the machine was."""
    import numpy
    import onnxruntime
    import psutil

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
        "coedge": VERSION,
        "load": psutil.getloadavg()[0],
    }
