"""Names for the nodes of a cluster that people know: those of the configuration, or of the hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coedge.config.cluster_config import ClusterConfig


def label_nodes(
    nodes: Iterable[Mapping[str, Any]], config: ClusterConfig, own_id: str
) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the nodes that are alive by unique labels, and the label of the node with the id `own_id`.

    A node with one device has its name. Others have the name of their host, with as much as makes it unique.
    """
    alive = sorted((n for n in nodes if n["Alive"]), key=lambda n: (n["NodeManagerAddress"], n["NodeID"]))
    names = []
    for node in alive:
        devices = [d.name for d in config.devices if _is_on(d.node, node, own_id)]
        names.append(devices[0] if len(devices) == 1 else node["NodeManagerHostname"])
    names = _distinguished(names, [node["NodeManagerAddress"] for node in alive])
    names = _distinguished(names, [node["NodeID"][:6] for node in alive])
    labelled = {name: dict(node) for name, node in zip(names, alive)}
    return labelled, next((name for name, node in labelled.items() if node["NodeID"] == own_id), "")


def missing_devices(nodes: Iterable[Mapping[str, Any]], config: ClusterConfig) -> tuple[tuple[str, str], ...]:
    """Return the name and the node of each device whose node is not alive."""
    alive = [node for node in nodes if node["Alive"]]
    return tuple(
        (device.name, device.node)
        for device in config.devices
        if device.node is not None and not any(_is_on(device.node, node, "") for node in alive)
    )


def gone_addresses(nodes: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the addresses where a node was and none is alive."""
    by_state: dict[bool, set[str]] = {True: set(), False: set()}
    for node in nodes:
        by_state[bool(node["Alive"])].add(node["NodeManagerAddress"])
    return tuple(sorted(by_state[False] - by_state[True]))


def _is_on(wanted: str | None, node: Mapping[str, Any], own_id: str) -> bool:
    if wanted is None:
        return bool(node["NodeID"] == own_id)
    return wanted in (node["NodeManagerAddress"], node["NodeManagerHostname"], node["NodeID"])


def _distinguished(names: Sequence[str], additions: Sequence[str]) -> list[str]:
    counts = Counter(names)
    return [f"{name} ({more})" if counts[name] > 1 else name for name, more in zip(names, additions)]
