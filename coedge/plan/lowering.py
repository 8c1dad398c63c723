"""Lowering of a plan to programs: every computation, and every transfer that follows from it.

1  Ownership. Of each tensor that is read behind its stage, each device owns the pixels of its rectangle.
   The inputs belong to the source.
2  Needs. The owned results are followed backwards through the stage's nodes, by their region rules.
3  Transfers. A device reads what it holds and fetches the rest from the owners (see `coedge.plan.exchange`).
4  Order. For halo-first stages, 1 to 3 are done twice: the first pass finds out what other devices fetch, by
   which the second pass splits each share into portions (see `coedge.plan.halo_first`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from coedge.core.region import Region, UnitRect
from coedge.execution.program import CLIENT, RAW, Answer, Compute, Part, Patch, Program, Read, Receive, Send, Step
from coedge.graph.model import Model
from coedge.plan.codec import channel_key
from coedge.plan.exchange import Exchange, Owner, plan_exchange
from coedge.plan.plan import Plan, Stage, check_plan
from coedge.plan.portions import Needs, Portions, PortionTile

# Order of the steps of one portion of a stage.
_RECEIVE, _COMPUTE, _SEND, _ANSWER = range(4)

# The regions that other devices fetch of what a device makes in a stage, by (stage, device).
_Fetched = Mapping[tuple[int, str], Sequence[tuple[str, Region]]]


class Memo:
    """Results that plans of one model share. A search hands one memo to every `lower` of that model.

    Attributes:
        portions: the tiles of portions of shares.
        exchanges: transfers before a stage, by what is needed, who owns it and who holds which part of it.
    """

    def __init__(self, model: Model) -> None:
        self.portions = Portions(model)
        self.exchanges: dict[tuple[object, ...], Exchange] = {}


def lower(plan: Plan, model: Model, memo: Memo | None = None) -> dict[str, Program]:
    """Return the program of every device of the plan.

    Args:
        memo: results of earlier calls for this model.

    Raises:
        PlanError: the plan does not fit the model.
    """
    check_plan(plan, model)
    memo = memo or Memo(model)
    lowering = _Lowering(plan, model, None, memo)
    programs = lowering.run()
    if any(stage.halo_first for stage in plan.stages):
        programs = _Lowering(plan, model, lowering.fetched, memo).run()
    return programs


@dataclass
class _ProgramBuilder:
    """A device's program while its steps are added.

    Attributes:
        held, regions: per tensor, the patches that hold parts of it, as indices and as regions, in the order in
            which they were added.
        steps: steps with a sort key: (stage, portion, order within the portion).
    """

    name: str
    patches: list[Patch] = field(default_factory=list)
    held: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    regions: dict[str, list[Region]] = field(default_factory=lambda: defaultdict(list))
    steps: list[tuple[tuple[int, int, int], Step]] = field(default_factory=list)

    def add_patch(self, tensor: str, region: Region) -> int:
        index = len(self.patches)
        self.patches.append(Patch(tensor, region))
        self.held[tensor].append(index)
        self.regions[tensor].append(region)
        return index

    def program(self, model_hash: str) -> Program:
        ordered = tuple(step for _, step in sorted(self.steps, key=itemgetter(0)))
        return Program(self.name, model_hash, tuple(self.patches), ordered)


class _Lowering:
    """One pass over the stages of a plan.

    Attributes:
        split_by: what other devices fetch of each share; halo-first shares are split into portions by it. None in
            the first pass, in which every share is one portion.
        fetched: what other devices fetch of each share, as this pass finds it.
    """

    def __init__(self, plan: Plan, model: Model, split_by: _Fetched | None, memo: Memo) -> None:
        self.plan, self.model, self.split_by, self.memo = plan, model, split_by, memo
        self.graph = model.graph
        self.devices = {name: _ProgramBuilder(name) for name in plan.devices}
        self.owners: dict[str, list[Owner]] = defaultdict(list)
        self.fetched: dict[tuple[int, str], list[tuple[str, Region]]] = defaultdict(list)
        self.channels = 0

    def run(self) -> dict[str, Program]:
        self._add_inputs()
        for index, stage in enumerate(self.plan.stages):
            self._add_stage(index, stage)
        self._add_answer()
        return {device.name: device.program(self.model.hash) for device in self.devices.values()}

    def _add_inputs(self) -> None:
        source = self.devices[self.plan.source]
        for name in self.graph.inputs:
            region = self.graph.tensors[name].whole
            self.owners[name].append(Owner(source.name, region, -1, source.add_patch(name, region)))
        receive = Receive(self._channel(), CLIENT, -1, tuple(range(len(source.patches))))
        source.steps.append(((-1, 0, _RECEIVE), receive))

    def _add_stage(self, index: int, stage: Stage) -> None:
        shares = {name: self._portions(index, stage, name, rect) for name, rect in stage.regions.items()}
        shares = {name: portions for name, portions in shares.items() if portions}
        # All transfers are planned before any result is added: no device reads another's result of the same stage.
        reads = self._add_transfers(index, {name: [p.reads for p in portions] for name, portions in shares.items()})
        for name, portions in shares.items():
            device = self.devices[name]
            # The interior is added first: where portions overlap, the next stage reads from the interior.
            for order in sorted(range(len(portions)), key=lambda i: not portions[i].portion.inner):
                portion, tile, regions, _, work = portions[order]
                writes = []
                for output in tile.outputs:
                    patch = device.add_patch(output, regions[output])
                    writes.append(patch)
                    self.owners[output].append(Owner(name, portion.wanted[output], index, patch, order))
                step = Compute(index, tile, tuple(reads[name][order]), tuple(writes), work)
                device.steps.append(((index, order, _COMPUTE), step))

    def _add_answer(self) -> None:
        end, sink = len(self.plan.stages), self.plan.sink
        wanted = tuple((name, self.graph.tensors[name].whole) for name in dict.fromkeys(self.graph.outputs))
        reads = {read.tensor: read for read in self._add_transfers(end, {sink: [wanted]})[sink][0]}
        answer = Answer(tuple(reads[name] for name in self.graph.outputs))
        self.devices[sink].steps.append(((end, 0, _ANSWER), answer))

    def _portions(self, index: int, stage: Stage, device: str, rect: UnitRect) -> list[PortionTile]:
        """Return the portions of a device's share in computation order; none if the share has no pixel."""
        portions = self.memo.portions
        share = portions.share(stage, rect)
        if share is None:
            return []
        if self.split_by is None or not stage.halo_first or not portions.divisible(stage):
            return [share]
        return portions.halo_first(stage, rect, self.split_by.get((index, device), ()), self.devices[device].regions)

    def _add_transfers(self, stage: int, needs: dict[str, list[Needs]]) -> dict[str, list[list[Read]]]:
        """Add the sends and receives before a stage. Return the reads of every portion of every device."""
        codecs = self.plan.stages[stage].codecs if stage < len(self.plan.stages) else {}
        exchange = self._exchange(stage, needs)
        for back, sender, receiver, items, portion in exchange.messages:
            channel, codec = self._channel(), codecs.get(channel_key(sender, receiver), RAW)
            source, target = self.devices[sender], self.devices[receiver]
            parts, patches = [], []
            for tensor, position, region in items:
                parts.append(Part(self.owners[tensor][position].patch, region))
                patches.append(target.add_patch(tensor, region))
                self.fetched[stage - back, sender].append((tensor, region))
            source.steps.append(((stage - back, portion, _SEND), Send(channel, receiver, stage, tuple(parts), codec)))
            target.steps.append(((stage, 0, _RECEIVE), Receive(channel, sender, stage, tuple(patches), codec)))
        reads = {}
        for name, portions in exchange.reads.items():
            held = self.devices[name].held
            reads[name] = [
                [Read(t, region, tuple(Part(held[t][at], part) for at, part in parts)) for t, region, parts in portion]
                for portion in portions
            ]
        return reads

    def _exchange(self, stage: int, needs: dict[str, list[Needs]]) -> Exchange:
        """Return the transfers before a stage, from the memo if an equal situation was met before."""
        tensors = list(
            dict.fromkeys(name for portions in needs.values() for portion in portions for name, _ in portion)
        )
        held = {name: self.devices[name].regions for name in needs}
        key = (
            tuple((name, *portions) for name, portions in needs.items()),
            tuple(tuple((o.device, o.region, stage - o.stage, o.portion) for o in self.owners[t]) for t in tensors),
            tuple(tuple(held[name].get(t, ())) for name in needs for t in tensors),
        )
        exchange = self.memo.exchanges.get(key)
        if exchange is None:
            exchange = self.memo.exchanges[key] = plan_exchange(self.graph, stage, needs, self.owners, held)
        return exchange

    def _channel(self) -> int:
        self.channels += 1
        return self.channels - 1
