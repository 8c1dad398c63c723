"""`offload`: everything on the best device other than the source, which sends the input and receives the output."""

from __future__ import annotations

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from orchestrator.schemes.scheme import single_device


def offload(model: Model, profile: Profile, objective: Objective) -> Plan:
    others = [name for name in profile.names if name != profile.source]
    if not others:
        alone = f"there is no device other than {profile.source}"
        return single_device("offload", model, profile, objective, reason=alone)
    return single_device("offload", model, profile, objective, others)
