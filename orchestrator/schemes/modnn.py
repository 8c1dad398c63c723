"""`modnn`: rows proportional to measured compute speed; links are ignored (Mao et al., MoDNN, DATE 2017)."""

from __future__ import annotations

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan, stages_of, strips
from coedge.profile.profile import Profile
from orchestrator.schemes.scheme import evaluate, place_whole, speeds


def modnn(model: Model, profile: Profile, objective: Objective) -> Plan:
    speed = speeds(model, profile)
    total = sum(speed.values())
    shares = {name: value / total for name, value in speed.items()}
    stages = stages_of(model, strips(shares), place_whole(model, profile, shares))
    return evaluate("modnn", model, profile, objective, stages)
