"""Program that test_lab.py runs inside a lab: it runs frames on three devices and prints the interfaces' counters.

The lab has separate links for weights. A model with 4 MB of weights is loaded on one device before the frames.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from nets import Net, difference, image, make_plan, one_stage, unsplit

import coedge
from coedge.core.region import UNIT, UnitRect
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from orchestrator.lab.lab import Lab

FRAMES, SHAPE = 4, (1, 3, 192, 192)


def counted(name: str) -> dict[str, Any]:
    """Return (bytes, packets) of every interface and medium of a lab."""
    state = Lab(name).status()
    hosts = {
        f"{host.name} {way}": (traffic.nbytes, traffic.packets)
        for host in state.hosts
        for way, traffic in (("sent", host.sent), ("received", host.received))
    }
    return hosts | {medium.name: (medium.carried.nbytes, medium.carried.packets) for medium in state.media}


def heavy() -> Model:
    """Return a model with 4 MB of weights and few multiply-adds."""
    net = Net()
    net.op("Conv", net.input([1, 1024, 2, 2]), net.weight(1024, 1024, 1, 1))
    return capture(net.proto(net.nodes[-1].output[0]), name="heavy")


def strips(*boundaries: float) -> dict[str, UnitRect]:
    edges = [0.0, *boundaries, 1.0]
    return {
        name: UnitRect(row_start=start, row_stop=stop)
        for name, start, stop in zip(("one", "two", "three"), edges, edges[1:])
    }


def main() -> None:
    """Run a plan that moves large parts of the rows between all devices and, at one boundary, a halo only."""
    name, config = sys.argv[1:]
    net = Net()
    x = net.input(list(SHAPE))
    for channels, width in ((3, 16), (16, 16), (16, 16), (16, 8)):
        x = net.op("Conv", x, net.weight(width, channels, 3, 3), pads=[1, 1, 1, 1])
    model = capture(net.proto(x), name="wide")
    stages = [strips(0.3, 0.6), strips(0.3, 0.6), strips(0.5, 0.8), strips(0.2, 0.4)]
    plan = make_plan(model, [(1, regions) for regions in stages], "one")
    frames = [image(SHAPE, seed=seed) for seed in range(FRAMES + 1)]
    with coedge.connect(config) as cluster:
        unloaded, far = counted(name), one_stage(heavy(), {"two": UNIT}, "one")
        cluster.submit(heavy(), image((1, 1024, 2, 2)), plan=far).result()
        loaded = counted(name)
        cluster.submit(model, frames[0], plan=plan).result()
        time.sleep(0.5)  # the last messages of loading are not counted
        before = counted(name)
        jobs = [cluster.submit(model, x, plan=plan) for x in frames[1:]]
        outputs = [np.asarray(job.result()) for job in jobs]
        timelines = [job.timeline.sent_nbytes() for job in jobs]
        after = counted(name)
        hosts = {device.name: device.address for device in cluster.devices()}
        latencies = {
            f"{device.name}>{peer}": link.latency_seconds
            for device in cluster.devices()
            for peer, link in device.links.items()
        }
    worst = max(difference(y, unsplit(model, (x,))[0]) for x, y in zip(frames[1:], outputs))
    told = {
        "loading": [a - b for a, b in zip(loaded["two received"], unloaded["two received"])],
        "counted": {key: [a - b for a, b in zip(after[key], before[key])] for key in after},
        "sent": [[*pair, sum(timeline[pair] for timeline in timelines)] for pair in timelines[0]],
        "worst": worst,
        "hosts": hosts,
        "latencies": latencies,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
