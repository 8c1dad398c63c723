"""Ray nodes that come late, go and come back: the cluster starts without them and takes them in."""

from __future__ import annotations

from pathlib import Path

import pytest
from nets import Net, difference, image, unsplit
from waiting import until

import coedge
from coedge import ClusterError, DeviceLost
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from orchestrator.cluster.cluster import Cluster

pytestmark = pytest.mark.ray

SHAPE = (1, 3, 32, 24)
LATE_ADDRESS = "127.0.0.3"
BACK_SECONDS = 120.0


def network() -> Model:
    net = Net()
    x = net.op("Conv", net.input(SHAPE), net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(net.op("Conv", x, net.weight(4, 8, 3, 3), pads=[1, 1, 1, 1])), name="two")


def states(cluster: Cluster) -> dict[str, str]:
    return {device.name: device.state for device in cluster.devices()}


def check_frame(cluster: Cluster, model: Model, *devices: str) -> None:
    x = image(SHAPE)
    plan = coedge.even_plan(model, devices=devices, source="one") if devices else None
    assert difference(cluster.submit(model, x, plan=plan).result(), unsplit(model, [x])[0]) <= 1e-5


def test_a_cluster_starts_without_a_node_and_takes_it_in_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray
    from ray.cluster_utils import Cluster as RayCluster

    head = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    model = network()
    try:
        config = {
            "devices": [{"name": "one", "speed": 0.5}, {"name": "late", "node": LATE_ADDRESS, "speed": 0.5}],
            "ray": {"address": head.address},
            "cache_dir": str(tmp_path),
            "profile_budget_seconds": 0.5,
            "trial_frames": 0,
        }
        with pytest.raises(ClusterError, match=f"device late: there is no Ray node '{LATE_ADDRESS}'"):
            coedge.connect({**config, "recover": False})
        with coedge.connect(config) as cluster:
            assert f"starts without a device: device late: there is no Ray node '{LATE_ADDRESS}'" in caplog.text
            assert states(cluster) == {"one": "ready", "late": "absent"} and cluster.source == "one"
            check_frame(cluster, model)
            until(
                lambda: [e for e in cluster.events if e["event"] == "lost" and "no Ray node" in e["reason"]],
                "it is told",
            )
            with pytest.raises(DeviceLost, match="late is part of the plan, but it is lost"):
                check_frame(cluster, model, "one", "late")
            for _ in range(2):
                node = head.add_node(num_cpus=1, node_ip_address=LATE_ADDRESS)
                until(lambda: states(cluster)["late"] == "ready", "the node is taken in", BACK_SECONDS)
                check_frame(cluster, model, "one", "late")
                assert cluster.profile(model).names == ("one", "late")
                head.remove_node(node)
                until(lambda: states(cluster)["late"] == "lost", "the node is lost", BACK_SECONDS)
                check_frame(cluster, model)
    finally:
        if ray.is_initialized():
            ray.shutdown()
        head.shutdown()
