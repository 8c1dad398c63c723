"""Planning: the registry of schemes, and plans for a model, a profile and an objective."""

from __future__ import annotations

import contextlib
import difflib
import gc
from collections.abc import Iterator

from coedge.core.errors import PlanError
from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.evaluation.evaluator import shared_memo
from orchestrator.planner.mixture import Mixture, check_request, make_mixture
from orchestrator.schemes.aofl import aofl
from orchestrator.schemes.coedge import coedge
from orchestrator.schemes.equal import equal
from orchestrator.schemes.local import local
from orchestrator.schemes.modnn import modnn
from orchestrator.schemes.musical_chair import musical_chair
from orchestrator.schemes.neurosurgeon import neurosurgeon
from orchestrator.schemes.offload import offload
from orchestrator.schemes.scheme import Scheme, rank
from orchestrator.search.auto import search

SCHEMES: dict[str, Scheme] = {
    "local": local,
    "offload": offload,
    "equal": equal,
    "musical_chair": musical_chair,
    "modnn": modnn,
    "coedge": coedge,
    "aofl": aofl,
    "neurosurgeon": neurosurgeon,
}
AUTO = "auto"
# Number of the named schemes' plans, the best ones, that the search starts from.
STARTING_PLANS = 3


def check_scheme(scheme: str) -> None:
    """Check the name of a scheme.

    Raises:
        PlanError: there is no such scheme; the message lists the schemes.
    """
    if scheme != AUTO and (not isinstance(scheme, str) or scheme not in SCHEMES):
        near = difflib.get_close_matches(str(scheme).lower(), [AUTO, *SCHEMES], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise PlanError(f"there is no scheme {scheme!r}; schemes are {', '.join([AUTO, *SCHEMES])}.{hint}")


@contextlib.contextmanager
def _searching(model: Model, profile: Profile) -> Iterator[None]:
    """Share costs and lowered stages between schemes and search, and pause garbage collection, until the search ends.

    A search makes millions of objects, none of them in cycles. Collecting garbage meanwhile costs planning
    time: 8 % on a small instance.
    """
    shared, collects = (shared_memo(model), CostTable.of(model, profile)), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        del shared
        if collects:
            gc.enable()


def make_plan(model: Model, profile: Profile, objective: Objective | None = None, scheme: str = AUTO) -> Plan:
    """Plan a model and predict the cost of the plan. No cluster is needed.

    Args:
        objective: least latency by default.
        scheme: one of `SCHEMES`, or `auto`: a search of the whole plan space, with the plans of `SCHEMES` among its
            candidates.

    Returns:
        The plan. If no plan meets the objective's constraints, the nearest one, with `feasible` False and a `reason`.

    Raises:
        PlanError: the scheme is unknown, or the profile is of another model.
        InputError: the model is none.
    """
    check_scheme(scheme)
    objective = Objective() if objective is None else objective
    check_request(model, profile, objective)
    if scheme != AUTO:
        return SCHEMES[scheme](model, profile, objective)
    with _searching(model, profile):
        return _auto(model, profile, objective)


def _auto(model: Model, profile: Profile, objective: Objective) -> Plan:
    """Search the plan space from the best plans of the named schemes."""
    known = named_plans(model, profile, objective)
    if any(plan.feasible for plan in known):
        known = sorted(known, key=lambda plan: rank(plan, objective))[:STARTING_PLANS]
        if objective.goal == "throughput":
            known += make_mixture(model, profile, objective, known).plans
    return search(model, profile, objective, known)


def named_plans(model: Model, profile: Profile, objective: Objective) -> list[Plan]:
    """Return the plan of every scheme in `SCHEMES`."""
    return [scheme(model, profile, objective) for scheme in SCHEMES.values()]


def make_stream(model: Model, profile: Profile, objective: Objective) -> Mixture:
    """Return the mixture of plans with the highest frame rate; the plans of `SCHEMES` are among its candidates.

    Raises:
        InfeasibleError: no plan meets the constraints.
        PlanError: the profile is of another model.
    """
    profile.check(model)
    return make_mixture(model, profile, objective, named_plans(model, profile, objective))
