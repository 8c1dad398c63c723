"""Order in which transfers take the links in a draft, by a forward pass through its computations."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from orchestrator.evaluation.cost_table import CostTable
from orchestrator.search.flow import SOURCE, Flow


@dataclass(frozen=True)
class Order:
    """Pairs (before, after) of transfers that follow each other on a link.

    Attributes:
        up, down, medium: on the up-link of a sender, on the down-link of a receiver, on a shared medium.
        seconds: latency of the draft.
    """

    up: tuple[tuple[int, int], ...]
    down: tuple[tuple[int, int], ...]
    medium: tuple[tuple[int, int], ...]
    seconds: float


def order_of(flow: Flow, table: CostTable) -> Order:
    """Return the order of the transfers if every device and link serves first what is ready first."""
    outgoing: dict[int, list[int]] = defaultdict(list)
    incoming: dict[int, list[int]] = defaultdict(list)
    for index, channel in enumerate(flow.channels):
        outgoing[channel.producer].append(index)
        incoming[channel.consumer].append(index)
    free: dict[tuple[str, str], float] = defaultdict(float)
    last: dict[tuple[str, str], int] = {}
    pairs: dict[str, list[tuple[int, int]]] = {"up": [], "down": [], "medium": []}
    arrival = [0.0] * len(flow.channels)

    def pass_link(kind: str, name: str, index: int, ready: float, seconds: float) -> float:
        """Put a transfer on a link, behind those that are on it, and return when it has left."""
        if (kind, name) in last:
            pairs[kind].append((last[kind, name], index))
        last[kind, name] = index
        free[kind, name] = max(free[kind, name], ready) + seconds
        return free[kind, name]

    def send(producer: int, now: float) -> None:
        """Send all messages of a computation that ends at `now`."""
        arriving = []
        for index in sorted(outgoing[producer], key=lambda i: (flow.channels[i].consumer, i)):
            channel = flow.channels[index]
            nbytes = flow.bytes_at(channel, flow.edges)
            pair = table.position[channel.sender], table.position[channel.receiver]
            wire = nbytes * float(table.link_seconds[pair])
            left = pass_link("up", channel.sender, index, now, wire)
            for medium in table.media:
                if medium.uses[pair]:
                    left = max(left, pass_link("medium", medium.name, index, now, nbytes / medium.bytes_per_second))
            arriving.append((left + float(table.message_seconds[pair]), index, wire))
        for arrived, index, wire in sorted(arriving):
            receiver = flow.channels[index].receiver
            arrival[index] = max(arrived, pass_link("down", receiver, index, arrived - wire, wire))

    send(SOURCE, 0.0)
    finish: list[float] = []
    for index, compute in enumerate(flow.computes):
        ready = [arrival[i] for i in incoming[index]]
        if compute.previous is not None:
            ready.append(finish[compute.previous])
        finish.append(max(ready, default=0.0) + compute.base + compute.slope * compute.share.at(flow.edges))
        send(index, finish[-1])
    end = [arrival[i] for i in incoming[len(flow.computes)]] + [finish[i] for i in flow.last_at_sink]
    return Order(tuple(pairs["up"]), tuple(pairs["down"]), tuple(pairs["medium"]), max(end, default=0.0))
