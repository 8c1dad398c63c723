"""Tests of mixtures of plans and of the divisible-load bound."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples
from scipy.optimize import linprog
from test_replan import Cached, relinked

from benchmarks.instances import chain, small_profile
from coedge.core.errors import InfeasibleError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.memory import held_nbytes
from coedge.profile.profile import Profile, scaled
from orchestrator.cluster import plan_cache
from orchestrator.evaluation.divisible_load import bound_seconds
from orchestrator.planner.mixture import MAX_WAITING_FRAMES, Mixture, make_mixture, mix
from orchestrator.planner.planner import SCHEMES, make_plan, make_stream

STREAM = Objective(goal="throughput")


@given(data=st.data())
@examples(5, 1)
def test_a_mixture_is_at_least_as_fast_as_every_plan_and_reaches_its_rate(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    model = chain(seed % 20, layers=4, rows=12)
    profile = small_profile(seed, model, data.draw(st.integers(1, 4)))
    mixture = make_mixture(model, profile, STREAM)
    assert sum(mixture.weights) == pytest.approx(1.0) and all(weight > 0 for weight in mixture.weights)
    for scheme in SCHEMES:
        plan = make_plan(model, profile, STREAM, scheme)
        assert plan.predicted is not None
        assert mixture.rate_fps >= plan.predicted.throughput_fps * (1 - 1e-3), scheme
    in_flight = mixture.in_flight
    # Frames of one plan are answered in bursts; over a few rounds the rate depends on where the bursts end.
    timeline = mixture.simulate(model, profile, frames=20 * in_flight + 1)
    assert timeline.steady_fps(in_flight) >= 0.95 * mixture.rate_fps
    assert sum(mixture.shadow_prices.values()) == pytest.approx(1.0, abs=0.01)


def test_without_transfer_times_the_rate_is_the_sum_of_all_devices() -> None:
    """Links that cost nothing keep every device busy all the time."""
    model = chain(4, layers=3, rows=12)
    profile = small_profile(4, model, 3)
    free = profile.model_copy(
        update={
            "links": tuple(
                link.model_copy(update={"bytes_per_second": 1e12, "latency_seconds": 0.0}) for link in profile.links
            )
        }
    )
    speeds = [
        1 / sum(d.layer_time(x.index, x.index + 1 == len(model.layers)).seconds(x.rows) for x in model.layers)
        for d in free.devices
    ]
    assert make_mixture(model, free, STREAM).rate_fps == pytest.approx(sum(speeds), rel=0.01)


def test_a_deadline_holds_for_every_plan_of_a_mixture() -> None:
    model = chain(6, layers=4, rows=12)
    profile = small_profile(6, model, 3)
    quickest = make_plan(model, profile, Objective()).predicted
    assert quickest is not None
    limit = quickest.latency_seconds * 1.2
    mixture = make_mixture(model, profile, STREAM.model_copy(update={"deadline_ms": limit * 1e3}), ())
    assert all(plan.predicted and plan.predicted.latency_seconds <= limit for plan in mixture.plans)
    with pytest.raises(InfeasibleError, match="no plan meets the objective; the nearest one"):
        make_mixture(model, profile, STREAM.model_copy(update={"deadline_ms": 1e-6}))


def nbytes_on(mixture: Mixture, model: Model, name: str) -> int:
    """Return the memory that the plans of a mixture need on a device together."""
    programs = [lower(plan, model)[name] for plan in mixture.plans]
    return held_nbytes(((model, program) for program in programs if program.steps), at_once=True)


@given(seed=st.integers(0, 10_000), devices=st.integers(2, 4), part=st.floats(0.3, 1.1))
@examples(10, 2)
def test_the_plans_of_a_mixture_fit_into_memory_together(seed: int, devices: int, part: float) -> None:
    model = chain(seed % 20, layers=4, rows=12)
    profile = small_profile(seed, model, devices)
    free = make_mixture(model, profile, STREAM)
    # The source has room for its largest plan, so that a feasible mixture exists.
    largest = max(nbytes_on(make_mixture(model, profile.without(profile.names[1:]), STREAM), model, "d0"), 1)
    limits = {name: max(part * nbytes_on(free, model, name), largest) for name in profile.names}
    limited = profile.model_copy(
        update={"devices": tuple(d.model_copy(update={"memory_bytes": limits[d.name]}) for d in profile.devices)}
    )
    mixture = make_mixture(model, limited, STREAM)
    assert all(nbytes_on(mixture, model, name) <= limits[name] for name in profile.names)
    assert mixture.rate_fps <= free.rate_fps * (1 + 1e-3)
    if part >= 1:
        assert mixture.rate_fps >= free.rate_fps * (1 - 1e-3)


@given(seed=st.integers(0, 10_000), slower=st.sampled_from([30, 200, 400]))
@examples(8, 2)
def test_a_device_that_is_too_slow_for_in_order_answers_is_not_used(seed: int, slower: int) -> None:
    """Each of its frames would hold back many answers, and it would add less than one per cent to the rate."""
    model = chain(seed % 20, layers=4, rows=12)
    profile = small_profile(seed, model, 2)
    slow = profile.devices[1]
    times = {kind: tuple(scaled(time, slower) for time in getattr(slow, kind)) for kind in ("layers", "fused")}
    profile = profile.model_copy(update={"devices": (profile.devices[0], slow.model_copy(update=times))})
    mixture = make_mixture(model, profile, STREAM)
    alone = make_mixture(model, profile.without(["d1"]), STREAM)
    for plan in mixture.plans:
        assert plan.predicted and plan.predicted.latency_seconds * mixture.rate_fps <= MAX_WAITING_FRAMES * (1 + 1e-6)
    assert mixture.rate_fps >= alone.rate_fps * (1 - 1e-6)
    timeline = mixture.simulate(model, profile, frames=8 * mixture.in_flight + 1)
    assert timeline.steady_fps(mixture.in_flight) >= 0.95 * mixture.rate_fps


def test_an_energy_weight_gives_a_mixture_with_less_energy() -> None:
    model = chain(8, layers=4, rows=12)
    profile = small_profile(8, model, 3)
    fast = make_mixture(model, profile, STREAM)
    frugal = make_mixture(model, profile, STREAM.model_copy(update={"energy_weight": 100.0}))
    assert frugal.energy_joules <= fast.energy_joules * (1 + 1e-6)
    assert frugal.rate_fps <= fast.rate_fps * (1 + 1e-6)


def by_linear_programme(model: Model, profile: Profile) -> float:
    """Return the divisible-load bound as the solution of its linear programme."""
    image = sum(
        t.region_nbytes(t.whole) * profile.codec_ratios.get(t.name, {}).get("blosc2", 1.0) for t in model.inputs
    )
    answer = sum(t.region_nbytes(t.whole) for t in model.outputs)
    count = len(profile.devices)
    limits, link = [], [0.0] * count
    for index, device in enumerate(profile.devices):
        work = sum(
            min(device.layer_time(x.index, ends).seconds(x.rows) for ends in (True, False)) for x in model.layers
        )
        if device.name != profile.source:
            out = image / profile.link(profile.source, device.name).bytes_per_second
            work += out + answer / profile.link(device.name, profile.source).bytes_per_second
            link[index] = out
        limits.append([work if i == index else 0.0 for i in range(count)] + [-1.0])
    limits.append([*link, -1.0])
    found = linprog(
        [0.0] * count + [1.0], A_ub=limits, b_ub=[0.0] * len(limits), A_eq=[[1.0] * count + [0.0]], b_eq=[1.0]
    )
    return float(found.fun)


@given(seed=st.integers(0, 10_000), devices=st.integers(1, 4))
@examples(30)
def test_the_bound_is_the_optimum_of_its_linear_programme(seed: int, devices: int) -> None:
    model = chain(seed % 20, layers=4, rows=12)
    profile = small_profile(seed, model, devices)
    # Lossless codecs reduce the bytes of the input in the bound; lossy ones do not.
    ratios = {model.inputs[0].name: {"blosc2": 0.5 + seed % 6 / 10, "float16": 0.1}}
    packed = profile.model_copy(update={"codec_ratios": ratios})
    if seed % 6 < 5:
        assert bound_seconds(model, packed) == pytest.approx(by_linear_programme(model, packed), rel=1e-6)
    assert bound_seconds(model, profile) == pytest.approx(by_linear_programme(model, profile), rel=1e-6)
    plan = make_plan(model, profile, Objective(), "modnn")
    assert plan.predicted is not None and plan.predicted.bound_seconds == bound_seconds(model, profile)
    assert plan.predicted.latency_seconds >= plan.predicted.bound_seconds * (1 - 1e-9)


# ---------------------------------------------------------------- what a cluster does after a change of links


@dataclasses.dataclass
class Streams:
    """The mixtures of a plan cache, and a count of searches for them."""

    cached: Cached
    searches: int = 0

    def mixture(self, search: bool, objective: Objective = STREAM) -> Mixture:
        return self.cached.cache.mixture(self.cached.model, objective, search)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    model = chain(1, layers=5, rows=48)
    made = Streams(Cached(model, small_profile(1, model, 3), monkeypatch))

    def search(*args: Any) -> Mixture:
        made.searches += 1
        return make_stream(*args)

    monkeypatch.setattr(plan_cache, "make_stream", search)
    return made


def slowed(profile: Profile, factor: float) -> Profile:
    return relinked(profile, dict.fromkeys(itertools.permutations(profile.names, 2), factor))


def test_after_a_change_of_links_the_next_stream_has_new_shares_and_the_next_mixture_a_new_search(
    streams: Streams,
) -> None:
    model, base = streams.cached.model, streams.cached.base
    first = streams.mixture(search=True)
    for factor in (0.02, 3.0):
        changed = slowed(base, factor)
        streams.cached.change_links(changed)
        now = streams.mixture(search=False)
        assert streams.searches == 1 and streams.mixture(search=False) is now
        assert now.rate_fps >= mix(model, changed, STREAM, first.plans).rate_fps * (1 - 1e-3)
        in_flight = now.in_flight
        timeline = now.simulate(model, changed, frames=20 * in_flight + 1)
        assert timeline.steady_fps(in_flight) >= 0.95 * now.rate_fps, "it is planned for the new links"
        cuts = {tuple(stage.first for stage in plan.stages) for plan in first.plans} | {(0,)}
        assert {tuple(stage.first for stage in plan.stages) for plan in now.plans} <= cuts
    full = streams.mixture(search=True)
    assert streams.searches == 2 and streams.mixture(search=False) is full is streams.mixture(search=True)
    assert full.rate_fps >= now.rate_fps * (1 - 1e-3)


def test_slower_links_leave_fewer_frames_to_other_devices(streams: Streams) -> None:
    base = streams.cached.base
    first = streams.mixture(search=True)
    streams.cached.change_links(slowed(base, 1e-4))
    now = streams.mixture(search=False)
    here = [weight for plan, weight in zip(now.plans, now.weights) if plan.used_devices == (base.source,)]
    assert streams.searches == 1 and sum(here) > 0.9 and now.rate_fps < first.rate_fps


def test_a_mixture_with_a_lost_device_is_searched_again(streams: Streams) -> None:
    base = streams.cached.base
    streams.mixture(search=True)
    gone = next(name for name in base.names if name != base.source)
    streams.cached.group.lost[gone] = "gone"
    streams.cached.change_links(slowed(base, 0.5))
    now = streams.mixture(search=False)
    assert streams.searches == 2 and all(gone not in plan.used_devices for plan in now.plans)


def test_no_mixture_for_the_old_links_stays_if_no_plan_meets_the_deadline(streams: Streams) -> None:
    model, base = streams.cached.model, streams.cached.base
    alone, split = (make_plan(model, base, Objective(), scheme).predicted for scheme in ("local", "coedge"))
    assert alone and split and split.latency_seconds < alone.latency_seconds
    tight = STREAM.model_copy(update={"deadline_ms": split.latency_seconds * 1e3 * 1.01})
    streams.mixture(True, tight)
    streams.cached.change_links(slowed(base, 1e-4))
    with pytest.raises(InfeasibleError):
        streams.mixture(False, tight)
    assert streams.searches == 2
