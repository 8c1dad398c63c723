"""Measuring and planning after a loss: devices that are lost are left out of everything that asks all devices.

The devices of the cluster are killed one after the other, in the order of the tests. The source is the last one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import ray
from nets import Net, difference, image, unsplit
from waiting import until

import coedge
from coedge import ClusterError, DeviceLost, Objective
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from orchestrator.cluster.cluster import Cluster
from orchestrator.control import ray_control, worker_group
from orchestrator.control.ray_control import WorkersDied
from orchestrator.control.worker_group import WorkerGroup, Workers, ask_ready

SHAPE = (1, 3, 32, 24)
SOON_SECONDS = 10.0


def network(channels: int) -> Model:
    """Return a network that no other test measures."""
    net = Net()
    x = net.op("Relu", net.op("Conv", net.input(SHAPE), net.weight(channels, 3, 3, 3), pads=[1, 1, 1, 1]))
    return capture(net.proto(net.op("Conv", x, net.weight(4, channels, 3, 3), pads=[1, 1, 1, 1])), name=f"c{channels}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    names = ("a", "b", "c", "d", "e", "f")
    config = {
        "devices": [{"name": name, "speed": 0.5, "link": {"latency_ms": 0.1}} for name in names],
        "source": "a",
        "media": [{"name": "air", "devices": ["b", "c"], "mbps": 500.0}],
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "profile_budget_seconds": 0.5,
        "trial_frames": 0,
        "recover": False,
    }
    with coedge.connect(config) as joined:
        yield joined


def kill(cluster: Cluster, name: str) -> None:
    os.kill(next(d.pid for d in cluster.devices() if d.name == name), signal.SIGKILL)


def ready(cluster: Cluster) -> list[str]:
    return [d.name for d in cluster.devices() if d.state == "ready"]


def check_frame(cluster: Cluster, model: Model) -> None:
    x = image(SHAPE)
    assert difference(cluster.submit(model, x).result(), unsplit(model, [x])[0]) <= 1e-5


@pytest.mark.ray
def test_a_new_model_is_measured_and_planned_on_the_devices_that_are_left(cluster: Cluster) -> None:
    kill(cluster, "c")  # noticed by the watcher before the next line, or not
    model = network(5)
    check_frame(cluster, model)
    assert cluster.profile(model).names == ("a", "b", "d", "e", "f")
    assert set(cluster.plan(model).devices) <= {"a", "b", "d", "e", "f"}
    assert cluster.mixture(model).plans
    list(cluster.stream(model, [image(SHAPE)] * 3, objective=Objective(goal="throughput")))


@pytest.mark.ray
def test_a_device_that_dies_while_a_model_is_measured_is_left_out(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather, killed = Workers.gather, []

    def killing(workers: Workers, calls: Mapping[str, Any], *args: Any, **more: Any) -> dict[str, Any]:
        if not killed:
            killed.append("b")
            kill(cluster, "b")
        return gather(workers, calls, *args, **more)

    monkeypatch.setattr(Workers, "gather", killing)
    model = network(6)
    check_frame(cluster, model)
    assert killed and cluster.profile(model).names == ("a", "d", "e", "f")


@pytest.mark.ray
def test_links_are_set_and_measured_without_the_lost_devices(cluster: Cluster) -> None:
    kill(cluster, "d")
    cluster.set_link("a", mbps=200.0)
    until(lambda: "d" not in ready(cluster), "d is lost")
    model = network(7)
    before = {link.sender for link in cluster.profile(model).links}
    cluster.measure_links()
    assert {link.sender for link in cluster.profile(model).links} == before == {"a", "e", "f"}
    with pytest.raises(DeviceLost, match="d is lost"):
        cluster.set_link("d", mbps=200.0)
    check_frame(cluster, model)


@pytest.mark.ray
def test_a_device_that_dies_just_before_the_links_are_measured_is_left_out(cluster: Cluster) -> None:
    kill(cluster, "e")
    cluster.measure_links()
    model = network(8)
    profile = cluster.profile(model)
    assert profile.names == ("a", "f")
    assert sorted((link.sender, link.receiver) for link in profile.links) == [("a", "f"), ("f", "a")]
    check_frame(cluster, model)


@pytest.mark.ray
def test_the_source_alone_and_the_loss_of_the_source(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(cluster, "f")
    model = network(9)
    check_frame(cluster, model)
    assert cluster.profile(model).names == ("a",)
    kill(cluster, "a")
    until(lambda: ready(cluster) == [], "a is lost")
    measured: list[Any] = []
    monkeypatch.setattr("orchestrator.cluster.plan_cache.measure_model", lambda *given: measured.append(given))
    for ask in (cluster.submit, lambda m, _: cluster.plan(m), lambda m, _: cluster.mixture(m)):
        start = time.monotonic()
        with pytest.raises(DeviceLost, match=r"all devices are lost .*a: its worker process died"):
            ask(network(10), image(SHAPE))
        assert time.monotonic() - start < SOON_SECONDS and not measured


# ---------------------------------------------------------------- without Ray


def fake_ray(monkeypatch: pytest.MonkeyPatch, outcomes: Mapping[str, Any]) -> None:
    """Let each reference, a name, have a value, raise an error, or stay without an answer (None)."""

    def wait(names: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        there = [name for name in names if outcomes[name] is not None]
        return there, [name for name in names if name not in there]

    def get(name: str, timeout: float) -> Any:
        if isinstance(outcomes[name], Exception):
            raise outcomes[name]
        return outcomes[name]

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)


DIED = ray.exceptions.ActorDiedError()


def test_an_error_names_the_time_only_of_devices_that_did_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name: name for name in "abc"}
    fake_ray(monkeypatch, {"a": 1, "b": 2, "c": DIED})
    with pytest.raises(WorkersDied) as died:
        ray_control.gather(names, 300.0, "measure it")
    assert str(died.value) == "only 2 of 3 devices managed to measure it: c: its worker process died"
    assert died.value.reasons == {"c": "its worker process died"}
    fake_ray(monkeypatch, {"a": 1, "b": None, "c": ValueError("no")})
    with pytest.raises(ClusterError) as late:
        ray_control.gather(names, 1.0, "measure it", waited_seconds=20.04)
    assert str(late.value) == "only 1 of 3 devices managed to measure it: b: no answer within 21 s; c: no"
    assert not isinstance(late.value, DeviceLost)
    assert ray_control.gather({}, 1.0, "do nothing") == {}


def group_of(names: str, lost: Mapping[str, str] | None = None) -> WorkerGroup:
    nothing: Any = None
    by_name = dict.fromkeys(names, nothing)
    return WorkerGroup(by_name, names[0], nothing, {}, {}, {}, lost=dict(lost or {}))


def answering(*outcomes: BaseException | None) -> tuple[list[list[str]], Callable[[Mapping[str, Any]], int]]:
    """Return the devices that were asked, and a function that raises the outcomes one after the other."""
    asked: list[list[str]] = []
    left = list(outcomes)

    def ask(workers: Mapping[str, Any]) -> int:
        asked.append(list(workers))
        if (outcome := left.pop(0)) is not None:
            raise outcome
        return len(workers)

    return asked, ask


def test_devices_that_die_are_left_out_one_after_the_other() -> None:
    group = group_of("abcd", {"d": "gone"})
    asked, ask = answering(WorkersDied("", {"b": "died"}), WorkersDied("", {"c": "died"}), None)
    assert ask_ready(group, ask) == 1
    assert asked == [["a", "b", "c"], ["a", "c"], ["a"]]
    assert group.lost == {"d": "gone", "b": "died", "c": "died"}


def test_a_failure_of_a_living_device_is_raised_at_once() -> None:
    asked, ask = answering(ClusterError("no answer within 20 s"), None)
    with pytest.raises(ClusterError, match="no answer"):
        ask_ready(group_of("ab"), ask)
    assert asked == [["a", "b"]]


def test_a_loss_that_the_watcher_notices_meanwhile_is_left_out() -> None:
    group = group_of("ab")

    def ask(workers: Mapping[str, Any]) -> list[str]:
        if "b" in workers:
            group.lost["b"] = "died"
            raise ClusterError("a: b did not echo")
        return list(workers)

    assert ask_ready(group, ask) == ["a"]


def test_without_any_device_the_loss_is_said() -> None:
    with pytest.raises(DeviceLost, match="all devices of the cluster are lost"):
        worker_group.ask_ready(group_of("a", {"a": "died"}), lambda workers: workers)
