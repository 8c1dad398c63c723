"""Where the drafts of one search come from: tables of what every stage would take, and the ways to dress them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.search.layout import ALL_SUBSETS, Layout, candidates, in_every_order
from orchestrator.search.receptive_field import Reach
from orchestrator.search.stage_costs import Costs
from orchestrator.search.transfer_options import Dress, dresses, effective

# How many program steps polishing may simulate.
POLISH_STEPS = 12_000
# With at most so many layers times devices, plans are soon simulated: as many more of them are.
SMALL, THOROUGH_STEPS = 64, 60_000
# Layers times layouts in every order.
MOST_UNORDERED = 1200


@dataclass(frozen=True)
class Space:
    """Of one model on one profile.

    Attributes:
        costs: with links as they are; and as codecs make them, where codecs pay.
        unordered: of small networks on few devices, the same with strips in every order of the devices.
        is_small: whether plans are soon simulated.
    """

    reach: Reach
    costs: tuple[Costs, ...]
    unordered: tuple[Costs, ...]
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
        reach, dressed = Reach(model), dresses(model, profile, objective)
        packed = effective(model, profile, objective.lossy) if any(dress.codecs for dress in dressed) else None

        def tables(layouts: Sequence[Layout]) -> tuple[Costs, ...]:
            costs = Costs(model, profile, reach, layouts, objective.keep_local)
            return (costs,) if packed is None else (costs, costs.with_links(packed))

        small = is_small(model, len(profile.names))
        few = small and 1 < len(profile.names) <= ALL_SUBSETS
        unordered = in_every_order(model, profile, MOST_UNORDERED // len(model.layers)) if few else []
        return cls(
            reach, tables(candidates(model, profile)), tables(unordered) if unordered else (), tuple(dressed), small
        )


def is_small(model: Model, devices: int) -> bool:
    """Whether plans of the model on so many devices are soon simulated."""
    return len(model.layers) * devices <= SMALL
