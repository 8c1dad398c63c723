"""The default cluster of commands."""

from __future__ import annotations

from typing import Any


def demo_config() -> dict[str, Any]:
    """Return the configuration of four unequal emulated devices on this machine, as in `configs/demo.yaml`.

    The watts are illustrative.
    """

    def device(name: str, speed: float, mbps: float, idle: float, compute: float, transmit: float) -> dict[str, Any]:
        return {
            "name": name,
            "speed": speed,
            "link": {"mbps": mbps, "latency_ms": 0.2},
            "power": {"idle_watts": idle, "compute_watts": compute, "transmit_watts": transmit},
        }

    return {
        "source": "laptop",
        "devices": [
            device("laptop", 0.4, 1000, 6.0, 15.0, 1.2),
            device("board-1", 0.3, 1000, 2.7, 4.0, 0.8),
            device("board-2", 0.2, 300, 2.2, 2.5, 0.7),
            device("board-3", 0.1, 300, 1.4, 1.1, 0.6),
        ],
    }
