"""The choice of devices that are measured, and the origin of watts: decisions about workers, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from coedge.config.sections import DeviceConfig, PowerConfig
from coedge.profile.network import ClientLink
from orchestrator.control.worker_group import RemoteWorker
from orchestrator.profiling.model_measurement import AT_ONCE_NBYTES, MOST_AT_ONCE, _client_seconds, _kinds
from workers.runtime.spec import MeteredPower, WorkerFacts
from workers.transport.transport import Endpoint


def worker(name: str, kind: str = "cpu", metered: MeteredPower | None = None, **config: Any) -> RemoteWorker:
    facts = WorkerFacts(Endpoint(0, name, ""), "host", 1, "0", 1, kind, 0.0)
    return RemoteWorker(DeviceConfig(name=name, **config), None, facts, metered)


def model(weight_nbytes: int) -> Any:
    return SimpleNamespace(weight_nbytes=weight_nbytes)


METERED = MeteredPower(2.0, 5.0, "RAPL package-0")


def test_configured_watts_come_first() -> None:
    power = PowerConfig(compute_watts=9.0)
    assert (worker("a", power=power).power, worker("a", power=power).power_source) == (power, "configured")
    assert worker("a", metered=METERED, power=power).power_source == "configured"


def test_watts_that_are_not_configured_come_from_the_meter() -> None:
    metered = worker("a", metered=METERED)
    assert (metered.power.idle_watts, metered.power.compute_watts) == (2.0, 5.0)
    assert metered.power_source.startswith("RAPL package-0;")


def test_without_configuration_and_meter_watts_are_the_default() -> None:
    assert (worker("a").power, worker("a").power_source) == (PowerConfig(), "default")


def test_devices_of_a_kind_are_measured_once() -> None:
    first, second, other = _kinds(
        model(1), [worker("a", speed=0.5), worker("b"), worker("c", "gpu"), worker("d", speed=0.1), worker("e")]
    )
    assert [[m.name for m in kind.workers] for kind in (first, second, other)] == [["a", "d"], ["b", "e"], ["c"]]
    assert len({kind.key for kind in (first, second, other)}) == 3
    assert [m.name for m in second.measuring] == ["b"]


@pytest.mark.parametrize(
    ("weight_nbytes", "count"), [(1, MOST_AT_ONCE), (AT_ONCE_NBYTES // 2, 2), (AT_ONCE_NBYTES * 2, 1)]
)
def test_emulated_devices_are_measured_together_if_their_weights_fit(weight_nbytes: int, count: int) -> None:
    (kind,) = _kinds(model(weight_nbytes), [worker(f"d{i}", speed=0.1) for i in range(6)])
    assert len(kind.measuring) == count
    (alone,) = _kinds(model(weight_nbytes), [worker("d0", speed=0.1)])
    assert (alone.key == kind.key) == (count == 1)


def test_the_device_with_the_most_memory_measures() -> None:
    (kind,) = _kinds(model(AT_ONCE_NBYTES), [worker("a", speed=0.1, memory_mb=100), worker("b", speed=0.1)])
    assert [m.name for m in kind.measuring] == ["b"]


def test_the_client_waits_for_inputs_and_outputs() -> None:
    def tensor(nbytes: int) -> Any:
        return SimpleNamespace(whole=None, region_nbytes=lambda region: nbytes)

    asked: Any = SimpleNamespace(inputs=(tensor(1000),), outputs=(tensor(100), tensor(200)))
    assert _client_seconds(asked, ClientLink(0.5, 1000.0)) == pytest.approx(0.5 + 1.0 + 0.5 + 0.3)
    assert _client_seconds(asked, None) == 0.0
