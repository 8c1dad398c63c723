"""Helpers for tests in virtual time: small networks, profiles with round numbers, and random profiles."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from hypothesis import strategies as st
from nets import DEVICES, Net, make_plan, plans

from coedge.config.sections import PowerConfig
from coedge.core.region import UNIT, UnitRect
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from coedge.profile.profile import DeviceProfile, LayerTime, Link, Medium, Profile, scaled
from coedge.simulation.simulator import simulate
from coedge.simulation.timeline import Timeline

UPPER, LOWER = UnitRect(row_stop=0.5), UnitRect(row_start=0.5)
ROW_NBYTES = 4 * 8 * 4


@functools.cache
def chain(layers: int = 2, rows: int = 8) -> Model:
    """Return 1x1 convolutions with 4 channels each, on 8 columns: a layer's output has 128 bytes per row."""
    net = Net()
    x = net.input([1, 4, rows, 8])
    for _ in range(layers):
        x = net.op("Conv", x, net.weight(4, 4, 1, 1))
    model = capture(net.proto(x), name="chain")
    assert len(model.layers) == layers
    return model


@functools.cache
def halos() -> Model:
    """Return 3x3 convolutions, whose strips need rows of their neighbours, with a global mean at the end."""
    net = Net()
    x = net.input([1, 3, 16, 8])
    for _ in range(3):
        x = net.op("Conv", x, net.weight(3, 3, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(net.op("GlobalAveragePool", x)), name="halos")


def cluster(
    model: Model,
    names: tuple[str, ...] = ("a", "b"),
    seconds_per_row: Mapping[str, float] | None = None,
    fixed_seconds: float = 0.0,
    rates: Mapping[tuple[str, str], float] | None = None,
    rate: float = 1000.0,
    latency: float = 0.0,
    fused: float = 1.0,
    power: PowerConfig | None = None,
    media: tuple[Medium, ...] = (),
) -> Profile:
    return Profile(
        model_name=model.name,
        model_hash=model.hash,
        source=names[0],
        devices=tuple(
            DeviceProfile(
                name=name,
                power=power or PowerConfig(),
                layers=(
                    time := LayerTime(
                        fixed_seconds=fixed_seconds, seconds_per_row=(seconds_per_row or {}).get(name, 1.0)
                    ),
                )
                * len(model.layers),
                fused=(scaled(time, fused),) * len(model.layers),
            )
            for name in names
        ),
        links=tuple(
            Link(
                sender=a,
                receiver=b,
                bytes_per_second=(rates or {}).get((a, b), rate),
                latency_seconds=latency,
            )
            for a in names
            for b in names
            if a != b
        ),
        media=media,
    )


def layer_split(model: Model, at: int, sink: str = "b") -> Plan:
    """Return a plan with the first `at` layers on device a and the rest on b."""
    return make_plan(model, [(at, {"a": UNIT}), (len(model.layers) - at, {"b": UNIT})], "a", sink)


def run(plan: Plan, profile: Profile, model: Model, frames: int = 1, in_flight: int = 1) -> Timeline:
    return simulate(lower(plan, model), profile, model, frames, in_flight)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, Profile]:
    """Draw a plan of `halos()` on five devices, some of which may share one or two media."""
    model = halos()
    numbers = st.floats(0.001, 10.0)
    count = len(model.layers)
    times = st.lists(
        st.builds(LayerTime, fixed_seconds=numbers, seconds_per_row=numbers), min_size=count, max_size=count
    )
    rates = st.floats(10.0, 1e5)
    profile = Profile(
        model_name=model.name,
        model_hash=model.hash,
        source=DEVICES[0],
        devices=tuple(
            DeviceProfile(
                name=name,
                layers=draw(times),
                fused=draw(times),
                power=PowerConfig(
                    idle_watts=draw(numbers), compute_watts=draw(numbers),
                    transmit_watts=draw(numbers), receive_watts=draw(numbers),
                ),
            )
            for name in DEVICES
        ),
        links=tuple(
            Link(sender=a, receiver=b, bytes_per_second=draw(rates), latency_seconds=draw(st.floats(0.0, 2.0)))
            for a in DEVICES
            for b in DEVICES
            if a != b
        ),
        media=tuple(
            Medium(name=f"air-{i}", devices=draw(st.permutations(DEVICES))[:size], bytes_per_second=draw(rates))
            for i, size in enumerate(draw(st.lists(st.integers(1, 5), max_size=2)))
        ),
        joules=draw(st.sampled_from(["dynamic", "total"])),
    )  # fmt: skip
    return draw(plans(model)), profile
