"""Small random networks and clusters, for which a search can be compared with enumeration."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import numpy as np
from onnx import helper, numpy_helper

import coedge
from coedge.config.sections import PowerConfig
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.profile.profile import DeviceProfile, LayerTime, Link, Profile, scaled


@functools.cache
def chain(seed: int, layers: int, rows: int) -> Model:
    """Return a chain of convolutions of stride 1 with kernels of size 1, 3 or 5."""
    generator, values = random.Random(seed), np.random.default_rng(seed)
    before = generator.choice([2, 4])
    shape = [1, before, rows, rows]
    nodes, weights, tensor = [], [], "x"
    for index in range(layers):
        kernel, channels = generator.choice([1, 3, 3, 5]), generator.choice([2, 4, 8])
        weight = values.standard_normal((channels, before, kernel, kernel)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [tensor, f"w{index}"], [f"t{index}"], pads=[kernel // 2] * 4))
        tensor, before = f"t{index}", channels
    inputs = [helper.make_tensor_value_info("x", 1, shape)]
    outputs = [helper.make_tensor_value_info(tensor, 1, [1, before, rows, rows])]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return coedge.capture(proto, name="chain")


def small_profile(seed: int, model: Model, devices: int) -> Profile:
    """Return devices of unequal speed and watts, on links from very slow to fast."""
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


# Three goals, each with and without a deadline.
KINDS = tuple((goal, tight) for tight in (False, True) for goal in ("latency", "latency + w energy", "energy"))


@dataclass(frozen=True)
class Instance:
    """A network of 2 to 8 layers on 2 to 4 devices, and an objective.

    Attributes:
        rows: number of rows of every layer, 2 to 6.
        kind: one of `KINDS`.
        slack: the deadline over the least possible latency, if the kind has a deadline.
        weight: energy weight in seconds per joule, if the kind has one.
    """

    seed: int
    devices: int
    layers: int
    rows: int
    kind: tuple[str, bool]
    slack: float
    weight: float

    @classmethod
    def of(cls, seed: int) -> Instance:
        generator = random.Random(f"instance {seed}")
        return cls(
            seed, generator.randint(2, 4), generator.randint(2, 8), generator.randint(2, 6), KINDS[seed % len(KINDS)],
            generator.uniform(1.05, 1.6), 10 ** generator.uniform(-2, 0),
        )  # fmt: skip

    @property
    def model(self) -> Model:
        return chain(self.seed, self.layers, self.rows)

    @property
    def profile(self) -> Profile:
        return small_profile(self.seed, self.model, self.devices)

    def objective(self, least_seconds: float) -> Objective:
        goal, tight = self.kind
        return Objective(
            goal="energy" if goal == "energy" else "latency",
            energy_weight=self.weight if "w" in goal.split() else 0.0,
            deadline_ms=least_seconds * self.slack * 1e3 if tight else None,
        )

    def __str__(self) -> str:
        goal, tight = self.kind
        return (
            f"instance {self.seed} ({self.devices} devices, {self.layers} layers, {self.rows} rows, {goal}"
            f"{', deadline' if tight else ''})"
        )
