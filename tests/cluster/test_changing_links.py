"""Adaptation on real workers: frames show that a link has changed, and profiles and plans follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nets import Net, difference, image, make_plan, unsplit
from waiting import until

import coedge
from coedge.core.region import UnitRect
from coedge.core.units import bytes_per_second_of
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from orchestrator.cluster import adaptation
from orchestrator.cluster.cluster import Cluster

pytestmark = pytest.mark.ray

SHAPE = (1, 3, 96, 96)
FAST_MBPS, SLOW_MBPS = 100.0, 10.0
# Far more frames than a change needs to be noticed on a quiet machine.
MOST_FRAMES = 200
MOST_SECONDS = 120.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = {
        "devices": [{"name": name, "speed": 0.5, "link": {"mbps": FAST_MBPS}} for name in ("a", "b")],
        "source": "a",
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "profile_budget_seconds": 0.5,
        "trial_frames": 0,
    }
    with coedge.connect(config) as joined:
        yield joined


def network() -> Model:
    net = Net()
    x = net.input(SHAPE)
    for i in range(3):
        x = net.op("Conv", x, net.weight(16, 16 if i else 3, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(x), name="three")


def test_profiles_and_plans_follow_a_link_that_becomes_slow_and_fast_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(), image(SHAPE)
    expected = unsplit(model, [x])[0]
    halves = {"a": UnitRect(row_stop=0.5), "b": UnitRect(row_start=0.5)}
    split = make_plan(model, [(1, halves), (2, halves)], "a")

    def rate() -> float:
        return min(cluster.profile(model).link(*pair).bytes_per_second for pair in (("a", "b"), ("b", "a")))

    def run_until(slow: bool) -> None:
        """Run frames until the profile says that the link is slow, or that it is not."""
        between = bytes_per_second_of((FAST_MBPS * SLOW_MBPS) ** 0.5)
        for _ in range(MOST_FRAMES):
            y = cluster.submit(model, x, plan=split).result()
            assert difference(y, expected) <= 1e-5
            if (rate() < between) == slow:
                return
        raise AssertionError(f"after {MOST_FRAMES} frames the rate is still {rate():.0f} bytes/s")

    run_until(slow=False)
    before = cluster.submit(model, x).plan
    cluster.set_link("b", mbps=SLOW_MBPS)
    run_until(slow=True)
    slow = cluster.plan(model)
    assert difference(cluster.submit(model, x).result(), expected) <= 1e-5
    sent = {name: len(plan.used_devices) for name, plan in (("before", before), ("slow", slow))}
    assert sent["slow"] <= sent["before"], sent
    cluster.set_link("b", mbps=FAST_MBPS)
    run_until(slow=False)

    # No frame shows a link that no plan uses. It is tested.
    cluster.set_link("b", mbps=SLOW_MBPS)
    run_until(slow=True)
    monkeypatch.setattr(adaptation, "TEST_SECONDS", 0.5)
    cluster.set_link("b", mbps=FAST_MBPS)
    until(lambda: rate() > bytes_per_second_of(FAST_MBPS / 2), "the link was tested", MOST_SECONDS)
