"""The environment of a measurement."""

from __future__ import annotations

import platform
from typing import Any

from coedge.core.version import VERSION


def environment() -> dict[str, Any]:
    """Return the machine, the versions of the libraries, and the load of the machine."""
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
