"""Measuring the links of a worker that was started again, while other devices are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coedge.core.errors import ClusterError
from coedge.profile.network import Network
from coedge.profile.profile import Link
from orchestrator.control.ray_control import WorkersDied
from orchestrator.control.worker_group import WorkerGroup, Workers
from orchestrator.profiling import cluster_measurement
from orchestrator.profiling.cluster_measurement import LostOthers, measure_links_of


@pytest.fixture
def group() -> WorkerGroup:
    """Return devices a to d, of which c is started again and d is lost."""
    nothing: Any = None
    workers: dict[str, Any] = dict.fromkeys("abcd")
    group = WorkerGroup(workers, "a", nothing, {}, {}, {}, lost={"c": "ended", "d": "ended"})
    group.network = Network((link("b", "c", 1.0), link("a", "b", 1.0)))
    return group


def link(sender: str, receiver: str, rate: float) -> Link:
    return Link(sender=sender, receiver=receiver, bytes_per_second=rate, latency_seconds=0.0)


def measured_by(monkeypatch: pytest.MonkeyPatch, measure: Callable[[Workers], Network]) -> None:
    monkeypatch.setattr(cluster_measurement, "_measure_network", lambda workers, given, only: measure(workers))


def test_a_device_that_is_lost_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch, group: WorkerGroup) -> None:
    asked = []

    def measure(workers: Workers) -> Network:
        asked.append(set(workers))
        if len(asked) == 1:
            group.lost["b"] = "silent"
            assert "b" in workers.lost and "c" not in workers.lost  # waits for b end, those for c do not
            raise ClusterError("no answer of b")
        return Network((link("a", "c", 2.0),))

    measured_by(monkeypatch, measure)
    measure_links_of(group, "c")
    assert asked == [{"a", "b", "c"}, {"a", "c"}]
    assert {(one.sender, one.receiver, one.bytes_per_second) for one in group.links} == {
        ("a", "c", 2.0),
        ("b", "c", 1.0),
        ("a", "b", 1.0),
    }


def test_a_failure_without_a_loss_is_told(monkeypatch: pytest.MonkeyPatch, group: WorkerGroup) -> None:
    def measure(workers: Workers) -> Network:
        raise WorkersDied("c died again", {"c": "died again"})

    measured_by(monkeypatch, measure)
    with pytest.raises(WorkersDied, match="c died again"):
        measure_links_of(group, "c")


def test_the_other_lost_devices_are_those_of_now() -> None:
    lost = {"a": "gone", "b": "gone"}
    others = LostOthers(lost, "b")
    assert dict(others) == {"a": "gone"} and len(others) == 1 and "b" not in others
    del lost["a"]
    assert not others
