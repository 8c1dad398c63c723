"""From a plan to programs: every computation, and every transfer that follows from it.

1  Who owns what. Of each tensor that outlives its stage, each device owns the pixels of its rectangle;
   the inputs belong to the source.
2  What a stage needs. From the owned outputs backwards through the stage's nodes, by their region rules.
3  Where it comes from. What a device holds already (it made it, or got it earlier) it reads; the rest is
   fetched from the owners. One message per producing stage, needing stage and pair of devices.
4  In what order. Where a stage asks for its borders first, 1 to 3 are done twice: the first time tells what
   others fetch, by which the second time cuts the stage into pieces (see `coedge.pieces`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from coedge.codec import channel_key
from coedge.errors import PlanError
from coedge.model import Model
from coedge.pieces import Piece, pieces_of
from coedge.plan import Plan, Stage, check_plan
from coedge.program import (
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
)  # fmt: skip
from coedge.region import Region, UnitRect
from coedge.rules.rule import WholeRule, crop_of


@dataclass
class _Device:
    """A device's program while it is being written."""

    name: str
    patches: list[Patch] = field(default_factory=list)
    held: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    made_in: dict[int, int] = field(default_factory=dict)
    # Steps with a sort key: (stage, piece of it, order within that).
    steps: list[tuple[tuple[int, int, int], Step]] = field(default_factory=list)

    def add_patch(self, tensor: str, region: Region, stage: int) -> int:
        index = len(self.patches)
        self.patches.append(Patch(tensor, region))
        self.held[tensor].append(index)
        self.made_in[index] = stage
        return index


@dataclass
class _Owner:
    device: str
    region: Region
    stage: int
    patch: int
    piece: int = 0


_COMPUTE, _SEND, _RECEIVE, _ANSWER = 1, 2, 0, 3

# What others fetch of what a device makes in a stage, by (stage, device).
_Fetched = dict[tuple[int, str], list[tuple[str, Region]]]
_Key = tuple[object, ...]

# Rules of nodes that no piece can be cut out of: a piece would need all of the stage's share, or be one of the
# shares whose number and order others rely on.
_UNCUT = frozenset(("whole", "partial", "combine"))


@dataclass
class Memo:
    """What plans of one model share that differ by little: who lowers many of them hands it on.

    Attributes:
        tiles: by the stage's first and last node and the wanted regions.
        pieces: by the stage, the share, what others fetch of it and what the device holds.
    """

    tiles: dict[_Key, tuple[Tile, dict[str, Region]]] = field(default_factory=dict)
    pieces: dict[_Key, list[Piece]] = field(default_factory=dict)


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
    if any(stage.borders_first for stage in plan.stages):
        programs = _Lowering(plan, model, lowering.fetched, memo).run()
    return programs


class _Lowering:
    """`cut_by`: what others fetch of each share, where stages are to be cut by it; None: they are not cut."""

    def __init__(self, plan: Plan, model: Model, cut_by: _Fetched | None, memo: Memo) -> None:
        self.plan, self.model, self.cut_by, self.memo = plan, model, cut_by, memo
        self.graph = model.graph
        self.devices = {name: _Device(name) for name in plan.devices}
        self.owners: dict[str, list[_Owner]] = defaultdict(list)
        self.fetched: _Fetched = defaultdict(list)
        self.channels = 0
        self.last_use: dict[str, int] = {}
        for node in self.graph.nodes:
            for name in self.graph.activations(node):
                self.last_use[name] = node.index
        for name in self.graph.outputs:
            self.last_use[name] = len(self.graph.nodes)

    def run(self) -> dict[str, Program]:
        self._inputs()
        for index, stage in enumerate(self.plan.stages):
            self._stage(index, stage)
        self._answer()
        programs = {}
        for device in self.devices.values():
            ordered = [step for _, step in sorted(device.steps, key=lambda item: item[0])]
            programs[device.name] = Program(device.name, self.model.hash, tuple(device.patches), tuple(ordered))
        return programs

    def _inputs(self) -> None:
        source = self.devices[self.plan.source]
        for name in self.graph.inputs:
            region = self.graph.tensors[name].whole
            patch = source.add_patch(name, region, -1)
            self.owners[name].append(_Owner(source.name, region, -1, patch))
        receive = Receive(self._channel(), CLIENT, -1, tuple(range(len(source.patches))))
        source.steps.append(((-1, 0, _RECEIVE), receive))

    def _channel(self) -> int:
        self.channels += 1
        return self.channels - 1

    def _stage(self, index: int, stage: Stage) -> None:
        layers = self.model.layers
        first, stop = layers[stage.first].first, layers[stage.last].stop
        alive = [
            name
            for node in self.graph.nodes[first:stop]
            for name in node.outputs
            if name and self.last_use.get(name, -1) >= stop
        ]
        pieces = {}
        for name, rect in stage.regions.items():
            share = self._pieces(index, stage, name, rect, alive)
            if share:
                pieces[name] = share
        # All needs first, then all fetches: what a device makes in this stage is nobody's input in it.
        tiles = {name: [self._tile(first, stop, piece.wanted) for piece in share] for name, share in pieces.items()}
        reads = self._fetch(index, {name: [_inputs(*tile) for tile in made] for name, made in tiles.items()})
        for name, share in pieces.items():
            device = self.devices[name]
            # The interior is made known first: where pieces overlap, it is what the next stage reads.
            for order in sorted(range(len(share)), key=lambda i: not share[i].inner):
                tile, need = tiles[name][order]
                writes = []
                for output in tile.outputs:
                    patch = device.add_patch(output, need[output], index)
                    writes.append(patch)
                    self.owners[output].append(_Owner(name, share[order].wanted[output], index, patch, order))
                work = []
                for layer in layers[stage.first : stage.last + 1]:
                    if layer.tensor in need:
                        work.append(Work(layer.index, need[layer.tensor].area / layer.cols))
                step = Compute(index, tile, tuple(reads[name][order]), tuple(writes), tuple(work))
                device.steps.append(((index, order, _COMPUTE), step))

    def _pieces(self, index: int, stage: Stage, device: str, rect: UnitRect, alive: list[str]) -> list[Piece]:
        """How a device's share of a stage is computed: in one piece, or borders first. None: it has no pixel."""
        tensors = [self.graph.tensors[name] for name in alive]
        regions = {tensor.name: rect.of_extent(tensor.rows, tensor.cols) for tensor in tensors}
        wanted = {name: region for name, region in regions.items() if not region.empty}
        if not wanted:
            return []
        layers = self.model.layers
        first, stop = layers[stage.first].first, layers[stage.last].stop
        kinds = {rule.kind for rule in self.model.rules[first:stop]}
        if self.cut_by is None or not stage.borders_first or kinds & _UNCUT:
            return [Piece(wanted)]

        def is_local(part: Mapping[str, Region]) -> bool:
            need, nodes = _needs_of(self.model, first, stop, part)
            made = {name for index, _, _ in nodes for name in self.graph.nodes[index].outputs}
            held = self.devices[device]
            return not any(self._take(held, name, need[name])[1] for name in need.keys() - made)

        fetched, held = self.cut_by.get((index, device), ()), self.devices[device].held
        inputs = {name for node in self.graph.nodes[first:stop] for name in self.graph.activations(node)}
        patches = self.devices[device].patches
        key = (
            first, stop, rect, tuple(fetched),
            tuple((name, tuple(patches[i].region for i in held[name])) for name in sorted(inputs) if name in held),
        )  # fmt: skip
        if key not in self.memo.pieces:
            self.memo.pieces[key] = pieces_of(rect, tensors, fetched, is_local)
        return self.memo.pieces[key]

    def _tile(self, first: int, stop: int, wanted: Mapping[str, Region]) -> tuple[Tile, dict[str, Region]]:
        key = (first, stop, *wanted.items())
        if key not in self.memo.tiles:
            self.memo.tiles[key] = tile_of(self.model, first, stop, dict(wanted))
        return self.memo.tiles[key]

    def _fetch(self, stage: int, needs: dict[str, list[dict[str, Region]]]) -> dict[str, list[list[Read]]]:
        """Reads of every piece of every device, with the sends and receives that make them possible."""
        codecs = self.plan.stages[stage].codecs if stage < len(self.plan.stages) else {}
        messages: dict[tuple[int, str, str], list[tuple[_Owner, Region]]] = defaultdict(list)
        for name, pieces in needs.items():
            wanted: dict[str, Region] = {}
            for piece in pieces:
                for tensor, region in piece.items():
                    wanted[tensor] = wanted[tensor].hull(region) if tensor in wanted else region
            for tensor, region in wanted.items():
                for hole in self._take(self.devices[name], tensor, region)[1]:
                    for owner in self.owners[tensor]:
                        part = hole.intersection(owner.region)
                        if owner.device != name and not part.empty:
                            messages[owner.stage, owner.device, name].append((owner, part))
                            self.fetched[owner.stage, owner.device].append((tensor, part))
        for (made, sender, receiver), items in sorted(messages.items(), key=lambda item: item[0]):
            channel, codec = self._channel(), codecs.get(channel_key(sender, receiver), RAW)
            source, target = self.devices[sender], self.devices[receiver]
            patches = [target.add_patch(source.patches[owner.patch].tensor, part, stage) for owner, part in items]
            send = Send(channel, receiver, stage, tuple(Part(owner.patch, part) for owner, part in items), codec)
            source.steps.append(((made, max(owner.piece for owner, _ in items), _SEND), send))
            target.steps.append(((stage, 0, _RECEIVE), Receive(channel, sender, stage, tuple(patches), codec)))
        return {name: [self._reads(name, piece) for piece in pieces] for name, pieces in needs.items()}

    def _reads(self, device: str, needs: dict[str, Region]) -> list[Read]:
        reads = []
        for tensor, region in needs.items():
            parts, missing = self._take(self.devices[device], tensor, region)
            if missing:
                raise PlanError(f"nobody owns a part of {tensor!r}, {missing[0]}: this is a defect of the planner")
            reads.append(Read(tensor, region, tuple(sorted(parts, key=lambda part: part.region))))
        return reads

    def _take(self, device: _Device, tensor: str, region: Region) -> tuple[list[Part], list[Region]]:
        """What the device holds of a region, as disjoint parts, and what is missing."""
        if self.graph.tensors[tensor].partial_extent:
            # A share is one sum over its region: it is taken whole, however ragged what is missing may be.
            shares = {device.patches[patch].region: patch for patch in device.held.get(tensor, ())}
            others = [o.region for o in self.owners[tensor] if o.region not in shares]
            return [Part(patch, share) for share, patch in shares.items()], others
        parts: list[Part] = []
        missing = [region]
        for patch in device.held.get(tensor, ()):
            if not missing:
                break
            rest: list[Region] = []
            for hole in missing:
                piece = hole.intersection(device.patches[patch].region)
                if piece.empty:
                    rest.append(hole)
                else:
                    parts.append(Part(patch, piece))
                    rest += hole.minus(piece)
            missing = rest
        return parts, missing

    def _answer(self) -> None:
        end = len(self.plan.stages)
        sink = self.plan.sink
        wanted = {name: self.graph.tensors[name].whole for name in dict.fromkeys(self.graph.outputs)}
        reads = {read.tensor: read for read in self._fetch(end, {sink: [wanted]})[sink][0]}
        answer = Answer(tuple(reads[name] for name in self.graph.outputs))
        self.devices[sink].steps.append(((end, 0, _ANSWER), answer))


def _inputs(tile: Tile, need: Mapping[str, Region]) -> dict[str, Region]:
    """What a tile reads."""
    return {name: need[name] for name in tile.inputs}


def tile_of(model: Model, first: int, stop: int, wanted: dict[str, Region]) -> tuple[Tile, dict[str, Region]]:
    """The tile of nodes [first, stop) that makes the wanted regions, and the region of every tensor in it."""
    need, plans = _needs_of(model, first, stop, wanted)
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


_NodeNeeds = list[tuple[int, Region, dict[str, Region]]]


def _needs_of(
    model: Model, first: int, stop: int, wanted: Mapping[str, Region]
) -> tuple[dict[str, Region], _NodeNeeds]:
    """The region of every tensor that nodes [first, stop) need for the wanted ones, and for each node that takes
    part, last node first: its index, what it makes and what it needs."""
    need = dict(wanted)
    plans: _NodeNeeds = []
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
