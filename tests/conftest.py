"""Shared by all tests: Hypothesis settings, and the tally of split against unsplit output."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from nets import EFFORT, TALLY

# The same examples every time, unless more are asked for (see EFFORT): then new ones are looked for.
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("coedge", deadline=None, derandomize=EFFORT == 1, database=None, suppress_health_check=_QUIET)
settings.load_profile("coedge")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.cases:
        terminalreporter.write_line(str(TALLY))
