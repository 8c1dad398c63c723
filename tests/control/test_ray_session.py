"""The folders of Ray's sessions: those that CoEdge made are removed, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from orchestrator.control.ray_session import MARK, RaySession, _identity


def folder(base: Path, name: str, mark: str | None) -> Path:
    path = base / f"session_2026-01-01_{name}"
    (path / "logs").mkdir(parents=True)
    if mark is not None:
        (path / MARK).write_text(mark, encoding="utf-8")
    return path


def test_a_session_is_removed_with_those_whose_processes_were_killed(tmp_path: Path) -> None:
    own = folder(tmp_path, "own", _identity(psutil.Process()))
    killed = folder(tmp_path, "killed", "4194303 1.00")
    reused = folder(tmp_path, "reused", f"{os.getpid()} 1.00")  # the same id, another process
    living = folder(tmp_path, "living", _identity(psutil.Process(os.getppid())))
    foreign = folder(tmp_path, "foreign", None)
    damaged = folder(tmp_path, "damaged", "who?")
    (tmp_path / "session_latest").symlink_to(own)
    RaySession(own).remove()
    assert set(tmp_path.iterdir()) == {living, foreign, damaged}
    assert not killed.exists() and not reused.exists()
    RaySession(own).remove()  # twice is safe
