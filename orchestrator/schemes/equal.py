"""`equal`: the same number of rows on every device, a stage per layer."""

from __future__ import annotations

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan, stages_of, strips
from coedge.profile.profile import Profile
from orchestrator.schemes.scheme import evaluate, place_whole


def equal(model: Model, profile: Profile, objective: Objective) -> Plan:
    shares = dict.fromkeys(profile.names, 1 / len(profile.names))
    stages = stages_of(model, strips(shares), place_whole(model, profile, shares))
    return evaluate("equal", model, profile, objective, stages)
