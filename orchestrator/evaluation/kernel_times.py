"""What layers take on devices, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coedge.profile.profile import DeviceProfile

Array = NDArray[np.float64]


def kernel_times(devices: Sequence[DeviceProfile], layers: range, ends_stage: bool) -> tuple[Array, Array]:
    """[layer, device] fixed seconds, and seconds per row, of layers inside of a stage or at its end."""
    times = [[device.layer_time(layer, ends_stage) for device in devices] for layer in layers]
    fixed = np.array([[time.fixed_seconds for time in row] for row in times])
    return fixed, np.array([[time.seconds_per_row for time in row] for row in times])
