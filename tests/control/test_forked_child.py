"""A child that is forked from a process with an open cluster exits at once, and harms nothing of its parent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")]

SCRIPT = """
import json, os, sys, time
import coedge
from coedge.core.errors import ClusterError

config = {"devices": [{"name": "a", "speed": 0.5}], "trial_frames": 0, "cache_dir": sys.argv[1]}

def forked(act):
    pid = os.fork()
    if pid == 0:
        act()
        sys.exit(0)
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, 9)
    return "hangs"

def refused():
    try:
        coedge.connect(config)
    except ClusterError as error:
        sys.exit(7 if "forked" in str(error) else 8)

def closed():
    try:
        cluster.worker("a")
    except ClusterError:
        sys.exit(9)

def fails():
    raise ValueError("in the child")

with coedge.connect(config) as cluster:
    codes = [forked(act) for act in (lambda: None, lambda: sys.exit(3), refused, closed, fails)]
    print(json.dumps({"codes": codes, "states": [device.state for device in cluster.devices()]}), flush=True)
    time.sleep(0.5)
    assert [device.state for device in cluster.devices()] == ["ready"]
"""


def test_a_forked_child_exits_with_its_status_and_the_parent_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.strip().splitlines()[-1])
    assert told == {"codes": [0, 3, 7, 9, 1], "states": ["ready"]}
