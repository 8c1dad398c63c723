"""The log of decisions: kept in memory, appended to a file, and never in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from coedge.core.errors import ConfigError
from orchestrator.control.event_log import KEPT_EVENTS, EventLog


def test_events_are_appended_one_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).add("lost", device="b", reason="its worker process died")
    log = EventLog(path)
    log.add("back", device="b")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["lost", "back"]
    assert lines[1] == log.events[-1] and lines[0]["reason"] == "its worker process died"
    assert lines[0]["time"] <= lines[1]["time"] and lines[0]["time"].endswith("+00:00")


def test_only_the_last_events_are_kept() -> None:
    log = EventLog()
    for number in range(KEPT_EVENTS + 5):
        log.add("failed", frame=number)
    assert [event["frame"] for event in log.events] == list(range(5, KEPT_EVENTS + 5))


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"event_log: cannot write .*nowhere.*Give another file"):
        EventLog(tmp_path / "nowhere" / "events.jsonl")


def test_a_file_that_goes_away_is_given_up_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = EventLog(folder / "events.jsonl")
    shutil.rmtree(folder)
    for number in range(3):
        log.add("failed", frame=number)
    assert len(log.events) == 3 and caplog.text.count("no more events are written") == 1
