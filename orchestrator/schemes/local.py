"""`local`: everything on the source, where the input is. Nothing travels."""

from __future__ import annotations

from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Plan
from coedge.profile import Profile
from orchestrator.schemes.scheme import evaluate, on_one_device


def local(model: Model, profile: Profile, objective: Objective) -> Plan:
    return evaluate("local", model, profile, objective, on_one_device(model, profile.source))
