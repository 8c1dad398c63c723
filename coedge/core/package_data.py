"""Paths of the files that come with the package."""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).resolve().parents[1] / "data"

PHOTOGRAPH = _DATA / "flower.jpg"
REFERENCE_TIMES = _DATA / "reference"
