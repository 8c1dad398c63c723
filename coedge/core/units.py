"""Conversions between the units of configuration files and those of the code.

Configuration files and tables have Mbit/s (10^6 bit/s); everything inside the packages has bytes per second.
"""

from __future__ import annotations

_BYTES_PER_MEGABIT = 1e6 / 8


def bytes_per_second_of(mbps: float) -> float:
    """Return a rate in bytes per second."""
    return mbps * _BYTES_PER_MEGABIT


def mbps_of(bytes_per_second: float) -> float:
    """Return a rate in Mbit/s (10^6 bit/s)."""
    return bytes_per_second / _BYTES_PER_MEGABIT
