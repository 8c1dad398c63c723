"""The courses of a cluster: one for each request of frames."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

from coedge.core.errors import InfeasibleError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from orchestrator.cluster.course import Choice, Course, Wish
from orchestrator.cluster.plan_cache import PlanCache
from orchestrator.control.event_log import EventLog
from orchestrator.control.worker_group import WorkerGroup
from orchestrator.planner.mixture import Mixture
from orchestrator.planner.planner import check_scheme

# Courses that are kept. Further ones are made anew, from plans that are kept as well.
KEPT_COURSES = 16


class Courses:
    """Makes courses, and keeps those of objectives and schemes.

    Args:
        improve: makes and loads better plans for a course in the background.
        events: every plan that frames begin to run by is logged.
    """

    def __init__(
        self, group: WorkerGroup, plan_cache: PlanCache, improve: Callable[[Course], None], events: EventLog
    ) -> None:
        self._group, self._plan_cache, self._improve, self._events = group, plan_cache, improve, events
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], Course] = OrderedDict()
        self._mixed: weakref.WeakSet[Course] = weakref.WeakSet()  # of streams under way

    def of(self, model: Model, objective: Objective, scheme: str) -> Course:
        """Return the course of all frames with this objective and scheme.

        Its first plans are made with trials and must meet the objective. Later ones are made while frames run, which
        trials would hold up, and are the nearest ones if nothing meets the objective any more.

        Raises:
            PlanError: there is no such scheme.
        """
        Model.check(model)
        check_scheme(scheme)
        key = (model.hash, objective.model_dump_json(), scheme)

        def choose(wish: Wish) -> Choice:
            plan = self._plan_cache.plan(model, objective, scheme, wish.search, wish.trial)
            if wish.trial and not plan.feasible:
                raise InfeasibleError(
                    f"no plan of scheme {plan.scheme!r} meets the objective: {plan.reason}. Loosen it, or run the "
                    "nearest plan all the same: cluster.submit(model, x, plan=cluster.plan(model))"
                )
            return Choice([plan])

        with self._lock:
            course = self._kept.get(key)
            if course is None or course.model is not model:
                course = self._kept[key] = Course(model, self._group, choose, None, self._improve, self._teller(model))
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT_COURSES:
                self._kept.popitem(last=False)
        return course

    def mixed(self, model: Model, objective: Objective, mixture: Mixture) -> Course:
        """Return a course of mixtures that begins with this one."""

        def choose(wish: Wish) -> Choice:
            return _choice_of(self._plan_cache.mixture(model, objective, wish.search))

        course = Course(model, self._group, choose, _choice_of(mixture), self._improve, self._teller(model))
        self._mixed.add(course)
        return course

    def given(self, model: Model, plan: Plan | Mixture) -> Course:
        """Return a course of plans that the caller gave. They are repaired, and not made anew."""
        choice = _choice_of(plan) if isinstance(plan, Mixture) else Choice([plan])
        return Course(model, self._group, None, choice, self._improve, self._teller(model))

    def _teller(self, model: Model) -> Callable[[Plan, str], None]:
        """Return a function that logs the plans of a course."""

        def tell(plan: Plan, why: str) -> None:
            predicted = plan.predicted
            self._events.add(
                "plan",
                model=model.name,
                scheme=plan.scheme,
                devices=list(plan.used_devices),
                predicted_ms=None if predicted is None else round(predicted.latency_seconds * 1e3, 3),
                why=why,
            )

        return tell

    def improve(self) -> None:
        """Make and load better plans for all courses in the background, after a change of the profiles."""
        with self._lock:
            courses = [*self._kept.values(), *self._mixed]
        for course in courses:
            if course.in_use:
                self._improve(course)
            else:
                course.renew()

    def renew(self) -> None:
        """Make all kept plans anew when they are next needed, as after a measurement of the links."""
        with self._lock:
            for course in self._kept.values():
                course.renew()


def _choice_of(mixture: Mixture) -> Choice:
    return Choice(mixture.plans, mixture.weights)
