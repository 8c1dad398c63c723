"""The log of decisions: which plan was chosen and why, what changed, who was lost and is back, which frame failed.

One JSON object a line, with the keys `time` (UTC, ISO 8601), `event`, and those of the event:

    lost     device, reason
    back     device
    change   what, names, before, after (seconds over those of the profile)
    plan     model, scheme, devices, predicted_ms, why
    failed   frame, model, error, reason
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coedge.core.errors import ConfigError

log = logging.getLogger(__name__)

KEPT_EVENTS = 1000

Event = dict[str, Any]


class EventLog:
    """Keeps the last events, and appends all of them to a file if there is one. For any thread.

    Args:
        path: of the file; its folder must exist. None: events are only kept.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._writes = path is not None
        if path is not None:
            try:
                path.open("a", encoding="utf-8").close()
            except OSError as error:
                raise ConfigError(
                    f"event_log: cannot write {path}: {error.strerror or error}. Give another file"
                ) from None

    def add(self, event: str, **details: Any) -> None:
        """Add an event. A file that cannot be written is given up with a warning."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details}
        with self._lock:
            self._events.append(entry)
            if self._writes and self._path is not None:
                try:
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(entry) + "\n")
                except OSError as error:
                    self._writes = False
                    log.warning("no more events are written to %s: %s", self._path, error)

    @property
    def events(self) -> list[Event]:
        """The last events, oldest first."""
        with self._lock:
            return [dict(entry) for entry in self._events]
