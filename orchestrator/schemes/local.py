"""`local`: everything on the source, where the input is. Nothing is sent."""

from __future__ import annotations

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.schemes.scheme import evaluate, on_one_device


def local(model: Model, profile: Profile, objective: Objective) -> Plan:
    return evaluate("local", model, profile, objective, on_one_device(model, profile.source))
