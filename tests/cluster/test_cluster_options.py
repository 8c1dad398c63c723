"""Halo first, codecs, links that change and a transport that breaks, on real Ray workers over emulated links."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from nets import difference, kept, unsplit
from test_lowering_options import everywhere, with_options
from waiting import ended, until

import coedge
from coedge import zoo
from coedge.execution.program import Send
from coedge.graph.model import Model
from coedge.plan.plan import even_plan
from coedge.simulation.step_costs import message_nbytes
from orchestrator.cluster.cluster import Cluster

pytestmark = pytest.mark.ray

NAMES = ("home", "mid", "low")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    speeds = {"home": 1.0, "mid": 0.6, "low": 0.3}
    devices = [{"name": name, "speed": speeds[name], "link": {"mbps": 200, "latency_ms": 0.2}} for name in NAMES]
    settings = {
        "devices": devices,
        "source": "home",
        "profile_budget_seconds": 1.0,
        "trial_frames": 0,
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
    }
    with coedge.connect(settings) as joined:
        yield joined


def captured(name: str) -> tuple[Model, torch.Tensor]:
    """Return a quarter-width network of the zoo for a small image, and the image."""
    x = zoo.example(name, image_size=64)
    return kept(f"64-{name}", lambda: coedge.capture(zoo.build(name, width=0.25, num_classes=7), x, name=name)), x


@pytest.mark.parametrize("name", ["resnet18", "unet"])
def test_a_stream_is_exact_in_fewer_bytes(cluster: Cluster, name: str) -> None:
    model, x = captured(name)
    plan = even_plan(model, NAMES, stage_layers=2)
    frames = [x + 0.1 * index for index in range(5)]
    for codec in ("zero_mask", "blosc2"):
        packed = with_options(plan, True, everywhere(codec, NAMES))
        jobs = [cluster.submit(model, frame, plan=packed) for frame in frames]
        for frame, job in zip(frames, jobs):
            answer = job.result()
            assert isinstance(answer, torch.Tensor)
            assert difference(answer.numpy(), unsplit(model, [frame.numpy()])[0]) <= 1e-5
        raw = sum(
            message_nbytes(program, step, model)
            for program in coedge.lower(packed, model).values()
            for step in program.steps
            if isinstance(step, Send)
        )
        timeline = jobs[-1].timeline
        assert 0 < sum(timeline.sent_nbytes().values()) < 0.9 * raw
        assert {span.kind for span in timeline.spans} == {"compute", "send", "receive", "answer"}


def test_links_that_are_set_and_measured_again_are_what_plans_know(cluster: Cluster) -> None:
    model, x = captured("squeezenet")

    def rate(sender: str, receiver: str) -> float:
        return cluster.profile(model).link(sender, receiver).bytes_per_second * 8 / 1e6

    plan = cluster.plan(model)
    before = {pair: rate(*pair) for pair in (("home", "mid"), ("home", "low"), ("low", "mid"))}
    assert all(mbps < 220 for mbps in before.values()), "links are paced to 200 Mbit/s"
    cluster.set_link("low", 10, 1.0)
    assert rate("home", "low") == before["home", "low"], "the link has not been measured yet"
    cluster.measure_links()
    try:
        assert rate("home", "low") < 20 and rate("low", "mid") < 20
        assert rate("home", "mid") > 50
        assert cluster.submit(model, x, scheme="modnn").plan == cluster.plan(model, scheme="modnn")
        job = cluster.submit(model, x)  # by the plan from before, with boundaries for the new links
        assert difference(job.result().numpy(), unsplit(model, [x.numpy()])[0]) <= 1e-5
        assert [(stage.first, stage.last) for stage in job.plan.stages] == [(s.first, s.last) for s in plan.stages]
        timed = coedge.simulate(coedge.lower(plan, model), cluster.profile(model), model)
        assert job.plan.predicted is not None
        assert job.plan.predicted.latency_seconds <= timed.latency_seconds * (1 + 1e-9)
        assert cluster.submit(model, x, plan=cluster.plan(model)).result() is not None
    finally:
        cluster.set_link("low", 200, 0.2)
        cluster.measure_links()
    assert rate("home", "low") > 50


def test_links_that_cannot_be_are_refused(cluster: Cluster) -> None:
    with pytest.raises(coedge.ConfigError, match=r"the link of low: a link of -125000\.0 bytes/s"):
        cluster.set_link("low", -1)
    with pytest.raises(coedge.PlanError, match="no device 'lo' in this cluster; devices are home, mid, low"):
        cluster.set_link("lo", 10)


# ---------------------------------------------------------------- the end: the last test of this cluster


def test_a_cluster_that_cannot_receive_says_that_it_is_closed_and_why(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = zoo.build("squeezenet", width=0.25, num_classes=7), zoo.example("squeezenet", image_size=64)
    model = coedge.capture(module, x, name="squeezenet")
    plan = even_plan(model, NAMES, stage_layers=2)
    cluster.submit(model, x, plan=plan).result()
    pids = [device.pid for device in cluster.devices()]

    def broken(timeout_seconds: float) -> None:
        raise OSError("the socket is gone")

    monkeypatch.setattr(cluster._dispatcher._transport, "receive", broken)
    until(lambda: {device.state for device in cluster.devices()} == {"closed"}, "the break is noticed")
    with pytest.raises(coedge.ClusterError, match=r"cannot receive any more .*the socket is gone.*connect again"):
        cluster.submit(model, x, plan=plan)
    for refused in (lambda: cluster.worker("mid"), lambda: cluster.profile(model), cluster.measure_links):
        with pytest.raises(coedge.ClusterError, match="the socket is gone"):
            refused()
    cluster.close()
    until(lambda: all(ended(pid) for pid in pids), "the workers end")
    with pytest.raises(coedge.ClusterError, match="closed; connect again"):
        cluster.submit(model, x, plan=plan)
