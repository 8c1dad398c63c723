"""The folder in which measurements are kept."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def user_cache_folder() -> Path:
    """Return the user's cache folder, such as `~/.cache/coedge` on Linux. It may not exist yet."""
    return platformdirs.user_cache_path("coedge", appauthor=False)
