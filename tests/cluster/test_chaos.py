"""Chaos: streams of frames on real workers that die, stop for a moment and have slow links.

`python -m benchmarks.chaos` is the long version, which also measures times. Upper bounds on time test liveness only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from waiting import until

import coedge
from benchmarks.chaos import config_of, run
from benchmarks.chaos_streams import Network
from coedge.plan.plan import even_plan
from orchestrator.cluster.cluster import Cluster

pytestmark = pytest.mark.ray

BACK_SECONDS = 90.0
FAULTS_TOLERATED = 2  # a device that is lost at the moment of a fault is left alone


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = config_of(3, str(tmp_path_factory.mktemp("cache")))
    with coedge.connect({**config, "detect_seconds": 1.0, "profile_budget_seconds": 0.5}) as joined:
        yield joined


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.of("mobilenet_v1", image_size=32, width=0.25, seed=0)


def check_chaos(cluster: Cluster, network: Network, frames: int, faults: int) -> None:
    outcome = run(cluster, [network], frames, faults, seed=7, pause_seconds=1.0)
    tally, harm = outcome.tally, outcome.harm
    assert not tally.lost
    assert {what: tally.counts[what] for what in ("doubled", "out of order", "wrong")} == {
        "doubled": 0,
        "out of order": 0,
        "wrong": 0,
    }
    assert not outcome.hung and not harm.missing and not harm.problems
    assert len(tally.frames) == tally.counts["asked"] >= frames
    assert len(harm.faults) >= faults - FAULTS_TOLERATED


def test_no_frame_is_lost_doubled_or_wrong(cluster: Cluster, network: Network) -> None:
    check_chaos(cluster, network, frames=150, faults=6)


@pytest.mark.deep
def test_no_frame_is_lost_doubled_or_wrong_for_longer(cluster: Cluster, network: Network) -> None:
    check_chaos(cluster, network, frames=1000, faults=60)


def test_a_device_that_was_away_knows_a_worker_that_was_started_again_meanwhile(
    cluster: Cluster, network: Network
) -> None:
    pids = {device.name: device.pid for device in cluster.devices()}

    def ready() -> set[str]:
        return {device.name for device in cluster.devices() if device.state == "ready"}

    os.kill(pids["d2"], signal.SIGSTOP)
    try:
        until(lambda: "d2" not in ready(), "d2 is lost")
        os.kill(pids["d1"], signal.SIGKILL)
        until(lambda: "d1" not in ready(), "d1 is lost")
        until(lambda: "d1" in ready(), "d1 is back", BACK_SECONDS)
    finally:
        os.kill(pids["d2"], signal.SIGCONT)
    until(lambda: ready() == set(pids), "all devices are back", BACK_SECONDS)
    plan = even_plan(network.model, list(pids), stage_layers=2, source="d0")
    for number, x in enumerate(network.inputs):
        job = cluster.submit(network.model, x, plan=plan)
        assert network.finds(np.asarray(job.result())) == number
        assert set(job.plan.used_devices) == set(pids)
