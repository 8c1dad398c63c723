"""Boundaries solved again after a change of links: the same stages and devices, never predicted worse, exact."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import DEVICES, TOLERANCE, Net, difference, examples, image, make_plan, unsplit
from virtual import LOWER, UPPER, cases, cluster, halos

import coedge
import orchestrator.cluster.plan_cache as module
from benchmarks.instances import chain, small_profile
from coedge.config.cluster_config import ClusterConfig
from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.core.region import UNIT
from coedge.frontend.capture import capture
from coedge.graph.model import Model
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, check_plan
from coedge.profile.network import Network
from coedge.profile.profile import Profile
from coedge.simulation.simulator import simulate
from orchestrator.cluster.plan_cache import PlanCache
from orchestrator.control.worker_group import WorkerGroup
from orchestrator.planner.planner import AUTO, named_plans
from orchestrator.planner.planner import make_plan as make_plan_by
from orchestrator.planner.replan import BoundarySolver, resolve_boundaries
from orchestrator.runtime.job import Job
from orchestrator.runtime.quiet_time import QuietTime
from orchestrator.schemes.scheme import rank


def relinked(profile: Profile, factors: Mapping[tuple[str, str], float], latency: float = 0.0) -> Profile:
    links = tuple(
        link.model_copy(
            update={
                "bytes_per_second": link.bytes_per_second * factors.get((link.sender, link.receiver), 1.0),
                "latency_seconds": link.latency_seconds + latency,
            }
        )
        for link in profile.links
    )
    return profile.model_copy(update={"links": links})


def latency(plan: Plan, profile: Profile, model: Model) -> float:
    return simulate(lower(plan, model), profile, model).latency_seconds


def assert_resolved(new: Plan, old: Plan, profile: Profile, model: Model) -> None:
    check_plan(new, model)
    assert [(s.first, s.last, s.halo_first, s.codecs) for s in new.stages] == [
        (s.first, s.last, s.halo_first, s.codecs) for s in old.stages
    ]
    assert all(set(a.regions) <= set(b.regions) for a, b in zip(new.stages, old.stages))
    assert new.scheme == old.scheme and new.predicted is not None
    assert new.predicted.latency_seconds == pytest.approx(latency(new, profile, model))
    assert new.predicted.latency_seconds <= latency(old, profile, model) * (1 + 1e-9)


pairs = list(itertools.permutations(DEVICES, 2))


@given(case=cases(), factors=st.lists(st.floats(0.05, 20.0), min_size=len(pairs), max_size=len(pairs)))
@examples(25)
def test_any_plan_keeps_its_stages_and_is_not_predicted_worse(case: tuple[Plan, Profile], factors: list[float]) -> None:
    plan, profile = case
    changed = relinked(profile, dict(zip(pairs, factors)))
    home = plan.model_copy(update={"source": profile.source, "sink": profile.source, "devices": profile.names})
    assert_resolved(resolve_boundaries(home, halos(), changed, Objective()), home, changed, halos())


@pytest.mark.parametrize("seed", range(6))
def test_boundaries_follow_the_links_and_stay_exact(seed: int) -> None:
    model = chain(seed, layers=5, rows=48)
    profile = small_profile(seed, model, 3)
    plan = coedge.even_plan(model, profile.names, stage_layers=1 + seed % 3)
    x = image(tuple(model.inputs[0].shape))
    expected = unsplit(model, [x])[0]
    solver = BoundarySolver(plan, model, profile)
    names = profile.names
    for slow in names[1:]:
        factors = {pair: 0.1 for pair in itertools.permutations(names, 2) if slow in pair}
        changed = relinked(profile, factors, latency=1e-4)
        new = solver.resolve(changed, Objective())
        assert_resolved(new, plan, changed, model)
        assert difference(coedge.run_in_process(model, new, x), expected) <= TOLERANCE
        assert_resolved(resolve_boundaries(plan, model, changed, Objective()), plan, changed, model)


def test_a_device_on_a_slower_link_gets_fewer_rows() -> None:
    model = rows_net()
    profile = cluster(model, seconds_per_row={"a": 1.0, "b": 1.0}, rate=1e6)
    plan = make_plan(model, [(len(model.layers), {"a": UPPER, "b": LOWER})], "a")
    slow = relinked(profile, {("a", "b"): 1e-4, ("b", "a"): 1e-4})
    new = resolve_boundaries(plan, model, slow, Objective())
    assert_resolved(new, plan, slow, model)
    share = new.stages[0].regions["a"]
    assert share.row_stop - share.row_start > 0.6
    assert latency(new, slow, model) < 0.9 * latency(plan, slow, model)


def test_grids_and_single_devices_keep_their_regions() -> None:
    model = halos()
    profile = cluster(model, names=("a", "b", "c", "d"))
    for plan in (coedge.even_plan(model, ["a", "b", "c", "d"], grid=(2, 2)), coedge.even_plan(model, ["a"])):
        new = resolve_boundaries(plan, model, profile, Objective())
        assert [stage.regions for stage in new.stages] == [stage.regions for stage in plan.stages]
        assert new.predicted is not None


def test_a_deadline_that_the_new_links_do_not_meet_is_said() -> None:
    model = halos()
    profile = cluster(model)
    plan = make_plan(model, [(len(model.layers), {"a": UPPER, "b": LOWER})], "a")
    new = resolve_boundaries(plan, model, profile, Objective(deadline_ms=1e-3))
    assert not new.feasible and "deadline" in new.reason


def test_a_profile_of_another_model_is_refused() -> None:
    plan = make_plan(halos(), [(len(halos().layers), {"a": UNIT})], "a")
    with pytest.raises(PlanError, match="the profile is of model"):
        resolve_boundaries(plan, halos(), cluster(rows_net()), Objective())


@functools.cache
def rows_net() -> Model:
    net = Net()
    x = net.input([1, 2, 64, 8])
    for _ in range(2):
        x = net.op("Conv", x, net.weight(2, 2, 3, 3), pads=[1, 1, 1, 1])
    return capture(net.proto(x), name="rows")


# ---------------------------------------------------------------- what a cluster does after a change of links


def group_of(profile: Profile) -> WorkerGroup:
    """Return a group of devices without workers."""
    nothing: Any = None
    by_name = dict.fromkeys(profile.names, nothing)
    return WorkerGroup(by_name, profile.source, nothing, {}, {}, {}, Network(profile.links, profile.media))


class Cached:
    """A plan cache whose measurements are a profile of the test, and a count of full searches."""

    def __init__(self, model: Model, profile: Profile, patch: pytest.MonkeyPatch) -> None:
        self.model, self.base, self.searches = model, profile, 0
        self.group = group_of(profile)
        patch.setattr(
            module, "measure_model", lambda *_: profile.model_copy(update={"links": self.group.network.links})
        )
        patch.setattr(module, "make_plan", self._search)
        self.cache = PlanCache(ClusterConfig(trial_frames=0), self.group, QuietTime(), self._run)

    def _search(self, model: Model, profile: Profile, objective: Objective, scheme: str) -> Plan:
        """The best plan of the named schemes takes the place of the whole search."""
        self.searches += 1
        if scheme != AUTO:
            return make_plan_by(model, profile, objective, scheme)
        best = min(named_plans(model, profile, objective), key=lambda plan: rank(plan, objective))
        return best.model_copy(update={"scheme": AUTO})

    def _run(self, model: Model, arrays: tuple[Any, ...], plan: Plan) -> Job:
        raise AssertionError("no trials were asked for")

    def change_links(self, profile: Profile) -> None:
        self.group.network = Network(profile.links)
        self.cache.update_links()


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> Cached:
    model = chain(1, layers=5, rows=48)
    return Cached(model, small_profile(1, model, 3), monkeypatch)


def test_after_a_change_of_links_the_next_frame_has_new_boundaries_and_the_next_plan_a_new_search(
    cached: Cached,
) -> None:
    model, wanted = cached.model, Objective()
    first = cached.cache.plan(model, wanted, "auto")
    assert cached.cache.plan(model, wanted, "auto", search=False) is first and cached.searches == 1
    names = cached.base.names
    slow = relinked(cached.base, {pair: 0.2 for pair in itertools.permutations(names, 2) if names[1] in pair})
    cached.change_links(slow)
    assert cached.cache.profile(model).links == slow.links
    now = cached.cache.plan(model, wanted, "auto", search=False)
    assert cached.searches == 1, "the boundaries alone were solved again"
    assert_resolved(now, first, slow, model)
    assert now == resolve_boundaries(first, model, slow, wanted)
    assert latency(now, slow, model) < 0.6 * latency(first, slow, model)
    full = cached.cache.plan(model, wanted, "auto")
    assert cached.searches == 2
    assert cached.cache.plan(model, wanted, "auto", search=False) is full is cached.cache.plan(model, wanted, "auto")


def test_links_that_change_twice_are_solved_for_from_the_searched_plan(cached: Cached) -> None:
    first = cached.cache.plan(cached.model, Objective(), "auto")
    names = cached.base.names
    for factor in (0.2, 5.0):
        changed = relinked(cached.base, dict.fromkeys(itertools.permutations(names, 2), factor))
        cached.change_links(changed)
        now = cached.cache.plan(cached.model, Objective(), "auto", search=False)
        assert_resolved(now, first, changed, cached.model)
    assert cached.searches == 1


def test_plans_that_new_boundaries_do_not_save_are_searched_again(cached: Cached) -> None:
    model = cached.model
    predicted = cached.cache.plan(model, Objective(), "auto").predicted
    assert predicted is not None
    tight = Objective(deadline_ms=predicted.latency_seconds * 1e3 * 1.01)
    assert cached.cache.plan(model, tight, "auto").feasible
    cached.cache.plan(model, Objective(), "modnn")
    searches = cached.searches
    cached.change_links(relinked(cached.base, {}, latency=1.0))
    names = [name for name in cached.base.names if name != cached.base.source]
    plan = cached.cache.plan(model, Objective(), "modnn", search=False)
    assert cached.searches == searches + 1 and plan.scheme == "modnn", "a named scheme is what its paper says"
    cached.group.lost[names[0]] = "gone"
    cached.change_links(relinked(cached.base, {}))
    plan = cached.cache.plan(model, Objective(), "auto", search=False)
    assert cached.searches == searches + 2 and names[0] not in plan.used_devices


def test_a_solver_that_fails_leaves_no_plan_for_the_old_links(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    cached.cache.plan(cached.model, Objective(), "auto")

    def failing(*_: Any) -> Plan:
        raise ArithmeticError("the solver gave up")

    monkeypatch.setattr(BoundarySolver, "resolve", failing)
    cached.change_links(relinked(cached.base, {}, latency=1e-3))
    plan = cached.cache.plan(cached.model, Objective(), "auto", search=False)
    assert cached.searches == 2 and plan.predicted is not None
    links = cached.group.network.links
    assert cached.cache.profile(cached.model).links == links != cached.base.links
