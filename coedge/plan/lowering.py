"""From a plan to programs: every computation, and every transfer that follows from it.

1  Who owns what. Of each tensor that outlives its stage, each device owns the pixels of its rectangle;
   the inputs belong to the source.
2  What a stage needs. From the owned outputs backwards through the stage's nodes, by their region rules.
3  Where it comes from. What a device holds already (it made it, or got it earlier) it reads; the rest is
   fetched from the owners. One message per producing stage, needing stage and pair of devices.
4  In what order. Where a stage asks for its borders first, 1 to 3 are done twice: the first time tells what
   others fetch, by which the second time cuts the stage into pieces (see `coedge.plan.halo_first`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from coedge.core.errors import PlanError
from coedge.core.region import Region, UnitRect
from coedge.execution.program import (
    CLIENT,
    RAW,
    Answer,
    Compute,
    Part,
    Patch,
    Program,
    Read,
    Receive,
    Send,
    Step,
    Tile,
    TileNode,
    Work,
)
from coedge.graph.graph import Tensor
from coedge.graph.model import Model
from coedge.graph.rules.rule import WholeRule, crop_of
from coedge.plan.codec import channel_key
from coedge.plan.halo_first import Portion, split_halo_first
from coedge.plan.plan import Plan, Stage, check_plan


@dataclass
class _ProgramBuilder:
    """A device's program while it is being written."""

    name: str
    patches: list[Patch] = field(default_factory=list)
    # By tensor, in the order in which they came: indices of patches, and beside them their regions.
    held: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    regions: dict[str, list[Region]] = field(default_factory=lambda: defaultdict(list))
    # Steps with a sort key: (stage, piece of it, order within that).
    steps: list[tuple[tuple[int, int, int], Step]] = field(default_factory=list)

    def add_patch(self, tensor: str, region: Region) -> int:
        index = len(self.patches)
        self.patches.append(Patch(tensor, region))
        self.held[tensor].append(index)
        self.regions[tensor].append(region)
        return index


@dataclass(slots=True)
class _Owner:
    device: str
    region: Region
    stage: int
    patch: int
    portion: int = 0


_COMPUTE, _SEND, _RECEIVE, _ANSWER = 1, 2, 0, 3

# What others fetch of what a device makes in a stage, by (stage, device).
_Fetched = dict[tuple[int, str], list[tuple[str, Region]]]
_Key = tuple[object, ...]

# Rules of nodes that no piece can be cut out of: a piece would need all of the stage's share, or be one of the
# shares whose number and order others rely on.
_UNCUT = frozenset(("whole", "partial", "combine"))


# What a piece reads: of every input of its tile, the region.
_Needs = tuple[tuple[str, Region], ...]


class _PortionTile(NamedTuple):
    """A piece of a share as a tile, the region of every tensor in it, what it reads, and how much of each layer it
    computes."""

    portion: Portion
    tile: Tile
    need: dict[str, Region]
    reads: _Needs
    work: tuple[Work, ...]


class _Layers(NamedTuple):
    """What a run of layers has in common, however it is shared.

    Attributes:
        first, stop: its nodes.
        alive: what it makes that outlives it.
        inputs: all that its nodes read, sorted.
        uncut: nobody's share of it can be cut into pieces.
    """

    first: int
    stop: int
    alive: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    uncut: bool


class _PlannedTransfer(NamedTuple):
    """What a device fetches from another, of what that made `back` stages ago.

    `items` are (tensor, place among the tensor's owners, region); `portion` is the last one that makes any of it.
    """

    back: int
    sender: str
    receiver: str
    items: tuple[tuple[str, int, Region], ...]
    portion: int


# A read whose parts are (place among the patches of the tensor that the device holds, region).
_PlacedRead = tuple[str, Region, tuple[tuple[int, Region], ...]]


class _Exchange(NamedTuple):
    """What travels before a stage, and what every piece of every device then reads."""

    messages: tuple[_PlannedTransfer, ...]
    reads: dict[str, list[list[_PlacedRead]]]


@dataclass
class Memo:
    """What plans of one model share that differ by little: who lowers many of them hands it on.

    Attributes:
        exchanges: by what is needed, who owns it and who holds what of it.
        layers: by the stage's first and last layer.
        shares: in one piece, by the stage's first and last layer and the rectangle; None: it has no pixel.
        pieces: by the stage, the share, what others fetch of it and what the device holds.
        needs: by the stage and the wanted regions.
    """

    layers: dict[tuple[int, int], _Layers] = field(default_factory=dict)
    shares: dict[tuple[int, int, UnitRect], _PortionTile | None] = field(default_factory=dict)
    portions: dict[_Key, list[_PortionTile]] = field(default_factory=dict)
    needs: dict[_Key, _Needs] = field(default_factory=dict)
    exchanges: dict[_Key, _Exchange] = field(default_factory=dict)


def lower(plan: Plan, model: Model, memo: Memo | None = None) -> dict[str, Program]:
    """The program of every device of the plan.

    Args:
        memo: of this model.

    Raises:
        PlanError: the plan does not fit the model.
    """
    check_plan(plan, model)
    memo = memo or Memo()
    lowering = _Lowering(plan, model, None, memo)
    programs = lowering.run()
    if any(stage.halo_first for stage in plan.stages):
        programs = _Lowering(plan, model, lowering.fetched, memo).run()
    return programs


class _Lowering:
    """`cut_by`: what others fetch of each share, where stages are to be cut by it; None: they are not cut."""

    def __init__(self, plan: Plan, model: Model, cut_by: _Fetched | None, memo: Memo) -> None:
        self.plan, self.model, self.cut_by, self.memo = plan, model, cut_by, memo
        self.graph = model.graph
        self.devices = {name: _ProgramBuilder(name) for name in plan.devices}
        self.owners: dict[str, list[_Owner]] = defaultdict(list)
        self.fetched: _Fetched = defaultdict(list)
        self.channels = 0

    def run(self) -> dict[str, Program]:
        self._inputs()
        for index, stage in enumerate(self.plan.stages):
            self._stage(index, stage)
        self._answer()
        programs = {}
        for device in self.devices.values():
            ordered = [step for _, step in sorted(device.steps, key=itemgetter(0))]
            programs[device.name] = Program(device.name, self.model.hash, tuple(device.patches), tuple(ordered))
        return programs

    def _inputs(self) -> None:
        source = self.devices[self.plan.source]
        for name in self.graph.inputs:
            region = self.graph.tensors[name].whole
            patch = source.add_patch(name, region)
            self.owners[name].append(_Owner(source.name, region, -1, patch))
        receive = Receive(self._channel(), CLIENT, -1, tuple(range(len(source.patches))))
        source.steps.append(((-1, 0, _RECEIVE), receive))

    def _channel(self) -> int:
        self.channels += 1
        return self.channels - 1

    def _stage(self, index: int, stage: Stage) -> None:
        shares = {}
        for name, rect in stage.regions.items():
            share = self._share(index, stage, name, rect)
            if share:
                shares[name] = share
        # All needs first, then all fetches: what a device makes in this stage is nobody's input in it.
        reads = self._fetch(index, {name: [cut.reads for cut in share] for name, share in shares.items()})
        for name, share in shares.items():
            device = self.devices[name]
            # The interior is made known first: where pieces overlap, it is what the next stage reads.
            for order in sorted(range(len(share)), key=lambda i: not share[i].portion.inner):
                portion, tile, need, _, work = share[order]
                writes = []
                for output in tile.outputs:
                    patch = device.add_patch(output, need[output])
                    writes.append(patch)
                    self.owners[output].append(_Owner(name, portion.wanted[output], index, patch, order))
                step = Compute(index, tile, tuple(reads[name][order]), tuple(writes), work)
                device.steps.append(((index, order, _COMPUTE), step))

    def _share(self, index: int, stage: Stage, device: str, rect: UnitRect) -> list[_PortionTile]:
        """How a device's share of a stage is computed: in one piece, or borders first; nothing if it has no pixel."""
        key = (stage.first, stage.last, rect)
        if key in self.memo.shares:
            whole = self.memo.shares[key]
        else:
            regions = {t.name: rect.of_extent(t.rows, t.cols) for t in self._layers(stage).alive}
            wanted = {name: region for name, region in regions.items() if not region.empty}
            whole = self.memo.shares[key] = self._cut(stage, Portion(wanted)) if wanted else None
        if whole is None:
            return []
        if self.cut_by is None or not stage.halo_first or self._layers(stage).uncut:
            return [whole]
        return self._in_pieces(stage, device, rect, self.cut_by.get((index, device), ()))

    def _in_pieces(
        self, stage: Stage, device: str, rect: UnitRect, fetched: Sequence[tuple[str, Region]]
    ) -> list[_PortionTile]:
        """Borders first: cut by what others fetch of the share."""
        first, stop, alive, inputs, _ = self._layers(stage)
        held = self.devices[device].regions

        def is_local(part: Mapping[str, Region]) -> bool:
            return not any(self._take(held.get(n, ()), n, need)[1] for n, need in self._read_by(first, stop, part))

        key = (first, stop, rect, tuple(fetched), tuple((n, tuple(held[n])) for n in inputs if n in held))
        if key not in self.memo.portions:
            portions = split_halo_first(rect, alive, fetched, is_local)
            self.memo.portions[key] = [self._cut(stage, portion) for portion in portions]
        return self.memo.portions[key]

    def _read_by(self, first: int, stop: int, part: Mapping[str, Region]) -> _Needs:
        """What nodes [first, stop) read for a part of what they make."""
        key = (first, stop, *part.items())
        found = self.memo.needs.get(key)
        if found is None:
            need, nodes = needs_of(self.model, first, stop, part)
            made = {name for index, _, _ in nodes for name in self.graph.nodes[index].outputs}
            found = self.memo.needs[key] = tuple((name, region) for name, region in need.items() if name not in made)
        return found

    def _layers(self, stage: Stage) -> _Layers:
        found = self.memo.layers.get((stage.first, stage.last))
        if found is None:
            graph, layers = self.graph, self.model.layers
            first, stop = layers[stage.first].first, layers[stage.last].stop
            nodes = graph.nodes[first:stop]
            later = {name for node in graph.nodes[stop:] for name in graph.activations(node)} | set(graph.outputs)
            found = self.memo.layers[stage.first, stage.last] = _Layers(
                first, stop,
                tuple(graph.tensors[name] for node in nodes for name in node.outputs if name in later),
                tuple(sorted({name for node in nodes for name in graph.activations(node)})),
                any(rule.kind in _UNCUT for rule in self.model.rules[first:stop]),
            )  # fmt: skip
        return found

    def _cut(self, stage: Stage, portion: Portion) -> _PortionTile:
        layers = self.model.layers[stage.first : stage.last + 1]
        tile, need = tile_of(self.model, layers[0].first, layers[-1].stop, dict(portion.wanted))
        work = (Work(x.index, need[x.tensor].area / x.cols) for x in layers if x.tensor in need)
        return _PortionTile(portion, tile, need, tuple((name, need[name]) for name in tile.inputs), tuple(work))

    def _fetch(self, stage: int, needs: dict[str, list[_Needs]]) -> dict[str, list[list[Read]]]:
        """Reads of every piece of every device, with the sends and receives that make them possible."""
        codecs = self.plan.stages[stage].codecs if stage < len(self.plan.stages) else {}
        exchange = self._exchange(stage, needs)
        for back, sender, receiver, items, portion in exchange.messages:
            channel, codec = self._channel(), codecs.get(channel_key(sender, receiver), RAW)
            source, target = self.devices[sender], self.devices[receiver]
            parts, patches = [], []
            for tensor, place, region in items:
                parts.append(Part(self.owners[tensor][place].patch, region))
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

    def _exchange(self, stage: int, needs: dict[str, list[_Needs]]) -> _Exchange:
        tensors = list(
            dict.fromkeys(name for portions in needs.values() for portion in portions for name, _ in portion)
        )
        key = (
            tuple((name, *portions) for name, portions in needs.items()),
            tuple(tuple((o.device, o.region, stage - o.stage, o.portion) for o in self.owners[t]) for t in tensors),
            tuple(tuple(self.devices[name].regions.get(t, ())) for name in needs for t in tensors),
        )
        found = self.memo.exchanges.get(key)
        if found is None:
            found = self.memo.exchanges[key] = self._worked_out(stage, needs)
        return found

    def _worked_out(self, stage: int, needs: dict[str, list[_Needs]]) -> _Exchange:
        messages: dict[tuple[int, str, str], list[tuple[str, int, Region]]] = defaultdict(list)
        for name, portions in needs.items():
            wanted: dict[str, Region] = {}
            for portion in portions:
                for tensor, region in portion:
                    wanted[tensor] = wanted[tensor].hull(region) if tensor in wanted else region
            for tensor, region in wanted.items():
                for hole in self._take(self.devices[name].regions.get(tensor, ()), tensor, region)[1]:
                    for place, owner in enumerate(self.owners[tensor]):
                        part = hole.intersection(owner.region)
                        if owner.device != name and not part.empty:
                            messages[owner.stage, owner.device, name].append((tensor, place, part))
        made, came = [], defaultdict[tuple[str, str], list[Region]](list)
        for (when, sender, receiver), items in sorted(messages.items(), key=lambda item: item[0]):
            last = max(self.owners[tensor][place].portion for tensor, place, _ in items)
            made.append(_PlannedTransfer(stage - when, sender, receiver, tuple(items), last))
            for tensor, _, part in items:
                came[receiver, tensor].append(part)
        reads = {}
        for name, portions in needs.items():
            regions = self.devices[name].regions
            held = {t: [*regions.get(t, ()), *came.get((name, t), ())] for portion in portions for t, _ in portion}
            reads[name] = [[self._read(held[t], t, region) for t, region in portion] for portion in portions]
        return _Exchange(tuple(made), reads)

    def _read(self, held: Sequence[Region], tensor: str, region: Region) -> _PlacedRead:
        parts, missing = self._take(held, tensor, region)
        if missing:
            raise PlanError(f"nobody owns a part of {tensor!r}, {missing[0]}: this is a defect of the planner")
        return tensor, region, tuple(sorted(parts, key=lambda part: part[1]))

    def _take(
        self, held: Sequence[Region], tensor: str, region: Region
    ) -> tuple[list[tuple[int, Region]], list[Region]]:
        """What a device that holds these regions has of one, as disjoint parts (place, region); what is missing."""
        if self.graph.tensors[tensor].partial_extent:
            # A share is one sum over its region: it is taken whole, however ragged what is missing may be.
            shares = {share: place for place, share in enumerate(held)}
            others = [o.region for o in self.owners[tensor] if o.region not in shares]
            return [(place, share) for share, place in shares.items()], others
        parts: list[tuple[int, Region]] = []
        missing = [region]
        for place, patch in enumerate(held):
            if not missing:
                break
            rest: list[Region] = []
            for hole in missing:
                portion = hole.intersection(patch)
                if portion.empty:
                    rest.append(hole)
                else:
                    parts.append((place, portion))
                    rest += hole.minus(portion)
            missing = rest
        return parts, missing

    def _answer(self) -> None:
        end = len(self.plan.stages)
        sink = self.plan.sink
        wanted = tuple((name, self.graph.tensors[name].whole) for name in dict.fromkeys(self.graph.outputs))
        reads = {read.tensor: read for read in self._fetch(end, {sink: [wanted]})[sink][0]}
        answer = Answer(tuple(reads[name] for name in self.graph.outputs))
        self.devices[sink].steps.append(((end, 0, _ANSWER), answer))


def tile_of(model: Model, first: int, stop: int, wanted: dict[str, Region]) -> tuple[Tile, dict[str, Region]]:
    """The tile of nodes [first, stop) that makes the wanted regions, and the region of every tensor in it."""
    need, plans = needs_of(model, first, stop, wanted)
    nodes: list[TileNode] = []
    made: set[str] = set()
    # Only now is it known how much of each tensor the tile holds.
    for index, out, ins in reversed(plans):
        made.update(name for name in model.graph.nodes[index].outputs if name in need)
        rule = model.rules[index]
        crops = tuple((name, crop_of(need[name], region)) for name, region in ins.items() if need[name] != region)
        nodes.append(TileNode(index, rule.adjust(out, ins), crops))
    inputs = tuple(name for name in need if name not in made)
    fixed = tuple(n for n in inputs if need[n].cols.length == model.graph.tensors[n].cols)
    results = tuple(name for name in wanted if name in made)
    return Tile(tuple(nodes), inputs, results, fixed), need


NodeNeeds = list[tuple[int, Region, dict[str, Region]]]


def needs_of(model: Model, first: int, stop: int, wanted: Mapping[str, Region]) -> tuple[dict[str, Region], NodeNeeds]:
    """The region of every tensor that nodes [first, stop) need for the wanted ones, and for each node that takes
    part, last node first: its index, what it makes and what it needs."""
    need = dict(wanted)
    plans: NodeNeeds = []
    for node in reversed(model.graph.nodes[first:stop]):
        outputs = [name for name in node.outputs if name in need]
        if not outputs:
            continue
        rule = model.rules[node.index]
        if isinstance(rule, WholeRule):
            for name in outputs:
                need[name] = model.graph.tensors[name].whole
            out = need[outputs[0]]
        else:
            out = need[outputs[0]]
            for name in outputs[1:]:
                out = out.hull(need[name])
            for name in outputs:
                need[name] = out
        ins = rule.needs(out)
        for name, region in ins.items():
            need[name] = need[name].hull(region) if name in need else region
        plans.append((node.index, out, ins))
    return need, plans
