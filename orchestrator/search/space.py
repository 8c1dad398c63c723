"""Where the drafts of one search come from: tables of what every stage would take, and the ways to dress them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coedge.model import Model
from coedge.objective import Objective
from coedge.profile import Profile
from orchestrator.search.costs import Costs
from orchestrator.search.dress import Dress, dresses, effective
from orchestrator.search.layout import Layout, candidates
from orchestrator.search.reach import Reach

# How many program steps polishing may simulate.
POLISH_STEPS = 12_000
# With at most so many layers times devices, plans are soon simulated: as many more of them are.
SMALL, THOROUGH_STEPS = 64, 40_000


@dataclass(frozen=True)
class Space:
    """Of one model on one profile.

    Attributes:
        costs: with links as they are; and as codecs make them, where codecs pay.
        is_small: whether plans are soon simulated.
    """

    reach: Reach
    costs: tuple[Costs, ...]
    dresses: tuple[Dress, ...]
    is_small: bool

    @property
    def layouts(self) -> Sequence[Layout]:
        return self.costs[0].layouts

    @property
    def steps(self) -> int:
        """How many program steps polishing may simulate."""
        return THOROUGH_STEPS if self.is_small else POLISH_STEPS

    @classmethod
    def of(cls, model: Model, profile: Profile, objective: Objective) -> Space:
        reach, layouts = Reach(model), candidates(model, profile)
        dressed = dresses(model, profile, objective)
        costs = [Costs(model, profile, reach, layouts, objective.keep_local)]
        if any(dress.codecs for dress in dressed):
            packed = effective(model, profile, objective.lossy)
            costs.append(costs[0].with_links(packed))
        return cls(reach, tuple(costs), tuple(dressed), is_small(model, len(profile.names)))


def is_small(model: Model, devices: int) -> bool:
    """Whether plans of the model on so many devices are soon simulated."""
    return len(model.layers) * devices <= SMALL
