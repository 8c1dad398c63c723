"""The transfers before a stage: what each device fetches from others, and from where each portion then reads.

A device reads what it holds already, because it made it or fetched it earlier. It fetches the rest from the owners.
There is one message per producing stage, needing stage and pair of devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coedge.core.errors import PlanError
from coedge.core.region import Region
from coedge.graph.graph import Graph
from coedge.plan.portions import Needs, covering_parts


@dataclass(slots=True)
class Owner:
    """A device that made a region of a tensor.

    Attributes:
        stage: the stage that made it; -1 for the model's inputs.
        patch: the patch of the device's program that holds it.
        portion: the portion of the device's share that makes it.
    """

    device: str
    region: Region
    stage: int
    patch: int
    portion: int = 0


class PlannedTransfer(NamedTuple):
    """One message before a stage.

    Attributes:
        stages_back: how many stages before the needing stage the rows were made.
        items: (tensor, position among the tensor's owners, region) of every array in the message.
        portion: the last of the sender's portions that makes any of it.
    """

    stages_back: int
    sender: str
    receiver: str
    items: tuple[tuple[str, int, Region], ...]
    portion: int


class PlacedRead(NamedTuple):
    """A region of a tensor with its parts, as (position among the patches of the tensor on the device, region)."""

    tensor: str
    region: Region
    parts: tuple[tuple[int, Region], ...]


class Exchange(NamedTuple):
    """The messages before a stage, and the reads of every portion of every device after them."""

    messages: tuple[PlannedTransfer, ...]
    reads: dict[str, list[list[PlacedRead]]]


def plan_exchange(
    graph: Graph,
    stage: int,
    needs: Mapping[str, Sequence[Needs]],
    owners: Mapping[str, Sequence[Owner]],
    held: Mapping[str, Mapping[str, Sequence[Region]]],
) -> Exchange:
    """Plan the transfers before a stage.

    Args:
        needs: per device and portion, the regions that it reads.
        owners: the owners of each tensor.
        held: per device and tensor, the regions that the device holds.

    Raises:
        PlanError: a needed region has no owner, which is a defect of the planner.
    """
    messages: dict[tuple[int, str, str], list[tuple[str, int, Region]]] = defaultdict(list)
    for name, portions in needs.items():
        for tensor, region in _hulls(portions).items():
            for hole in _parts(graph, owners, held[name].get(tensor, ()), tensor, region)[1]:
                for position, owner in enumerate(owners[tensor]):
                    part = hole.intersection(owner.region)
                    if owner.device != name and not part.empty:
                        messages[owner.stage, owner.device, name].append((tensor, position, part))
    transfers, received = [], defaultdict[tuple[str, str], list[Region]](list)
    for (made, sender, receiver), items in sorted(messages.items(), key=lambda item: item[0]):
        last = max(owners[tensor][position].portion for tensor, position, _ in items)
        transfers.append(PlannedTransfer(stage - made, sender, receiver, tuple(items), last))
        for tensor, _, part in items:
            received[receiver, tensor].append(part)
    reads = {}
    for name, portions in needs.items():
        tensors = {tensor for portion in portions for tensor, _ in portion}
        present = {t: [*held[name].get(t, ()), *received.get((name, t), ())] for t in tensors}
        reads[name] = [
            [_placed_read(graph, owners, present[tensor], tensor, region) for tensor, region in portion]
            for portion in portions
        ]
    return Exchange(tuple(transfers), reads)


def _hulls(portions: Sequence[Needs]) -> dict[str, Region]:
    """Return the region of each tensor that several portions need together."""
    hulls: dict[str, Region] = {}
    for portion in portions:
        for tensor, region in portion:
            hulls[tensor] = hulls[tensor].hull(region) if tensor in hulls else region
    return hulls


def _placed_read(
    graph: Graph, owners: Mapping[str, Sequence[Owner]], held: Sequence[Region], tensor: str, region: Region
) -> PlacedRead:
    parts, missing = _parts(graph, owners, held, tensor, region)
    if missing:
        raise PlanError(f"no device owns {missing[0]} of {tensor!r}: this is a defect of the planner")
    return PlacedRead(tensor, region, tuple(sorted(parts, key=lambda part: part[1])))


def _parts(
    graph: Graph, owners: Mapping[str, Sequence[Owner]], held: Sequence[Region], tensor: str, region: Region
) -> tuple[list[tuple[int, Region]], list[Region]]:
    """Return the parts of a region that a device holds, as (position, region), and the regions that it lacks."""
    if not graph.tensors[tensor].partial_extent:
        return covering_parts(held, region)
    # A partial result is one sum over its region. It cannot be cut, so every owner's is read whole.
    position_of = {share: position for position, share in enumerate(held)}
    lacking = [owner.region for owner in owners[tensor] if owner.region not in position_of]
    return [(position, share) for share, position in position_of.items()], lacking
