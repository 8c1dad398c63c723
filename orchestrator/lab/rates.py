"""Rates as text: `500KB/s`, `8Mbit/s`, `none`."""

from __future__ import annotations

import re

from coedge.core.errors import ConfigError

_UNITS = {
    f"{prefix}{unit}": factor * per
    for unit, per in (("b/s", 1.0), ("bit/s", 1 / 8), ("bps", 1 / 8))
    for prefix, factor in (("", 1.0), ("k", 1e3), ("m", 1e6), ("g", 1e9))
}


def parse_rate(text: str) -> float | None:
    """Parse a rate such as `500KB/s`, `8Mbit/s`, `8mbps` or `1 GB/s`.

    Prefixes are decimal and case is ignored, so `b/s` is bytes per second.

    Returns:
        Bytes per second, or None for `none`.

    Raises:
        ConfigError: the text is not a rate.
    """
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([a-z/]+)", text.strip().lower().replace(" ", ""))
    if not match or match[2] not in _UNITS or float(match[1]) <= 0:
        raise ConfigError(f"{text!r} is not a rate; give one such as 500KB/s, 8Mbit/s or 1GB/s, or none")
    return float(match[1]) * _UNITS[match[2]]


def show_rate(bytes_per_second: float | None) -> str:
    """Format a rate for `parse_rate` with at most four digits."""
    if bytes_per_second is None:
        return "none"
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if bytes_per_second >= factor:
            return f"{bytes_per_second / factor:.4g}{prefix}B/s"
    return f"{bytes_per_second:.4g}B/s"
