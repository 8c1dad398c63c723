"""The profile learns: corrections by measured frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples

from benchmarks.adaptation import as_measured
from benchmarks.instances import chain
from coedge.config.sections import LinkConfig
from coedge.execution.program import Work
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan
from coedge.profile.correction import Correction, StageObservation, kernel_factors
from coedge.profile.profile import DeviceProfile, LayerTime, Link, Profile
from coedge.simulation.observation import observed_stages
from coedge.simulation.simulator import simulate
from orchestrator.planner.planner import make_plan
from orchestrator.profiling.correction_cache import load_correction, store_correction
from orchestrator.profiling.learning import MeasuredPlan, agrees, learn, predicted_seconds

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model() -> Model:
    return chain(1, layers=5, rows=64)


def profile_of(model: Model, factor: float = 1.0, latency_seconds: float = 2e-4) -> Profile:
    """Return a profile of three devices. The factor multiplies the times of the second half of the layers."""
    half = len(model.layers) // 2
    devices = tuple(
        DeviceProfile(
            name=name,
            layers=tuple(
                LayerTime(fixed_seconds=1e-3, seconds_per_row=2e-4 * slower * (factor if index >= half else 1.0))
                for index in range(len(model.layers))
            ),
        )
        for name, slower in zip(NAMES, (1.0, 1.5, 2.0))
    )
    links = tuple(
        Link(sender=a, receiver=b, bytes_per_second=2e7, latency_seconds=latency_seconds)
        for a in NAMES
        for b in NAMES
        if a != b
    )
    return Profile(model_name=model.name, model_hash=model.hash, devices=devices, links=links, source="a")


def measured_plan(model: Model, plan: Plan, truth: Profile, frames: int = 3) -> MeasuredPlan:
    programs = lower(plan, model)
    return MeasuredPlan(plan, programs, [as_measured(simulate(programs, truth, model)) for _ in range(frames)])


def plans(model: Model, profile: Profile, schemes: Sequence[str] = ("auto", "equal")) -> list[Plan]:
    return [make_plan(model, profile, scheme=scheme) for scheme in schemes]


@given(
    factors=st.lists(st.floats(0.5, 2.0), min_size=3, max_size=3),
    shares=st.lists(st.integers(1, 40), min_size=3, max_size=3),
)
@examples(200, 50)
def test_factors_of_layers_that_stages_show_alone_are_found(factors: list[float], shares: list[int]) -> None:
    times = tuple(LayerTime(fixed_seconds=1e-3, seconds_per_row=1e-4 * (index + 1)) for index in range(3))
    device = DeviceProfile(name="a", layers=times)
    observed = [
        StageObservation("a", ((Work(index, rows),),), factor * times[index].seconds(rows))
        for index, (factor, rows) in enumerate(zip(factors, shares))
    ] * 40
    assert kernel_factors(device, observed) == pytest.approx(factors, rel=0.1)


def test_layers_that_no_stage_shows_get_the_common_factor() -> None:
    times = tuple(LayerTime(fixed_seconds=0, seconds_per_row=1e-4) for _ in range(3))
    device = DeviceProfile(name="a", layers=times)
    shown = [StageObservation("a", ((Work(0, 10),),), 3e-3)]
    assert kernel_factors(device, shown) == pytest.approx((3.0, 3.0, 3.0), rel=1e-6)
    assert kernel_factors(device, []) == (1.0, 1.0, 1.0)
    assert kernel_factors(device, [StageObservation("a", ((Work(0, 10),),), 0.0)]) == (1.0, 1.0, 1.0)


def test_a_profile_that_is_right_stays_as_it_is(model: Model) -> None:
    truth = profile_of(model)
    runs = [measured_plan(model, plan, truth) for plan in plans(model, truth)]
    corrected = learn(truth, model, runs).of(truth)
    for before, after in zip(truth.devices, corrected.devices):
        assert [t.seconds(10) for t in after.layers] == pytest.approx([t.seconds(10) for t in before.layers], rel=1e-3)
    assert [link.latency_seconds for link in corrected.links] == pytest.approx([2e-4] * 6, abs=2e-5)
    assert all(agrees(run, truth, model) for run in runs)


@pytest.mark.parametrize(("factor", "latency_seconds"), [(2.0, 2e-4), (0.5, 2e-4), (1.0, 8e-4), (1.7, 8e-4)])
def test_predictions_agree_after_learning(model: Model, factor: float, latency_seconds: float) -> None:
    """The profile is wrong about half of the layers, about the links, or about both."""
    believed, truth = profile_of(model), profile_of(model, factor, latency_seconds)
    runs = [measured_plan(model, plan, truth) for plan in plans(model, believed)]
    corrected = learn(believed, model, runs).of(believed)
    for run in runs:
        assert abs(predicted_seconds(run, corrected, model) / run.latency_seconds - 1) < 0.05
    assert not all(agrees(run, believed, model) for run in runs)
    other = measured_plan(model, make_plan(model, corrected), truth)  # a plan that was not measured
    assert abs(predicted_seconds(other, corrected, model) / other.latency_seconds - 1) < 0.15


def test_a_plan_on_one_device_teaches_without_links(model: Model) -> None:
    believed, truth = profile_of(model), profile_of(model, 2.0)
    (plan,) = plans(model, believed, ["local"])
    run = measured_plan(model, plan, truth)
    correction = learn(believed, model, [run])
    assert agrees(run, correction.of(believed), model) and correction.delay_seconds == 0.0


def test_observed_stages_take_the_median_frame(model: Model) -> None:
    truth = profile_of(model)
    (plan,) = plans(model, truth, ["equal"])
    programs = lower(plan, model)
    frames = [as_measured(simulate(programs, profile_of(model, factor), model)) for factor in (1.0, 1.0, 9.0)]
    usual, disturbed = observed_stages(programs, frames[:1]), observed_stages(programs, frames)
    assert [one.seconds for one in disturbed] == pytest.approx([one.seconds for one in usual])
    assert {one.device for one in usual} == {name for name, program in programs.items() if program.computes}


def test_a_plan_with_few_messages_says_little_about_their_delay(model: Model) -> None:
    """Its latency may be off for other reasons, and plans with many messages must not be spoilt by that."""
    believed, truth = profile_of(model), profile_of(model, latency_seconds=8e-4)

    def learnt_part(schemes: Sequence[str]) -> float:
        runs = [measured_plan(model, plan, truth) for plan in plans(model, believed, schemes)]
        return learn(believed, model, runs).delay_seconds / 6e-4

    assert 0 < learnt_part(["offload"]) < 0.1
    assert 0.4 < learnt_part(["modnn"]) < learnt_part(["modnn", "auto", "aofl"]) < 1


def test_a_correction_never_makes_a_latency_negative(model: Model) -> None:
    profile = profile_of(model)
    correction = Correction(factors={"a": (2.0,) * len(model.layers)}, delay_seconds=-1.0)
    assert correction.of(profile).link("a", "b").latency_seconds == 0.0
    assert Correction().of(profile).devices == profile.devices
    assert correction.of(profile.without(["b"])).names == ("a", "c")


def test_corrections_are_kept_on_disk_by_model_and_devices(model: Model, tmp_path: Path) -> None:
    def worker(fingerprint: str, speed: float | None) -> Any:
        return SimpleNamespace(
            facts=SimpleNamespace(fingerprint=fingerprint), config=SimpleNamespace(speed=speed, link=LinkConfig())
        )

    count = len(model.layers)
    devices, correction = {"a": worker("x", 0.5)}, Correction(factors={"a": (1.5,) * count})
    assert load_correction(tmp_path, model, devices) is None
    store_correction(tmp_path, model, devices, correction)
    assert load_correction(tmp_path, model, devices) == correction
    for other in ({"a": worker("y", 0.5)}, {"a": worker("x", 0.25)}, {"b": worker("x", 0.5)}):
        assert load_correction(tmp_path, model, other) is None
    assert load_correction(tmp_path, chain(2, layers=5, rows=64), devices) is None
    store_correction(tmp_path, model, devices, Correction(factors={"a": (1.5,) * (count - 1)}))
    assert load_correction(tmp_path, model, devices) is None, "it was made for other layers"
    (path,) = tmp_path.iterdir()
    for wrong in ("{}}", '{"factors": {"a": [NaN]}}', '{"factors": {"a": [-1.0]}}', '{"delays": [{"seconds": 1}]}'):
        path.write_text(wrong, encoding="utf-8")
        assert load_correction(tmp_path, model, devices) is None
