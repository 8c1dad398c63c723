"""Small chains of convolutions and random clusters, for searches that are compared with trying everything."""

from __future__ import annotations

import functools
import random

from nets import Net

import coedge
from coedge.config import PowerConfig
from coedge.model import Model
from coedge.profile import DeviceProfile, LayerTime, Link, Profile, scaled


@functools.cache
def chain(seed: int, layers: int, rows: int) -> Model:
    """Convolutions of stride one, kernels of 1, 3 or 5."""
    generator, net = random.Random(seed), Net()
    before = generator.choice([2, 4])
    x = net.input([1, before, rows, rows])
    for _ in range(layers):
        kernel, channels = generator.choice([1, 3, 3, 5]), generator.choice([2, 4, 8])
        x = net.op("Conv", x, net.weight(channels, before, kernel, kernel), pads=[kernel // 2] * 4)
        before = channels
    return coedge.capture(net.proto(x), name="chain")


def small_profile(seed: int, model: Model, devices: int) -> Profile:
    """Devices of unequal speed and watts on links from far too slow to fast."""
    generator = random.Random(seed)
    names = [f"d{index}" for index in range(devices)]
    work = [(generator.uniform(0, 0.3), generator.uniform(0.2, 3)) for _ in model.layers]
    fusing = generator.uniform(0.6, 1)
    rate = 10 ** generator.uniform(4.5, 7)
    made = []
    for name in names:
        speed = generator.choice([1, 1, 0.5, 0.25])
        times = [LayerTime(fixed_seconds=1e-3 * a / speed, seconds_per_row=1e-3 * b / speed) for a, b in work]
        power = PowerConfig(compute_watts=generator.uniform(1, 10), transmit_watts=generator.uniform(0, 2))
        fused = tuple(scaled(time, fusing) for time in times)
        made.append(DeviceProfile(name=name, layers=tuple(times), fused=fused, power=power))
    links = [
        Link(
            sender=a, receiver=b, bytes_per_second=rate * generator.choice([1, 1, 0.5]),
            latency_seconds=generator.choice([0, 1e-4, 1e-3]),
        )
        for a in names
        for b in names
        if a != b
    ]  # fmt: skip
    return Profile(model_name=model.name, model_hash=model.hash, source="d0", devices=tuple(made), links=tuple(links))
