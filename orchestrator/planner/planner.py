"""From a model, a profile and an objective to a plan, by the scheme of choice."""

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
from orchestrator.evaluation.evaluator import shared_memo
from orchestrator.planner.mixture import Mixture, make_mixture
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
# So many of the named schemes' plans, the best, the search begins with.
KNOWN = 3


def check_scheme(scheme: str) -> None:
    """Raises PlanError, with the names that there are, where the scheme is not one of them."""
    if scheme != AUTO and scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme.lower(), [AUTO, *SCHEMES], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise PlanError(f"there is no scheme {scheme!r}; schemes are {', '.join([AUTO, *SCHEMES])}.{hint}")


@contextlib.contextmanager
def _searching(model: Model) -> Iterator[None]:
    """What schemes and search learn of the model's plans is kept until the end. No garbage collection: a search makes
    objects by the million, none in cycles, and looking at them again and again would take a quarter of its time."""
    memo, collects = shared_memo(model), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        del memo
        if collects:
            gc.enable()


def make_plan(model: Model, profile: Profile, objective: Objective | None = None, scheme: str = AUTO) -> Plan:
    """A plan, with its prediction. Needs no cluster.

    Args:
        objective: least latency by default.
        scheme: one of `SCHEMES`, or `auto`: a search through the whole plan space, with them among its candidates.

    Returns:
        The plan. Where the objective's constraints cannot be met, the nearest one, with `feasible` False
        and the `reason`.

    Raises:
        PlanError: unknown scheme, or a profile of another model.
    """
    check_scheme(scheme)
    profile.check(model)
    objective = objective or Objective()
    if scheme != AUTO:
        return SCHEMES[scheme](model, profile, objective)
    with _searching(model):
        return _auto(model, profile, objective)


def _auto(model: Model, profile: Profile, objective: Objective) -> Plan:
    known = named_plans(model, profile, objective)
    if any(plan.feasible for plan in known):
        known = sorted(known, key=lambda plan: rank(plan, objective))[:KNOWN]
    if objective.goal == "throughput" and any(plan.feasible for plan in known):
        known += make_mixture(model, profile, objective, known).plans
    return search(model, profile, objective, known)


def named_plans(model: Model, profile: Profile, objective: Objective) -> list[Plan]:
    """The plan of every named scheme."""
    return [scheme(model, profile, objective) for scheme in SCHEMES.values()]


def make_stream(model: Model, profile: Profile, objective: Objective) -> Mixture:
    """The mixture of plans for most frames per second, the named schemes' plans among its candidates.

    Raises:
        InfeasibleError: no plan meets the constraints.
        PlanError: a profile of another model.
    """
    profile.check(model)
    return make_mixture(model, profile, objective, named_plans(model, profile, objective))
