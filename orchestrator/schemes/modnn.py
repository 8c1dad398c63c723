"""`modnn`: rows proportional to measured compute speed, the network ignored (Mao et al., MoDNN, DATE 2017)."""

from __future__ import annotations

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan, stages_of, strips
from coedge.profile.profile import Profile
from orchestrator.schemes.scheme import evaluate, full_seconds, place_whole


def modnn(model: Model, profile: Profile, objective: Objective) -> Plan:
    speeds = {name: 1 / max(full_seconds(model, profile, name, True), 1e-12) for name in profile.names}
    total = sum(speeds.values())
    shares = {name: speed / total for name, speed in speeds.items()}
    stages = stages_of(model, strips(shares), place_whole(model, profile, shares))
    return evaluate("modnn", model, profile, objective, stages)
