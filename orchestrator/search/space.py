"""Tables that one search makes its drafts from, and the transfer options that it tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coedge.core.objective import Objective
from coedge.graph.model import Model
from orchestrator.evaluation.cost_table import CostTable
from orchestrator.search.layout import ALL_SUBSETS, Layout, candidates, in_every_order
from orchestrator.search.receptive_field import ReceptiveFields
from orchestrator.search.stage_costs import StageCosts
from orchestrator.search.transfer_options import TransferOptions, option_sets, with_effective_rates

# Program steps that the local search may simulate.
LOCAL_SEARCH_STEPS = 12_000
# Networks of at most this number of layers times devices are small: their plans are simulated quickly, so the
# multistart search may simulate more program steps.
SMALL, MULTISTART_STEPS = 64, 60_000
# Limit on layers times layouts in every order.
MOST_UNORDERED = 1200


@dataclass(frozen=True)
class SearchSpace:
    """Drafts and transfer options for one model on one profile.

    Attributes:
        costs: stage costs with links as they are, and as fast as codecs make them if codecs pay.
        unordered: for small networks on few devices, the same with strips in every order of the devices.
        option_sets: transfer options to try, plain transfers first.
        is_small: plans are simulated quickly.
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
        """Number of program steps that may be simulated."""
        return MULTISTART_STEPS if self.is_small else LOCAL_SEARCH_STEPS

    @classmethod
    def of(cls, table: CostTable, objective: Objective) -> SearchSpace:
        model, count = table.model, len(table.names)
        receptive_fields, options = ReceptiveFields(model), option_sets(table, objective)
        packed = with_effective_rates(table, objective.lossy) if any(o.codecs for o in options) else None

        def tables(layouts: Sequence[Layout]) -> tuple[StageCosts, ...]:
            costs = StageCosts(table, receptive_fields, layouts, objective.keep_local)
            return (costs,) if packed is None else (costs, costs.with_links(packed))

        small = is_small(model, count)
        unordered: list[Layout] = []
        if small and 1 < count <= ALL_SUBSETS:
            unordered = in_every_order(table, MOST_UNORDERED // len(model.layers))
        return cls(
            receptive_fields, tables(candidates(table)), tables(unordered) if unordered else (), tuple(options), small
        )


def is_small(model: Model, devices: int) -> bool:
    """Return whether plans of the model on this number of devices are simulated quickly."""
    return len(model.layers) * devices <= SMALL
