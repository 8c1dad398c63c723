"""`local`: everything on the one device that does it best."""

from __future__ import annotations

from coedge.model import Model
from coedge.objective import Objective
from coedge.plan import Plan, Stage
from coedge.profile import Profile
from coedge.region import UNIT
from orchestrator.schemes.scheme import best, evaluate


def local(model: Model, profile: Profile, objective: Objective) -> Plan:
    last = len(model.layers) - 1
    return best(
        (
            evaluate("local", model, profile, objective, (Stage(first=0, last=last, regions={name: UNIT}),))
            for name in profile.names
        ),
        objective,
    )
