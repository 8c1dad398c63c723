"""Shared by all tests: the Hypothesis profiles, captured zoo models, and the tally of split against unsplit."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from nets import TALLY

# Deterministic and modest unless asked otherwise: HYPOTHESIS_PROFILE=long looks for new counterexamples.
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("ci", deadline=None, derandomize=True, database=None, suppress_health_check=_QUIET)
settings.register_profile("long", deadline=None, max_examples=3000, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.cases:
        terminalreporter.write_line(str(TALLY))
