"""Conversions between the units of configuration files and those of the code."""

from __future__ import annotations

import pytest

from coedge.core.units import bytes_per_second_of, mbps_of


@pytest.mark.parametrize(("mbps", "rate"), [(8, 1e6), (100, 12.5e6), (0.5, 62_500)])
def test_a_megabit_is_an_eighth_of_a_million_bytes(mbps: float, rate: float) -> None:
    assert bytes_per_second_of(mbps) == rate
    assert mbps_of(rate) == mbps
