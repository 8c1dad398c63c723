"""Conversions between the units of configuration files and those of the code."""

from __future__ import annotations

import pytest

from coedge.config.loading import load_config
from coedge.core.units import bytes_per_second_of, mbps_of
from orchestrator.control.worker_group import _spec


@pytest.mark.parametrize(("mbps", "rate"), [(8, 1e6), (100, 12.5e6), (0.5, 62_500)])
def test_a_megabit_is_an_eighth_of_a_million_bytes(mbps: float, rate: float) -> None:
    assert bytes_per_second_of(mbps) == rate
    assert mbps_of(rate) == mbps


def test_the_link_of_a_device_reaches_its_worker_in_bytes_and_seconds() -> None:
    config = load_config(
        {"devices": [{"name": "a", "speed": 1.0, "link": {"mbps": 8, "latency_ms": 5}}], "source": "a"}
    )
    link = _spec(0, config.devices[0], "", config).link
    assert link is not None and (link.bytes_per_second, link.latency_seconds) == (1e6, 0.005)
