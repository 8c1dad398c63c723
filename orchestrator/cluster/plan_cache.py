"""Profiles, plans and mixtures of a cluster: made once, kept, and brought up to date when links change."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from numpy.typing import NDArray

from coedge.config.cluster_config import ClusterConfig
from coedge.core.errors import DeviceLost, InfeasibleError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.correction import Correction
from coedge.profile.profile import Profile
from coedge.profile.slowdown import Slowdown
from orchestrator.control.worker_group import WorkerGroup, Workers, ask_ready
from orchestrator.evaluation.evaluator import Evaluator
from orchestrator.planner.mixture import Mixture
from orchestrator.planner.planner import AUTO, check_scheme, make_plan, make_stream, named_plans
from orchestrator.planner.replan import BoundarySolver, MixtureSolver
from orchestrator.profiling.cluster_measurement import measure_links
from orchestrator.profiling.correction_cache import load_correction, store_correction
from orchestrator.profiling.learning import MeasuredPlan, agrees, learn
from orchestrator.profiling.model_measurement import measure_model
from orchestrator.runtime.job import Job
from orchestrator.runtime.quiet_time import QuietTime
from orchestrator.runtime.trial import measured_best, run_in_turns, worth_trying
from workers.calibration.activations import natural_inputs

log = logging.getLogger(__name__)

# Trials end after so many rounds, or with the round in which so much time has passed.
ROUNDS, TRIAL_SECONDS = 3, 10.0

T = TypeVar("T")
Made = TypeVar("Made", covariant=True)

# Starts a frame with these inputs by a plan.
RunFrame = Callable[[Model, tuple[NDArray[Any], ...], Plan], Job]


class _PlanKey(NamedTuple):
    model_hash: str
    objective: str
    scheme: str
    lost: frozenset[str]


class _Solver(Protocol[Made]):
    def resolve(self, profile: Profile, objective: Objective) -> Made:
        """Return a plan or a mixture with boundaries for the links of a profile."""


@dataclass
class _Cached(Generic[T]):
    """A plan or a mixture, and what it was made for.

    Attributes:
        searched: made for the present links; False: only boundaries (and shares of frames) were solved for them.
        solver: kept from the first change of links on; the next ones then take a fraction of the time.
    """

    made: T
    model: weakref.ref[Model]
    objective: Objective
    searched: bool = True
    solver: _Solver[T] | None = None

    def suits(self, search: bool) -> bool:
        return self.searched or not search


class PlanCache:
    """The profiles, plans and mixtures of a cluster. One thread plans at a time; kept plans are found meanwhile.

    Args:
        group: the devices; those in `group.lost` are left out.
        quiet: makes the cluster quiet for measurements. Taken after the planning lock.
        run_frame: starts the frames of trials.
    """

    def __init__(self, config: ClusterConfig, group: WorkerGroup, quiet: QuietTime, run_frame: RunFrame) -> None:
        self._config, self._group, self._quiet, self._run_frame = config, group, quiet, run_frame
        self._planning = threading.RLock()
        self._profiles: dict[str, Profile] = {}  # as measured, without corrections
        self._corrections: dict[str, Correction] = {}
        self._base: dict[str, Profile] = {}  # with corrections
        self._corrected: dict[str, Profile] = {}  # with corrections and the present slowdown
        self._slowdown = Slowdown()
        self._plans: dict[_PlanKey, _Cached[Plan]] = {}
        self._mixtures: dict[_PlanKey, _Cached[Mixture]] = {}  # of `auto`

    def profile(self, model: Model) -> Profile:
        """Return the profile of the devices that are left; measure the model at the first call.

        Raises:
            DeviceLost: all devices are lost.
            ClusterError: a device that is not lost failed or did not answer.
        """
        group = self._group

        def measure(ready: Workers) -> Profile:
            return measure_model(model, ready, group.network, group.source, self._config)

        self._check_left()
        if (known := self._corrected.get(model.hash)) is not None and set(group.ready) <= set(known.names):
            return known.without(group.lost).from_source(group.source)
        with self._planning:
            measured = self._profiles.get(model.hash)
            if measured is None or not set(group.ready) <= set(measured.names):
                with self._quiet.measuring():
                    self._profiles[model.hash] = ask_ready(group, measure)
                if self._config.trial_frames:
                    stored = load_correction(self._config.cache_path, model, group.by_name)
                    if stored is not None:
                        self._corrections[model.hash] = stored
                self._correct(model.hash)
            whole = self._corrected[model.hash]
        self._check_left()
        return whole.without(group.lost).from_source(group.source)

    def base(self, model: Model) -> Profile | None:
        """Return the profile of all devices without the present slowdown; None if the model was not measured."""
        return self._base.get(model.hash)

    def slow_down(self, slowdown: Slowdown) -> None:
        """Let profiles follow lasting changes, and plans have boundaries for them; see `measure_links`."""
        with self._planning:
            self._slowdown = slowdown
            self._renew()

    def plan(self, model: Model, objective: Objective, scheme: str, search: bool = True, trial: bool = True) -> Plan:
        """Return a plan for the devices that are left.

        Args:
            trial: run the best plans of a search, if the configuration says so. Other frames wait meanwhile.
            search: after a change of links, search the whole plan space again. False: the plan with the cuts and
                devices from before and boundaries for the new links will do.
        """
        check_scheme(scheme)
        wanted = objective.model_dump_json()

        def known(lost: frozenset[str]) -> Plan | None:
            cached = self._plans.get(_PlanKey(model.hash, wanted, scheme, lost))
            return cached.made if cached is not None and cached.suits(search) else None

        def make(lost: frozenset[str]) -> Plan:
            plan = self._make(model, objective, scheme, trial)
            self._plans[_PlanKey(model.hash, wanted, scheme, lost)] = _Cached(plan, weakref.ref(model), objective)
            return plan

        return self._for_ready(known, make)

    def mixture(self, model: Model, objective: Objective, search: bool = True) -> Mixture:
        """Return the mixture of plans for most frames per second.

        Args:
            search: after a change of links, search for plans again. False: the plans from before with boundaries for
                the new links, and new shares of the frames, will do.

        Raises:
            InfeasibleError: no plan meets the constraints.
        """
        wanted = objective.model_copy(update={"goal": "throughput"})
        text = wanted.model_dump_json()

        def known(lost: frozenset[str]) -> Mixture | None:
            cached = self._mixtures.get(_PlanKey(model.hash, text, AUTO, lost))
            return cached.made if cached is not None and cached.suits(search) else None

        def make(lost: frozenset[str]) -> Mixture:
            mixture = make_stream(model, self.profile(model), wanted)
            self._mixtures[_PlanKey(model.hash, text, AUTO, lost)] = _Cached(mixture, weakref.ref(model), wanted)
            return mixture

        return self._for_ready(known, make)

    def measure_links(self) -> None:
        """Measure the links again; profiles have the new ones, and plans of `auto` and mixtures boundaries for them.

        Plans of other schemes are made again when they are next asked for.

        Raises:
            ClusterError: two devices cannot talk to each other.
        """
        with self._planning:
            with self._quiet.measuring():
                measure_links(self._config, self._group)
            self.update_links()

    def update_links(self) -> None:
        """Bring profiles and plans up to date with the links of the group."""
        network = self._group.network
        with self._planning:
            self._profiles = {
                model_hash: profile.model_copy(update={"links": network.links, "media": network.media})
                for model_hash, profile in self._profiles.items()
            }
            self._slowdown = Slowdown(self._slowdown.devices)
            self._renew()

    def _renew(self) -> None:
        """Correct all profiles again, and give plans boundaries for them. Holds the lock."""
        for model_hash in self._profiles:
            self._correct(model_hash)
        plans, mixtures = self._plans.items(), self._mixtures.items()
        self._plans = {key: new for key, old in plans if (new := self._resolved(key, old, BoundarySolver))}
        self._mixtures = {key: mix for key, old in mixtures if (mix := self._resolved(key, old, MixtureSolver))}

    def _for_ready(self, known: Callable[[frozenset[str]], T | None], make: Callable[[frozenset[str]], T]) -> T:
        """Return what is known for the devices that are lost by now, else make it.

        If a device is lost while it is made, it may use that device, so it is made again.
        """
        while True:
            lost = frozenset(self._group.lost)
            if (found := known(lost)) is not None:  # also while another thread plans
                return found
            with self._planning:
                if (found := known(lost)) is not None:
                    return found
                try:
                    made = make(lost)
                except DeviceLost:
                    if lost == frozenset(self._group.lost):
                        raise
                else:
                    if lost == frozenset(self._group.lost):
                        return made

    def _check_left(self) -> None:
        """Raise DeviceLost if no device is left."""
        lost = self._group.lost
        if self._group.source in lost:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in lost.items())
            raise DeviceLost(f"all devices are lost ({reasons}). Wait until one is back, or connect again")

    def _resolved(
        self, key: _PlanKey, cached: _Cached[T], solver_of: Callable[[T, Model, Profile], _Solver[T]]
    ) -> _Cached[T] | None:
        """Return a plan or a mixture with boundaries for the present links; None if it has to be made anew."""
        model, lost = cached.model(), frozenset(self._group.lost)
        if model is None or key.scheme != AUTO or key.lost != lost or not self._group.ready:
            return None
        profile = self.profile(model)
        try:
            solver = cached.solver or solver_of(cached.made, model, profile)
            made = solver.resolve(profile, cached.objective)
        except InfeasibleError:
            return None
        except Exception:  # the links have changed all the same: nothing for the old ones may stay
            log.warning("no new boundaries for a plan of %s; it is searched again", model.name, exc_info=True)
            return None
        if isinstance(made, Plan) and not made.feasible:
            return None
        return _Cached(made, cached.model, cached.objective, False, solver)

    def _make(self, model: Model, objective: Objective, scheme: str, trial: bool) -> Plan:
        plan = make_plan(model, self.profile(model), objective, scheme)
        trial = trial and self._config.trial_frames > 0
        if trial and scheme == AUTO and plan.feasible and objective.goal != "throughput":
            return self._tried(model, objective, plan)
        return plan

    def _tried(self, model: Model, objective: Objective, best: Plan) -> Plan:
        """Run the best plans and correct the profile, until it predicts what is measured; return the measured best.

        A stored correction whose best plan takes as long as predicted is kept as it is.
        """
        arrays = tuple(natural_inputs(model))
        runs: dict[str, MeasuredPlan] = {}
        known = model.hash in self._corrections
        begun = time.monotonic()
        for _ in range(ROUNDS):
            profile = self.profile(model)
            others = [] if known and not runs else named_plans(model, profile, objective)
            plans = [plan for plan in worth_trying(best, others, objective) if plan.digest not in runs]
            with self._quiet.measuring():
                tried = run_in_turns(
                    plans, lambda plan: self._run_frame(model, arrays, plan), self._config.trial_frames
                )
            runs.update({run.plan.digest: run for run in tried})
            if known and len(runs) == 1 and agrees(runs[best.digest], profile, model):
                break
            self._learn(model, list(runs.values()))
            best = make_plan(model, self.profile(model), objective, AUTO)
            if best.digest in runs or not best.feasible or time.monotonic() - begun > TRIAL_SECONDS:
                break
        profile = self.profile(model)
        chosen = measured_best(list(runs.values()), profile, objective).plan
        evaluator = Evaluator(model, profile, objective)
        named = chosen.scheme != AUTO
        reason = f"the plan of {chosen.scheme}: it cost least in trial frames" if named else chosen.reason
        return evaluator.plan(evaluator.evaluate(chosen.stages, AUTO, reason), AUTO)

    def _learn(self, model: Model, runs: list[MeasuredPlan]) -> None:
        """Correct the profile by measured frames."""
        # Trials of a cluster that is slower now must not be taken for errors of the profile.
        measured = self._slowdown.of(self._profiles[model.hash]).without(self._group.lost)
        correction = self._corrections[model.hash] = learn(measured, model, runs)
        self._correct(model.hash)
        store_correction(self._config.cache_path, model, self._group.by_name, correction)

    def _correct(self, model_hash: str) -> None:
        profile, correction = self._profiles[model_hash], self._corrections.get(model_hash)
        self._base[model_hash] = profile if correction is None else correction.of(profile)
        self._corrected[model_hash] = self._slowdown.of(self._base[model_hash])
