"""From a plan to programs: every computation, and every transfer that follows from it.

1  Who owns what. Of each tensor that outlives its stage, each device owns the pixels of its rectangle;
   the inputs belong to the source.
2  What a stage needs. From the owned outputs backwards through the stage's nodes, by their region rules.
3  Where it comes from. What a device holds already (it made it, or got it earlier) it reads; the rest is
   fetched from the owners. One message per producing stage, needing stage and pair of devices.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from coedge.errors import PlanError
from coedge.model import Model
from coedge.plan import Plan, Stage, check_plan
from coedge.program import (
    CLIENT,
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
from coedge.region import Region
from coedge.rules.rule import WholeRule, crop_of


@dataclass
class _Device:
    """A device's program while it is being written."""

    name: str
    patches: list[Patch] = field(default_factory=list)
    held: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    made_in: dict[int, int] = field(default_factory=dict)
    # Steps with a sort key: (stage, order within it).
    steps: list[tuple[tuple[int, int], Step]] = field(default_factory=list)

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


_COMPUTE, _SEND, _RECEIVE, _ANSWER = 1, 2, 0, 3


def lower(plan: Plan, model: Model) -> dict[str, Program]:
    """The program of every device of the plan.

    Raises:
        PlanError: the plan does not fit the model.
    """
    check_plan(plan, model)
    return _Lowering(plan, model).run()


class _Lowering:
    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan, self.model = plan, model
        self.graph = model.graph
        self.devices = {name: _Device(name) for name in plan.devices}
        self.owners: dict[str, list[_Owner]] = defaultdict(list)
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
        source.steps.append(((-1, _RECEIVE), receive))

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
        wanted: dict[str, dict[str, Region]] = {}
        for device_name, rect in stage.regions.items():
            mine = {}
            for name in alive:
                tensor = self.graph.tensors[name]
                region = rect.of_extent(tensor.rows, tensor.cols)
                if not region.empty:
                    mine[name] = region
            if mine:
                wanted[device_name] = mine
        # All needs first, then all fetches: what a device makes in this stage is nobody's input in it.
        tiles = {name: tile_of(self.model, first, stop, mine) for name, mine in wanted.items()}
        reads = self._fetch(index, {name: {i: need[i] for i in tile.inputs} for name, (tile, need) in tiles.items()})
        for name, (tile, need) in tiles.items():
            device = self.devices[name]
            writes = []
            for output in tile.outputs:
                patch = device.add_patch(output, need[output], index)
                writes.append(patch)
                self.owners[output].append(_Owner(name, wanted[name][output], index, patch))
            work = []
            for layer in layers[stage.first : stage.last + 1]:
                if layer.tensor in need:
                    work.append(Work(layer.index, need[layer.tensor].area / layer.cols))
            step = Compute(index, tile, tuple(reads[name]), tuple(writes), tuple(work))
            device.steps.append(((index, _COMPUTE), step))

    def _fetch(self, stage: int, needs: dict[str, dict[str, Region]]) -> dict[str, list[Read]]:
        """Reads of every device, with the sends and receives that make them possible."""
        reads: dict[str, list[Read]] = {}
        messages: dict[tuple[int, str, str], list[tuple[_Owner, Region]]] = defaultdict(list)
        pending: list[tuple[str, str, Region, list[Part], list[tuple[_Owner, Region]]]] = []
        for name, wanted in needs.items():
            device = self.devices[name]
            for tensor, region in wanted.items():
                parts, missing = self._take(device, tensor, region)
                fetched: list[tuple[_Owner, Region]] = []
                for hole in missing:
                    for owner in self.owners[tensor]:
                        piece = hole.intersection(owner.region)
                        if owner.device != name and not piece.empty:
                            fetched.append((owner, piece))
                            messages[owner.stage, owner.device, name].append((owner, piece))
                covered = sum(p.region.area for p in parts) + sum(piece.area for _, piece in fetched)
                if covered != region.area:
                    raise PlanError(f"nobody owns a part of {tensor!r}, {region}: this is a defect of the planner")
                pending.append((name, tensor, region, parts, fetched))
        arrived: dict[tuple[str, str, Region], int] = {}
        for (made, sender, receiver), items in sorted(messages.items(), key=lambda item: item[0]):
            channel = self._channel()
            source, target = self.devices[sender], self.devices[receiver]
            patches = []
            for owner, piece in items:
                patch = target.add_patch(source.patches[owner.patch].tensor, piece, stage)
                arrived[receiver, self.devices[receiver].patches[patch].tensor, piece] = patch
                patches.append(patch)
            parts_sent = tuple(Part(owner.patch, piece) for owner, piece in items)
            source.steps.append(((made, _SEND), Send(channel, receiver, stage, parts_sent)))
            target.steps.append(((stage, _RECEIVE), Receive(channel, sender, stage, tuple(patches))))
        for name, tensor, region, parts, fetched in pending:
            parts += [Part(arrived[name, tensor, piece], piece) for _, piece in fetched]
            parts.sort(key=lambda part: part.region)
            reads.setdefault(name, []).append(Read(tensor, region, tuple(parts)))
        for name in needs:
            reads.setdefault(name, [])
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
        reads = {read.tensor: read for read in self._fetch(end, {sink: wanted})[sink]}
        answer = Answer(tuple(reads[name] for name in self.graph.outputs))
        self.devices[sink].steps.append(((end, _ANSWER), answer))


def tile_of(model: Model, first: int, stop: int, wanted: dict[str, Region]) -> tuple[Tile, dict[str, Region]]:
    """The tile of nodes [first, stop) that makes the wanted regions, and the region of every tensor in it."""
    need = dict(wanted)
    nodes: list[TileNode] = []
    made: set[str] = set()
    plans: list[tuple[int, Region, dict[str, Region]]] = []
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
        made.update(outputs)
        ins = rule.needs(out)
        for name, region in ins.items():
            need[name] = need[name].hull(region) if name in need else region
        plans.append((node.index, out, ins))
    # Only now is it known how much of each tensor the tile holds.
    for index, out, ins in reversed(plans):
        rule = model.rules[index]
        crops = tuple((name, crop_of(need[name], region)) for name, region in ins.items() if need[name] != region)
        nodes.append(TileNode(index, rule.adjust(out, ins), crops))
    inputs = tuple(name for name in need if name not in made)
    fixed = tuple(n for n in inputs if need[n].cols.length == model.graph.tensors[n].cols)
    results = tuple(name for name in wanted if name in made)
    return Tile(tuple(nodes), inputs, results, fixed), need
