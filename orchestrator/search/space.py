"""Where the drafts of one search come from: tables of what every stage would take, and the ways to dress them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.profile.profile import Profile
from orchestrator.search.layout import ALL_SUBSETS, Layout, candidates, in_every_order
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.transfer_options import TransferOptions, option_sets, with_effective_rates

# How many program steps polishing may simulate.
POLISH_STEPS = 12_000
# With at most so many layers times devices, plans are soon simulated: as many more of them are.
SMALL, MULTISTART_STEPS = 64, 60_000
# Layers times layouts in every order.
MOST_UNORDERED = 1200


@dataclass(frozen=True)
class SearchSpace:
    """Of one model on one profile.

    Attributes:
        costs: with links as they are; and as codecs make them, where codecs pay.
        unordered: of small networks on few devices, the same with strips in every order of the devices.
        is_small: whether plans are soon simulated.
    """

    receptive_fields: ReceptiveFields
    costs: tuple[StageCosts, ...]
    unordered: tuple[StageCosts, ...]
    option_sets: tuple[TransferOptions, ...]
    is_small: bool

    @property
    def layouts(self) -> Sequence[Layout]:
        return self.costs[0].layouts

    @property
    def steps(self) -> int:
        """How many program steps polishing may simulate."""
        return MULTISTART_STEPS if self.is_small else POLISH_STEPS

    @classmethod
    def of(cls, model: Model, profile: Profile, objective: Objective) -> SearchSpace:
        receptive_fields, with_options = ReceptiveFields(model), option_sets(model, profile, objective)
        packed = (
            with_effective_rates(model, profile, objective.lossy)
            if any(options.codecs for options in with_options)
            else None
        )

        def tables(layouts: Sequence[Layout]) -> tuple[StageCosts, ...]:
            costs = StageCosts(model, profile, receptive_fields, layouts, objective.keep_local)
            return (costs,) if packed is None else (costs, costs.with_links(packed))

        small = is_small(model, len(profile.names))
        few = small and 1 < len(profile.names) <= ALL_SUBSETS
        unordered = in_every_order(model, profile, MOST_UNORDERED // len(model.layers)) if few else []
        return cls(
            receptive_fields,
            tables(candidates(model, profile)),
            tables(unordered) if unordered else (),
            tuple(with_options),
            small,
        )


def is_small(model: Model, devices: int) -> bool:
    """Whether plans of the model on so many devices are soon simulated."""
    return len(model.layers) * devices <= SMALL
